"""The ranks of a node, started by the agent itself: `launcher: direct`. To the agent it looks like one program.

The environment of a rank is torchrun's (torch 2.13, local_elastic_agent.py), so scripts see no difference. torch is
not imported here: that, once per node and before any rank, is most of what torchrun adds to a launch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import BinaryIO

from ..machine import cgroup, oom
from ..oslib import die_with_parent, event, read_json, start_time
from ..protocol import Event, Spec
from ..rank import EXIT_WRONG_WORLD, prepare_folder, rank_environment, report_exit, wrong_generation
from . import client as warm_client

LAST_S = 5.0
"""Between SIGTERM and SIGKILL for the ranks beside one that failed: there is nothing to save without it."""


def contract(spec: Spec, local: int) -> dict[str, str]:
    """Variables that torchrun would add to the environment of local rank `local`."""
    number, world = spec["first_rank"] + local, str(spec["world_size"])
    folder = os.path.join(spec["env"]["NEXA_RUN_DIR"], "rank_%d" % number)
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": str(spec["nproc"]),
        "GROUP_RANK": str(spec["node_rank"]),
        "GROUP_WORLD_SIZE": str(spec["nnodes"]),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(number),
        "ROLE_WORLD_SIZE": world,
        "MASTER_ADDR": spec["master_addr"],
        "MASTER_PORT": str(spec["master_port"]),
        "TORCHELASTIC_RUN_ID": "%s-%d" % (spec["run_id"], spec["attempt"]),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": os.path.join(folder, "error.attempt_%d.json" % spec["attempt"]),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": spec["env"].get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }


class Rank:
    """A child of ours, or a fork of the warm interpreter and so a child of that one: its end is told to us."""

    def __init__(self, number: int, pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.number, self.pid, self.process, self.born = number, pid, process, start_time(pid)
        self.status: int | None = None
        """Exit code, or minus the signal; None while it lives."""

    def poll(self) -> int | None:
        if self.status is None and self.process is not None:
            self.status = self.process.poll()
        return self.status

    def send_signal(self, number: int) -> None:
        if self.status is None and start_time(self.pid) == self.born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Direct:
    """The ranks of one attempt. `poll` is None while one lives; when one fails it ends the others.

    `returncode` is the code of the rank that failed first, 128+n for signal n, or 0. A stop (`terminate`) leaves the
    ranks the time that their owner gives them, since they may be writing a checkpoint.
    """

    def __init__(self, spec: Spec, environment: dict[str, str], run_dir: str, log: BinaryIO) -> None:
        self.spec, self.environment, self.run_dir, self.log = spec, environment, run_dir, log
        self.returncode: int | None = None
        self.first_failed: int | None = None
        self.stopping = False
        self.kill_at: float | None = None
        self.memory = oom.Watch()
        self.looked_at = time.monotonic()
        self.ranks: list[Rank] = []
        self.told: set[int] = set()
        self.warm = self._ask_warm() if spec.get("keep_warm") else None
        if self.warm is None:
            self._start_cold()

    @property
    def pids(self) -> list[int]:
        """Pids of the ranks, in order; empty while the warm interpreter has not answered."""
        return [rank.pid for rank in self.ranks]

    @property
    def pid(self) -> int:
        """Pid of the first rank, or of the warm interpreter that is about to fork it."""
        return self.pids[0] if self.ranks else warm_client.pid(self.run_dir) or os.getpid()

    def poll(self) -> int | None:
        if self.returncode is None:
            if self.warm is not None:
                self._hear(self.warm)
            self._judge()
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM to every rank. What has not been started is not started any more."""
        self.stopping, self.kill_at = True, None  # a scheduler may have ended the first rank before it told us
        if self.warm is not None and not self.ranks:
            self._give_up_warm()
            self.returncode = 128 + signal.SIGTERM
        self._send(signal.SIGTERM)

    def _judge(self) -> None:
        if time.monotonic() - self.looked_at > 5:
            self.looked_at = time.monotonic()
            self.memory.look()
        statuses = []
        for rank in self.ranks:
            statuses.append(status := rank.poll())
            if status is not None and rank.number not in self.told:
                self.told.add(rank.number)
                report_exit(self.run_dir, rank.number, status, self.memory.killed(-status))
        failed = [status for status in statuses if status]
        if failed and self.first_failed is None:
            self.first_failed = failed[0] if failed[0] > 0 else 128 - failed[0]
            if not self.stopping:
                self._send(signal.SIGTERM)
                self.kill_at = time.monotonic() + LAST_S
        if self.kill_at is not None and time.monotonic() > self.kill_at:
            self._send(signal.SIGKILL)
        if statuses and None not in statuses:
            self.returncode = self.first_failed or 0
            if self.warm is not None:
                self.warm.close()

    def _send(self, number: int) -> None:
        for rank in self.ranks:
            rank.send_signal(number)

    def _start_cold(self) -> None:
        """Start each rank in an interpreter of its own."""
        wrong = wrong_generation(self.run_dir, self.spec["attempt"])
        if wrong:
            self._cannot(EXIT_WRONG_WORLD, wrong)
            return
        group = read_json(os.path.join(self.run_dir, "cgroup.json"))

        us = os.getpid()

        def begin() -> None:
            die_with_parent(us)
            cgroup.enter(group)

        for number, added, path in self._places():
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
                try:
                    process = subprocess.Popen(
                        self.spec["argv"],
                        cwd=self.spec["cwd"],
                        env={**self.environment, **added},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=begin,
                    )
                except OSError as error:
                    self._cannot(127, str(error))
                    return
            self._started(number, process.pid, process)

    def _cannot(self, code: int, why: str) -> None:
        """Notes that no rank may or can be started here; those that were are ended."""
        self.log.write(("nexa: %s\n" % why).encode())
        self.log.flush()
        self._send(signal.SIGKILL)
        self.returncode = code

    def _started(self, number: int, pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.ranks.append(Rank(number, pid, process))
        event(self.run_dir, Event.RANK_START, rank=number, pid=pid, warm=process is None)

    def _places(self) -> list[tuple[int, dict[str, str], str]]:
        """(rank, what its environment has beyond the node's, its log file) of each."""
        found = []
        for local in range(self.spec["nproc"]):
            number = self.spec["first_rank"] + local
            folder, log = prepare_folder(self.run_dir, number, self.spec["attempt"])
            own = rank_environment(folder, self.environment)
            found.append((number, {**contract(self.spec, local), **own}, log))
        return found

    def _ask_warm(self) -> warm_client.Ranks | None:
        ranks = [{"number": n, "environment": added, "log": log} for n, added, log in self._places()]
        return warm_client.fork(self.spec, self.environment, self.run_dir, ranks)

    def _hear(self, asked: warm_client.Ranks) -> None:
        """Read the warm interpreter's messages. Without a good answer the ranks get interpreters of their own."""
        for word in asked.read():
            if "pids" in word:
                for local, pid in enumerate(word["pids"]):
                    self._started(self.spec["first_rank"] + local, pid)
            elif "cold" in word:
                self._go_cold(word["cold"])
                return
            else:
                self.ranks[word["rank"] - self.spec["first_rank"]].status = word["code"]
        if not self.ranks and (asked.late or not asked.open):
            refused = read_json(os.path.join(self.run_dir, "warm.json"), {}).get("refused")
            self._go_cold(refused or ("it gives no answer" if asked.open else "it ended"))
        elif not asked.open:  # its ranks died with it (PDEATHSIG); nobody else will tell
            for rank in self.ranks:
                if rank.status is None and (rank.born is None or start_time(rank.pid) != rank.born):
                    rank.status = -signal.SIGKILL

    def _give_up_warm(self) -> None:
        """Ended before anything else starts: it must not fork ranks beside those that we start."""
        if self.warm is not None:
            self.warm.close()
            self.warm = None
        warm_client.release(self.run_dir)

    def _go_cold(self, why: str) -> None:
        self.log.write(("nexa: not from the warm interpreter: %s\n" % why).encode())
        self.log.flush()
        self._give_up_warm()
        self._start_cold()
