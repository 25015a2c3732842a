"""Locks on a stack's state, and the Terraforms of this machine that may hold one."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.run import files

INTERRUPT_GRACE_S = 120.0
"""Terraform told to stop finishes what it began and writes its state; killing it would leak that."""


class Locked(NexaError):
    """Lock of the remote state that somebody else holds."""


@dataclass(frozen=True)
class Lock:
    """Lock of a remote state and its holder, as Terraform tells it."""

    id: str
    who: str
    since: str


def lock_in(error: str) -> Lock | None:
    """Lock that `error` (Terraform's words) names, None when it is about something else."""
    found: dict[str, str] = {}
    for line in error.splitlines():
        key, colon, value = line.strip(" │").partition(":")
        if colon and key.strip() in ("ID", "Who", "Created"):
            found[key.strip()] = value.strip()
    return Lock(found["ID"], found["Who"], found.get("Created", "?")) if {"ID", "Who"} <= set(found) else None


def busy(hold: Path) -> int | None:
    """Pid of a Terraform that a killed command left at work, with `hold` open; None when none is alive."""
    return int(files.read_text(hold) or 0) if files.held(hold) else None


def settle(hold: Path, chdir: Path, say: Callable[[str], None], *, interrupt: bool) -> None:
    """Wait until a Terraform of a killed command has ended, so that its state is written. Bounded.

    Raises NexaError when it does not end.
    """
    pid = busy(hold)
    if pid is None:
        return
    say(f"a Terraform of a killed command is still at work (pid {pid}): " + ("stopping it" if interrupt else "waiting"))
    for living, folder in _living() if interrupt else ():
        if folder == chdir:  # and not a number that was given away again
            with contextlib.suppress(ProcessLookupError):
                os.kill(living, signal.SIGINT)
    until = time.monotonic() + (INTERRUPT_GRACE_S if interrupt else 900.0)
    while time.monotonic() < until:
        if busy(hold) is None:
            return
        time.sleep(0.2)
    raise NexaError(
        f"Terraform (pid {pid}) of an earlier command does not end",
        hint=f"look at it, then: kill {pid}" if pid else f"fuser {hold} names it",
    )


def refuse_living(lock: Lock, hold: Path, chdir: Path, remote: bool) -> None:
    """Check that a lock's holder is proven dead: it was taken on this machine by this user, and no Terraform lives
    here that works on this state, from this folder or another. Raises Locked when that is not so."""
    us = f"{_user()}@{socket.gethostname()}"
    alive = busy(hold) is not None or any(_backend(folder) == _backend(chdir) for _, folder in _living())
    if lock.who != us or alive or not remote:  # the kernel takes away the lock of a local state itself
        raise Locked(
            f"the state is locked by {lock.who} since {lock.since}",
            hint=f"if you know that it is dead: terraform -chdir={chdir} force-unlock {lock.id}",
        )


def _user() -> str:
    """Our name as Terraform writes it into a lock, whatever $USER says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER", "")


def _living() -> Iterator[tuple[int, Path]]:
    """Every Terraform on this machine that we may look at: its pid, and the folder of its stack."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            named = [os.fsdecode(word.removeprefix(b"-chdir=")) for word in words if word.startswith(b"-chdir=")]
            if named or Path(os.readlink(process / "exe")).name.startswith(("terraform", "tofu")):
                yield int(process.name), Path(os.readlink(process / "cwd"), *named)


def _backend(chdir: Path) -> Any:
    """Backend of a stack's state; None when no nexa has said it."""
    with contextlib.suppress(NexaError):
        return files.read_json(chdir / "backend_override.tf.json")
    return None
