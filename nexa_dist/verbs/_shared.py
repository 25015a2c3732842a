"""Shared parts of several verbs: the context, and a cluster by its name or file."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_dist.errors import ConfigError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.run import dotenv, files, git, stack_sources, trust
from nexa_dist.run.runner import Runner, SystemRunner
from nexa_dist.run.ssh import consent
from nexa_dist.run.workspace import ClusterFolder, Workspace
from nexa_dist.secrets import redact_text
from nexa_dist.ui import terminal

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig
    from nexa_dist.config.parts.notify import Notify
    from nexa_dist.config.train import TrainConfig


def context(*, acts: bool = True, cluster: str | None = None, dry: bool = False) -> Context:
    """Context of the workspace that we are in, or the one that `cluster`, a file or name, belongs to, with what its
    `.env` adds to the environment. A verb that `acts` on what lies there does so only when it is known to be ours; one
    that shows it may show anybody's. A `dry` one changes nothing and asks nobody."""
    here, runner = Workspace.here(), _runner(dry)
    if cluster and (owner := owner_of(here, cluster)):
        here = owner
    if acts:
        _refuse_foreign(runner, here.root, here.above, ask=not dry)
    if acts and not dry:
        here.close_to_others()
    else:
        files.close_to_others()  # what is shown may be somebody else's
    if not here.above or trust.is_ours(here.root):
        for line in dotenv.load(here.root, os.environ, lambda: git.tracks(runner, here.root, dotenv.NAME) != ""):
            terminal.say(line)
    return Context(here, runner, lambda text: terminal.say(redact_text(text)), dry=dry)


def _runner(dry: bool) -> Runner:
    if not dry:
        return SystemRunner()
    from nexa_dist.run.fake import DryRunner  # only where it is wanted: verbs are called sooner without it

    return DryRunner(SystemRunner())


def owner_of(here: Workspace, named: str) -> Workspace | None:
    """The other workspace that this cluster belongs to: the one that its file lies in, if it knows the cluster, or for
    a name that is not known here the only one of ours that knows it. Raises UsageError for more than one."""
    if is_file(named):
        other = Workspace.of(Path(os.path.abspath(named)).parent)  # not resolved: it may be a loop, or no name at all
        if other.root.resolve() == here.root.resolve() or not other.clusters():
            return None
        name = name_of(named)
        return dataclasses.replace(other, above=True) if other.knows(name) else None
    if here.knows(named):
        return None
    found = here.others(named)
    if len(found) > 1:
        places = ", ".join(str(other.root) for other in found)
        raise UsageError(f"cluster {named!r} is known in {places}", hint="--cluster FILE, or NEXA_WORKSPACE=DIR")
    return found[0] if found else None


def borrowed(ctx: Context, named: str | None) -> Context:
    """Make a cluster of another workspace known here, for a run in this one. Answers the context that knows it: in a
    dry run its owner's, since nothing is made."""
    if named and (owner := owner_of(ctx.workspace, named)):
        _refuse_foreign(ctx.runner, owner.root, above=True, ask=not ctx.dry)
        if ctx.dry:
            return dataclasses.replace(ctx, workspace=owner)
        ctx.workspace.borrow(name_of(named), owner)
    return ctx


def _refuse_foreign(runner: Runner, root: Path, above: bool, *, ask: bool) -> None:
    try:
        trust.refuse_foreign(runner, root, above=above)
    except trust.Foreign as error:
        if not (ask and error.cure) or not answered_yes(f"{error}\nis it yours?"):
            raise
        trust.adopt(root)
        trust.refuse_foreign(runner, root, above=above)


def answered_yes(question: str) -> bool:
    """Asks at the terminal; no without one."""
    return terminal.interactive() and terminal.confirm(terminal.plain_lines(question))


def agreed(args: argparse.Namespace, question: str, refusal: str) -> None:
    """Asks before an act that costs or ends something, unless -y was given. Raises UsageError, with the `refusal`, when
    the answer is no or nobody is there to give one."""
    if not args.yes and not answered_yes(question):
        raise UsageError(refusal, hint="-y says yes")


