"""Looks at every host twice a second: which attempt's ranks live where, and how far they are."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import procs
from tests.chaos.record import Sample
from tests.chaos.rigs import CANARIES, Host, Rig

EVERY_S = 0.5
READER = "agent.pyz follow "


class Sampler:
    """Use as a context. `cut` holds idents of hosts that cannot be reached, which nobody can end processes on."""

    def __init__(self, rig: Rig, run_id: str) -> None:
        self.rig, self.run_id = rig, run_id
        self.samples: list[Sample] = []
        self.events: dict[str, list[dict[str, Any]]] = {}
        """Of agent.jsonl by host ident, read on the host itself, also when the mirror never got it."""
        self.cut: set[str] = set()
        self.leaks: set[str] = set()
        self.steps: dict[int, int] = {}
        """Highest step by attempt."""
        self.first: dict[int, int] = {}
        """The first step that an attempt told: where it went on from."""
        self.lag = 0
        self.errors: list[str] = []
        self._offsets: dict[str, int] = {}
        self._owners: dict[tuple[str, int], tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self.look()
            except (OSError, RuntimeError, ValueError) as error:
                self.errors.append(repr(error))  # a host that ended meanwhile; the next look sees it so

    def look(self) -> None:
        found: list[tuple[int, str, procs.Process]] = []
        for host in self.rig.hosts():
            self._read(host)
            if host.ident in self.cut:
                continue
            told = [(attempt, procs.look(pid)) for attempt, _, pid in self.ranks(host)]
            found += [(attempt, host.node, process) for attempt, process in told if process is not None]
        ranks = beside(found)
        self.samples.append(Sample(time.time(), ranks, dict(self.steps), self.lag))

    def ranks(self, host: Host) -> list[tuple[int, int, int]]:
        """(attempt, rank, pid as this machine numbers it) of every rank process on a host.

        A rank that was forked from a warm interpreter shows that one's environment, so what the agent said of its
        pids goes before.
        """
        mark, found = f"/{self.run_id}".encode(), []
        for pid in host.members():
            env = procs.environment(pid)
            told = self._owners.get((host.ident, procs.inner_pid(pid)))
            if told is not None:
                found.append((*told, pid))
            elif env.get(b"NEXA_RUN_DIR", b"").endswith(mark) and b"RANK" in env and b"NEXA_ATTEMPT" in env:
                found.append((int(env[b"NEXA_ATTEMPT"]), int(env[b"RANK"]), pid))
            if any(canary in procs.command(pid) for canary in CANARIES.values()):
                self.leaks.add(f"the command line of a process on {host.node}")
        return found

    def left(self, host: Host) -> tuple[str, ...]:
        """Command lines of everything of the run on a host but its readers."""
        return self._lines(host, lambda line: READER not in line)

    def readers(self, host: Host) -> tuple[str, ...]:
        """Command lines of what sends a controller the logs of the run."""
        return self._lines(host, lambda line: READER in line)

    def _lines(self, host: Host, wanted: Callable[[str], bool]) -> tuple[str, ...]:
        mark, found = f"/{self.run_id}".encode(), []
        for pid in host.members():
            line = procs.command(pid)
            of_run = procs.environment(pid).get(b"NEXA_RUN_DIR", b"").endswith(mark) or self.run_id in line
            if of_run and wanted(line):
                found.append(f"{pid} {line}")
        return tuple(found)

    def _read(self, host: Host) -> None:
        """What the host's agent has written since the last look."""
        known, run_dir = self.events.setdefault(host.ident, []), host.run_dir(self.run_id)
        try:
            with open(run_dir / "agent.jsonl", "rb") as file:
                file.seek(self._offsets.get(host.ident, 0))
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[host.ident] = self._offsets.get(host.ident, 0) + len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                known.append(event)
                self._take(host, known, event)
                if event["event"] == "progress" and event.get("saved") is not None:
                    self.lag = int(event["saved"]) - int(event.get("durable") or 0)
        self._progress(known, run_dir)

    def _take(self, host: Host, known: list[dict[str, Any]], event: dict[str, Any]) -> None:
        attempt = current(known)
        if event["event"] == "rank_start":
            self._owners[(host.ident, int(event["pid"]))] = (attempt, int(event["rank"]))
        if event["event"] == "progress" and event.get("steps"):
            self._reached(attempt, *event["steps"].values())

    def _progress(self, known: list[dict[str, Any]], run_dir: Path) -> None:
        """The ranks' own files, newer than the agent's last word; those of an attempt before are passed over."""
        begun = [event for event in known if event["event"] == "started"]
        for path in run_dir.glob("rank_*/progress.json") if begun else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                told = json.loads(path.read_text())
                if told["at"] > begun[-1]["at"]:
                    self._reached(int(begun[-1]["attempt"]), told["step"])

    def _reached(self, attempt: int, *steps: int) -> None:
        self.first.setdefault(attempt, min(int(step) for step in steps))
        self.steps[attempt] = max([self.steps.get(attempt, 0), *(int(step) for step in steps)])


def beside(found: Sequence[tuple[int, str, procs.Process]]) -> dict[int, tuple[str, ...]]:
    """Nodes by attempt of ranks that lived at one time. Hosts are looked at one after the other: a rank of an older
    attempt lived beside the newest one's when it lives after these were seen."""
    newest, ranks = max((attempt for attempt, _, _ in found), default=0), dict[int, tuple[str, ...]]()
    for attempt, node, process in found:
        again = process if attempt == newest else procs.look(process.pid)
        if again is not None and again.started_ticks == process.started_ticks:
            ranks[attempt] = tuple(sorted({*ranks.get(attempt, ()), node}))
    return ranks


def current(events: list[dict[str, Any]]) -> int:
    """The attempt that the newest `started` names; 0 before any."""
    return next((int(event["attempt"]) for event in reversed(events) if event["event"] == "started"), 0)
