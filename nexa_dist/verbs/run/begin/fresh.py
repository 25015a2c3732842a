"""A new run, from its checks to its end."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify import targets
from nexa_dist.ops.notify.announcer import Announcer
from nexa_dist.ops.runs import launch
from nexa_dist.ops.runs import status as running
from nexa_dist.ops.runs.supervise import alone
from nexa_dist.run import files
from nexa_dist.run.code.archive import Archive
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Connecting, Ssh
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import whom_to_tell
from nexa_dist.verbs._shared import Shown
from nexa_dist.verbs.run.presenter import RunPresenter

if TYPE_CHECKING:
    from nexa_dist.ops.work.origin import Origin


@dataclass(frozen=True)
class Frozen:
    """The project as it was at another time, and the commit that it was of."""

    project: Archive
    git_commit: str | None


def fresh(
    ctx: Context,
    ssh: Ssh,
    links: Connecting,
    config: TrainConfig,
    config_file: str,
    shown: Shown,
    *,
    named: Callable[[str], object] = str,
    cluster_file: str | None = None,
    folder: RunFolder | None = None,
    origin: Origin | None = None,
    code: Frozen | None = None,
    began: Callable[[launch.Prepared], object] = bool,
) -> int:
    """A new run, followed to its end. `named` is told what it is called before anything of it is begun, unless its
    `folder` was made before; `began` how it was begun, when it is. `code` is another than that of this moment."""
    cluster = ssh.cluster
    told = whom_to_tell(ctx, cluster, cluster_file)
    with contextlib.ExitStack() as door:
        door.enter_context(running.launching(ctx, cluster))
        refuse_without_money(ctx, cluster, config)
        if config.backend:
            from nexa_dist.ops.fit import preflight  # a script's run is launched sooner without it

            preflight.warn(ctx, cluster, config)
        with ctx.phase(f"checks on {len(cluster.nodes)} nodes"):
            folder = folder or ctx.workspace.new_run(config.stage, config.name)
            try:
                named(folder.run_id)
                targets.keep(ctx, folder, told or ())
                if origin:
                    origin.seed(folder.brought)
                prepared = launch.prepare(
                    ctx, ssh, config, folder.run_id, 1, None, codes=origin.codes if origin else None,
                    project=code.project if code else None, kept=folder.brought, links=links,
                )  # fmt: skip
                launch.deliver(ctx, prepared)
            except BaseException:
                shutil.rmtree(folder.path)  # nothing was started, so there is no run
                raise
        if cluster.traits.rents and not cluster.bucket:
            first = cluster.nodes[0].name
            cure = "; or name a bucket in the cluster's file" if cluster.traits.priced else ""
            ctx.say(f"warning: checkpoints lie on {first} alone and are lost with it: nexa pull brings them here{cure}")
        now = code or (origin and origin.record)  # code of another time has a commit of its own
        commit = now.git_commit if now else launch.commit(ctx, config, prepared.archives[0])
        record = launch.new_record(ctx, folder, cluster, config, config_file, commit, origin)
        with alone(folder, "run"):
            started(ctx, folder, prepared, record)
            door.close()
            began(prepared)
            presenter = RunPresenter(ctx, folder, record, shown, began=True)
            return presenter.follow(ssh, list(prepared.links))


def refuse_without_money(ctx: Context, cluster: Cluster, config: TrainConfig) -> None:
    file = ctx.workspace.cluster(cluster.name).path / "config.json"
    if config.budget_usd or (file.exists() and "budget_usd" in files.read_object(file)):
        from nexa_dist.ops.money.meter import refuse_a_run  # a run is launched sooner without it

        refuse_a_run(ctx, cluster, config.budget_usd)


def started(ctx: Context, folder: RunFolder, prepared: launch.Prepared, record: Run, **known: Any) -> None:
    """launch.start, and a word when somebody interrupts it: it is undone then."""
    try:
        launch.start(folder, prepared, record, **known)
    except KeyboardInterrupt:
        ctx.say(f"✗ {folder.run_id} {record.last.cause or 'interrupted'}; no process of it is left")
        raise
    except NexaError:
        announcer = Announcer(ctx, folder, record)
        announcer.ended(record.last.state, record.last.cause)
        announcer.close(ctx.say)
        raise


def printed(prepared: launch.Prepared, as_json: bool) -> int:
    """`--print`: the command and environment of each node, as they would run, but for secrets."""
    if as_json:
        terminal.emit(
            {name: redact({"argv": spec["argv"], "env": spec["env"]}) for name, spec in prepared.specs.items()}
        )
        return EXIT_OK
    for node_plan in prepared.plan.nodes:
        spec = redact(prepared.specs[node_plan.node.name])
        last = node_plan.first_rank + node_plan.nproc - 1
        span = f"ranks {node_plan.first_rank} to {last} of {prepared.plan.world_size}"
        terminal.out(f"# {node_plan.node.name} ({node_plan.node.address}): {span}")
        if told := spec["setup"]:
            apt = [f"apt-get install {shlex.join(told['apt'])}"] if told["apt"] else []
            layer = [f"the project into {told['layer']}"] if told["requires"] is not None else []
            terminal.out("# before: " + "; ".join([*apt, *layer, *told["lines"]]))
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(spec["env"].items())]
        terminal.out(f"cd {shlex.quote(spec['cwd'])} && env {' '.join(words)} {shlex.join(spec['argv'])}")
    return EXIT_OK
