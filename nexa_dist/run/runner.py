"""The one seam to the outside: local programs, and through them ssh."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nexa_dist.errors import NexaError
from nexa_dist.run.files import take


@dataclass(frozen=True)
class Result:
    """Result of a program. `code` is negative for a signal, 127 when it could not be started."""

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


class Runner:
    """Runner by which every other module starts a program: for real, each in its own session, so that Ctrl-C reaches
    only the controller. `argv` is never read by a local shell. run/fake.py has those that start nothing."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | IO[bytes] = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        grace_s: float = 5.0,
        most_bytes: int | None = None,
    ) -> Result:
        """Runs to the end. `grace_s` lies between SIGTERM and SIGKILL when the time is up or the controller is
        interrupted. Exit 124: time-out. A program that says more than `most_bytes` is ended: exit TOO_MUCH."""
        data = stdin if isinstance(stdin, bytes) else None
        if threading.get_ident() in _ABANDONED:
            return Result(tuple(argv), INTERRUPTED, err=b"interrupted")
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        except OSError as error:
            return Result(tuple(argv), 127, err=str(error).encode())
        thread = threading.get_ident()
        _AT_WORK[thread] = child
        try:
            if thread in _ABANDONED:
                child.terminate()
            if most_bytes is not None:
                return Result(tuple(argv), *_bounded(child, data or b"", timeout_s, most_bytes))
            out, err = child.communicate(data, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_draining(child, grace_s)
            return Result(tuple(argv), 124, err=f"no answer within {timeout_s:.0f} s".encode())
        except BaseException:
            _end_draining(child, grace_s)
            raise
        finally:
            del _AT_WORK[thread]
        return Result(tuple(argv), child.returncode, out, err)

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
        """Starts a program whose output is read while it runs, with `stdin` as its first input. The caller calls
        `end`. Raises OSError when it cannot be started."""
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


TOO_MUCH = 1025
"""Code with which no program ends."""
INTERRUPTED = 130
_AT_WORK: dict[int, subprocess.Popen[bytes]] = {}
"""Programs at work, by the thread that waits for each."""
_ABANDONED: set[int] = set()


@contextlib.contextmanager
def abandoning(threads: Sequence[int]) -> Iterator[None]:
    """End what these threads run when the block is left by an exception (Ctrl-C), and let them start nothing more: else
    a pool of them would wait for its slowest node. When they have ended, `forget` them."""
    try:
        yield
    except BaseException:
        _ABANDONED.update(threads)
        for thread in threads:
            if child := _AT_WORK.get(thread):
                child.terminate()
        raise


def forget(threads: Sequence[int]) -> None:
    _ABANDONED.difference_update(threads)


def _bounded(
    child: subprocess.Popen[bytes], data: bytes, timeout_s: float, most_bytes: int
) -> tuple[int, bytes, bytes]:
    """Communicate as Popen.communicate does, with a program that need not be well-behaved: (exit code, stdout, stderr).
    Raises TimeoutExpired."""
    assert child.stdout and child.stderr
    until, left = time.monotonic() + timeout_s, memoryview(data)
    said: dict[IO[bytes], bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
    with selectors.DefaultSelector() as waiting:
        for stream in said:
            waiting.register(stream, selectors.EVENT_READ)
        if child.stdin:
            os.set_blocking(child.stdin.fileno(), False)
            waiting.register(child.stdin, selectors.EVENT_WRITE)
        while waiting.get_map():
            ready = waiting.select(until - time.monotonic())
            if not ready and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(child.args, timeout_s)
            for key, _ in ready:
                stream = key.fileobj  # type: ignore[assignment]
                if stream is child.stdin:
                    try:
                        left = left[os.write(key.fd, left[: 1 << 16]) :] if left else left
                    except BlockingIOError:
                        continue
                    except OSError:  # it reads no more
                        left = left[:0]
                    got = left
                else:
                    got = memoryview(os.read(key.fd, 1 << 16))
                    said[stream] += got
                if not got:
                    waiting.unregister(stream)
                    stream.close()
                    child.stdin = None if stream is child.stdin else child.stdin  # for `communicate`, should it come
            if sum(map(len, said.values())) > most_bytes:
                for stream in said:
                    stream.close()
                end(child, 0)
                return TOO_MUCH, b"", b"it said more than %d bytes, so it was ended" % most_bytes
    child.wait(max(0.0, until - time.monotonic()))
    return child.returncode, bytes(said[child.stdout]), bytes(said[child.stderr])


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
    """End, as `end` does, a program whose pipes nobody reads any more: a full one would keep it from ending in
    order."""
    child.terminate()
    try:
        child.communicate(timeout=grace_s)
    except subprocess.TimeoutExpired:
        end(child, 0)
