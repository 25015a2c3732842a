"""Start to the first sum of all ranks, and to the launcher's end, on two loopback hosts: launchers side by side.

Rounds are interleaved in a random order, so a busy machine is the same for all. The ratio to the floor (what users
write by hand: ssh + torchrun c10d) is the median over the rounds of the ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import fanout
from tests.bench.hosts import TICKS_PER_S, Hosts, two_hosts
from tests.bench.launchers import LAUNCHERS, Job, Launcher

FLOOR = "c10d"
LIMIT_S = 90.0


@dataclass(frozen=True)
class Measured:
    """Seconds from the start: of the first sum everywhere, of the launcher's end. CPU of all and of the controller."""

    name: str
    turn: int
    sum_s: float
    exit_s: float
    cpu_s: float
    controller_cpu_s: float
    others: float
    """Share of this machine's CPUs that other programs used meanwhile."""
    fault_to_sum_s: float | None = None


def busy_s() -> float:
    """CPU seconds that all programs of this machine have used."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def wait_for_quiet(limit_s: float) -> None:
    """Until other programs leave nine tenths of the CPUs alone for half a second, or the time is up."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = busy_s()
        time.sleep(0.5)
        if busy_s() - before < 0.05 * (os.cpu_count() or 1):
            return


def controller_cpu_s() -> float:
    """Of all processes that we started and that have ended."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Failed(Exception):
    """A launch that did not end well, and what it said."""


def measure(name: str, launcher: Launcher, job: Job, turn: int) -> Measured:
    """One launch to its end. Raises Failed when it fails or leaves anything on the hosts."""
    argv = launcher.start(job)
    world = 2 * job.nproc
    before, cpu_before, all_before = job.hosts.cpu_s(), controller_cpu_s(), busy_s()
    began, began_unix = time.monotonic(), time.time()
    try:
        done = subprocess.run(
            argv,
            cwd=job.cwd or job.folder,
            env={**os.environ, **job.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"not over within {LIMIT_S:.0f} s") from None
    exit_s = time.monotonic() - began
    if done.returncode:
        raise Failed(f"exit {done.returncode}: {(done.stderr or done.stdout)[-3000:]}")
    end = time.monotonic() + 10
    while job.hosts.jobs() and time.monotonic() < end:
        time.sleep(0.05)
    if job.hosts.jobs():
        raise Failed(f"processes are left: {job.hosts.jobs()}")
    controller = controller_cpu_s() - cpu_before
    cpu = job.hosts.cpu_s() - before + controller
    took_s = (time.monotonic() - began) * (os.cpu_count() or 1)
    others = max(0.0, busy_s() - all_before - cpu) / took_s
    attempt, from_unix, fault = 1, began_unix, None
    if launcher.mode == "fault":
        attempt, from_unix = 2, decided_unix(job)
        fault = sum_unix(job.folder, attempt, world) - float((job.folder / "fault").read_text())
    sum_s = sum_unix(job.folder, attempt, world) - from_unix
    return Measured(name, turn, sum_s, exit_s, cpu, controller, others, fault)


def sum_unix(folder: Path, attempt: int, world: int) -> float:
    """When the last rank had the sum."""
    return max(float((folder / f"sum.{attempt}.{rank}").read_text()) for rank in range(world))


def decided_unix(job: Job) -> float:
    """When the controller began to start the agents of attempt 2."""
    assert job.cwd
    newest = max((job.cwd / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return float(json.loads(newest.read_text())["attempts"][1]["started_unix"])


def rounds(hosts: Hosts, names: list[str], args: argparse.Namespace) -> list[Measured]:
    found = []
    for turn in range(-1, args.rounds):  # the first round fills caches and counts for nothing
        order = random.sample(names, len(names))
        for name in order:
            with tempfile.TemporaryDirectory(prefix="job-", dir=hosts.folder) as folder:
                job = Job(hosts, Path(folder), args.nproc, args.python, Path(args.peers))
                wait_for_quiet(args.quiet_s)
                try:
                    one = measure(name, LAUNCHERS[name], job, turn)
                except Failed as error:
                    print(f"  {turn + 1}/{args.rounds} {name} failed: {error}", file=sys.stderr)
                    hosts.end_jobs()
                    continue
            print(f"  {turn + 1}/{args.rounds} {name}: {one.sum_s:.2f} s, exit {one.exit_s:.2f} s", file=sys.stderr)
            if turn >= 0:
                found.append(one)
    return found


def ratio(found: list[Measured], name: str) -> float:
    floors = {one.turn: one.sum_s for one in found if one.name == FLOOR}
    ratios = [one.sum_s / floors[one.turn] for one in found if one.name == name and one.turn in floors]
    return statistics.median(ratios) if ratios else float("nan")


def show(found: list[Measured], names: list[str], nproc: int) -> None:
    """The table; medians with their range."""

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"

    turns = len({one.turn for one in found})
    others = statistics.median(one.others for one in found)
    print(f"2 hosts × {nproc} rank(s), {turns} interleaved rounds: median (least–most), seconds")
    print(f"{os.cpu_count()} CPUs, of which other programs used {others:.0%} meanwhile (median)")
    print(f"{'':44}{'first all_reduce':>20}{'× floor':>9}{'exit':>22}{'CPU s':>8}{'controller':>12}")
    for name in names:
        mine = [one for one in found if one.name == name]
        if not mine:
            print(f"{LAUNCHERS[name].words:44}   failed in every round")
            continue
        if len(mine) < turns:
            print(f"{LAUNCHERS[name].words:44}   failed in {turns - len(mine)} of {turns} rounds")
        cpu = statistics.median(one.cpu_s for one in mine)
        controller = statistics.median(one.controller_cpu_s for one in mine)
        is_relaunch = LAUNCHERS[name].mode == "fault"
        ends = "" if is_relaunch else cell([one.exit_s for one in mine])
        print(
            f"{LAUNCHERS[name].words:44}{cell([one.sum_s for one in mine]):>20}{ratio(found, name):9.2f}{ends:>22}"
            + ("" if is_relaunch else f"{cpu:8.1f}{controller:12.2f}")
        )
        if is_relaunch:
            faults = [one.fault_to_sum_s for one in mine if one.fault_to_sum_s is not None]
            print(f"{'  … from the fault itself':44}{cell(faults):>20}")


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    peers = os.environ.get("NEXA_BENCH_PEERS", str(cache / "nexa" / "bench"))
    parser = argparse.ArgumentParser(prog="scripts/bench_launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=1, help="ranks on each host")
    parser.add_argument("--quiet-s", type=float, default=0, help="wait so long before each launch for a quiet machine")
    parser.add_argument("--only", default=",".join(LAUNCHERS), help="launchers, of: %(default)s")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch, for all but the peers")
    parser.add_argument(
        "--peers", default=peers, help="folder of the peers' environments (NEXA_BENCH_PEERS; %(default)s)"
    )
    parser.add_argument("--fan-out", metavar="N,N", help="instead: run `true` on so many hosts, by several clients")
    parser.add_argument("--json", action="store_true", help="every single measurement, on stdout")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are switched off
    if args.fan_out:
        return fanout.main([int(word) for word in args.fan_out.split(",")], args.rounds, args.json, Path(args.peers))
    names = [FLOOR, *(name for name in args.only.split(",") if name != FLOOR)]
    for name in list(names):
        if why := LAUNCHERS[name].missing(Path(args.peers)):
            print(f"{LAUNCHERS[name].words}: left out: {why}", file=sys.stderr)
            names.remove(name)
    with two_hosts() as hosts:
        found = rounds(hosts, names, args)
    if args.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        show(found, names, args.nproc)
    return 0


if __name__ == "__main__":
    sys.exit(main())
