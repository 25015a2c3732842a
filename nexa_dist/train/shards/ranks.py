"""The ranks in gloo groups of their own, so that a save in the background meets no collective of the training."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nexa_dist.errors import NexaError
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded

T = TypeVar("T")
LIMIT = timedelta(hours=4)
"""For the slowest rank's files: a rank that is gone ends the others at once, without it."""
CHUNK_BYTES = 8 << 20
"""What a file takes of memory on its way, on either side."""


@dataclass(frozen=True)
class Move:
    """A file that one rank sends to another."""

    name: str
    bytes: int
    sha256: str
    source: int
    target: int


class Group:
    """Some of the ranks. Every rank makes it, and those in it call `gather` and `agree` in one order."""

    def __init__(self, members: Sequence[int] | None = None) -> None:
        alone = not dist.is_initialized()
        self._group: Any = None if alone else dist.new_group(members, timeout=LIMIT, backend="gloo")
        self.members = [0] if alone else list(members or range(dist.get_world_size()))

    def gather(self, value: T) -> list[T]:
        """The value of every rank of the group, in rank order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * len(self.members)
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise NexaError(f"the ranks lost each other: {str(error).splitlines()[0]}") from error
        return values

    def agree(self, act: Callable[[], T]) -> list[T]:
        """What `act` returned on every rank. When it raised on any, the same NexaError (or Superseded) on all."""
        value: Any = None
        told: tuple[bool, str, str] | None = None
        cause: Exception | None = None
        try:
            value = act()
        except Exception as error:  # whatever it is, the others must hear of it
            words = str(error) if isinstance(error, (NexaError, OSError)) else f"{type(error).__name__}: {error}"
            cause, told = error, (isinstance(error, Superseded), words, getattr(error, "hint", ""))
        answers = self.gather((value, told))
        failed = [(*answer[1], rank) for rank, answer in zip(self.members, answers, strict=True) if answer[1]]
        if failed:
            superseded, words, hint, rank = max(failed, key=lambda one: one[0])
            raise (Superseded if superseded else NexaError)(f"rank {rank}: {words}", hint=hint) from cause
        return [answer[0] for answer in answers]

    def move(self, moves: Sequence[Move], folder: Path, source: Callable[[str], Path]) -> None:
        """Every rank sends and receives its part of `moves`, in their order, a chunk at a time: into `folder`, from
        where `source` finds it. Raises what went wrong here, once nobody waits for this rank any more."""
        rank = dist.get_rank() if moves else 0
        errors: list[Exception] = []
        mine = [move for move in moves if move.source == rank]
        sender = threading.Thread(target=self._send, args=(mine, source, errors), daemon=True, name="send")
        sender.start()
        for move in moves:
            if move.target == rank:
                self._receive(move, folder / move.name, errors)
        sender.join()
        if errors:
            raise errors[0]

    def _send(self, moves: Sequence[Move], source: Callable[[str], Path], errors: list[Exception]) -> None:
        """A file that cannot be read is sent as anything: who waits for it finds out by its hash."""
        for move in moves:
            buffer, at = bytearray(min(CHUNK_BYTES, move.bytes)), 0
            while at < move.bytes:
                part = memoryview(buffer)[: min(move.bytes - at, CHUNK_BYTES)]
                try:
                    with open(source(move.name), "rb") as file:
                        file.seek(at)
                        file.readinto(part)
                except OSError as error:
                    errors.append(error)
                try:
                    dist.send(torch.frombuffer(part, dtype=torch.uint8), move.target, group=self._group)
                except RuntimeError as error:
                    errors.append(error)
                    return
                at += len(part)

    def _receive(self, move: Move, path: Path, errors: list[Exception]) -> None:
        """A full disk does not keep the sender waiting: the rest is taken and thrown away."""
        buffer, left, hashed = bytearray(min(CHUNK_BYTES, move.bytes)), move.bytes, hashlib.sha256()
        with contextlib.ExitStack() as opened:
            file: Any = None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(open(path, "xb", buffering=0))
            except OSError as error:
                errors.append(error)
            while left:
                part = memoryview(buffer)[: min(left, CHUNK_BYTES)]
                dist.recv(torch.frombuffer(part, dtype=torch.uint8), move.source, group=self._group)
                hashed.update(part)
                left -= len(part)
                try:
                    while file is not None and len(part):
                        part = part[file.write(part) :]
                except OSError as error:
                    errors.append(error)
                    file = None
            if file is not None:
                os.fsync(file.fileno())
        if hashed.hexdigest() != move.sha256:
            errors.append(NexaError(f"{move.name} arrived damaged from rank {move.source}"))


class Ranks:
    """How the ranks lie on the nodes. `nodes`: the ranks of each; `node`: the number of this rank's."""

    def __init__(self, env: RankEnv) -> None:
        self.everyone = Group()
        self.nodes: list[list[int]] = []
        for rank, local in enumerate(self.everyone.gather(env.local_rank)):
            if local == 0:
                self.nodes.append([])
            if not self.nodes or local != len(self.nodes[-1]):
                raise NexaError(f"rank {rank} is local rank {local} of its node: the ranks of a node must be in a row")
            self.nodes[-1].append(rank)
        self.node = next(number for number, ranks in enumerate(self.nodes) if env.rank in ranks)
        self.leaders = Group([ranks[0] for ranks in self.nodes])
        self.leads = env.local_rank == 0

    def on_leaders(self, act: Callable[[], T]) -> list[T]:
        """`act` on the first rank of each node, in the nodes' order; an error of one on all ranks."""
        answers = self.everyone.agree(lambda: act() if self.leads else None)
        return [answers[ranks[0]] for ranks in self.nodes]  # type: ignore[misc]

    def carry(self, name: str, about: dict[str, Any], source: int, target: int, turn: int) -> Move:
        """A file from one node to another; its `turn` spreads the work over their ranks."""
        there, here = self.nodes[source], self.nodes[target]
        return Move(name, about["bytes"], about["sha256"], there[turn % len(there)], here[turn % len(here)])