def _consented(ctx: Context, cluster: Cluster) -> Cluster:
    """The same cluster, once the user agreed to the programs that its ssh_config names. Raises Unconsented."""
    try:
        if cluster.ssh_config:
            consent.refuse_unconsented(cluster.ssh_config)
    except consent.Unconsented as error:
        if ctx.dry or not answered_yes(f"{error}\nmay ssh start it?"):
            raise
        consent.consent(cluster.ssh_config)
    return cluster


def load_said(path: Path, overrides: Sequence[str] = (), *, provisioned: bool = True) -> ClusterConfig:
    """load_cluster, and a warning for what it asks that is not built yet."""
    from nexa_dist.config.load import load_cluster

    config = load_cluster(path, overrides)
    idle = [
        key
        for key in (config.traits.idle_once_made if provisioned else config.traits.idle_keys)
        if key in config.model_fields_set and getattr(config, key) != "none"
    ]
    if idle:
        later = "" if provisioned or "budget_usd" not in idle else "; budget_usd counts once nexa provision has run"
        enforced = "max_hours and budget_usd of train.yaml are"
        terminal.say(f"warning: {path}: {', '.join(idle)}: not enforced here ({enforced}{later})")
    return config


def consent_to_stack(config: ClusterConfig) -> None:
    """The user's word for what Terraform starts of a stack of their own. Raises UsageError."""
    if not config.stack:
        return
    stack = Path(config.stack)
    sources = stack_sources.read(stack)
    try:
        stack_sources.refuse_unconsented(stack, sources)
    except stack_sources.Unconsented as error:
        if not answered_yes(f"{error}\nmay it?"):
            raise
        stack_sources.allow(stack, sources)


def whom_to_tell(ctx: Context, cluster: Cluster, named: str | None) -> Sequence[Notify] | None:
    """`notify` of the cluster, with the user's word for the commands in it; None where nothing is known of it. Raises
    UsageError."""
    from nexa_dist.ops.notify import targets

    rows = targets.of_cluster(ctx, cluster.name, named)
    consent_to_commands(ctx, rows or ())
    return rows


def consent_to_commands(ctx: Context, rows: Sequence[Notify]) -> None:
    """The user's word for commands that `notify` names. Raises UsageError."""
    from nexa_dist.ops.notify import targets

    try:
        targets.refuse_unconsented(ctx.workspace.root, rows)
    except targets.Unconsented as error:
        if ctx.dry or not answered_yes(f"{error}\nmay it?"):
            raise
        targets.allow(ctx.workspace.root, rows)


def plan_file(named: str | None) -> Path | None:
    """A compute plan: one that comes with nexa (v1 to v4), or a file of one's own. Raises UsageError."""
    if not named:
        return None
    if is_file(named):
        return Path(named)
    from nexa_dist.run import bundle

    folder = bundle.root() / "configs" / "plans"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if named not in known:
        raise UsageError(f"there is no plan {named!r}", hint=f"known are {', '.join(known)}; or the path of a file")
    path = folder / f"{named}.yaml"
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def load_planned(args: argparse.Namespace) -> TrainConfig:
    """The training of TRAIN.yaml, or the stage of a file with `stage:`, with --plan, --set and what stands after --.
    Says what the plan has for nobody."""
    from nexa_dist.config.load import read_train

    path = Path(args.train)
    if stage := load_stage(path, args, args.set):
        return stage
    found = read_train(path, args.set, args.program, plan_file(args.plan))
    if found.left_out:
        terminal.say(f"left out of plan {args.plan}: {', '.join(found.left_out)}, which {args.train} has not")
    return found.config


