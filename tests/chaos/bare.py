"""torchrun alone on the nodes of a rig, as users start it by hand: one ssh a host, `--max-restarts`, c10d."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import procs
from tests.chaos.local_hosts import REPO
from tests.chaos.rigs import Host, RegionRig

STEP = "step "
TELLS = ("failed", "error", "sigterm", "sending process", "closed", "exitcode", "timeout")
"""A line with one of these words, in small letters, says that somebody noticed."""


@dataclass
class Bare:
    """One job; `lines` are (Unix time, node, text) of everything that came over ssh."""

    place: RegionRig
    folder: str
    store: str = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    """Without it the ranks of a restart find the addresses of those before them, and the job is over (4 of 4 here)."""
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    """When the ssh of a node returned, Unix time."""
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self, args: list[str], number: int) -> None:
        cluster = json.loads((self.place.workspace / ".nexa/clusters/chaos/cluster.json").read_text())
        first = cluster["nodes"][0]["private_address"]
        for index, host in enumerate(self.place.hosts()):
            self._furnish(host)
            inner = (
                f"cd {self.folder} && PYTHONPATH=. GLOO_SOCKET_IFNAME=eth0 {self.store} "
                f"exec {cluster['layout']['python']} "
                "-m torch.distributed.run --nnodes=2 --nproc-per-node=2 --max-restarts=3 --rdzv-backend=c10d "
                f"--rdzv-endpoint={first}:{29500 + number} --rdzv-id=bare{number} --rdzv-conf=is_host={1 - index} "
                f"--local-addr={cluster['nodes'][index]['private_address']} own_script.py {' '.join(args)}"
            )
            argv = [*self.place.here.prefix, "ssh", "-F", cluster["ssh_config"], host.node, inner]
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                cwd=self.place.workspace, env=self.place.env,
            )  # fmt: skip
            self.children[host.node] = child
            threading.Thread(target=self._read, args=(host.node, child), daemon=True).start()
        threading.Thread(target=self._share, daemon=True).start()

    def _furnish(self, host: Host) -> None:
        """The package and the script, owned by the user of the scratch folder."""
        target, owner = host.path(self.folder), host.path(host.scratch).stat()
        shutil.copytree(REPO / "nexa_dist", target / "nexa_dist", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPO / "configs" / "train" / "own_script.py", target)
        for path in (target, *target.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)

    def _read(self, node: str, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self.lines.append((time.time(), node, line.decode(errors="replace").rstrip()))
        child.wait()
        self.ended[node] = time.time()

    def _share(self) -> None:
        """A shared disk for checkpoints, which torchrun alone needs: whatever one host has, the other gets."""
        while not self._over.wait(0.2):
            roots = [host.path(f"{self.folder}/runs/own/checkpoints") for host in self.place.hosts()]
            for source in roots:
                for step in source.glob("step_*") if source.is_dir() else ():
                    for target in roots:
                        if target != source and not (target / step.name).exists():
                            copied(step, target, self.place.hosts()[0].path(self.folder).stat())

    def ranks(self, host: Host) -> dict[int, int]:
        """Pids of the ranks on a host. c10d gives the numbers in the order of the hosts' addresses."""
        found = {}
        for pid in host.members():
            words = procs.command(pid).split()
            if "own_script.py" in words and "torch.distributed.run" not in words:
                found[int(procs.environment(pid).get(b"RANK", b"-1"))] = pid
        return found

    def torchrun(self, host: Host) -> list[int]:
        return [pid for pid in host.members() if "torch.distributed.run" in procs.command(pid).split()]

    def step(self) -> int:
        """The newest step that rank 0 told."""
        told = [text for _, _, text in self.lines if text.startswith(STEP)]
        return int(told[-1].split()[1].split("/")[0]) if told else 0

    def end(self) -> None:
        self._over.set()
        for child in self.children.values():
            procs.kill_trees([child.pid] if child.poll() is None else [])
        for host in self.place.hosts():
            mine = [pid for pid in host.members() if self.folder in cwd(pid)]
            procs.send(mine, signal.SIGKILL)


def copied(step: Path, root: Path, owner: os.stat_result) -> None:
    """A whole checkpoint or none, of the same user; one that is pruned meanwhile is passed over."""
    temporary = root / f".copy-{step.name}"
    try:
        for folder in (root.parent.parent, root.parent, root):
            folder.mkdir(exist_ok=True)
            os.chown(folder, owner.st_uid, owner.st_gid)
        shutil.copytree(step, temporary)
        for path in (temporary, *temporary.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        os.rename(temporary, root / step.name)
    except (OSError, shutil.Error):
        shutil.rmtree(temporary, ignore_errors=True)


def cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
