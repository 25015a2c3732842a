#!/usr/bin/env python3
"""The node agent: starts one attempt of a run on this node, owns its processes, keeps its logs.

One file, standard library only, Python 3.9+, sent over SSH. The daemon lives in a session of its own,
so training survives a dropped connection; every other command is short and answers with JSON.

    agent.py probe              < {"python", "peers", "port"}         what this node can do
    agent.py unpack DIR         < tar.gz                              make DIR from an archive, whole or not at all
    agent.py start RUN_DIR      < {"spec": {...}, "secrets": {...}}   start the attempt (again: the same one)
    agent.py go RUN_DIR                                               every node is prepared: start the ranks
    agent.py status RUN_DIR                                           state of the newest attempt
    agent.py follow RUN_DIR     < {"offsets": {...}, "once": bool}    logs and events, framed, from byte offsets
    agent.py stop RUN_DIR       < {"grace_s", "reason"}               SIGTERM, grace for a checkpoint, SIGKILL
    agent.py rank -- ARGV       (started by torchrun)                 one rank: its log, its exit code, its end

Secrets arrive on standard input and live in the memory and the environment of the run alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any, BinaryIO, NoReturn

VERSION = "1"
POLL_S = 0.05
HEARTBEAT_S = 10.0
GO_TIMEOUT_S = 3600.0
CHUNK_BYTES = 65536
EXIT_WRONG_WORLD = 78
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


# -- small things ----------------------------------------------------------------------------------------------


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Linux sends us SIGKILL when the parent ends, so that a killed torchrun leaves no rank behind."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def write_json(path: str, data: Any) -> None:
    temporary = "%s.%d.tmp" % (path, os.getpid())
    with open(temporary, "w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: str, default: Any = None) -> Any:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return default


def event(run_dir: str, name: str, **fields: Any) -> None:
    """One line in agent.jsonl; a single O_APPEND write, so that ranks and agent may write at once."""
    line = json.dumps({"event": name, "at": time.time(), **fields}) + "\n"
    fd = os.open(os.path.join(run_dir, "agent.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def events(run_dir: str, attempt: int) -> list[dict[str, Any]]:
    try:
        with open(os.path.join(run_dir, "agent.jsonl")) as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    starts = [i for i, e in enumerate(found) if e["event"] == "started" and e.get("attempt") == attempt]
    return found[starts[-1] :] if starts else []


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started: with the pid it names a process for good."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(holder: Any) -> bool:
    return bool(holder) and start_time(holder["pid"]) == holder["start_time"]


# -- the processes of a run ---------------------------------------------------------------------------------


def run_processes(run_dir: str) -> list[int]:
    """Pids of this run: what carries NEXA_RUN_DIR or descends from its agent, with all their descendants."""
    marker = b"\0NEXA_RUN_DIR=" + os.fsencode(run_dir) + b"\0"
    holder = read_json(os.path.join(run_dir, "agent.pid"))
    agent = holder["pid"] if alive(holder) else 0
    parents, found = {}, {agent} if agent else set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or start_time(int(name)) is None:
            continue
        try:
            with open("/proc/%s/stat" % name) as file:
                parents[int(name)] = int(file.read().rsplit(")", 1)[1].split()[1])
            with open("/proc/%s/environ" % name, "rb") as file:
                if marker in b"\0" + file.read() + b"\0":
                    found.add(int(name))
        except OSError:
            continue
    more = found
    while more:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
    return sorted(found - {agent, os.getpid()})


def kill_run(run_dir: str, timeout_s: float = 10.0) -> tuple[int, list[int]]:
    """SIGKILL until nothing of the run is left. Returns (how many were ended, what is still there)."""
    ended: set[int] = set()
    end = time.monotonic() + timeout_s
    while True:
        left = run_processes(run_dir)
        if not left or time.monotonic() > end:
            return len(ended), left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                ended.add(pid)
        time.sleep(0.05)


def remove_tmp(run_dir: str) -> None:
    """The temporary folder of the run, also when its agent was killed."""
    path = read_json(os.path.join(run_dir, "tmp.json"))
    if path and os.path.basename(path).startswith("nexa-run-"):
        shutil.rmtree(path, ignore_errors=True)


# -- the daemon -----------------------------------------------------------------------------------------------


class Attempt:
    """One attempt on this node, from `started` to `ended`."""

    def __init__(self, run_dir: str, spec: dict[str, Any], secrets: dict[str, str]) -> None:
        self.run_dir, self.spec = run_dir, spec
        # Libraries leave files in the temporary folder when they are killed. This one goes with the attempt; its
        # path is short, since Unix sockets in it may have about 100 bytes.
        self.tmp = tempfile.mkdtemp(prefix="nexa-run-")
        write_json(os.path.join(run_dir, "tmp.json"), self.tmp)
        self.environment = {**base_environment(), "TMPDIR": self.tmp, **spec["env"], **secrets}
        self.stop_reason = ""
        self.deadline = boot_clock() + spec["deadline_in_s"] if spec.get("deadline_in_s") else None
        self.beat = 0.0

    def main(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.ask_to_stop(self.request().get("reason", "stop")))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        state, code, why = "failed", 1, ""
        try:
            state, code, why = self.phases()
        except OSError as error:
            why = "agent: %s" % error
        _, left = kill_run(self.run_dir)
        remove_tmp(self.run_dir)
        event(self.run_dir, "ended", state=state, code=code, reason=why, left=left, attempt=self.spec["attempt"])

    def phases(self) -> tuple[str, int, str]:
        if self.spec.get("prepare"):
            code = self.run_child(self.spec["prepare"], "prepare")
            if self.stop_reason:
                return "stopped", code, self.stop_reason
            if code:
                return "failed", code, "prepare"
        event(self.run_dir, "prepared")
        waited_until = boot_clock() + GO_TIMEOUT_S
        while not os.path.exists(self.path("go")) and not self.stop_reason:
            if boot_clock() > waited_until:
                return "failed", 1, "no node sent 'go' within %d s" % GO_TIMEOUT_S
            self.tick()
        if self.stop_reason:
            return "stopped", 143, self.stop_reason
        code = self.run_child(self.spec["argv"], "torchrun")
        if self.stop_reason:
            return "stopped", code, self.stop_reason
        return ("completed", 0, "") if code == 0 else ("failed", code, "torchrun")

    def path(self, name: str) -> str:
        return os.path.join(self.run_dir, "%s.attempt_%d" % (name, self.spec["attempt"]))

    def request(self) -> Any:
        return read_json(self.path("stop"), {})

    def grace_s(self) -> float:
        return float(self.request().get("grace_s", self.spec["grace_s"]))

    def ask_to_stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    def tick(self) -> None:
        now = boot_clock()
        if now - self.beat >= HEARTBEAT_S:
            self.beat = now
            event(self.run_dir, "heartbeat")
        if self.deadline is not None and now > self.deadline:
            self.ask_to_stop("deadline")
        time.sleep(POLL_S)

    def run_child(self, argv: list[str], name: str) -> int:
        """Runs `argv` to its end, or ends it when asked. Returns its exit code, 128+n for signal n."""
        with open(self.path(name) + ".log", "ab") as log:
            try:
                child = subprocess.Popen(
                    argv,
                    cwd=self.spec["cwd"],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                log.write(("%s: %s\n" % (argv[0], error)).encode())
                return 127
        event(self.run_dir, name, pid=child.pid)
        asked_at = None
        while child.poll() is None:
            if self.stop_reason and asked_at is None:
                asked_at = boot_clock()
                event(self.run_dir, "stopping", reason=self.stop_reason, grace_s=self.grace_s())
                child.terminate()
            # read again each time: a second, shorter request must not wait for the first one's grace
            if asked_at is not None and boot_clock() > asked_at + self.grace_s():
                kill_run(self.run_dir)
            self.tick()
            self.reap(child.pid)
        return int(child.returncode if child.returncode >= 0 else 128 - child.returncode)

    def reap(self, own: int) -> None:
        """Orphans of the run come to us (subreaper); a zombie of theirs must not pile up."""
        for pid in children_of(os.getpid()):
            if pid != own and start_time(pid) is None:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def children_of(pid: int) -> list[int]:
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps; not moved by a clock that is set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def base_environment() -> dict[str, str]:
    kept = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "NEXA_HOST")
    return {name: os.environ[name] for name in kept if name in os.environ}


# -- commands --------------------------------------------------------------------------------------------------


def newest_attempt(run_dir: str) -> int:
    return int(read_json(os.path.join(run_dir, "spec.json"), {}).get("attempt", 0))


def start(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    spec = message["spec"]
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    holder_path = os.path.join(run_dir, "agent.pid")
    holder = read_json(holder_path)
    if alive(holder):
        if holder["attempt"] == spec["attempt"]:
            return {"pid": holder["pid"], "already": True}
        fail("attempt %d of this run is still alive here (pid %d)" % (holder["attempt"], holder["pid"]))
    _, left = kill_run(run_dir)
    remove_tmp(run_dir)
    if left:
        fail("processes of an earlier attempt cannot be ended: %s" % left)
    os.makedirs(spec["cwd"], exist_ok=True)
    if spec.get("code"):
        lay_over(spec["code"], spec["cwd"])
    if spec.get("config") is not None:
        write_json(os.path.join(run_dir, "train.json"), spec["config"])
    write_json(os.path.join(run_dir, "spec.json"), spec)
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        daemonize(run_dir, holder_path, spec, message.get("secrets", {}), write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    if not answer:
        fail("the agent ended at once; see %s/agent.err" % run_dir)
    return {"pid": int(answer), "already": False}


def lay_over(code: str, work: str) -> None:
    """The code as it is now over the working folder, which keeps what the scripts of earlier attempts wrote."""
    for folder, folders, names in os.walk(code):
        target = os.path.normpath(os.path.join(work, os.path.relpath(folder, code)))
        os.makedirs(target, exist_ok=True)
        for name in names + [n for n in folders if os.path.islink(os.path.join(folder, n))]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(target, name))
            shutil.copy2(os.path.join(folder, name), os.path.join(target, name), follow_symlinks=False)


def daemonize(
    run_dir: str, holder_path: str, spec: dict[str, Any], secrets: dict[str, str], write_end: int
) -> NoReturn:
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(os.path.join(run_dir, "agent.err"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    code = 1
    try:
        write_json(holder_path, {"pid": os.getpid(), "start_time": start_time(os.getpid()), "attempt": spec["attempt"]})
        event(run_dir, "started", pid=os.getpid(), attempt=spec["attempt"], node=spec["node"])
        os.write(write_end, str(os.getpid()).encode())
        os.close(write_end)
        Attempt(run_dir, spec, secrets).main()
        code = 0
    finally:
        os._exit(code)


def status(run_dir: str) -> dict[str, Any]:
    attempt = newest_attempt(run_dir)
    if not attempt:
        return {"state": "absent", "attempt": 0, "processes": run_processes(run_dir)}
    seen = events(run_dir, attempt)
    names = [e["event"] for e in seen]
    last = seen[-1] if seen else {}
    processes = run_processes(run_dir)
    if "ended" in names:
        end = next(e for e in seen if e["event"] == "ended")
        state = {key: end[key] for key in ("state", "code", "reason", "left")}
    elif not alive(read_json(os.path.join(run_dir, "agent.pid"))):
        state = {"state": "lost", "code": 1, "reason": "the node agent is gone without a word"}
    else:
        phase = "stopping" if "stopping" in names else "running" if "torchrun" in names else "preparing"
        state = {"state": phase}
    ranks = [e for e in seen if e["event"] == "rank_exit"]
    return {**state, "attempt": attempt, "processes": processes, "ranks": ranks, "last_event_unix": last.get("at")}


def stop(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    attempt, holder = (newest_attempt(run_dir), read_json(os.path.join(run_dir, "agent.pid")))
    before = len(run_processes(run_dir))
    if attempt and alive(holder):
        grace_s = float(message.get("grace_s", 15))
        write_json(
            os.path.join(run_dir, "stop.attempt_%d" % attempt),
            {"grace_s": grace_s, "reason": message.get("reason", "stop")},
        )
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder["pid"], signal.SIGTERM)
        end = time.monotonic() + grace_s + 15
        while alive(holder) and time.monotonic() < end:
            time.sleep(POLL_S)
        if alive(holder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder["pid"], signal.SIGKILL)
    _, left = kill_run(run_dir)
    remove_tmp(run_dir)
    return {**status(run_dir), "ended": before, "left": left}


def log_files(run_dir: str) -> list[str]:
    """Relative paths of every log and of agent.jsonl, sorted."""
    found = []
    for name in os.listdir(run_dir) if os.path.isdir(run_dir) else []:
        path = os.path.join(run_dir, name)
        if name.startswith("rank_"):
            found += [os.path.join(name, log) for log in os.listdir(path) if log.endswith(".log")]
        elif name.endswith((".log", ".jsonl")):
            found.append(name)
    return sorted(found)


def follow(run_dir: str, message: dict[str, Any]) -> None:
    """Frames on stdout: a JSON header line {"src", "off", "len"}, then `len` bytes of that file.

    `{"beat": t}` shows every second that the link lives; `{"end": status}` is the last. Reading goes on from
    the offsets that the reader has, so a dropped link loses and repeats nothing.
    """
    offsets, once, out, beat = (dict(message.get("offsets", {})), bool(message.get("once")), sys.stdout.buffer, 0.0)
    while True:
        state = status(run_dir) if once or boot_clock() - beat > 1 else None
        moved = drain(run_dir, offsets, out)
        if state and (once or state["state"] in ("completed", "failed", "stopped", "lost", "absent")) and not moved:
            out.write(json.dumps({"end": state}).encode() + b"\n")
            out.flush()
            return
        if state:
            beat = boot_clock()
            out.write(json.dumps({"beat": time.time(), "state": state["state"]}).encode() + b"\n")
        out.flush()
        if not moved:
            time.sleep(POLL_S)


def drain(run_dir: str, offsets: dict[str, int], out: BinaryIO) -> bool:
    moved = False
    for name in log_files(run_dir):
        try:
            with open(os.path.join(run_dir, name), "rb") as file:
                file.seek(offsets.get(name, 0))
                data = file.read(CHUNK_BYTES)
        except OSError:
            continue
        if data:
            out.write(json.dumps({"src": name, "off": offsets.get(name, 0), "len": len(data)}).encode() + b"\n" + data)
            offsets[name] = offsets.get(name, 0) + len(data)
            moved = True
    return moved


def rank(argv: list[str]) -> int:
    """Runs one rank: its own log, its exit code as an event, SIGTERM passed on, dead when torchrun is."""
    die_with_parent()
    run_dir, number, world = (os.environ["NEXA_RUN_DIR"], os.environ["RANK"], os.environ["WORLD_SIZE"])
    folder = os.path.join(run_dir, "rank_" + number)
    os.makedirs(folder, exist_ok=True)
    log = os.open(
        os.path.join(folder, "attempt_%s.log" % os.environ["NEXA_ATTEMPT"]),
        os.O_WRONLY | os.O_APPEND | os.O_CREAT,
        0o600,
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    first, size = (int(os.environ["NEXA_FIRST_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if world != os.environ["NEXA_WORLD_SIZE"] or not first <= int(number) < first + size:
        print(
            "nexa: torchrun made rank %s of world size %s on node %s, the plan says ranks %d to %d of %s"
            % (number, world, os.environ["NEXA_NODE"], first, first + size - 1, os.environ["NEXA_WORLD_SIZE"]),
            file=sys.stderr,
            flush=True,
        )
        event(run_dir, "rank_exit", rank=int(number), code=EXIT_WRONG_WORLD, signal=0)
        return EXIT_WRONG_WORLD
    environment = {**os.environ, "NEXA_RANK_DIR": folder}
    try:
        child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    except OSError as error:
        print("nexa: %s: %s" % (argv[0], error), file=sys.stderr, flush=True)
        event(run_dir, "rank_exit", rank=int(number), code=127, signal=0)
        return 127
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, lambda number, _: child.send_signal(number))
    code = child.wait()
    event(run_dir, "rank_exit", rank=int(number), code=max(code, 0), signal=max(-code, 0))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


def probe(message: dict[str, Any]) -> dict[str, Any]:
    """What the launch wants to know before anything starts. Each answer maps to a check of the controller."""
    python = message.get("python") or sys.executable
    script = (
        "import json,sys,importlib.metadata as m\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps({'python':'.'.join(map(str,sys.version_info[:3])),'torch':v('torch')}))"
    )
    try:
        made = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60)
        found = json.loads(made.stdout) if made.returncode == 0 else {"error": made.stderr.strip()[-400:]}
    except (OSError, subprocess.TimeoutExpired) as error:
        found = {"error": str(error)}
    scratch = message["scratch"]
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    answer = {
        **found,
        "agent": VERSION,
        "hostname": socket.gethostname(),
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "home": os.path.expanduser("~"),
        "free_bytes": shutil.disk_usage(scratch).free,
        "unix": time.time(),
        "peers": {peer: route_to(peer) for peer in message.get("peers", [])},
    }
    if "listen" in message:
        answer["port"], answer["port_error"] = free_port(message["listen"], message.get("port", 0))
    return answer


def gpus() -> list[str]:
    try:
        made = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return made.stdout.split("\n")[:-1] if made.returncode == 0 else []


def free_port(address: str, port: int) -> tuple[int, str]:
    """A port that can be bound now on `address`; the wanted one when it is not 0."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind(target)
            return listener.getsockname()[1], ""
    except OSError as error:
        return 0, "%s port %d: %s" % (address, port, error)


