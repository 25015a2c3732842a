"""nexa serve: a run's model served on a node, as a run, with a port of this machine that leads to it."""

from __future__ import annotations

import os
import threading
from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.health.gate import refuse_unfit
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.ops.serving import served
from nexa_dist.ops.serving.served import Wish
from nexa_dist.ops.serving.tunnel import Door, Tunnel
from nexa_dist.ops.work.steps import wanted
from nexa_dist.plan.ranks import subset
from nexa_dist.run import dotenv, git
from nexa_dist.run.ssh.connections import connecting, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import Shown, borrowed, context, find_cluster


def serve(args: Arguments) -> int:
    if args.what in ("stop", "status", "connect"):
        return {"stop": _stop, "status": _status, "connect": _connect}[args.what](args)
    if not args.what:  # an unset variable of a script must not serve whatever is there
        raise UsageError("nexa serve '' names no run", hint="nexa runs lists them")
    if args.run:
        raise UsageError(f"nexa serve {args.what} {args.run}: one thing at a time", hint="nexa serve RUN")
    ctx = context(dry=args.dry_run)
    wish = Wish(args.what, wanted(args.checkpoint), args.node, args.engine, args.host, args.key_env,
                args.max_model_len, args.startup_s, args.max_hours, args.budget_usd)  # fmt: skip
    refuse_open(wish)
    if wish.key_env and not key_of(ctx, wish):  # before a checkpoint is brought, and in a dry run
        where = f"neither in the environment nor in {ctx.workspace.root / dotenv.NAME}"
        raise UsageError(f"--key-env: the variable {wish.key_env} is {where}", hint="set it, or name another")
    cluster = find_cluster(borrowed(ctx, args.cluster), args.cluster)
    cluster = subset(cluster, (wish.node,) if wish.node else (cluster.nodes[0].name,))
    tunnel = Tunnel(ctx, args.port)
    model = served.find_model(ctx, wish)
    config = settled(ctx, served.as_run(wish, model, cluster))
    ctx.say(f"model {model.folder}" + (f": {model.run}, step {model.step}" if model.run else ""))
    if ctx.dry:
        ctx.say(f"would serve it on {cluster.nodes[0].name}, and lead {tunnel.url} there")
        return EXIT_OK
    refuse_unfit(ctx.workspace.cluster(cluster.name), cluster)
    return _served(ctx, cluster, config, wish, tunnel, args)


def refuse_open(wish: Wish) -> None:
    """Raises UsageError for a server that others could reach without a key."""
    if wish.host not in ("127.0.0.1", "localhost", "::1") and not wish.key_env:
        raise UsageError(
            f"--host {wish.host} can be reached by others, and there is no key to ask for",
            hint="--key-env NAME names the variable with the key; without --host only this machine reaches it, by ssh",
        )


def _served(ctx: Context, cluster: Cluster, config: Any, wish: Wish, tunnel: Tunnel, args: Arguments) -> int:
    from nexa_dist.verbs.run.begin import fresh

    ready = threading.Event()
    run: list[str] = []

    def told(state: dict[str, Any]) -> None:
        _say(ctx, run[0], state, args.json)
        ready.set()

    way = Door(ctx, tunnel, key_of(ctx, wish), told)
    with session(ctx.runner, cluster) as ssh, connecting(ssh) as links, way as door:

        def began(prepared: Any) -> None:
            link = prepared.links[0]
            door.open(link, link.run_dir(run[0]))

        code = fresh.fresh(
            ctx, ssh, links, config, args.what, Shown(None, args.json, args.detach), named=run.append, began=began,
        )  # fmt: skip
        if not args.detach or code:
            return code
        return _waited(ctx, run[0], door, ready, wish.startup_s)


def _waited(ctx: Context, run: str, door: Door, ready: threading.Event, most_s: float) -> int:
    """Until a run that was left to itself answers. Raises NexaError when it ends before, or takes too long."""
    until = ctx.now() + most_s
    while not ready.wait(1.0):
        state = door.state.get("state", "")
        if state in ("failed", "stopped") or ctx.now() > until:
            cause = terminal.plain(str(door.state.get("cause") or state or "nothing is heard of it"))
            raise NexaError(f"{run} does not answer: {cause}", hint=f"nexa logs {run}; nexa serve stop {run}")
    ctx.say(f"it goes on: nexa serve connect {run} leads a port here to it, nexa serve stop {run} ends it")
    return EXIT_OK


def key_of(ctx: Context, wish: Wish) -> str:
    """The key that requests need: from the environment or `.env`, as the run itself gets it."""
    if not wish.key_env:
        return ""
    root = ctx.workspace.root
    kept = dotenv.named(root, (wish.key_env,), lambda: git.tracks(ctx.runner, root, dotenv.NAME) != "")
    return os.environ.get(wish.key_env) or kept.get(wish.key_env, "")


def _say(ctx: Context, run: str, state: dict[str, Any], as_json: bool) -> None:
    answer = state["answer"]
    ctx.say(f"✓ {run} answers: {state['url']} ({state['api']}), model {terminal.plain(state['model'])}")
    ctx.say(f"  {terminal.plain(state.get('why', ''))}; asked by this way: {answer['text']!r} in {answer['seconds']} s")
    if as_json:
        told = {name: state[name] for name in ("url", "model", "api", "engine", "answer") if name in state}
        terminal.emit_line({"serving": run, **told})


def _stop(args: Arguments) -> int:
    from nexa_dist.ops.runs.agent_spec import GRACE_S
    from nexa_dist.verbs.run.stop import stop

    args.run, args.grace = served.the_served(context(dry=args.dry_run), args.run).run_id, GRACE_S
    return stop(args)


def _status(args: Arguments) -> int:
    ctx = context(acts=False)
    runs = [served.the_served(ctx, args.run)] if args.run else served.served(ctx)
    rows = [_row(ctx, run) for run in runs]
    if args.json:
        terminal.emit(rows)
        return EXIT_OK
    for row in rows:
        known = [name for name in served.FIGURES if row.get(name) is not None]
        figures = ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in known)
        terminal.out(f"{row['run']}\t{row['node']}\t{row['state']}\t{row.get('engine', '')}\t{figures}")
    if not rows:
        ctx.say("nothing is served")
    return EXIT_OK


def _row(ctx: Context, run: RunFolder) -> dict[str, Any]:
    record = run.load()
    try:
        with served.linked(ctx, record) as link:
            state = served.state_of(link, record.run_dir(link.node.name)) or {"state": "starting"}
            return {"run": run.run_id, "node": link.node.name, **state}
    except NexaError as error:
        return {"run": run.run_id, "node": ",".join(record.last.ranks), "state": "unknown", "cause": str(error)}


def _connect(args: Arguments) -> int:
    ctx = context()
    run = served.the_served(ctx, args.run)
    tunnel = Tunnel(ctx, args.port)
    wish = Wish(run.run_id, key_env=args.key_env)
    if args.dry_run:
        ctx.say(f"would lead {tunnel.url} to {run.run_id}")
        return EXIT_OK
    with (
        served.linked(ctx, run.load()) as link,
        Door(ctx, tunnel, key_of(ctx, wish), lambda state: _say(ctx, run.run_id, state, args.json)) as door,
    ):
        door.open(link, run.load().run_dir(link.node.name))
        try:
            door.wait(lambda: run.load().going_on)
        except KeyboardInterrupt:
            ctx.say(f"the way is closed; {run.run_id} goes on")
            return EXIT_OK
    ctx.say(f"{run.run_id} has ended")
    return EXIT_FAILED
