"""The warm interpreter of a run on this node, as the agent sees it: started, found, asked for ranks, ended.

It is the training's own Python with torch imported and nothing else done (`forkserver`). For each attempt that may,
it forks the ranks, which saves the import: most of the time of a launch. It outlives attempts, so it carries
NEXA_WARM_DIR, not NEXA_RUN_DIR; each rank that it forks shows NEXA_RUN_DIR like any other.

RUN_DIR/warm.json: {"pid", "start_time", "socket", "fingerprint", "ready_s"}; "refused" says why it could not be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any

from ..machine.processes import WARM_FILE, tree
from ..oslib import agent_path, alive, holder_of, newest_attempt, read_json, unfinished, write_json
from ..protocol import Spec

PREFIX = "nexa-warm-"
AFTER = "NEXA_WARM_AFTER"
"""Variable that tells the interpreter the folder of the run that goes on before its own."""
ANSWER_S = 10.0
"""A ready interpreter answers in milliseconds. One that is frozen is given up after this time."""
LOADING_S = 300.0
VOLATILE = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TMPDIR",
    "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE",
)  # fmt: skip
"""Variables that differ between attempts and that no library reads while it is imported; also NEXA_* and
TORCHELASTIC_*. Any other difference (threads, allocator, paths) asks for another interpreter."""


def ensure(spec: Spec, environment: dict[str, str], run_dir: str, after: str = "") -> None:
    """Starts loading the warm interpreter for the ranks of `spec`, unless it is there. Does not wait for it.

    One that does not fit any more (other code path, other variables) is replaced; one that could not be made safe to
    fork in this run is not tried again. With `after` it stands back for the run of that folder, and waits for its end.
    """
    words = split(spec["argv"])
    if words is None:
        return
    key, seen = fingerprint(spec, environment), _read(run_dir)
    if seen.get("fingerprint") == key and ("refused" in seen or alive(seen)):
        return
    release(run_dir)
    base = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=base if len(base) < 60 else "/tmp")  # noqa: S108 (socket names are short)
    path = os.path.join(folder, "s")
    stable = {name: value for name, value in environment.items() if not _volatile(name)}
    command = [spec["argv"][0], *words[0], agent_path(), "warm", run_dir, key, *spec.get("preload", ["torch"])]
    with socket.socket(socket.AF_UNIX) as listener, open(os.path.join(run_dir, "warm.log"), "ab") as log:
        listener.bind(path)
        listener.listen(8)

        def register() -> None:
            """Register the child before it is the interpreter: what that writes there can only come later."""
            write_json(_file(run_dir), {**holder_of(os.getpid()), "socket": path, "fingerprint": key, "ready_s": None})

        try:
            child = subprocess.Popen(
                command,
                cwd=spec["cwd"],
                env={**stable, "TMPDIR": folder, "NEXA_WARM_DIR": run_dir, **({AFTER: after} if after else {})},
                stdin=listener.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=register,
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.write(("%s: %s\n" % (command[0], error)).encode())
            release(run_dir)
            shutil.rmtree(folder, ignore_errors=True)
            return
    child.returncode = 0  # keeps Popen from waiting: its exit is read from warm.json, the subreaper or init reaps it


def release(run_dir: str, timeout_s: float = 5.0) -> list[int]:
    """Ends the warm interpreter and what it forked; its temporary folder goes with it. Returns pids that are left."""
    seen = _read(run_dir)
    left = tree(seen["pid"]) if alive(seen) else []
    end, asked = time.monotonic() + timeout_s, False
    while left and time.monotonic() < end:
        for one in left:
            # The interpreter last: a rank that outlives it would have to be found by its environment.
            if one != seen["pid"] or len(left) == 1:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one, signal.SIGKILL)
                asked = True
        time.sleep(0.01 if asked else 0)
        left = tree(seen["pid"]) if alive(seen) else []
    folder = os.path.dirname(seen.get("socket", ""))
    if os.path.basename(folder).startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    if not left:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished(_file(run_dir), seen["pid"]))
        if "refused" not in seen:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_file(run_dir))
    return left


def remove_unused(run_dir: str) -> None:
    """A run that has no attempt leaves no folder."""
    if os.path.isdir(run_dir) and not newest_attempt(run_dir):
        for name in (WARM_FILE, "warm.log", "agent.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(run_dir, name))
        with contextlib.suppress(OSError):  # whatever else is there is not ours
            os.rmdir(os.path.join(run_dir, "work"))
            os.rmdir(run_dir)


def pid(run_dir: str) -> int | None:
    """The warm interpreter itself, loading or ready; None when there is none."""
    seen = _read(run_dir)
    return int(seen["pid"]) if alive(seen) else None


def ranks(run_dir: str) -> list[int]:
    """Living ranks that the warm interpreter forked, with all descendants."""
    server = pid(run_dir)
    return [one for one in tree(server) if one != server] if server else []


class Ranks:
    """The connection to the warm interpreter for one attempt. When it closes, all that was forked there is killed."""

    def __init__(self, run_dir: str, connection: socket.socket, limit_s: float) -> None:
        self.run_dir, self.connection, self.text = run_dir, connection, b""
        self.until = time.monotonic() + limit_s
        self.open = True

    def read(self) -> list[dict[str, Any]]:
        """Messages of the interpreter since the last call: {"pids": […]}, {"cold": why} or {"rank", "code"}."""
        while self.open:
            try:
                data = self.connection.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.text += data
            self.open = bool(data)
        *lines, self.text = self.text.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def close(self) -> None:
        self.connection.close()
        self.open = False


def fork(spec: Spec, environment: dict[str, str], run_dir: str, ranks: list[dict[str, Any]]) -> Ranks | None:
    """Asks for `ranks`, each {"number", "environment": what is added to the common one, "log"}. None: there is no warm
    interpreter that fits. One that is still loading is worth the wait: a rank would have to load the same."""
    seen = _read(run_dir)
    if not alive(seen) or "refused" in seen or seen["fingerprint"] != fingerprint(spec, environment):
        return None
    request = {"argv": spec["argv"], "cwd": spec["cwd"], "environment": environment, "ranks": ranks}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(seen["socket"])
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError:
        connection.close()
        return None
    connection.setblocking(False)
    return Ranks(run_dir, connection, LOADING_S if seen.get("ready_s") is None else ANSWER_S)


def split(argv: list[str]) -> tuple[list[str], list[str]] | None:
    """Interpreter options, and the program with its arguments; None for a command that cannot come from a fork."""
    first = 1
    while first < len(argv) and argv[first] == "-u":
        first += 1
    rest = list(argv[first:])
    if not rest or (rest[0].startswith("-") and (rest[0] != "-m" or len(rest) < 2)):
        return None
    return list(argv[1:first]), rest


def fingerprint(spec: Spec, environment: dict[str, str]) -> str:
    """Names all that an interpreter has taken in before the first line of a rank's own code runs."""
    words = split(spec["argv"])
    stable = sorted((name, value) for name, value in environment.items() if not _volatile(name))
    whole = [spec["argv"][0], words and words[0], agent_path(), spec["cwd"], spec.get("preload", ["torch"]), stable]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _volatile(name: str) -> bool:
    return name in VOLATILE or name.startswith(("NEXA_", "TORCHELASTIC_"))


def _file(run_dir: str) -> str:
    return os.path.join(run_dir, WARM_FILE)


def _read(run_dir: str) -> dict[str, Any]:
    seen = dict(read_json(_file(run_dir), {}))
    return seen if "pid" in seen else {"pid": 0, "start_time": 0, **seen}
