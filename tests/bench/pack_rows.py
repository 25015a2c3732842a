"""Windows of tokens by the stage data's way beside a loop over the rows: python -m tests.bench.pack_rows [ROWS].

Both use the same tokenizer (BPE of 2000 tokens, trained here on the help texts of Python), which the loop asks for a
row after the other. They take turns; the medians of five rounds are compared, and both must make the same windows.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

LENGTH = 512


def corpus(rows: int) -> list[str]:
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    return [" ".join(words[at * 37 % (len(words) - 60) :][:60]) for at in range(rows)]


def loop(tokens: Any, texts: list[str]) -> list[list[int]]:
    made, window = [], list[int]()
    for text in texts:
        ids = tokens.encode(text).ids
        if len(window) + len(ids) > LENGTH:
            made.append(window + [0] * (LENGTH - len(window)))
            window = []
        window += ids
    return [*made, window + [0] * (LENGTH - len(window))]


def stage(tokens: Any, texts: list[str]) -> list[list[int]]:
    from nexa_dist.stages.data.pack import windows

    return [one[0] for one in windows((one.ids for one in tokens.encode_batch(texts)), LENGTH)]


def main(rows: int = 10_000) -> int:
    import tokenizers

    tokens: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = corpus(rows)
    tokens.train_from_iterator(texts[:2000], tokenizers.trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    took: dict[Callable[..., list[list[int]]], list[tuple[float, float]]] = {loop: [], stage: []}
    made = []
    for _ in range(5):
        for way, times in took.items():
            wall, cpu = time.monotonic(), time.process_time()
            made.append(way(tokens, texts))
            times.append((time.monotonic() - wall, time.process_time() - cpu))
    (alone, alone_cpu), (ours, ours_cpu) = (
        tuple(statistics.median(one) for one in zip(*times, strict=True)) for times in took.values()
    )
    print(f"{rows} rows, {len(made[0])} windows of {LENGTH} tokens, {os.cpu_count()} cores")
    print(f"a row at a time: {alone:.2f} s ({alone_cpu:.2f} of CPU), the stage: {ours:.2f} s ({ours_cpu:.2f} of CPU)")
    print(f"the stage takes {alone / ours:.2f} x as many rows a second")
    return 0 if all(one == made[0] for one in made) else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
