"""The warm interpreter itself: torch imported once, then one fork per rank for whoever asks on the socket.

It runs under the training's Python with the very options and variables of a rank. A connection is an attempt: when
it closes, whatever was forked for it is killed with all its descendants, so a killed agent leaves no rank.
Nothing here draws random numbers or touches CUDA, and only one thread lives at each fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import warnings
from typing import Any

from ..machine.processes import tree
from ..oslib import alive, event, holder_of, read_json, set_subreaper, write_json
from ..protocol import Event
from . import rank as warm_rank
from .client import AFTER, remove_unused

IDLE_S, UNUSED_S = 900.0, 120.0
"""Seconds that the interpreter waits without an agent of the run: between attempts, while a node is replaced; before
the first one."""
LOOK_S = 1.0
WORK_S, REST_S = 0.02, 0.06
"""CPU seconds, and the rest after each: what loading beside another run's ranks takes of them."""
OOM_SCORE = "/proc/self/oom_score_adj"


def serve(run_dir: str, key: str, preload: list[str]) -> int:
    """Serve to the end of the interpreter's time; in a fork, run to the end of the rank's program."""
    server = Server(run_dir)
    why = server.load(preload)
    seen = {**holder_of(os.getpid()), "socket": server.socket_path, "fingerprint": key}
    path = os.path.join(run_dir, "warm.json")
    if why:
        write_json(path, {**seen, "refused": why})
        event(run_dir, Event.WARM, pid=None, why=why)
        server.leave()
        return 1
    write_json(path, {**seen, "ready_s": server.loaded_s})
    event(run_dir, Event.WARM, pid=os.getpid(), ready_s=server.loaded_s)
    task = server.run()
    if task is None:
        server.leave()
        return 0
    return warm_rank.become(run_dir, task)