def load_stage(path: Path, args: argparse.Namespace, overrides: Sequence[str]) -> TrainConfig | None:
    """The run of a stage other than train; None for a train.yaml. Raises ConfigError, UsageError."""
    from nexa_dist.config.yaml.file import read_bytes

    try:
        if b"stage" not in read_bytes(path):  # the rest is imported for stages alone
            return None
    except ConfigError:
        return None  # who reads it says so
    from nexa_dist.stages.launch import load_as_training
    from nexa_dist.stages.load import stage_of

    if (stage := stage_of(path)) == "train":
        return None
    if args.plan or args.program:
        option = "--plan is" if args.plan else "what stands after -- is"
        raise UsageError(f"{option} for trainings, and {path} is of stage {stage}", hint="--set KEY=VALUE changes it")
    return load_as_training(path, overrides, Workspace.here().root)


def at_home(config: TrainConfig, cluster: Cluster) -> TrainConfig:
    """The config with its nodes: a stage that names none is the work of the first one, a training of all."""
    if config.stage == "train" or config.nodes:
        return config
    return config.model_copy(update={"nodes": (cluster.nodes[0].name,)})


def is_file(named: str) -> bool:
    """Tell whether a cluster was named by its file."""
    return named.endswith((".yaml", ".yml")) or "/" in named


def name_of(named: str) -> str:
    """The name of a cluster that is named by its file or by itself. Only a file needs the models of the config, which
    take longer to import than all that a reading verb does."""
    if not is_file(named):
        return named
    from nexa_dist.config.load import load_cluster

    return load_cluster(Path(named)).name


def find_folder(ctx: Context, named: str | None) -> ClusterFolder:
    """A cluster by name or file; the only one when it is not named."""
    if not named:
        return ctx.workspace.only_cluster()
    if is_file(named):
        return ctx.workspace.cluster(name_of(named))
    if named not in [folder.name for folder in ctx.workspace.clusters()]:
        known = ", ".join(folder.name for folder in ctx.workspace.clusters()) or "none"
        raise UsageError(
            f"no cluster called {named!r} is known in {ctx.workspace}, nor in another workspace of yours",
            hint=f"known: {known}; NEXA_WORKSPACE=DIR names another folder",
        )
    return ctx.workspace.cluster(named)


def find_cluster(ctx: Context, named: str | None) -> Cluster:
    """A provisioned cluster, or the user's own hosts straight from their file."""
    if named and is_file(named):
        from nexa_dist.ops.providers.static.record import Record
        from nexa_dist.plan.static.cluster import static_cluster

        made = Record.exists(find_folder(ctx, named))
        config = load_said(Path(named), provisioned=made)
        if not config.traits.makes and not made:
            return _consented(ctx, static_cluster(config, Path(named).absolute().parent))
        if not config.traits.makes:
            _refuse_edited(ctx, config, named)
    return _consented(ctx, find_folder(ctx, named).load())


def _refuse_edited(ctx: Context, config: ClusterConfig, named: str) -> None:
    """Raises UsageError when own hosts were provisioned by another state of the file: the user thinks of this one."""
    file = ctx.workspace.cluster(config.name).path / "config.json"
    if file.exists() and files.read_json(file) != config.model_dump(mode="json", exclude_unset=True):
        raise UsageError(
            f"{named} was edited since cluster {config.name} was provisioned",
            hint=f"nexa provision --cluster {named} brings it in line; --cluster {config.name} takes it as it is",
        )


def ranks(text: str) -> set[int] | None:
    """Parse ranks: `0,3` as a set, `all` or nothing as None. Raises UsageError."""
    if text in ("", "all"):
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in text.split(",")):
        raise UsageError(f"--rank {text!r} is neither 'all' nor ranks such as 0,3")
    return {int(part) for part in text.split(",")}


def refuse_job(run_id: str, cluster: Cluster) -> None:
    """Raises UsageError for a run that a job of Slurm's leads: nobody else decides what comes next."""
    if cluster.traits.by_job:
        raise UsageError(
            f"{run_id} is led by its job of Slurm's, which also starts it again",
            hint=f"nexa logs {run_id} shows its lines, nexa stop {run_id} ends the job",
        )


def refuse_detach(config: TrainConfig, detach: bool) -> None:
    if config.on_disconnect == "kill" and detach:
        raise UsageError("--detach leaves the nodes without a controller, and on_disconnect is kill")
