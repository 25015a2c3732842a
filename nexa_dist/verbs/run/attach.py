"""nexa attach: a run that goes on without us, followed or taken over."""

from __future__ import annotations

from argparse import Namespace as Arguments

from nexa_dist.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.supervise import alone
from nexa_dist.run.ssh.connections import session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.verbs._shared import Shown, context, refuse_job
from nexa_dist.verbs.run.presenter import RunPresenter, links_to


def attach(args: Arguments) -> int:
    ctx = context()
    folder = ctx.workspace.run(args.run)
    refuse_job(folder.run_id, folder.load().cluster)
    if not folder.load().going_on:
        raise UsageError(f"{folder.run_id} has ended", hint=f"nexa logs {folder.run_id} shows its lines")
    return taken_over(ctx, folder, Shown.asked(args))


def taken_over(ctx: Context, folder: RunFolder, shown: Shown) -> int:
    """Goes on with a run where another controller left it; looks on while that one lives."""
    presenter = None
    try:
        with alone(folder, "attach") as ours:
            record = folder.load()  # only now: the other one may have written until it died
            presenter = RunPresenter(ctx, folder, record, shown)
            if not ours:
                ctx.say(f"{folder.run_id} is supervised by another nexa" + ("" if shown.detach else ": looking on"))
                return EXIT_OK if shown.detach else presenter.look_on()
            with session(ctx.runner, record.cluster) as ssh:
                if record.active:
                    nodes = [node for node in record.cluster.nodes if node.name in record.last.ranks]
                    return presenter.follow(ssh, links_to(ssh, nodes))
                return presenter.recover(ssh)
    except KeyboardInterrupt:  # while it was still connecting, or before
        return (presenter or RunPresenter(ctx, folder, folder.load(), shown)).left(EXIT_INTERRUPTED)
