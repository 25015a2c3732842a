"""How each launcher of the benches starts a job on two hosts, one rank each: argv, environment, and what it is."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.ops.providers.local import free_port
from tests.chaos.local_hosts import NEXA, LocalHosts

JOB = Path(__file__).with_name("orphan_job.py")
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Launcher:
    """`start(hosts, folder, kind)` answers the argv of the launcher; `folder` is where the job tells of itself."""

    name: str
    words: str
    start: Callable[[LocalHosts, Path, str], list[str]]
    ours: bool = False
    keeps: bool = False
    """A run outlives its controller on purpose, until it is stopped or its deadline comes."""


def peers_python() -> Path:
    """An interpreter with torch and torchrunx, in a virtual environment that is made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "nexa" / "bench" / "launchers"
    python = folder / "bin" / "python"
    if (
        subprocess.run([str(python), "-c", "import torchrunx"], capture_output=True, check=False).returncode
        if (python.exists())
        else True
    ):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", TORCH, "torchrunx"], check=True)
    return python


def address(hosts: LocalHosts, node: str) -> str:
    rows = json.loads((hosts.folder / "cluster.json").read_text())["nodes"]
    return str(next(row["address"] for row in rows if row["name"] == node))


def bash_c10d(options: str = "") -> Callable[[LocalHosts, Path, str], list[str]]:
    """The script that users write: ssh to each host in the background, wait for all, the last bad code counts."""

    def start(hosts: LocalHosts, folder: Path, kind: str) -> list[str]:
        first = address(hosts, hosts.nodes[0])
        inner = [
            *(str(peers_python()), "-m", "torch.distributed.run"),
            *(f"--nnodes={len(hosts.nodes)}", "--nproc-per-node=1", "--rdzv-backend=c10d"),
            *(f"--rdzv-endpoint={first}:{free_port(first)}", f"--rdzv-id={folder.name}"),
            # Every loopback address is its own to torchrun: without a word each host would try to hold the store.
            "--rdzv-conf=is_host=HOLDS",
        ]
        torchrun, job = shlex.join(inner).replace("HOLDS", "$holds"), shlex.join([str(JOB), str(folder), kind])
        text = textwrap.dedent(f"""\
            pids=
            address=({" ".join(address(hosts, node) for node in hosts.nodes)})
            i=0 holds=1
            for host in {" ".join(hosts.nodes)}; do
                ssh {options} -F {shlex.quote(str(hosts.ssh_config))} $host \
            "{torchrun} --local-addr=${{address[$i]}} {job}" &
                pids="$pids $!"
                i=$((i + 1)) holds=0
            done
            code=0
            for pid in $pids; do wait $pid || code=$?; done
            exit $code
            """)
        script = folder / "launch.sh"
        script.write_text(text)
        return ["bash", str(script)]

    return start


def torchrunx(hosts: LocalHosts, folder: Path, kind: str) -> list[str]:
    """Its own API. It would start a host of a loopback address without ssh, so the names resolve elsewhere here."""
    backend = "gloo" if kind == "comm" else None
    text = f"""\
import socket, sys
sys.path.insert(0, {str(JOB.parent)!r})
import orphan_job, torchrunx, cloudpickle
cloudpickle.register_pickle_by_value(orphan_job)
plain = socket.gethostbyname
socket.gethostbyname = lambda name: "192.0.2.1" if name in {list(hosts.nodes)!r} else plain(name)
if __name__ == "__main__":
    made = torchrunx.Launcher(hostnames={list(hosts.nodes)!r}, workers_per_host=1, backend={backend!r},
                              ssh_config_file={str(hosts.ssh_config)!r})
    made.run(orphan_job.rank, {str(folder)!r}, {kind!r})
"""
    script = folder / "launch.py"
    script.write_text(text)
    return [str(peers_python()), str(script)]


def nexa(launcher: str, on_disconnect: str) -> Callable[[LocalHosts, Path, str], list[str]]:
    def start(hosts: LocalHosts, folder: Path, kind: str) -> list[str]:
        train = {
            "name": "orphans",
            "script": str(JOB),
            "args": [str(folder), kind],
            "launcher": launcher,
            "on_disconnect": on_disconnect,
            "restarts_per_hour": 0,  # the table is of ends, not of recoveries
            "nproc_per_node": 1,
        }
        (folder / "train.yaml").write_text(json.dumps(train))
        return [*NEXA, "run", str(folder / "train.yaml"), "--cluster", hosts.name]

    return start


LAUNCHERS = {
    found.name: found
    for found in (
        Launcher("bash", "bash + torchrun c10d", bash_c10d()),
        Launcher("bash-tt", "bash ssh -tt + torchrun c10d", bash_c10d("-tt")),
        Launcher("torchrunx", "torchrunx", torchrunx),
        Launcher("nexa", "nexa, torchrun, keep", nexa("torchrun", "keep"), ours=True, keeps=True),
        Launcher("nexa-kill", "nexa, torchrun, kill", nexa("torchrun", "kill"), ours=True),
        Launcher("nexa-direct", "nexa, direct, keep", nexa("direct", "keep"), ours=True, keeps=True),
        Launcher("nexa-direct-kill", "nexa, direct, kill", nexa("direct", "kill"), ours=True),
    )
}