class Server:
    """One attempt at a time. `run` returns None when it is over, and what to become in each forked child."""

    def __init__(self, run_dir: str) -> None:
        self.began, self.run_dir = time.monotonic(), run_dir
        self.listener = socket.socket(fileno=os.dup(0))
        self.socket_path = self.listener.getsockname()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self.pid = os.getpid()
        self.environment = dict(os.environ)
        self.after = os.environ.get(AFTER, "")
        """Folder of the run that goes on before ours; empty where none does."""
        self.oom_score = ""
        self.changed: dict[str, str | None] = {}
        """Variables that the imports set in the environment; a rank's own import would have done the same."""
        self.loaded_s = 0.0
        self.over = False
        self.attempt: socket.socket | None = None
        self.text = b""
        self.numbers: dict[int, int] = {}
        """Pid → rank, of this attempt's ranks that have not ended."""

    def load(self, preload: list[str]) -> str:
        """Imports. Returns why this interpreter is not safe to fork, or nothing."""
        if self.after:
            self._stand_back()
        gc.disable()  # looking for garbage takes a sixth of the time of `import torch`, and finds next to none
        loaded: dict[str, Any] = sys.modules
        without = [name[1:] for name in preload if name[0] == "-"]  # as if they were not installed
        preload = [name for name in preload if name[0] != "-"]
        hidden = [name for name in without if loaded.setdefault(name, None) is None]
        for name in preload:
            try:
                importlib.import_module(name)
            except Exception as error:  # whatever a package raises; each rank will show it in full
                return "import %s: %s: %s" % (name, type(error).__name__, error)
        for name in hidden:
            del loaded[name]
        signal.setitimer(signal.ITIMER_PROF, 0)
        before, after = (self.environment, os.environ)
        self.changed = {n: after.get(n) for n in {*before, *after} if before.get(n) != after.get(n)}
        # Libraries with fork handlers end their threads before a fork, as OpenBLAS under numpy does. A thread that
        # is there after one has no such care taken of it: it may hold a lock that the child would wait for.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        threads = thread_count()
        if threads != 1:
            return "importing %s left %d threads that a fork would lose" % (", ".join(preload), threads - 1)
        if warm_rank.gpu_files():
            return "importing %s opened %s" % (", ".join(preload), ", ".join(warm_rank.gpu_files()))
        gc.freeze()  # pages of old objects stay shared: a collection in a rank does not write to them
        gc.enable()
        self.loaded_s = round(time.monotonic() - self.began, 3)
        return ""

    def waits(self) -> bool:
        """Tell whether the run before ours goes on."""
        return bool(self.after) and alive(read_json(os.path.join(self.after, "agent.pid")))

    def _stand_back(self) -> None:
        """While the run before goes on it has most of the CPU, and all of the memory when that is short: the kernel
        ends us first. No `nice`, which only root can take back from what is forked here later."""
        with contextlib.suppress(OSError), open(OOM_SCORE, "r+") as file:
            self.oom_score = file.read().strip()
            file.seek(0)
            file.write("1000")
        signal.signal(signal.SIGPROF, lambda *_: time.sleep(REST_S) if self.waits() else None)
        signal.setitimer(signal.ITIMER_PROF, WORK_S, WORK_S)

    def _stand_up(self) -> None:
        if self.oom_score:
            with contextlib.suppress(OSError), open(OOM_SCORE, "w") as file:
                file.write(self.oom_score)
            self.oom_score = ""

    def run(self) -> dict[str, Any] | None:
        set_subreaper()
        self.listener.setblocking(False)
        wake, self.wake = os.pipe()
        for end in (wake, self.wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        needed = time.monotonic()
        with selectors.DefaultSelector() as selector:
            self.selector = selector
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while not self.over and os.path.isdir(self.run_dir):
                ready = {key.fileobj for key, _ in selector.select(LOOK_S)}
                if wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                self._reap()
                if self.attempt in ready:
                    task = self._hear()
                    if task is not None:
                        for fd in (wake, self.wake):
                            os.close(fd)
                        return task
                agent = read_json(os.path.join(self.run_dir, "agent.pid"))
                if self.attempt is not None or alive(agent) or self.waits():
                    needed = time.monotonic()
                if self.attempt is None and self.listener in ready:
                    self._greet()
                elif time.monotonic() - needed > (IDLE_S if agent else UNUSED_S):
                    break
        return None

    def leave(self) -> None:
        """Ends all that was forked; nothing of ours stays on the disk."""
        self._end_attempt()
        shutil.rmtree(os.path.dirname(self.socket_path), ignore_errors=True)
        path = os.path.join(self.run_dir, "warm.json")
        seen = read_json(path, {})
        if seen.get("pid") == self.pid and "refused" not in seen:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if self.after:
                remove_unused(self.run_dir)

    def _end(self, *_: Any) -> None:
        self.over = True

    def _greet(self) -> None:
        self.attempt, _ = self.listener.accept()
        self.attempt.setblocking(False)
        self.text = b""
        self.selector.register(self.attempt, selectors.EVENT_READ)

    def _hear(self) -> dict[str, Any] | None:
        """Takes in what the attempt says; in a forked child it returns what to become."""
        assert self.attempt is not None
        try:
            data = self.attempt.recv(1 << 20)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._end_attempt()
            return None
        self.text += data
        if not self.text.endswith(b"\n"):
            return None
        request, self.text = json.loads(self.text), b""
        return self._fork(request)

    def _fork(self, request: dict[str, Any]) -> dict[str, Any] | None:
        why = warm_rank.refusal(request)
        if why:
            self._say(cold=why)
            return None
        self._stand_up()
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in request["ranks"]:
            pid = os.fork()
            if pid == 0:
                self._forget()
                return {"request": request, "rank": rank, "parent": self.pid, "changed": self.changed}
            self.numbers[pid] = rank["number"]
        self._say(pids=list(self.numbers))
        return None

    def _forget(self) -> None:
        """Closes, in the child, all that is the server's; signals do what they do in a fresh interpreter."""
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPROF):
            signal.signal(name, signal.SIG_DFL)
        self.selector.close()
        self.listener.close()
        assert self.attempt is not None
        self.attempt.close()

    def _say(self, **words: Any) -> None:
        if self.attempt is not None:
            with contextlib.suppress(OSError):  # a reader that is gone shows as end of file
                self.attempt.sendall(json.dumps(words).encode() + b"\n")

    def _reap(self) -> None:
        """Ranks, and orphans of theirs, which come to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.numbers.pop(pid, None)
            if number is not None:
                self._say(rank=number, code=-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))

    def _end_attempt(self) -> None:
        if self.attempt is not None:
            self.selector.unregister(self.attempt)
            self.attempt.close()
            self.attempt = None
        self.numbers.clear()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            left = [pid for pid in tree(self.pid) if pid != self.pid]
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if not left:
                return
            time.sleep(0.005)
        self.over = True  # what cannot be killed must not be mistaken for a rank of the next attempt


def thread_count() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Threads:"))
