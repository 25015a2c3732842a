"""Messages between the ranks, small ones over gloo, and the stop that they agree on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from nexa_dist.errors import NexaError
from nexa_dist.train.env import RankEnv

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""After which a collective has failed: NCCL's own 10 minutes are less than a save to a slow store may take."""
EXIT_STOPPED = 128 + signal.SIGTERM


def join(env: RankEnv) -> None:
    """Start the process group, if there is more than one rank: gloo on CPU, NCCL beside it on CUDA."""
    if torch.cuda.is_available():
        torch.cuda.set_device(env.local_rank)
    if env.world_size > 1:
        kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(kinds, timeout=COLLECTIVE_TIMEOUT)
        if not torch.cuda.is_available():
            _answer_flight(env.rank)


def _answer_flight(rank: int) -> None:
    """Dump the last collectives of gloo when the agent asks for it, as NCCL's monitor does those of NCCL."""
    pipe, dump = (os.environ.get(f"TORCH_{name}") for name in ("NCCL_DEBUG_INFO_PIPE_FILE", "FR_DUMP_TEMP_FILE"))
    recorded = getattr(torch._C._distributed_c10d, "_dump_fr_trace", None)
    if not pipe or not dump or recorded is None:
        return

    def answer() -> None:
        with contextlib.suppress(OSError), open(f"{pipe}{rank}.pipe", "rb") as asked:
            if asked.read(1):
                path = Path(f"{dump}{rank}")
                path.with_name(f".tmp-{path.name}").write_bytes(recorded(True, False, False))
                path.with_name(f".tmp-{path.name}").rename(path)

    with contextlib.suppress(OSError):
        os.mkfifo(f"{pipe}{rank}.pipe", 0o600)
        threading.Thread(target=answer, name="flight recorder", daemon=True).start()


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


def on_zero(action: Callable[[], T]) -> T:
    """What `action` returned on rank 0, on every rank; or the NexaError that it raised, on every rank. Also a barrier:
    nobody leaves before rank 0 came."""
    error: NexaError | None = None
    result: T | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            result = action()
        except NexaError as raised:
            error = raised
    box: list[Any] = [(result, error and (str(error), error.hint))]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    result, told = box[0]
    if error is not None:
        raise error
    if told is not None:
        raise NexaError(f"rank 0: {told[0]}", hint=told[1])
    return cast(T, result)


def total(values: Sequence[float]) -> list[float]:
    """Sums over the ranks, in float64."""
    sums = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return [float(value) for value in sums]


def settle_buckets(model: torch.nn.Module, loss: Callable[[], Any]) -> None:
    """One forward and backward pass for nothing, before step 1. `loss` makes the pass and returns a scalar tensor.

    DDP lays its gradient buckets out anew after the first backward pass. From three ranks on the layout decides the
    order of the sums, so the first step of a resume would round unlike the same step unbroken. Random numbers of the
    pass (dropout) are given back.
    """
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        loss().backward()
    model.zero_grad(set_to_none=True)


class StopSignal:
    """SIGTERM as a wish: the step in progress is finished first. All ranks see it at the same step."""

    def __init__(self) -> None:
        self.agreed = False
        self.at: float | None = None
        """time.monotonic() of the signal: of this rank's own, once agreed of the first that any rank got."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self.at is None:
            self.at = time.monotonic()

    def agree(self) -> bool:
        """Whether any rank got the signal. A collective: every rank calls it after every step."""
        now, at = time.monotonic(), self.at
        age_s = torch.tensor(-1.0 if at is None else now - at)
        if dist.is_initialized():
            dist.all_reduce(age_s, op=dist.ReduceOp.MAX)
        self.agreed = float(age_s) >= 0
        if self.agreed:
            self.at = now - float(age_s)
        return self.agreed
