"""One node's run folder and the ranks in it, for the tests of `launcher: direct` and of the warm interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.node.machine import processes
from nexa_dist.node.warm import client as warm
from nexa_dist.node.warm import launcher as warm_launcher
from tests.processes.node.rig import events_of, until

HOLDER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from nexa_dist.node.warm import client, launcher
client.agent_path = lambda: sys.argv[2]
client.ANSWER_S = 90.0
spec = json.loads(sys.argv[3])
run_dir = spec["env"]["NEXA_RUN_DIR"]
ranks = launcher.Direct(spec, spec["env"], run_dir, open(run_dir + "/torchrun.log", "ab"))
while True:
    ranks.poll()
    time.sleep(0.005)
"""
"""What the agent does with the ranks, as a process that can be killed."""


@dataclass
class Node:
    folder: Path
    agent_file: Path
    preload: tuple[str, ...] = ("json",)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONFAULTHANDLER": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }

    @property
    def run_dir(self) -> Path:
        return self.folder / "a run's dir"

    @property
    def work(self) -> Path:
        return self.run_dir / "work"

    def script(self, text: str, name: str = "train.py") -> str:
        (self.work / name).parent.mkdir(parents=True, exist_ok=True)
        (self.work / name).write_text(text)
        return name

    def spec(self, *words: str, world: int = 1, attempt: int = 1, port: int = 29511, **more: Any) -> dict[str, Any]:
        nproc = more.get("nproc", world)
        env = {
            **self.environment,
            "NEXA_RUN_DIR": str(self.run_dir),
            "NEXA_ATTEMPT": str(attempt),
            "NEXA_WORLD_SIZE": str(world),
            "NEXA_FIRST_RANK": str(more.get("first_rank", 0)),
            "NEXA_NODE": "n0",
        }
        return {
            "run_id": "r", "attempt": attempt, "node": "n0", "cwd": str(self.work), "env": env,
            "argv": [sys.executable, "-u", *words], "preload": list(self.preload), "keep_warm": False,
            "first_rank": 0, "nproc": nproc, "world_size": world, "node_rank": 0, "nnodes": 1,
            "master_addr": "127.0.0.1", "master_port": port, **more,
        }  # fmt: skip

    @contextlib.contextmanager
    def begin(self, spec: dict[str, Any]) -> Iterator[warm_launcher.Direct]:
        """The ranks; what is left of them at the end is killed, and that nothing of them is left is asserted."""
        with open(self.run_dir / "torchrun.log", "ab") as log:
            ranks = warm_launcher.Direct(spec, spec["env"], str(self.run_dir), log)
            try:
                yield ranks
            finally:
                _, left = processes.kill_run(str(self.run_dir))
                assert left == []
                until(lambda: ranks.poll() is not None)

    def start(self, *words: str, **more: Any) -> contextlib.AbstractContextManager[warm_launcher.Direct]:
        return self.begin(self.spec(*words, **more))

    @contextlib.contextmanager
    def held(self, *words: str, **more: Any) -> Iterator[int]:
        """The ranks under a process of their own; its pid."""
        root = str(Path(warm_launcher.__file__).parents[2])
        argv = [sys.executable, "-c", HOLDER, root, str(self.agent_file), json.dumps(self.spec(*words, **more))]
        agent = subprocess.Popen(argv)
        try:
            yield agent.pid
        finally:
            agent.kill()
            agent.wait()

    def finish(self, *words: str, **more: Any) -> int:
        """The ranks to their end; the exit code of the attempt."""
        with self.start(*words, **more) as ranks:
            until(lambda: ranks.poll() is not None)
            assert ranks.returncode is not None
            return ranks.returncode

    def warm(self, *words: str, **more: Any) -> None:
        """Loads the interpreter, and waits until it can fork or has said why not."""
        spec = self.spec(*words, **more)
        warm.ensure(spec, spec["env"], str(self.run_dir))
        until(lambda: {"ready_s", "refused"} & {k for k, v in self.warm_file().items() if v is not None})

    def warm_file(self) -> dict[str, Any]:
        path = self.run_dir / "warm.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def log(self, rank: int, attempt: int = 1) -> str:
        return (self.run_dir / f"rank_{rank}" / f"attempt_{attempt}.log").read_text()

    def all_events(self) -> list[dict[str, Any]]:
        return events_of(self.run_dir)

    def events(self, *names: str) -> list[tuple[str, int, int]]:
        """(event, rank, exit code or minus the signal), by rank."""
        found = [e for e in self.all_events() if e["event"] in names]
        return sorted((e["event"], e["rank"], -e.get("signal", 0) or e.get("code", 0)) for e in found)

    def alive(self) -> list[int]:
        return processes.run_processes(str(self.run_dir))
