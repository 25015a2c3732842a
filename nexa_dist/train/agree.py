"""What all ranks must agree on before step 1: the data, and the checkpoint to start from. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint
from nexa_dist.train.env import RankEnv


def check_same(what: str, values: Sequence[object], hint: str) -> None:
    """Raise NexaError, naming the ranks, unless all `values` (in rank order) are equal."""
    others = [rank for rank, value in enumerate(values) if value != values[0]]
    if others:
        theirs = ", ".join(f"rank {rank} has {values[rank]}" for rank in others)
        raise NexaError(f"{what} differs: rank 0 has {values[0]}, {theirs}", hint=hint)


def local_step(env: RankEnv) -> int | str | None:
    """What this rank says of the start: its step (0 for a fresh one), what is wrong, or None.

    Only one rank a node reads and verifies the checkpoint; the others say None.
    """
    if env.local_rank != 0:
        return None
    if env.resume_from is None:
        found = checkpoint.newest_whole(env.checkpoints)
        return found[0] if found else 0
    problems = checkpoint.verify(env.resume_from)
    if problems:
        return f"checkpoint {env.resume_from} is damaged: {problems[0]}"
    step = int(checkpoint.manifest(env.resume_from)["step"])
    if env.resume_step not in (None, step):
        return f"checkpoint {env.resume_from} is of step {step}, NEXA_RESUME_STEP is {env.resume_step}"
    return step


def start(env: RankEnv, entries: Sequence[int | str | None]) -> tuple[int, Path] | None:
    """(step, checkpoint on this node) to start from, None for a fresh start.

    `entries` is `local_step` of every rank, in rank order. Raises the same NexaError on every rank.
    """
    for rank, entry in enumerate(entries):
        if isinstance(entry, str):
            raise NexaError(f"rank {rank}: {entry}", hint="resume from an older checkpoint, or from the durable copy")
    steps = {rank: entry for rank, entry in enumerate(entries) if isinstance(entry, int)}
    if len({*steps.values()}) != 1:
        each = ", ".join(f"rank {rank} at step {step}" for rank, step in steps.items())
        raise NexaError(
            f"the nodes would start from different steps: {each}",
            hint="`nexa run --resume` sends rank 0's checkpoint to every node; or set NEXA_RESUME_FROM",
        )
    step = steps[0]
    return (step, env.resume_from or env.checkpoints / f"step_{step:08d}") if step else None
