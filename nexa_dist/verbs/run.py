"""attach, stop, runs, and what a run shows from its first attempt to its end."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from nexa_dist import live, ui
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STILL_RUNNING,
    NexaError,
    UsageError,
)
from nexa_dist.model import Cluster, Node
from nexa_dist.ops import finish, launch, watch
from nexa_dist.ops import logs as logging
from nexa_dist.ops import runlist as listing
from nexa_dist.ops import runs as running
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import pending
from nexa_dist.ops.supervise import Supervisor, alone
from nexa_dist.run import files
from nexa_dist.run.nodes import Connecting, Link, Ssh, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact
from nexa_dist.verbs.common import context, ranks

Arguments = argparse.Namespace


def dry(ctx: Context, ssh: Ssh, links: Connecting, config: TrainConfig, as_json: bool) -> int:
    """What a new run would be."""
    return printed(launch.prepare(ctx, ssh, config, "train_dry_run", 1, None, links=links, dry_run=True), as_json)


def fresh(
    ctx: Context,
    ssh: Ssh,
    links: Connecting,
    config: TrainConfig,
    config_file: str,
    *,
    detach: bool,
    shown: set[int] | None,
    as_json: bool,
) -> int:
    """A new run, followed to its end."""
    cluster = ssh.cluster
    running.refuse_busy(ctx, cluster)
    refuse_without_money(ctx, cluster, config)
    with ctx.phase(f"checks on {len(cluster.nodes)} nodes"):
        folder = ctx.workspace.new_run(config.stage, config.name)
        try:
            prepared = launch.prepare(ctx, ssh, config, folder.run_id, 1, None, links=links)
            launch.deliver(ctx, prepared)
        except BaseException:
            folder.path.rmdir()  # nothing was started, so there is no run
            raise
    if cluster.provider == "aws" and not cluster.bucket:
        first = cluster.nodes[0].name
        ctx.say(f"warning: checkpoints lie on {first} alone and are lost with it: name a bucket in the cluster's file")
    record = launch.new_record(ctx, prepared, cluster, config, config_file)
    with alone(folder, "run"):
        started(ctx, folder, prepared, record, 1)
        shower = Shower(ctx, folder, record, shown, detach, as_json, began=True)
        return shower.follow(ssh, list(prepared.links))


def refuse_without_money(ctx: Context, cluster: Cluster, config: TrainConfig) -> None:
    file = ctx.workspace.cluster(cluster.name).path / "config.json"
    if config.budget_usd or (file.exists() and "budget_usd" in files.read_object(file)):
        from nexa_dist.ops.purse import refuse_a_run  # a run is launched sooner without it

        refuse_a_run(ctx, cluster, config.budget_usd)


def started(ctx: Context, folder: RunFolder, prepared: launch.Prepared, record: dict[str, Any], attempt: int) -> None:
    """launch.start, and a word when somebody interrupts it: it is undone then."""
    try:
        launch.start(folder, prepared, record, attempt)
    except KeyboardInterrupt:
        ctx.say(f"✗ {folder.run_id} {record['attempts'][-1].get('cause') or 'interrupted'}; no process of it is left")
        raise


def taken_over(ctx: Context, folder: RunFolder, shown: set[int] | None, as_json: bool, detach: bool = False) -> int:
    """Goes on with a run where another controller left it; looks on while that one lives."""
    shower = None
    try:
        with alone(folder, "attach") as ours:
            record = folder.load()  # only now: the other one may have written until it died
            shower = Shower(ctx, folder, record, shown, detach, as_json)
            if not ours:
                ctx.say(f"{folder.run_id} is supervised by another nexa" + ("" if detach else ": looking on"))
                return EXIT_OK if detach else shower.look_on()
            cluster = Cluster.from_json(record["cluster"])
            with session(ctx.runner, cluster) as ssh:
                if running.active(folder):
                    nodes = [node for node in cluster.nodes if node.name in record["attempts"][-1]["ranks"]]
                    return shower.follow(ssh, links_to(ssh, nodes))
                return shower.recover(ssh)
    except KeyboardInterrupt:  # while it was still connecting, or before
        return (shower or Shower(ctx, folder, folder.load(), shown, detach, as_json)).left(EXIT_INTERRUPTED)


def printed(prepared: launch.Prepared, as_json: bool) -> int:
    """`--print`: the command and environment of each node, as they would run, but for secrets."""
    if as_json:
        ui.emit({name: redact({"argv": spec["argv"], "env": spec["env"]}) for name, spec in prepared.specs.items()})
        return EXIT_OK
    for node_plan in prepared.plan.nodes:
        spec = redact(prepared.specs[node_plan.node.name])
        last = node_plan.first_rank + node_plan.nproc - 1
        span = f"ranks {node_plan.first_rank} to {last} of {prepared.plan.world_size}"
        ui.out(f"# {node_plan.node.name} ({node_plan.node.address}): {span}")
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(spec["env"].items())]
        ui.out(f"cd {shlex.quote(spec['cwd'])} && env {' '.join(words)} {shlex.join(spec['argv'])}")
    return EXIT_OK


class Shower:
    """Shows a run, and says how it ended; the exit code says it too."""

    def __init__(
        self,
        ctx: Context,
        folder: RunFolder,
        record: dict[str, Any],
        shown: set[int] | None,
        detach: bool,
        as_json: bool,
        *,
        began: bool = False,
    ) -> None:
        """`began`: this command started the attempt, it has not only come to see it."""
        self.folder, self.record, self.detach, self.as_json, self.began = folder, record, detach, as_json, began
        self.looks_on = False
        cluster = Cluster.from_json(record["cluster"])
        self.view = live.view(
            # A program that only starts a run wants one answer, not what happens until then.
            "none" if as_json and detach else "json" if as_json else "auto",
            run_id=folder.run_id,
            usd_per_hour=cluster.usd_per_hour,
            started_unix=record["attempts"][0]["started_unix"] if record["attempts"] else ctx.now(),
            shown=shown,
        )
        self.ctx = dataclasses.replace(ctx, say=self.view.note)
        self.supervisor = Supervisor(self.ctx, folder, record, cluster, self.view, self._interrupted)

    def follow(self, ssh: Ssh, links: list[Link]) -> int:
        return self._told(lambda: self.supervisor.follow(ssh, links, self.detach))

    def recover(self, ssh: Ssh) -> int:
        return self._told(lambda: self.supervisor.resume(ssh))

    def look_on(self) -> int:
        """Only the lines; another command decides."""
        self.looks_on = True
        try:
            logging.look_on(self.ctx, self.folder, self.view)
        except KeyboardInterrupt:
            return self.left(EXIT_INTERRUPTED)
        finally:
            self.view.close()
        return EXIT_OK

    def _told(self, work: Callable[[], watch.Outcome | None]) -> int:
        try:
            outcome = work()
        except KeyboardInterrupt:
            return self.left(EXIT_INTERRUPTED)
        finally:
            self.view.close()
        if outcome is None:
            return self.left(EXIT_OK)
        ctx = dataclasses.replace(self.ctx, say=ui.say)
        code = told(ctx, self.folder, outcome, self.as_json)
        from nexa_dist.ops.aftermath import carry_out  # a run is launched sooner without it

        carry_out(ctx, self.supervisor.cluster, outcome)
        return code

    def left(self, code: int) -> int:
        """What becomes of the run without us."""
        self.view.close()
        run, record = self.folder.run_id, self.folder.load()
        state = "recovering" if pending(record) else record["attempts"][-1]["state"]
        if state == "recovering" and not self.looks_on:
            ui.say(f"between two attempts: nothing is started again until nexa attach {run}; end it: nexa stop {run}")
        elif state in ("recovering", *running.ACTIVE):
            ui.say(f"{self._goes_on}. Follow it: nexa attach {run}; end it: nexa stop {run}")
        else:
            ui.say(f"{run} has ended: {state}")
        if self.as_json:
            ui.emit_line({"run": run, "state": "running" if state in running.ACTIVE else state})
        return code

    @property
    def _goes_on(self) -> str:
        kill = self.record["config"].get("on_disconnect") == "kill" and not self.looks_on
        return "the nodes end it soon: on_disconnect is kill" if kill else "the run goes on"

    def _interrupted(self) -> watch.Choice:
        """Who only looks ends nothing, and who began it ends it at a terminal only by saying so."""
        if not ui.interactive():
            return "stop" if self.began else "detach"
        with self.view.paused():
            answer = ui.choose("interrupted.", {"d": f"detach ({self._goes_on})", "s": "stop it"}, "d")
        return "stop" if answer == "s" else "detach"


def links_to(ssh: Ssh, nodes: Sequence[Node]) -> list[Link]:
    """Links to the nodes of an attempt. One that does not answer is followed all the same: it may come back."""
    links, silent = running.reach(ssh, nodes)
    if not links:
        hint = (
            "is it this machine's own line? A run goes on by itself under its deadline; try again when the line is back"
        )
        raise NexaError("no node answers: " + "; ".join(silent.values()), hint=hint)
    known = {link.node.name: link for link in links}
    return [known.get(node.name) or Link(ssh, node, links[0].home) for node in nodes]


def told(ctx: Context, folder: RunFolder, outcome: watch.Outcome, as_json: bool) -> int:
    """The last words about an attempt."""
    row = running.summary(folder)
    if outcome.failed_source:
        node, source = outcome.failed_source
        for line in finish.tail(folder, node, source):
            ctx.say(f"  {ui.plain(line)}")
    sign = "✓" if outcome.state == "completed" else "✗"
    why = f": {outcome.cause}" if outcome.cause else ""
    ctx.say(f"{sign} {folder.run_id} {outcome.state}{why}")
    if known := folder.load()["attempts"][-1].get("why"):
        ctx.say(f"  why: {ui.plain(known)} (nexa why {folder.run_id})")
    ctx.say(f"  {row['minutes']} min, {row['gpu_hours']} GPU-hours, {row['cost_usd']:.2f} USD")
    near = ctx.workspace.near
    ctx.say(f"  manifest {near(folder.manifest)}, logs {near(folder.logs)}")
    unknown = [name for name, count in outcome.left.items() if count is None]
    left = {name: count for name, count in outcome.left.items() if count}
    ctx.say(
        "  processes left: "
        + ", ".join(f"{name} {count if count is not None else 'unknown'}" for name, count in outcome.left.items())
    )
    if as_json:
        ui.emit_line({**row, "cause": outcome.cause, "left": outcome.left, "manifest": str(folder.manifest)})
    if unknown or left:
        ui.error(
            f"not proven clean: {', '.join([*unknown, *left])}", f"nexa stop {folder.run_id} once they answer again"
        )
        return EXIT_STILL_RUNNING
    if outcome.state == "stopped":
        return EXIT_BUDGET if outcome.end.kind in ("deadline", "budget") else EXIT_INTERRUPTED
    return EXIT_OK if outcome.state == "completed" else EXIT_FAILED


def attach(args: Arguments) -> int:
    ctx = context()
    folder = ctx.workspace.run(args.run)
    if not running.active(folder) and not pending(folder.load()):
        raise UsageError(f"{folder.run_id} has ended", hint=f"nexa logs {folder.run_id} shows its lines")
    return taken_over(ctx, folder, ranks(args.rank), args.json)


def stop(args: Arguments) -> int:
    ctx = context()
    if args.run == "":  # an unset variable of a script must not stop whatever is there
        raise UsageError("nexa stop '' names no run", hint="nexa runs lists them")
    answer = running.stop(ctx, ctx.workspace.run(args.run) if args.run else _only_active(ctx), args.grace)
    ended = ", ".join(f"{node} {count}" for node, count in answer["ended"].items())
    known = answer["state"] != "stopping"
    ctx.say(f"{'✓' if known else '·'} {answer['run']} {answer['state']}; processes ended: {ended}; left: 0")
    if not known:
        ctx.say(f"  the nexa that supervises it has not written its end yet: nexa attach {answer['run']} shows it")
    if args.json:
        ui.emit(answer)
    return EXIT_OK


def _only_active(ctx: Context) -> RunFolder:
    """The one run that goes on. Raises UsageError when there is none or a choice."""
    found = running.active_runs(ctx)
    if len(found) != 1:
        names = ", ".join(run.run_id for run in found)
        raise UsageError(
            f"which run? {names}" if found else f"no run goes on in {ctx.workspace}", hint="nexa runs lists them"
        )
    ctx.say(f"{found[0].run_id} is the only run that goes on: stopping it")
    return found[0]


def runs(args: Arguments) -> int:
    rows: list[dict[str, Any]] = []
    before: dict[str, dict[str, Any]] = {}
    code = EXIT_OK
    for found in context(acts=False).workspace.runs():
        try:
            rows.append(running.summary(found) | listing.figures(found, before))
        except NexaError as error:
            code = EXIT_FAILED
            ui.error(f"passed over: {error}", error.hint)
    if args.json:
        ui.emit(rows)
    elif rows:
        ui.table(
            rows, ("run", "state", "cluster", "experiment", "step", "loss", "minutes", "cost_usd", "changed", "cause")
        )
    else:
        ui.say("no run yet")
    return code
