"""Attempts of a run inside its job: what is decided before the ranks begin, and after they have ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nexa_dist.config.load import recorded_train, resolved
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_FAILED, EXIT_OK, NexaError
from nexa_dist.model import Cluster, Decision, End, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.attempt_state import EXIT_STOPPED
from nexa_dist.ops.runs.checkpoints import spread_checkpoint
from nexa_dist.ops.runs.code import send
from nexa_dist.ops.runs.finish import close, finish
from nexa_dist.ops.runs.launch import BEFORE, Prepared, prepare
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.ops.slurm.outcome import CANCELLED, outcome_of, wait_for_agents
from nexa_dist.ops.slurm.submit import folder, kept
from nexa_dist.plan.runs.manifest import build_manifest
from nexa_dist.plan.runs.recovery import Nodes, Policy, decide
from nexa_dist.plan.slurm.ending import Cause, cause
from nexa_dist.plan.slurm.script import AGAIN
from nexa_dist.run import files
from nexa_dist.run.code import archive
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.slurm.commands import Slurm
from nexa_dist.run.slurm.nodes import Steps, layout
from nexa_dist.run.ssh.connections import Link, Ssh, connect
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact

SAVE_SHARE_S = 20.0
"""Of the notice, for the end of the job after the ranks have saved."""
QUIET_S = 10.0
"""Seconds for the last words of agents that were not signalled: srun ends after them."""


@dataclass
class Leader:
    """The run of one job, or of one element of an array. `environ` is that of the batch script."""

    ctx: Context
    run: RunFolder
    environ: Mapping[str, str]

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.ctx.runner)

    @property
    def number(self) -> str:
        """Number of the job; an element of an array has one of its own."""
        return self.environ["SLURM_JOB_ID"]

    def begin(self) -> bool:
        """Write the command of every node for the next attempt; False when there is to be none. Raises NexaError."""
        told = kept(self.run)
        config = recorded_train(told["config"], self.run.run_id)
        cluster = self._cluster(told, config)
        record = self._record(told, cluster)
        if record.active:
            self._close_unended(record, config)
        if record.attempts and not record.pending:
            self.ctx.say(f"{self.run.run_id} is over: {record.last.state}")
            return False
        record.cluster = cluster
        try:
            self._start(record, config, told)
        except NexaError as error:
            self._failed_start(record, error)
            raise
        return True

    def _cluster(self, told: Mapping[str, Any], config: TrainConfig) -> Cluster:
        """The allocation as a cluster: node i is n<i>, in the order in which Slurm numbers the tasks."""
        assert config.slurm and config.nproc_per_node
        price = config.slurm.usd_per_gpu_hour * config.nproc_per_node
        names = self.slurm.nodes(self.environ["SLURM_JOB_NODELIST"])
        nodes = tuple(
            Node(f"n{place}", self.slurm.address(name), config.nproc_per_node, price_usd_per_hour=price,
                 instance_id=name, offer=config.slurm.partition or "")
            for place, name in enumerate(names)
        )  # fmt: skip
        return Cluster("slurm", "slurm_job", nodes, layout(self.ctx.workspace, told["python"]))

    def _record(self, told: Mapping[str, Any], cluster: Cluster) -> Run:
        if self.run.json.exists():
            return self.run.load()
        record = Run(cluster, told["config"], {}, [], self.run.run_id, config_file=told["config_file"],
                     git_commit=told["git_commit"], created_unix=told["submitted_unix"])  # fmt: skip
        record.path = self.run.json
        return record

    def _here(self, cluster: Cluster) -> list[Link]:
        """The folders of all nodes, as the file system that they share has them."""
        here = Ssh(self.ctx.runner, cluster, "")
        return [Link(here, node, self.environ.get("HOME", "/")) for node in cluster.nodes]

    def _start(self, record: Run, config: TrainConfig, told: Mapping[str, Any]) -> None:
        number = len(record.attempts) + 1
        here = self._here(record.cluster)
        found = spread_checkpoint(self.ctx, here, record) if record.attempts else None
        codes = [archive.Kept(self.run.code / f"{told[name]}.tar.gz") for name in ("code_hash", "package_hash")]
        send(self.ctx, here[:1], codes)
        steps = Steps(self.ctx.runner, record.cluster, "")
        prepared = prepare(
            self.ctx, steps, config, self.run.run_id, number, found,
            codes=(codes[0], codes[1]), seconds_left=_seconds_left(config, record), kept=self.run.brought,
            links=lambda: connect(steps),
        )  # fmt: skip
        run_dirs = {name: place.run_dir for name, place in prepared.places.items()}
        made = replace(prepared.attempt, started_unix=time.time())
        record.environment = {"what": "slurm.python", "python": told["python"]}
        record.start(made, run_dirs, codes[0].hash, codes[1].hash)
        self._write_specs(prepared, run_dirs, config)
        record.started()
        since = f", from step {found[0]}" if found else ""
        where = ", ".join(f"{node.name} {node.instance_id}" for node in record.cluster.nodes)
        self.ctx.say(f"▸ {self.run.run_id} attempt {number}: {made.world_size} ranks on {where}{since}")

    def _write_specs(self, prepared: Prepared, run_dirs: Mapping[str, str], config: TrainConfig) -> None:
        """One file a node, by the number that Slurm gives it (node/hold.py). Of secrets it has the names."""
        assert config.slurm
        for place, node in enumerate(prepared.plan.nodes):
            name = node.node.name
            spec = prepared.specs[name]
            spec["peers"] = [run_dir for other, run_dir in run_dirs.items() if other != name]
            spec["notice_grace_s"] = max(10.0, config.slurm.notice_s - SAVE_SHARE_S)
            told = {"run_dir": run_dirs[name], "spec": spec, "secrets": sorted(prepared.secrets)}
            files.write_json(folder(self.run) / "attempt" / f"{place}.json", told)

    def _failed_start(self, record: Run, error: NexaError) -> None:
        """An attempt that did not get as far as its ranks. Nobody tries it again: the same file, the same nodes."""
        now = time.time()
        end = End("start", f"could not be started: {error}", started_unix=now, ended_unix=now)
        fresh = None
        if not record.active:
            world = record.cluster.world_size
            fresh = Attempt(len(record.attempts) + 1, "failed", now, world, "", ranks=_spans(record.cluster))
        decision = Decision("stop", end.words)
        record.close("failed", end.words, end, unwritten=fresh, next=decision)
        self._write_manifest(record, "failed")

    def _close_unended(self, record: Run, config: TrainConfig) -> None:
        """Close an attempt whose job ended before it could: its node failed, or Slurm's patience was too short."""
        if record.last.state == "starting":
            end = End("node", f"the job ended {BEFORE}", started_unix=record.last.started_unix, ended_unix=time.time())
            outcome = close(self.run, record, Outcome("failed", end.words, {}, end))
        else:
            outcome = self._outcome(record, "requeued")
        decision = self._decided(record, config)
        if decision.action != "restart":
            finish(self.ctx, self.run, self._here(record.cluster), record, outcome, decision)

    def settle(self) -> str:
        """Write down the end of a run whose job is gone, where the job itself could not. Answers its state."""
        record = self.run.load()
        config = recorded_train(record.config, self.run.run_id)
        if record.active:
            outcome = self._outcome(record, "cancelled")
            decision = self._decided(record, config)
            finish(self.ctx, self.run, self._here(record.cluster), record, outcome, decision)
        elif record.pending:
            record.close("stopped", CANCELLED, next=Decision("stop", CANCELLED))
            self._write_manifest(record, "stopped")
        return record.last.state

    def end(self, noticed: bool) -> int:
        """Write down how the attempt ended and what comes of it. Answers the exit code of the job, or AGAIN."""
        record = self.run.load()
        config = recorded_train(record.config, self.run.run_id)
        assert config.slurm
        job = self.slurm.job(self.number)
        why = cause(job, int(self.environ.get("SLURM_RESTART_COUNT") or 0), noticed)
        if why == "cancelled":
            self._cancelled(record)
        wait_for_agents(self.ctx, record, config.slurm.notice_s if why else QUIET_S)
        outcome = self._outcome(record, why)
        decision = self._decided(record, config)
        self.ctx.say(
            f"attempt {record.last.attempt} ended: {outcome.end.words or outcome.state}; next: {decision.action}"
        )
        if decision.action != "restart":
            finish(self.ctx, self.run, self._here(record.cluster), record, outcome, decision)
            codes = {"completed": EXIT_OK, "stopped": EXIT_STOPPED}
            return codes.get(outcome.state, EXIT_FAILED)
        if outcome.end.kind != "notice":
            self.ctx.sleep(decision.after_s)
            return AGAIN
        self._write_manifest(record, "retry")
        if why != "requeued" and job.get("JobState") == "RUNNING":
            self._requeue(record, outcome)
        return EXIT_STOPPED

    def _cancelled(self, record: Run) -> None:
        """First of all the end that is known already: after KillWait Slurm kills whoever is writing down more."""
        end = End("stopped", CANCELLED, started_unix=record.last.started_unix, ended_unix=time.time())
        record.close("stopped", CANCELLED, end, next=Decision("stop", CANCELLED))
        self._write_manifest(record, "stopped")

    def _requeue(self, record: Run, outcome: Outcome) -> None:
        """Into the queue again, by which Slurm ends this script. Raises NexaError when it refuses."""
        try:
            self.slurm.requeue(self.number)
        except NexaError as error:
            stop = Decision("stop", f"{outcome.end.words}, and the job cannot go on: {error}")
            record.decide(stop)
            finish(self.ctx, self.run, self._here(record.cluster), record, outcome, stop)
            raise

    def _outcome(self, record: Run, why: Cause) -> Outcome:
        return close(self.run, record, outcome_of(self.run, record, self._here(record.cluster), why))

    def _decided(self, record: Run, config: TrainConfig) -> Decision:
        names = tuple(node.name for node in record.cluster.nodes)
        policy = Policy(config.restarts_per_hour)
        decision = decide(record.ends, Nodes(names), policy, _seconds_left(config, record))
        record.decide(decision)
        return decision

    def _write_manifest(self, record: Run, status: str) -> None:
        config = resolved(recorded_train(record.config, record.run_id))
        logs = str(self.run.logs.relative_to(self.ctx.workspace.root))
        manifest = build_manifest(record.to_json(), {}, config, logs)
        files.write_json(self.run.manifest, redact({**manifest.model_dump(mode="json"), "status": status}))


def _spans(cluster: Cluster) -> dict[str, tuple[int, int]]:
    spans, first = {}, 0
    for node in cluster.nodes:
        spans[node.name] = (first, first + node.gpus - 1)
        first += node.gpus
    return spans


def _seconds_left(config: TrainConfig, record: Run) -> float | None:
    """Seconds left of max_hours, which all attempts share; time in the queue is none of it."""
    if config.max_hours is None:
        return None
    used = sum((row.ended_unix or row.started_unix) - row.started_unix for row in record.attempts)
    return config.max_hours * 3600 - used
