"""The one seam to the outside: local programs, and through them ssh."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from nexa_dist.errors import NexaError
from nexa_dist.run.files import take


@dataclass(frozen=True)
class Result:
    """How a program ended. `code` is negative for a signal, 127 when it could not be started."""

    argv: tuple[str, ...]
    code: int
    out: bytes = b""
    err: bytes = b""

    def tail(self, lines: int = 12) -> str:
        """The last words of the program, stderr first, for an error message."""
        text = (self.err or self.out).decode(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True)
class Stream:
    """A running program: its standard output, how to end it (safe to call twice, from any thread), and how to send
    it more (what it no longer reads is dropped). Its standard input is open until the end, its own or ours: when we
    are killed the kernel closes it, so the program learns of that."""

    out: IO[bytes]
    end: Callable[[], None]
    send: Callable[[bytes], None]


class CommandFailed(NexaError):
    """A program ended badly; carries its result."""

    def __init__(self, what: str, result: Result, hint: str = "") -> None:
        super().__init__(f"{what} failed (exit {result.code}): {result.tail()}", hint=hint)
        self.result = result


class Runner(Protocol):
    """How every other module starts a program. `argv` is never read by a local shell."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | IO[bytes] = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        grace_s: float = 5.0,
    ) -> Result:
        """Runs to the end. `on_line` gets stdout and stderr as they come; `grace_s` lies between
        SIGTERM and SIGKILL when the time is up or the controller is interrupted. Exit 124: time-out."""
        ...

    def run_logged(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        on_line: Callable[[str], None],
        hold: Path,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        grace_s: float = 5.0,
    ) -> Result:
        """Runs to the end with all output in the file `log`, each line also to `on_line` as it comes.

        For what must end in its own order even when we are killed: writing to the pipe of a dead reader would kill
        it half way. The file `hold` stays locked (flock) as long as the program or a child of it lives, and
        names its pid. Raises NexaError while another holds it.
        """
        ...

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        """Starts a program whose output is read while it runs, with `stdin` as its first input. The caller calls
        `end`. Raises OSError when it cannot be started."""
        ...


class SystemRunner:
    """Starts programs for real, each in its own session, so that Ctrl-C reaches only the controller."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | IO[bytes] = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        grace_s: float = 5.0,
    ) -> Result:
        data = stdin if isinstance(stdin, bytes) else None
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if on_line else subprocess.PIPE,
                env=None if env is None else {**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            return Result(tuple(argv), 127, err=str(error).encode())
        try:
            if on_line:
                return self._by_line(child, argv, on_line, timeout_s, grace_s)
            out, err = child.communicate(data, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_draining(child, grace_s)
            return Result(tuple(argv), 124, err=f"no answer within {timeout_s:.0f} s".encode())
        except BaseException:
            _end_draining(child, grace_s)
            raise
        return Result(tuple(argv), child.returncode, out, err)

    @staticmethod
    def _by_line(
        child: subprocess.Popen[bytes],
        argv: Sequence[str],
        on_line: Callable[[str], None],
        timeout_s: float,
        grace_s: float,
    ) -> Result:
        assert child.stdin and child.stdout
        child.stdin.close()
        late = threading.Event()

        def out_of_time() -> None:
            late.set()
            end(child, grace_s)

        timer = threading.Timer(timeout_s, out_of_time)
        timer.start()
        kept: deque[bytes] = deque(maxlen=200)
        try:
            for line in child.stdout:
                kept.append(line)
                on_line(line.decode(errors="replace").rstrip("\n"))
            code = child.wait()
        finally:
            timer.cancel()
        return Result(tuple(argv), 124 if late.is_set() else code, b"".join(kept))

    def run_logged(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        on_line: Callable[[str], None],
        hold: Path,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        grace_s: float = 5.0,
    ) -> Result:
        log.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + timeout_s
        with contextlib.ExitStack() as opened:
            held = opened.enter_context(open(hold, "a+"))
            if not take(held):
                raise NexaError(
                    f"a program of an earlier command is still at work in {hold.parent}", hint="wait for it to end"
                )
            held.truncate(0)  # it may name an earlier one; who is killed here leaves a hold without a pid
            out, lines = opened.enter_context(open(log, "wb")), opened.enter_context(open(log, "rb"))
            try:
                child = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else {**os.environ, **env},
                    start_new_session=True,
                    pass_fds=(held.fileno(),),
                )
            except OSError as error:
                return Result(tuple(argv), 127, err=str(error).encode())
            late = False
            try:
                held.write(str(child.pid))
                held.flush()
                ended = False
                while not ended:
                    ended = child.poll() is not None  # before the read: what it wrote last is still read
                    while line := lines.readline():
                        if not line.endswith(b"\n") and not ended:
                            lines.seek(-len(line), os.SEEK_CUR)  # half a line: the rest is on its way
                            break
                        on_line(line.decode(errors="replace").rstrip("\n"))
                    if not ended and not late and time.monotonic() > until:
                        late = True
                        end(child, grace_s)
                    elif not ended:
                        time.sleep(0.1)
            except BaseException:
                end(child, grace_s)
                raise
        with open(log, "rb") as kept:
            tail = b"".join(deque(kept, maxlen=200))
        return Result(tuple(argv), 124 if late else child.returncode, tail)

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        child = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        source, sink = child.stdout, child.stdin
        assert source and sink

        def send(data: bytes) -> None:
            with contextlib.suppress(OSError, ValueError):  # it ended, or `leave` was here before us
                sink.write(data)
                sink.flush()

        def leave() -> None:
            end(child)
            with contextlib.suppress(OSError):
                sink.close()

        send(stdin)
        return Stream(source, leave, send)


def end(child: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """SIGTERM to the program itself, SIGKILL after the grace; always reaped."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
    child.wait()


def _end_draining(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """As `end`, for a program whose pipes nobody reads any more: a full one would keep it from ending in order."""
    child.terminate()
    try:
        child.communicate(timeout=grace_s)
    except subprocess.TimeoutExpired:
        end(child, 0)
