"""Shared parts of several verbs: the context, and a cluster by its name or file."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace as Arguments
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.run import dotenv, files, git, trust
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import ClusterFolder, Workspace
from nexa_dist.secrets import redact_text
from nexa_dist.ui import terminal
from nexa_dist.verbs._consent import consented, refuse_foreign

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig


def context(*, acts: bool = True, cluster: str | None = None, dry: bool = False) -> Context:
    """Context of the workspace that we are in, or the one that `cluster`, a file or name, belongs to, with what its
    `.env` adds to the environment. A verb that `acts` on what lies there does so only when it is known to be ours; one
    that shows it may show anybody's. A `dry` one changes nothing and asks nobody."""
    here, runner = Workspace.here(), _runner(dry)
    if cluster and (owner := owner_of(here, cluster)):
        here = owner
    if acts:
        refuse_foreign(runner, here.root, here.above, ask=not dry)
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
        return Runner()
    from nexa_dist.run.fake import DryRunner  # only where it is wanted: verbs are called sooner without it

    return DryRunner(Runner())


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
        refuse_foreign(ctx.runner, owner.root, above=True, ask=not ctx.dry)
        if ctx.dry:
            return dataclasses.replace(ctx, workspace=owner)
        ctx.workspace.borrow(name_of(named), owner)
    return ctx


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
            return consented(ctx, static_cluster(config, Path(named).absolute().parent))
        if not config.traits.makes:
            _refuse_edited(ctx, config, named)
    return consented(ctx, find_folder(ctx, named).load())


def _refuse_edited(ctx: Context, config: ClusterConfig, named: str) -> None:
    """Raises UsageError when own hosts were provisioned by another state of the file: the user thinks of this one."""
    file = ctx.workspace.cluster(config.name).path / "config.json"
    if file.exists() and files.read_json(file) != config.model_dump(mode="json", exclude_unset=True):
        raise UsageError(
            f"{named} was edited since cluster {config.name} was provisioned",
            hint=f"nexa provision --cluster {named} brings it in line; --cluster {config.name} takes it as it is",
        )


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a run is shown while it goes on: the lines of these ranks (None: all), as JSON or for people, and whether the
    command leaves once every node runs."""

    ranks: set[int] | None
    as_json: bool = False
    detach: bool = False

    @classmethod
    def asked(cls, args: Arguments) -> Shown:
        return cls(ranks(args.rank), args.json, getattr(args, "detach", False))


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
