"""What each launcher leaves behind after each of 15 events: `scripts/bench_orphans`.

Two hosts (sshds of a local cluster), one rank each. A cell is `0 @t` when both hosts were clean t seconds after the
event, else how many processes were left on n0+n1 when the watch ended; then when the launcher returned and its exit
code (negative: the signal that ended it; hung: it was still there). Processes are all of the host but its sshd.
With `on_disconnect: keep` a run of ours outlives its controller on purpose, and with either setting it outlives a
link that its controller opens again: the cell says so, and what `nexa stop` left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import procs
from tests.chaos.launchers import LAUNCHERS, Launcher
from tests.chaos.local_hosts import LocalHosts, end_by_sigterm, environment, local_hosts, wait

READY_LIMIT_S = 90.0
FROZEN_S = 60.0
SETTLE_S = 1.0
STILL_RUNNING = 4
"""Exit code by which nexa says that something may still be running, and names the node."""


@dataclass
class Case:
    """One job under one launcher, running on both hosts."""

    hosts: LocalHosts
    launcher: Launcher
    folder: Path
    child: subprocess.Popen[bytes]

    def rank_pid(self, rank: int) -> int:
        return int((self.folder / f"ready_{rank}").read_text())

    def worker(self, node: str) -> int:
        """The rank that runs on this host: c10d gives the numbers as it likes."""
        on = set(self.hosts.jobs(node))
        return next(pid for pid in (self.rank_pid(0), self.rank_pid(1)) if pid in on)

    def agent(self, node: str) -> int:
        """The launcher's own process on the host: the highest ancestor of the rank that is none of sshd's."""
        jobs, found = set(self.hosts.jobs(node)), self.worker(node)
        for pid in procs.ancestors(found, procs.table()):
            if pid not in jobs:
                break
            if "python" in procs.command(pid).split(" ")[0]:
                found = pid
        return found


@dataclass(frozen=True)
class Event:
    name: str
    act: Callable[[Case], None]
    kind: str = "quiet"
    controller_lost: bool = False
    link_lost: bool = False
    host_lost: bool = False


def told_to_raise(case: Case) -> None:
    (case.folder / "raise_1").touch()


def ssh_of(case: Case, node: str) -> list[int]:
    """The ssh clients that the launcher runs for this host."""
    among = procs.table()
    own = [case.child.pid, *procs.descendants(case.child.pid, among)]
    masters = [pid for pid in among if f"nexa-ssh-{case.child.pid}-" in procs.command(pid)]
    return [pid for pid in {*own, *masters} if is_ssh(pid) and node in procs.command(pid).split()]


def is_ssh(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "ssh"
    return False


def drop_ssh(case: Case) -> None:
    if not (found := ssh_of(case, "n1")):
        raise NotApplicable("it holds no ssh connection")
    procs.send(found, signal.SIGKILL)


def lose_controller(case: Case) -> None:
    masters = [pid for pid in procs.table() if f"nexa-ssh-{case.child.pid}-" in procs.command(pid)]
    procs.kill_trees([case.child.pid, *masters])


class NotApplicable(Exception):
    """The launcher has nothing that the event could happen to."""


EVENTS = (
    Event("a rank raises, quiet", told_to_raise),
    Event("a rank raises, comm", told_to_raise, "comm"),
    Event("worker SIGKILL", lambda c: procs.send([c.worker("n1")], signal.SIGKILL)),
    Event("per-host agent SIGKILL", lambda c: procs.send([c.agent("n1")], signal.SIGKILL)),
    Event("ssh session SIGKILL on n1", drop_ssh, link_lost=True),
    Event("host killed, quiet", lambda c: c.hosts.kill_host("n1"), host_lost=True),
    Event("host killed, comm", lambda c: c.hosts.kill_host("n1"), "comm", host_lost=True),
    Event("host frozen 60 s", lambda c: c.hosts.freeze("n1")),
    Event("Ctrl-C (process group)", lambda c: os.killpg(c.child.pid, signal.SIGINT)),
    Event("SIGINT to launcher pid", lambda c: os.kill(c.child.pid, signal.SIGINT)),
    Event("SIGTERM to launcher", lambda c: os.kill(c.child.pid, signal.SIGTERM), controller_lost=True),
    Event("SIGKILL of launcher", lambda c: os.kill(c.child.pid, signal.SIGKILL), controller_lost=True),
    Event("controller host dies, quiet", lose_controller, controller_lost=True),
    Event("controller host dies, chatty job", lose_controller, "chatty", controller_lost=True),
    Event("Ctrl-C, workers ignore SIGTERM", lambda c: os.killpg(c.child.pid, signal.SIGINT), "deaf"),
)


@dataclass
class Cell:
    """What was seen. Seconds from the event."""

    event: str
    launcher: str
    left: list[int] = field(default_factory=list)
    """Processes on n0, n1 when the watch ended."""
    clean_s: float | None = None
    returned_s: float | None = None
    code: int | None = None
    stopped_left: list[int] | None = None
    """After `nexa stop`, where the run went on by design."""
    note: str = ""

    def text(self) -> str:
        if self.note:
            return self.note
        end = "hung" if self.returned_s is None else f"{self.returned_s:.1f}/{self.code}"
        if self.stopped_left is not None:
            now = f"{'+'.join(map(str, self.left))}, named" if self.code == STILL_RUNNING else "goes on"
            return f"{now}; {'+'.join(map(str, self.stopped_left))} after nexa stop, L={end}"
        if self.clean_s is not None:
            return f"0 @{self.clean_s:.1f}s L={end}"
        return f"**{'+'.join(map(str, self.left))}** L={end}"


def begin(hosts: LocalHosts, launcher: Launcher, event: Event, folder: Path) -> Case:
    """Starts the job and waits until both ranks have met. Raises RuntimeError with the launcher's last words."""
    folder.mkdir(parents=True)
    with open(folder / "launcher.log", "wb") as log:
        child = subprocess.Popen(
            launcher.start(hosts, folder, event.kind), cwd=hosts.root, env=environment(**hosts.env),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=default_interrupt,
        )  # fmt: skip
    case = Case(hosts, launcher, folder, child)
    ready = wait(lambda: len(list(folder.glob("ready_?"))) == 2 or child.poll() is not None, READY_LIMIT_S)
    if not ready or child.poll() is not None:
        procs.kill_trees([child.pid])
        said = (folder / "launcher.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{launcher.name}: the job did not start:\n{said}")
    time.sleep(SETTLE_S)
    return case


