"""A stage of a pipeline as a run of the cluster: begun, or gone on with, and what it made brought into one folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.pipeline.chain import Step
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.ops.work.pull import Wish, pull
from nexa_dist.plan.ranks import subset
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import connecting, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.stages import train
from nexa_dist.stages.launch import as_training, registered
from nexa_dist.stages.load import load_stage
from nexa_dist.stages.output import Output
from nexa_dist.stages.references import resolve
from nexa_dist.stages.registry import Registry
from nexa_dist.verbs._shared import Shown, borrowed, find_cluster
from nexa_dist.verbs._training import at_home
from nexa_dist.verbs.run.begin.fresh import fresh
from nexa_dist.verbs.run.begin.resume import resumed

NOTE = ".run.json"
"""File in a stage's folder that names its run."""
RANK_0 = Shown({0})


def done(ctx: Context, named: str | None, step: Step, folder: Path) -> int:
    """Run a stage to its end and bring its output to `folder`. Returns the exit code of the run."""
    root = ctx.workspace.root
    inputs = {name: resolve(of, root, f"{step.name}.inputs.{name}").resolve() for name, of in step.references.items()}
    before = _before(ctx, folder)
    if before is None:
        code = _begun(ctx, named, step, folder, _config(step, inputs, root))
    elif before.load().last.state == "completed":
        code = EXIT_OK
    else:
        ctx.say(f"  going on with {before.run_id}")
        asked = argparse.Namespace(train=None, plan=None, cluster=None, set=[], program=[], json=False, detach=False,
                                   dry_run=False, ignore_diag=False)  # fmt: skip
        code = resumed(ctx, before, asked, RANK_0)
    run = _before(ctx, folder)
    if code == EXIT_OK and run is not None:
        _collected(ctx, run, step, folder, inputs)
    return code


def _before(ctx: Context, folder: Path) -> RunFolder | None:
    """The run of this stage that was begun; None where there is none, or it never started."""
    if not (folder / NOTE).exists():
        return None
    run = RunFolder(ctx.workspace.root / "runs" / str(files.read_object(folder / NOTE).get("run")))
    return run if run.json.exists() and run.load().attempts else None


def _config(step: Step, inputs: Mapping[str, Path], root: Path) -> TrainConfig:
    if step.stage == "train":
        return load_train(step.config, [*step.overrides, *train.overrides_of(inputs)])
    config = load_stage(step.config, step.overrides)
    config = config.model_copy(update={"inputs": dict(step.references)})
    return as_training(config, step.config, step.overrides, inputs, root)


def _begun(ctx: Context, named: str | None, step: Step, folder: Path, config: TrainConfig) -> int:
    cluster = find_cluster(borrowed(ctx, named), named)
    config = settled(ctx, at_home(config, cluster))
    with session(ctx.runner, subset(cluster, config.nodes)) as ssh, connecting(ssh) as links:
        return fresh(
            ctx, ssh, links, config, str(step.config), RANK_0,
            named=lambda run_id: files.write_json(folder / NOTE, {"run": run_id}),
        )  # fmt: skip


def _collected(ctx: Context, run: RunFolder, step: Step, folder: Path, inputs: Mapping[str, Path]) -> None:
    """Bring a training's checkpoint to the folder; what another stage made is a version by now. Raises NexaError when
    it is not there, or follows from something else."""
    assert step.told is not None
    told = files.read_object(run.manifest)
    if step.stage != "train":
        registry, usd = Registry(ctx.workspace.root), float(told.get("cost_usd") or 0.0)
        if registry.by_key(step.name, step.key) or registered(ctx.workspace.root, run.path / "outputs", usd):
            if registry.by_key(step.name, step.key):
                return
            raise NexaError(f"{run.run_id} made something else than {step.name} is now", hint=f"remove {folder}")
        raise NexaError(f"what {run.run_id} made is not here", hint=f"nexa pull {run.run_id} brings it; then again")
    answer = pull(ctx, run, Wish(run.path))
    if answer.checkpoint is None:
        raise NexaError(f"{run.run_id} has no checkpoint: {answer.why or 'it saved none'}")
    output = Output(folder, step.key)
    output.begin()
    train.take(Path(answer.checkpoint["path"]), folder)
    output.note(counts={"step": answer.checkpoint["step"]}, eval_report=told.get("eval_report"), run_id=run.run_id,
                usd=told.get("cost_usd"))  # fmt: skip
    output.spent(sum(row["ended_unix"] - row["started_unix"] for row in told["attempts"]))
    output.seal(step.told, inputs)
