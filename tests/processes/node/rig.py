"""Runs of the node agent with real processes; a few lines stand in for torchrun and start the ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_dist.node import control, record
from nexa_dist.node.protocol import VERSION
from nexa_dist.node.watch.stack_dump import state_of

# Starts the ranks as torchrun does: in sessions of their own, through the agent's `rank`; ends them when one fails.
TORCHRUN = """
import os, signal, subprocess, sys, time
world = int(os.environ["NEXA_WORLD_SIZE"])
made = [subprocess.Popen([sys.executable, "-S", "-E", sys.argv[1], "rank", "--", sys.executable, "-c", sys.argv[2]],
        env={**os.environ, "RANK": str(r), "WORLD_SIZE": os.environ.get("LIE", str(world)),
             "LOCAL_WORLD_SIZE": str(world)}, start_new_session=True) for r in range(world)]
SIGNAL
while any(p.poll() is None for p in made):
    if any(p.poll() for p in made):
        [p.terminate() for p in made]
        break
    time.sleep(0.02)
sys.exit(max(abs(p.wait()) for p in made))
"""
PASS_ON = "signal.signal(15, lambda *_: [p.terminate() for p in made])"
IGNORE = "signal.signal(15, signal.SIG_IGN)"

# For ranks: progress as nexa_dist.train.progress writes it, without its import.
REPORT = """
import json, os, sys, time
def report(step, **more):
    fd = os.open(os.environ["NEXA_PROGRESS"], os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, json.dumps({"step": step, **more}).encode().ljust(512), 0)
    os.close(fd)
rank = int(os.environ["RANK"])
"""


def torchrun(signals: str = "") -> str:
    return TORCHRUN.replace("SIGNAL", signals)


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("not within the time")


def freeze(pid: int) -> None:
    """SIGSTOP, and the wait until it has come: a process that is just then without a CPU looks alive for a while."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    """What is whole of agent.jsonl: who writes it may have written half of a line."""
    path = run_dir / "agent.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Rig:
    """One run folder and the agent's file."""

    def __init__(self, folder: Path, agent: Path) -> None:
        self.folder, self.agent = folder, agent
        self.argv = [sys.executable, "-S", "-E", str(agent)]

    def call(self, *words: str, message: Any = None, check: bool = True) -> dict[str, Any]:
        """A command of the agent, in a process of its own."""
        text = json.dumps(message)
        done = subprocess.run([*self.argv, *words], input=text, capture_output=True, text=True, timeout=90)
        assert not check or done.returncode == 0, (done.stdout, done.stderr)
        return dict(json.loads(done.stdout))

    def spec(
        self, rank_code: str, *, attempt: int = 1, world: int = 2, signals: str = "", **more: Any
    ) -> dict[str, Any]:
        env = {
            "NEXA_RUN_DIR": str(self.folder),
            "NEXA_WORLD_SIZE": str(world),
            "NEXA_FIRST_RANK": "0",
            "NEXA_NODE": "n0",
            "NEXA_ATTEMPT": str(attempt),
            "PYTHONFAULTHANDLER": "1",
            **more.pop("env", {}),
        }
        return {
            "version": VERSION, "run_id": "r", "attempt": attempt, "node": "n0", "env": env, "grace_s": 2,
            "cwd": str(self.folder / "work"), "launcher": "torchrun",
            "argv": [sys.executable, "-c", torchrun(signals), str(self.agent), rank_code], **more,
        }  # fmt: skip

    def start(self, rank_code: str, *, go: bool = True, **more: Any) -> dict[str, Any]:
        """Starts an attempt; answers its spec."""
        spec = self.spec(rank_code, **more)
        self.call("start", str(self.folder), message={"spec": spec, "secrets": {"HF_TOKEN": "canary-123"}})
        if go:
            control.go(str(self.folder))
        return spec

    def stop(self, **message: Any) -> dict[str, Any]:
        return self.call("stop", str(self.folder), message={"grace_s": 0, **message})

    def status(self) -> dict[str, Any]:
        return control.status(str(self.folder))

    def ended(self) -> dict[str, Any]:
        return dict(until(lambda: (s := self.status())["state"] in ("completed", "failed", "stopped") and s))

    def log(self, rank: int = 0, attempt: int = 1) -> Path:
        return self.folder / f"rank_{rank}" / f"attempt_{attempt}.log"

    def ready(self, *ranks: int, attempt: int = 1) -> None:
        """Waits until each of the ranks has written "ready" to its log, and the agent knows that it has started."""
        logs = [self.log(rank, attempt) for rank in ranks]
        until(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
        until(lambda: set(ranks) <= set(record.Record(str(self.folder), attempt).read().pids))

    def events(self, name: str = "") -> list[dict[str, Any]]:
        return [e for e in events_of(self.folder) if name in ("", e["event"])]

    def agent_pid(self) -> int:
        return int(json.loads((self.folder / "agent.pid").read_text())["pid"])

    def groups(self) -> list[str]:
        """Control groups of this run that are there."""
        path = self.folder / "cgroup.json"
        group = json.loads(path.read_text()) if path.exists() else ""
        return [group] if os.path.isdir(group) else []