def default_interrupt() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and so would all below this."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def observe(case: Case, event: Event, watch_s: float) -> Cell:
    cell = Cell(event.name, case.launcher.name)
    frozen = event.name.startswith("host frozen")
    case.child.poll()
    began = time.monotonic()
    try:
        event.act(case)
    except NotApplicable as why:
        cell.note = f"n/a ({why})"
        return cell
    end, thawed = began + watch_s + (FROZEN_S if frozen else 0), False
    while (now := time.monotonic()) < end:
        if frozen and not thawed and now > began + FROZEN_S:
            case.hosts.freeze("n1", thaw=True)
            thawed = True
        if cell.returned_s is None and case.child.poll() is not None:
            cell.returned_s, cell.code = round(now - began, 1), case.child.returncode
        cell.left = [len(case.hosts.jobs(node)) for node in case.hosts.nodes]
        cell.clean_s = None if any(cell.left) else (cell.clean_s or round(now - began, 1))
        if cell.clean_s is not None and cell.returned_s is not None:
            break
        time.sleep(0.1)
    # A link that is opened again is no reason to end a run; a lost controller is one where the user says so.
    goes_on = (case.launcher.ours and event.link_lost) or (case.launcher.keeps and event.controller_lost)
    told_so = case.launcher.ours and cell.code == STILL_RUNNING  # of a host that did not answer
    if any(cell.left) and (goes_on or told_so):
        cell.stopped_left = stop(case)
    return cell


def stop(case: Case) -> list[int]:
    newest = max((case.hosts.root / "runs").glob("train_*"), key=lambda path: path.stat().st_mtime_ns)
    case.hosts.nexa("stop", newest.name, "--grace", "1")
    return [len(case.hosts.jobs(node)) for node in case.hosts.nodes]


