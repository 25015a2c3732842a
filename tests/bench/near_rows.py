"""How well near duplicates are found and what that costs: `tests.bench.near_rows [ROWS [COST_ROWS]]`.

ROWS texts of 100 random words come in families of four: a text, and three with one to twelve of its words replaced. The
largest Jaccard similarity of each to an earlier one (of the sets of runs of three words, exactly) is known, and so are
precision and recall. Then datasketch's objects and the stage's arrays look through COST_ROWS texts, in processes of
their own.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

THRESHOLD = 0.8
PROBE = """
import resource, sys
from tests.bench.near_rows import {name}
before = resource.getrusage(resource.RUSAGE_SELF)
count = {name}({rows}, {permutations})
after = resource.getrusage(resource.RUSAGE_SELF)
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(count, spent)
"""


def families(rows: int, seed: int = 0) -> tuple[list[str], list[float]]:
    """Texts, and the largest Jaccard similarity of each to an earlier one of its family; of others it is about 0."""
    chance = random.Random(seed)
    made: list[str] = []
    best: list[float] = []
    while len(made) < rows:
        first = [f"w{chance.randrange(36**4):x}" for _ in range(100)]
        runs: list[set[tuple[str, ...]]] = []
        for number in range(4):
            words = first[:]
            for at in chance.sample(range(100), chance.randint(1, 12) if number else 0):
                words[at] = f"w{chance.randrange(36**4):x}"
            mine = set(zip(words, words[1:], words[2:], strict=False))
            best.append(max((len(mine & one) / len(mine | one) for one in runs), default=0.0))
            runs.append(mine)
            made.append(" ".join(words))
    order = list(range(0, len(made), 4))
    chance.shuffle(order)  # families are not side by side
    picked = [at + number for number in range(4) for at in order]
    return [made[at] for at in picked], [best[at] for at in picked]


def arrays_of(texts: list[str], permutations: int) -> list[bool]:
    """Which of the texts the stage drops."""
    import polars as pl

    from nexa_dist.stages.data.shingles import near_duplicates, shingles, signatures

    with tempfile.TemporaryDirectory() as scratch:
        parts = (
            signatures(*shingles(pl.Series(texts[at : at + 50_000]), 3), permutations, 0)
            for at in range(0, len(texts), 50_000)
        )
        found = near_duplicates(parts, len(texts), THRESHOLD, Path(scratch, "near"), lambda: None)
    return [bool(one) for one in found]


def objects_of(texts: list[str], permutations: int) -> list[bool]:
    """The same with a MinHash and an entry of MinHashLSH for each text, in the way of datasketch's own examples."""
    from datasketch import MinHash, MinHashLSH

    index, known, found = MinHashLSH(threshold=THRESHOLD, num_perm=permutations), {}, []
    for number, text in enumerate(texts):
        words = text.split()
        mine = MinHash(permutations, 0)
        mine.update_batch([" ".join(one).encode() for one in zip(words, words[1:], words[2:], strict=False)])
        found.append(any(mine.jaccard(known[other]) >= THRESHOLD for other in index.query(mine)))
        known[number] = mine
        index.insert(number, mine)
    return found


def arrays(rows: int, permutations: int) -> int:
    return sum(arrays_of(families(rows)[0], permutations))


def objects(rows: int, permutations: int) -> int:
    return sum(objects_of(families(rows)[0], permutations))


def only_texts(rows: int, permutations: int) -> int:
    """What both spend before they begin."""
    return len(families(rows)[0])


def quality(rows: int, permutations: int) -> None:
    texts, best = families(rows)
    for name, way in (("the stage", arrays_of), ("datasketch", objects_of)):
        found = way(texts, permutations)
        right = sum(drop and like >= THRESHOLD for drop, like in zip(found, best, strict=True))
        told = [f"{right / max(1, sum(found)):.3f} of what goes is as like as {THRESHOLD:g}"]
        for low, high in ((0.0, 0.7), (0.7, 0.75), (0.75, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 1.01)):
            there = [drop for drop, like in zip(found, best, strict=True) if low <= like < high]
            told.append(f"{low:g}-{min(high, 1):g}: {sum(there) / max(1, len(there)):.3f} of {len(there)}")
        recall = right / sum(like >= THRESHOLD for like in best)
        print(f"{permutations} permutations, {name}: recall {recall:.3f}, precision: {', goes '.join(told)}")


def cost(rows: int, permutations: int) -> None:
    told = {}
    for name in ("only_texts", "objects", "arrays"):
        code = PROBE.format(name=name, rows=rows, permutations=permutations)
        said = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        told[name] = int(said[0]), float(said[1]), float(said[2])
    _, began, held = told.pop("only_texts")
    for name, (count, spent, peak) in told.items():
        print(f"{name}: {count} of {rows} go, {spent - began:.1f} s of CPU, {(peak - held) / rows:,.0f} bytes a row")
    print(f"objects take {(told['objects'][1] - began) / (told['arrays'][1] - began):.1f} x the CPU seconds of arrays")


def main(rows: int = 8_000, cost_rows: int = 40_000) -> None:
    for permutations in (64, 128):
        quality(rows, permutations)
    cost(cost_rows, 64)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
