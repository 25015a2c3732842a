"""Backends hf (DDP), acc (FSDP2), ds (ZeRO-2) and ax (Axolotl) beside torchrun by hand, on one model, text and batch.

Each round trains every way once to a checkpoint, ends, and takes the training up again; the order moves on from round
to round, so that a busy machine is the same for all. A ratio is that of one round to the hand-written loop of the same
round; shown are medians with the least and the most. Tokens/s are of steps without a save, and so are the CPU seconds
of all ranks for 1000 tokens, which a busy machine changes less. Memory is the peak of the largest rank: resident
(VmHWM) on CPUs, allocated (torch.cuda.max_memory_allocated) on GPUs. A save by hand is one torch.save; nexa's are
hashed, fsynced and verified. Start and resume are from the command to the first step.
`--gpu`: a larger model in bf16 on all GPUs of this machine, as many rounds as fit into 9 minutes; DeepSpeed and Axolotl
hold the weights themselves in bf16 then. NEXA_PYTHON names an interpreter with CUDA's torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.train.files import CPU, GPU
from tests.bench.train.ways import HAND, WAYS, Failed, Place, interpreter

WORDS = {HAND: "torchrun by hand", "hf": "nexa hf", "acc": "nexa acc", "ds": "nexa ds", "ax": "nexa ax"}


@dataclass(frozen=True)
class Measured:
    """One way in one round; seconds, and bytes of the largest rank."""

    name: str
    turn: int
    parallel: str
    tokens_per_s: float
    cpu_s: float
    """Of all ranks, for 1000 tokens."""
    peak_bytes: int
    save_s: float
    start_s: float
    resume_s: float
    losses: list[float]
    """Of step 1, and the mean of those after it, up to the save."""


FIGURES: dict[str, tuple[Callable[[Measured], float], str]] = {
    "tokens/s": (lambda one: one.tokens_per_s, ",.0f"),
    "CPU s a 1000": (lambda one: one.cpu_s, ".2f"),
    "peak MB a rank": (lambda one: one.peak_bytes / 1e6, ",.0f"),
    "save s": (lambda one: one.save_s, ".2f"),
    "start s": (lambda one: one.start_s, ".1f"),
    "resume s": (lambda one: one.resume_s, ".1f"),
}


def measure(place: Place, name: str, turn: int) -> Measured:
    """A training to its end, and another that takes it up. Raises Failed."""
    size, run = place.size, place.folder / f"{name}-{turn}"
    run.mkdir()
    try:
        began, ranks = place.train(name, run, size.steps)
        result = run / "result.json"
        parallel = json.loads(result.read_text())["parallel"] if name != HAND else "DDP" if place.nproc > 1 else "none"
        again_began, again = place.train(name, run, size.steps + 2)
    finally:
        shutil.rmtree(run)
    if {rank["total"] for rank in again} != {2}:
        raise Failed(f"it was to take up step {size.steps} and make 2 more: {again}")
    took_s = max(rank["stepped"] - rank["warm"] for rank in ranks)
    tokens = ranks[0]["steps"] * size.batch * size.tokens * place.nproc
    return Measured(
        name,
        turn,
        parallel,
        tokens / took_s,
        1000 * sum(rank["cpu_s"] for rank in ranks) / tokens,
        max(rank["peak_bytes"] for rank in ranks),
        max(rank["saved"] for rank in ranks) - max(rank["stepped"] for rank in ranks),
        max(rank["first"] for rank in ranks) - began,
        max(rank["first"] for rank in again) - again_began,
        ranks[0]["losses"][:2],
    )


def ready(place: Place, names: list[str]) -> list[str]:
    """Those that can run here; of the others it is said why not."""
    kept = []
    for name in names:
        try:
            if not place.pythons[name]:
                raise Failed(f"no environment with it was found; --python {name}=PYTHON names one")
            if name not in (HAND, "hf"):  # hf's data is there, by hand there is nothing to prepare
                place.prepare(name, place.pythons[name])
            kept.append(name)
        except Failed as error:
            say(f"{WORDS[name]}: left out: {error}")
    return kept


def rounds(place: Place, names: list[str], count: int) -> list[Measured]:
    """Round after round, while the next one will fit before the end of the time."""
    found, longest = list[Measured](), 0.0
    for turn in range(count):
        began = time.monotonic()
        if began + longest > place.end:
            say(f"no time for round {turn + 1}: the longest took {longest:.0f} s")
            break
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            try:
                one = measure(place, name, turn)
            except Failed as error:
                say(f"  {turn + 1}/{count} {name} failed: {error}")
                continue
            found.append(one)
            say(f"  {turn + 1}/{count} {name}: {one.tokens_per_s:,.0f} tokens/s, save {one.save_s:.2f} s")
        longest = max(longest, time.monotonic() - began)
    return found


def ratios(found: list[Measured], name: str, figure: Callable[[Measured], float]) -> list[float]:
    """To the hand-written loop of the same round."""
    floors = {one.turn: figure(one) for one in found if one.name == HAND}
    return [figure(one) / floors[one.turn] for one in found if one.name == name and one.turn in floors]


def table(found: list[Measured], names: list[str]) -> list[str]:
    """Lines: of each figure the median, and the ratio to torchrun by hand, median (least–most)."""
    lines = [f"{'':18}{'':8}" + "".join(f"{label:>27}" for label in FIGURES) + f"{'loss':>16}"]
    for name in names:
        mine = [one for one in found if one.name == name]
        if not mine:
            lines.append(f"{WORDS[name]:18}failed in every round")
            continue
        cells = []
        for figure, form in FIGURES.values():
            value, parts = format(statistics.median(map(figure, mine)), form), ratios(found, name, figure)
            spread = f"{statistics.median(parts):.2f} ({min(parts):.2f}–{max(parts):.2f})" if parts else "no floor"
            cells.append(value if name == HAND else f"{value} × {spread}")
        losses = " → ".join(f"{loss:.3f}" for loss in mine[-1].losses)
        lines.append(
            f"{WORDS[name]:18}{mine[-1].parallel:8}" + "".join(f"{cell:>27}" for cell in cells) + f"{losses:>16}"
        )
    return lines


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nproc", type=int, help="ranks; without it 2, with --gpu one a GPU")
    parser.add_argument("--only", default=",".join(WAYS), help="ways, of: %(default)s")
    parser.add_argument(
        "--python", action="append", default=[], metavar="WAY=PYTHON",
        help="interpreter of a way (ds=/envs/ds/bin/python); without it this one, NEXA_TEST_DEEPSPEED for ds, or an"
        " environment that a local node made; a way without one is left out",
    )  # fmt: skip
    parser.add_argument("--gpu", action="store_true", help="on GPUs: one command, under ten minutes")
    parser.add_argument("--minutes", type=float, help="begin no round that would end later; 9 with --gpu")
    parser.add_argument("--json", action="store_true", help="every single measurement, on stdout")
    args = parser.parse_args()
    args.pythons = dict(words.split("=", 1) for words in args.python if "=" in words)
    for words in [*args.only.split(","), *args.pythons]:
        if words not in WAYS:
            parser.error(f"{words}: the ways are {', '.join(WAYS)}")
    if len(args.pythons) < len(args.python):
        parser.error("--python is WAY=PYTHON")
    return args


def ranks_here(args: argparse.Namespace) -> tuple[int, str]:
    """How many ranks, and on what, in words."""
    if not args.gpu:
        return args.nproc or 2, f"{os.cpu_count()} CPUs"
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"error: --gpu, and torch {torch.__version__} finds no GPU here")
    return args.nproc or torch.cuda.device_count(), torch.cuda.get_device_name()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ranks end and the folder goes
    end = time.monotonic() + 60 * (args.minutes or (9 if args.gpu else 1e6))
    nproc, where = ranks_here(args)
    names = [HAND, *(name for name in args.only.split(",") if name != HAND)]
    pythons = {name: args.pythons.get(name) or interpreter(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="nexa-bench-train-") as folder:
        place = Place(Path(folder), GPU if args.gpu else CPU, pythons, nproc, gpu=args.gpu, end=end)
        try:
            parameters = place.make()
        except Failed as error:
            sys.exit(f"error: backend hf cannot prepare the data: {error}")
        names = ready(place, names)
        found = rounds(place, names, args.rounds)
    if args.json:
        print(json.dumps([asdict(one) for one in found]))
        return 0
    size = place.size
    print(
        f"{nproc} ranks on {where}, {parameters / 1e6:.1f} M parameters, {place.files.precision},"
        f" batch {size.batch} × {size.tokens} tokens a rank,"
        f" {len({one.turn for one in found})} interleaved rounds: median × ratio to by hand (least–most)"
    )
    print("\n".join(table(found, names)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
