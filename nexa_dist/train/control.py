"""Messages between the ranks, small ones over gloo, and the stop that they agree on."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from nexa_dist.train.env import RankEnv

EXIT_STOPPED = 128 + signal.SIGTERM


def join(env: RankEnv) -> None:
    """Start the process group, if there is more than one rank: gloo on CPU, NCCL beside it on CUDA."""
    if torch.cuda.is_available():
        torch.cuda.set_device(env.local_rank)
    if env.world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """End the process group together: torchrun ends the ranks that are left when one has gone."""
    if dist.is_initialized():
        gather(None)
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_on_zero(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on rank 0; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def from_zero(value: Any) -> Any:
    """Rank 0's value on every rank. Also a barrier: nobody leaves before rank 0 came."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def total(values: Sequence[float]) -> list[float]:
    """Sums over the ranks, in float64."""
    sums = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return [float(value) for value in sums]


class StopSignal:
    """SIGTERM as a wish: the step in progress is finished first. All ranks see it at the same step."""

    def __init__(self) -> None:
        self.wanted = False
        self.agreed = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted = True

    def agree(self) -> bool:
        """Whether any rank got the signal. A collective: every rank calls it after every step."""
        flag = torch.tensor(float(self.wanted))
        if dist.is_initialized():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self.agreed = bool(flag)
        return self.agreed
