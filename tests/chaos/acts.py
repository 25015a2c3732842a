"""How each fault of the nemesis is done to a running cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import procs
from tests.chaos.controller import Controller
from tests.chaos.local_hosts import wait
from tests.chaos.record import Act, Fault
from tests.chaos.rigs import Host, Rig
from tests.chaos.sampler import Sampler, current

FULL = """
set -e
cd {folder}
mkdir {folder}.full
cp -a . {folder}.full
mount -t tmpfs -o size=$(($(du -sk . | cut -f1) + 64))k tmpfs {folder}
cd {folder}
cp -a {folder}.full/. .
rm -rf {folder}.full
dd if=/dev/zero of=ballast bs=4k 2>/dev/null || true
"""
ROOM = "rm -f {folder}/ballast; mount -o remount,size=1g {folder}"


class Impossible(Exception):
    """The fault has nothing to act on at this moment."""


@dataclass
class Stage:
    """What faults act on."""

    rig: Rig
    sampler: Sampler
    controller: Controller
    run_id: str

    def host(self, node: str) -> Host:
        for host in self.rig.hosts():
            if host.node == node:
                return host
        raise Impossible(f"{node} is not there")

    def newest(self, host: Host) -> int:
        return current(self.sampler.events.get(host.ident, []))

    def rank_pids(self, host: Host, rank: int) -> list[int]:
        """The processes of a rank of the newest attempt, the rank itself first, its wrapper after."""
        attempt = self.newest(host)
        found = [pid for a, r, pid in self.sampler.ranks(host) if (a, r) == (attempt, rank)]
        return sorted(found, key=lambda pid: " rank -- " in procs.command(pid))

    def told_pid(self, host: Host, event: str) -> int:
        """The process that the agent named in an event of the newest attempt, as this machine numbers it."""
        attempt, found = 0, 0
        for row in self.sampler.events.get(host.ident, []):
            attempt = int(row["attempt"]) if row["event"] == "started" else attempt
            if row["event"] == event and attempt == self.newest(host) and row.get("pid"):
                found = int(row["pid"])
        return outer(host, found)

    def agent_pid(self, host: Host) -> int:
        try:
            holder = json.loads((host.run_dir(self.run_id) / "agent.pid").read_text())
        except (OSError, ValueError) as error:
            raise Impossible("no agent") from error
        return outer(host, int(holder["pid"]))


def outer(host: Host, inner: int) -> int:
    """A pid of the host as this machine numbers it. Raises Impossible when it is gone."""
    for pid in host.members():
        if inner and procs.inner_pid(pid) == inner:
            return pid
    raise Impossible("the process is gone")


def kill_rank(stage: Stage, fault: Fault) -> None:
    pids = stage.rank_pids(stage.host(fault.node), fault.rank)
    if not pids:
        raise Impossible("the rank does not run")
    os.kill(pids[0], signal.SIGKILL)


def freeze_rank(stage: Stage, fault: Fault) -> None:
    pids = stage.rank_pids(stage.host(fault.node), fault.rank)
    if not pids:
        raise Impossible("the rank does not run")
    os.kill(pids[0], signal.SIGSTOP)


def kill_torchrun(stage: Stage, fault: Fault) -> None:
    os.kill(stage.told_pid(stage.host(fault.node), "torchrun"), signal.SIGKILL)


def kill_agent(stage: Stage, fault: Fault) -> None:
    os.kill(stage.agent_pid(stage.host(fault.node)), signal.SIGKILL)


def kill_host(stage: Stage, fault: Fault) -> None:
    stage.rig.do("fail", stage.host(fault.node))


def reclaim(stage: Stage, fault: Fault) -> None:
    stage.rig.do("reclaim", stage.host(fault.node))


def notice(stage: Stage, fault: Fault) -> None:
    stage.rig.do("notice", stage.host(fault.node), seconds=fault.seconds)


def cut(stage: Stage, fault: Fault) -> None:
    """The host's link goes down, and up again later."""
    host = stage.host(fault.node)
    stage.sampler.cut.add(host.ident)
    stage.rig.do("partition", host)

    def heal() -> None:
        with contextlib.suppress(RuntimeError):  # it was made anew meanwhile
            stage.rig.do("heal", host)
        stage.sampler.cut.discard(host.ident)

    later(fault.seconds, heal)


def later(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def fill_disk(stage: Stage, fault: Fault) -> None:
    """The folder of checkpoints gets a file system of its own with no room, and room again later.

    What is in it is moved between two saves with the ranks stopped, so that none writes half there.
    """
    host = stage.host(fault.node)
    folder = f"{host.scratch}/{stage.run_id}/checkpoints"
    if not host.path(folder).is_dir():
        raise Impossible("no checkpoint was saved yet")
    pids = [pid for attempt, _, pid in stage.sampler.ranks(host) if attempt == stage.newest(host)]
    if not wait(lambda: between_saves(pids, host.path(folder)), 120.0, 0.0):
        raise Impossible("the trainer saves all the time")
    try:
        inside(host, FULL.format(folder=shlex.quote(folder)))
    finally:
        procs.send(pids, signal.SIGCONT)

    def empty() -> None:
        with contextlib.suppress(Impossible):
            inside(host, ROOM.format(folder=shlex.quote(folder)))

    later(fault.seconds, empty)


def between_saves(pids: list[int], folder: Path) -> bool:
    """Stops the ranks, and leaves them so when no half checkpoint is there."""
    procs.send(pids, signal.SIGSTOP)
    time.sleep(0.02)
    if not list(folder.glob(".tmp-*")):
        return True
    procs.send(pids, signal.SIGCONT)
    time.sleep(0.1)
    return False


def inside(host: Host, script: str) -> None:
    done = subprocess.run([*host.inside, "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Impossible(f"on {host.node}: {done.stderr.strip()[-300:]}")


def flip_bit(stage: Stage, fault: Fault) -> None:
    """One bit in the largest file of the newest checkpoint on rank 0's host; then a rank dies, so that it is read."""
    host = stage.host(fault.node)
    flip_newest(host.run_dir(stage.run_id) / "checkpoints")
    kill_rank(stage, Fault("kill_rank", 0, fault.node, 0))


def flip_newest(root: Path) -> None:
    newest = max(root.glob("step_*"), default=None)
    if newest is None:
        raise Impossible("no checkpoint was saved yet")
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    place = largest.stat().st_size // 2
    with open(largest, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def kill_supervisor(stage: Stage, fault: Fault) -> None:
    stage.controller.succeed_killed(fault.seconds, fault.how, stage.run_id)


def sleep_laptop(stage: Stage, fault: Fault) -> None:
    stage.controller.sleep(fault.seconds)


DOES: dict[str, Callable[[Stage, Fault], None]] = {
    "kill_rank": kill_rank, "kill_torchrun": kill_torchrun, "kill_agent": kill_agent, "kill_host": kill_host,
    "reclaim": reclaim, "notice": notice, "freeze_rank": freeze_rank, "cut_short": cut, "cut_long": cut,
    "fill_disk": fill_disk, "flip_bit": flip_bit, "kill_supervisor": kill_supervisor, "sleep_laptop": sleep_laptop,
}  # fmt: skip


def act(stage: Stage, fault: Fault) -> Act:
    """Does a fault now. One that finds nothing to act on is recorded as not applied."""
    began, step = time.time(), max(stage.sampler.steps.values(), default=0)
    try:
        DOES[fault.kind](stage, fault)
    except (Impossible, ProcessLookupError) as why:
        return Act(fault, began, step, began, applied=False, note=str(why))
    return Act(fault, began, step, max(time.time(), began + fault.seconds) if fault.seconds else began)