def measure(hosts: LocalHosts, launcher: Launcher, event: Event, folder: Path, watch_s: float) -> Cell:
    try:
        case = begin(hosts, launcher, event, folder)
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
        return Cell(event.name, launcher.name, note="did not start")
    try:
        return observe(case, event, watch_s)
    finally:
        procs.kill_trees([case.child.pid] if case.child.poll() is None else [])
        case.child.wait()
        masters = [pid for pid in procs.table() if f"nexa-ssh-{case.child.pid}-" in procs.command(pid)]
        procs.send(masters, signal.SIGKILL)
        hosts.end_jobs()
        if launcher.ours:  # a run whose controller was killed is not left open for the next
            for run in (hosts.root / "runs").glob("train_*"):
                if open_run(run):
                    hosts.nexa("stop", run.name, "--grace", "0")
        if event.host_lost:
            hosts.provision()


def open_run(run: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return bool(json.loads((run / "run.json").read_text())["attempts"][-1]["state"] in ("starting", "running"))
    return False


def table(cells: list[Cell], launchers: list[str]) -> str:
    by = {(cell.event, cell.launcher): cell.text() for cell in cells}
    rows = [["event", *(LAUNCHERS[name].words for name in launchers)]]
    rows += [[event.name, *(by.get((event.name, name), "–") for name in launchers)] for event in EVENTS]
    rows = [row for row in rows if row[0] == "event" or any(cell != "–" for cell in row[1:])]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_orphans", description=__doc__)
    parser.add_argument("--launchers", default="bash,torchrunx,nexa,nexa-kill,nexa-direct,nexa-direct-kill",
                        help=f"of {', '.join(LAUNCHERS)}")  # fmt: skip
    parser.add_argument("--events", default="all", help="numbers from 1 to 15, such as 1,4-6; or all")
    parser.add_argument("--watch-seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="also write every cell to this file")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="cells of earlier calls, for one table")
    arguments = parser.parse_args(argv)
    end_by_sigterm()
    names = [name for name in arguments.launchers.split(",") if name]
    if unknown := [name for name in names if name not in LAUNCHERS]:
        parser.error(f"no launcher {unknown}; there are {', '.join(LAUNCHERS)}")
    cells = [Cell(**row) for path in arguments.merge for row in json.loads(path.read_text())["cells"]]
    if names:
        cells += measure_all(names, numbers(arguments.events), arguments.watch_seconds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "cells": [asdict(cell) for cell in cells]}))
    there = [name for name in LAUNCHERS if any(cell.launcher == name for cell in cells)]
    print(table(cells, there))
    ours = [cell for cell in cells if LAUNCHERS[cell.launcher].ours]
    dirty = [c for c in ours if c.clean_s is None and c.stopped_left != [0, 0]]
    return 1 if dirty else 0


def measure_all(names: list[str], events: list[int], watch_s: float) -> list[Cell]:
    """Every launcher at one event before the next event, so that a busy minute hits all of them."""
    cells = []
    with (
        tempfile.TemporaryDirectory(prefix="nexa-orphans-") as folder,
        local_hosts(Path(folder) / "w", "orphans", 2, 1) as hosts,
    ):
        for number, name in [(number, name) for number in events for name in names]:
            where = Path(folder) / "cases" / f"{name}_{number}"
            cells.append(measure(hosts, LAUNCHERS[name], EVENTS[number - 1], where, watch_s))
            print(f"{cells[-1].event}: {name}: {cells[-1].text()}", file=sys.stderr, flush=True)
    return cells


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "unix": time.time()}


def numbers(text: str) -> list[int]:
    """`1,4-6` as [1, 4, 5, 6]. Raises SystemExit for what is no event."""
    if text == "all":
        return list(range(1, len(EVENTS) + 1))
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if bad := [number for number in found if not 1 <= number <= len(EVENTS)]:
        raise SystemExit(f"error: no event {bad}; there are 1 to {len(EVENTS)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