def route_to(peer: str) -> dict[str, str]:
    """Interface and local address by which packets to `peer` leave (no packet is sent)."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
            probe_socket.connect(target)
            local = probe_socket.getsockname()[0]
    except OSError as error:
        return {"error": str(error)}
    return {"address": local, "interface": interface_of(local), "peer": target[0]}


def interface_of(address: str) -> str:
    import fcntl

    if address.startswith("127.") or address == "::1":
        return "lo"
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        with open("/proc/net/if_inet6") as file:
            return next((line.split()[-1] for line in file if line.startswith(packed)), "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                if socket.inet_ntoa(fcntl.ioctl(query.fileno(), 0x8915, request)[20:24]) == address:  # SIOCGIFADDR
                    return name
    return ""


def unpack(target: str) -> dict[str, Any]:
    """Makes `target` from a tar.gz on stdin: a temporary sibling first, then one rename."""
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    temporary = "%s.%d.tmp" % (target, os.getpid())
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(temporary, filter="data")
        else:
            archive.extractall(temporary)  # noqa: S202  (older Pythons; our own archive, over ssh)
    try:
        os.rename(temporary, target)
    except OSError:  # another run made it meanwhile: the name is its content's hash, so it is the same
        shutil.rmtree(temporary)
    return {"path": target}


def fail(message: str) -> NoReturn:
    print(json.dumps({"error": message}))
    sys.exit(1)


def go(run_dir: str) -> dict[str, Any]:
    write_json(os.path.join(run_dir, "go.attempt_%d" % newest_attempt(run_dir)), {"at": time.time()})
    return {"ok": True}


def main(argv: list[str]) -> int:
    if argv[:1] == ["rank"]:
        return rank(argv[2:])
    if argv == ["--version"]:
        print(VERSION)
        return 0
    name, target = (argv[0], os.path.abspath(os.path.expanduser(argv[1])) if len(argv) > 1 else "")
    if name == "follow":
        with contextlib.suppress(BrokenPipeError):
            follow(target, json.loads(sys.stdin.readline() or "{}"))
        return 0
    plain = {"go": go, "status": status, "unpack": unpack}
    with_input = {"start": start, "stop": stop}
    if name == "probe":
        answer = probe(json.load(sys.stdin))
    elif name in with_input:
        answer = with_input[name](target, json.load(sys.stdin))
    else:
        answer = plain[name](target)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
