"""A training from its file and the words of the command line: a plan over it, --set, a point of --grid."""

from __future__ import annotations

from argparse import Namespace as Arguments
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_dist.errors import ConfigError, Problem, UsageError
from nexa_dist.model import Cluster
from nexa_dist.run.workspace import Workspace
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import is_file

if TYPE_CHECKING:
    from nexa_dist.config.train import TrainConfig


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


def load_planned(args: Arguments) -> TrainConfig:
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


def load_stage(path: Path, args: Arguments, overrides: Sequence[str]) -> TrainConfig | None:
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


def refuse_detach(config: TrainConfig, detach: bool) -> None:
    if config.on_disconnect == "kill" and detach:
        raise UsageError("--detach leaves the nodes without a controller, and on_disconnect is kill")


def words_of(point: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """A point of --grid as --set takes it: its values, and a tag for each."""
    from nexa_dist.plan.runs import grid

    tags = [f"tags+={grid.tag(key, value)}" for key, value in point.items()]
    return [f"{key}={value}" for key, value in point.items()], tags


def refuse_no_script(config: TrainConfig, name: str, root: Path) -> None:
    """Raises ConfigError when the script that the file called `name` means is not there."""
    if config.script and not (root / config.script).exists():
        raise ConfigError([Problem(name, 0, "script", f"{config.script} does not exist in {root}")])
