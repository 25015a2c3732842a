"""Makes the logs of this folder, as root on Linux: `python -m tests.cases.why.capture VENV [CASE…]`. See SOURCES.md.

Two "nodes" are namespaces of their own (network, mounts, name) on a bridge that leads nowhere; the real node agent
and torchrun run there from neutral folders, and train.py fails as the case says. Nothing is left when it ends.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.node.protocol import VERSION
from nexa_dist.run import agentfile

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
NODES = ("n0", "n1")
ADDRESS = {"n0": "10.0.0.11", "n1": "10.0.0.12"}
PORT = 29500
RUN = "/mnt/scratch/sft_20261122_200000_demo"
KEPT_BYTES = 12 << 10
ALL = ("-m", "-n", "-u", "-p")
UNGUARDED = """from torch.utils.data import DataLoader
for batch in DataLoader([1, 2, 3], num_workers=1, multiprocessing_context="spawn"):
    print(batch)"""
FAILURE = "another rank or node failed"


@dataclass(frozen=True)
class Case:
    """How to make one case. What is not said is: two nodes, one rank each, torchrun, static rendezvous."""

    fault: str
    env: Mapping[str, str] = field(default_factory=dict)
    node_env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By node, over `env`."""
    program: tuple[str, ...] = ()
    """Instead of `train.py FAULT`."""
    prepare: tuple[str, ...] = ()
    nodes: tuple[str, ...] = NODES
    """Those that are started."""
    kept: tuple[str, ...] = NODES
    """Those whose logs are kept: of the others the controller has nothing."""
    nproc: int = 1
    master: str = ADDRESS["n0"]
    rdzv: tuple[str, ...] = ()
    """Instead of static."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    shell: Mapping[str, str] = field(default_factory=dict)
    """By node: a command in its namespaces before the agent starts."""
    after: Callable[[Nodes], None] | None = None
    """Done once the ranks run."""
    memory_bytes: int = 0
    limit_s: float = 90.0
    cause: str = ""
    """Of the attempt, as the supervisor would have written it."""


class Nodes:
    """The namespaces of one case."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.holders: list[subprocess.Popen[bytes]] = []

    def open(self, venv: Path) -> None:
        sh("ip link add br0 type bridge; ip addr add 10.0.0.1/24 dev br0; ip link set br0 up; ip link set lo up")
        for name in NODES:
            holder = subprocess.Popen(["unshare", "-mnupf", "--mount-proc", "--kill-child", "sleep", "100000"])
            self.holders.append(holder)
            time.sleep(0.3)
            pid = self.pids[name] = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
            sh(f"ip link add v{name} type veth peer name eth0 netns {pid}; ip link set v{name} master br0 up")
            sh(f"ip addr add {ADDRESS[name]}/24 dev eth0; ip link set eth0 up; ip link set lo up", pid)
            base = subprocess.run(
                [venv / "bin/python", "-c", "import sys; print(sys.base_prefix)"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            sh(
                f"""set -e
                hostname {name}
                mount -t tmpfs tmpfs /opt; mount -t tmpfs tmpfs /srv; mount -t tmpfs tmpfs /mnt
                mkdir -p /opt/python3.11 /opt/venv/bin /opt/venv/lib /srv/nexa/package /srv/code
                mkdir -p /mnt/scratch /mnt/full /mnt/durable
                mount --bind {base} /opt/python3.11; mount --bind {venv}/lib /opt/venv/lib
                ln -s /opt/python3.11/bin/python3.11 /opt/venv/bin/python
                echo home = /opt/python3.11/bin >/opt/venv/pyvenv.cfg
                cp -r {HERE}/train.py {HERE}/imds.py {HERE}/texts /srv/code/
                cp -r {REPO}/nexa_dist /srv/nexa/package/
                printf 'def main(:\\n    pass\\n' >/srv/code/broken.py
                printf '%s\\n' '{UNGUARDED}' >/srv/code/unguarded.py
                mount -t tmpfs -o size=2m tmpfs /mnt/full; mount -t tmpfs -o size=8m tmpfs /dev/shm
                printf '127.0.0.1 localhost\\n10.0.0.11 n0\\n10.0.0.12 n1\\n10.0.0.1 hub.internal\\n' >/srv/hosts
                mount --bind /srv/hosts /etc/hosts; echo >/srv/resolv; mount --bind /srv/resolv /etc/resolv.conf
                mount -t tmpfs tmpfs /tmp""",
                pid,
            )
            self.path(name, "/srv/nexa/agent.pyz").write_bytes(agentfile.content())

    def path(self, name: str, path: str) -> Path:
        return Path(f"/proc/{self.pids[name]}/root{path}")

    def agent(self, name: str, *argv: str, message: Any = None, memory: str = "") -> dict[str, Any]:
        enter = ["nsenter", "-t", str(self.pids[name]), *ALL, "--wd=/srv"]
        command = [*enter, "/opt/venv/bin/python", "-S", "-E", "/srv/nexa/agent.pyz", *argv]
        if memory:
            command = ["sh", "-c", f'echo $$ >{memory}/cgroup.procs; exec "$@"', "sh", *command]
        made = subprocess.run(command, input=json.dumps(message or {}).encode(), capture_output=True, timeout=120)
        if made.returncode:
            raise RuntimeError(f"{name} {argv}: {made.stdout!r} {made.stderr!r}")
        return dict(json.loads(made.stdout))

    def events(self, name: str) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            return [json.loads(line) for line in self.path(name, f"{RUN}/agent.jsonl").read_text().splitlines()]
        return []

    def has(self, name: str, event: str) -> bool:
        return any(e["event"] == event for e in self.events(name))

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()
        sh("for link in vn0 vn1 br0; do ip link del $link; done 2>/dev/null; true")


def sh(script: str, pid: int = 0) -> None:
    enter = ["nsenter", "-t", str(pid), *ALL] if pid else []
    subprocess.run([*enter, "sh", "-c", script], check=True)


def spec_of(case: Case, node: str) -> dict[str, Any]:
    index = NODES.index(node)
    python, agent = "/opt/venv/bin/python", "/srv/nexa/agent.pyz"
    program = case.program or ("-u", "/srv/code/train.py", case.fault)
    world = len(NODES) * case.nproc
    static = ("--rdzv_backend=static", f"--node_rank={index}", f"--master_addr={case.master}", f"--master_port={PORT}")
    rdzv = tuple(word.format(address=ADDRESS[node]) for word in case.rdzv) or static
    env = {
        "HOME": "/home/user",
        "PYTHONPATH": "/srv/nexa/package:/srv/code",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NEXA_RUN_ID": RUN.rsplit("/", 1)[1],
        "NEXA_ATTEMPT": "1",
        "NEXA_WORLD_SIZE": str(world),
        "NEXA_NODE": node,
        "NEXA_NODE_RANK": str(index),
        "NEXA_FIRST_RANK": str(index * case.nproc),
        "NEXA_SCRATCH": "/mnt/scratch",
        "NEXA_RUN_DIR": RUN,
        "NEXA_SHARED": "/mnt/shared",
        "NEXA_DURABLE": "/mnt/durable",
        **case.env,
        **case.node_env.get(node, {}),
    }
    made = {
        "version": VERSION,
        "run_id": RUN.rsplit("/", 1)[1],
        "attempt": 1,
        "node": node,
        "launcher": "torchrun",
        "argv": [
            *(python, "-m", "torch.distributed.run", f"--nnodes={len(NODES)}", f"--nproc_per_node={case.nproc}"),
            *("--max_restarts=0", f"--log_dir={RUN}/torchrun", *rdzv),
            *("--no_python", python, "-S", "-E", agent, "rank", "--", python, *program),
        ],
        "prepare": [python, *case.prepare] if case.prepare else None,
        "env": env,
        "cwd": f"{RUN}/work",
        "code": "/srv/code",
        "config": None,
        "grace_s": 5.0,
        "deadline_in_s": None,
        "hang_timeout_s": None,
        "on_disconnect": "keep",
        "spot": False,
        "keep_warm": False,
        "first_rank": index * case.nproc,
        "nproc": case.nproc,
        "world_size": world,
        "node_rank": index,
        "nnodes": len(NODES),
        "master_addr": case.master,
        "master_port": PORT,
        **case.spec,
    }
    made["spot"] = made["spot"] and node == "n1"
    return made


@contextlib.contextmanager
def limited(case: Case) -> Iterator[str]:
    """A memory cgroup (v1 or v2) for n1's agent; empty when the case wants none."""
    if not case.memory_bytes:
        yield ""
        return
    v1 = Path("/sys/fs/cgroup/memory")
    folder = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"why_{os.getpid()}"
    folder.mkdir()
    (folder / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")).write_text(str(case.memory_bytes))
    try:
        yield str(folder)
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def run(case: Case, nodes: Nodes) -> None:
    """Starts the case on its nodes, and stops the others when one fails, as the supervisor does."""
    for name, script in case.shell.items():
        sh(script, nodes.pids[name])
    with limited(case) as memory:
        for name in case.nodes:
            message = {"spec": spec_of(case, name), "secrets": {}}
            nodes.agent(name, "start", RUN, message=message, memory=memory if name == "n1" else "")
        end, stopped, acted, went = time.monotonic() + case.limit_s, False, False, False
        while time.monotonic() < end and not all(nodes.has(n, "ended") for n in set(case.nodes) & set(case.kept)):
            if not went and all(nodes.has(name, "prepared") for name in case.nodes):
                went = True
                for name in case.nodes:
                    nodes.agent(name, "go", RUN)
            seen = [e for name in case.nodes for e in nodes.events(name)]
            if case.after and not acted and all(any(e.get("steps") for e in nodes.events(n)) for n in case.nodes):
                acted = True
                case.after(nodes)
            bad = [e for e in seen if e["event"] == "rank_exit" and (e["code"] or e["signal"])]
            bad += [e for e in seen if e["event"] == "hang" or (e["event"] == "ended" and e["state"] != "completed")]
            if bad and not stopped:
                stopped = True
                hang = any(e["event"] == "hang" for e in seen)
                for name in case.nodes:
                    with contextlib.suppress(RuntimeError):
                        order = {"grace_s": 20 if hang else 5, "reason": "hang" if hang else FAILURE}
                        nodes.agent(name, "stop", RUN, message=order)
            time.sleep(0.2)


def keep(name: str, case: Case, nodes: Nodes) -> None:
    """The logs into the case's folder. Only the last bytes of a long one are kept, from a line's beginning."""
    folder = HERE / name
    expect = json.loads((folder / "case.json").read_text())["expect"] if (folder / "case.json").exists() else {}
    shutil.rmtree(folder, ignore_errors=True)
    for node in set(case.nodes) & set(case.kept):
        root = nodes.path(node, RUN)
        failed = any(e["event"] == "rank_exit" and (e["code"] or e["signal"]) for e in nodes.events(node))
        for path in [
            *root.glob("*.log"),
            *root.glob("agent.jsonl"),
            *root.glob("agent.err"),
            *root.glob("rank_*/*.log"),
        ]:
            if failed and path.name.startswith("torchrun"):
                continue  # it only repeats that a rank failed
            data = path.read_bytes()
            if len(data) > KEPT_BYTES:
                data = data[-KEPT_BYTES:]
                data = data[data.find(b"\n") + 1 :]
            if data:
                target = folder / "logs" / node / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    ranks = {n: [NODES.index(n) * case.nproc, NODES.index(n) * case.nproc + case.nproc - 1] for n in NODES}
    ends = [e for n in case.nodes for e in nodes.events(n) if e["event"] == "ended" and e["attempt"] == 1]
    states = {e["state"] for e in ends}
    if states == {"completed"}:
        state = "completed"
    else:
        reasons = {str(e["reason"]) for e in ends if e["state"] == "stopped"} - {FAILURE}
        state = "stopped" if reasons and "failed" not in states else "failed"
    attempt = {"attempt": 1, "state": state, "cause": case.cause, "ended_unix": time.time(), "ranks": ranks}
    folder.mkdir(exist_ok=True)
    (folder / "case.json").write_text(json.dumps({"expect": expect, "attempt": attempt}, indent=1) + "\n")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the model hub does to a name that is missing, gated or private."""

    def do_HEAD(self) -> None:
        answers = {
            "missing": (404, "RepoNotFound", "Repository not found"),
            "gated": (403, "GatedRepo", "Access to model acme/gated is restricted. You must have access to it."),
            "private": (401, "", "Invalid username or password."),
            "busy": (429, "", "We had to rate limit your IP."),
        }
        code, error, text = next(answer for key, answer in answers.items() if key in self.path)
        body = json.dumps({"error": text}).encode()
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output is not for this."""


@contextlib.contextmanager
def hub() -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("10.0.0.1", 80), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def main(argv: list[str]) -> int:
    if argv[0] != "--inside":
        module = [sys.executable, "-m", "tests.cases.why.capture", "--inside", str(Path(argv[0]).resolve())]
        os.chdir(REPO)
        os.execvp("unshare", ["unshare", "-mnpuf", "--mount-proc", "--kill-child", *module, *argv[1:]])
    from tests.cases.why.cases import CASES

    for name in argv[2:] or sorted(CASES):
        case, nodes, began = CASES[name], Nodes(), time.monotonic()
        try:
            nodes.open(Path(argv[1]))
            with hub() if case.fault == "hub" else contextlib.nullcontext():
                run(case, nodes)
            keep(name, case, nodes)
        finally:
            nodes.close()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
