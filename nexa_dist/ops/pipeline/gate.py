"""What a pipeline asks of an evaluation before it goes on, and the name that its model gets at the end.

Neither is kept: scores are those of the version, so a threshold that was changed is asked of what is there, and a model
that was changed is evaluated anew since its key is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_dist.config.pipeline import MODEL, Bounds, PipelineConfig, PromoteConfig, StepConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.serving import aliases
from nexa_dist.ops.serving.aliases import Aliases, Promotion
from nexa_dist.run import files
from nexa_dist.stages.registry import Registry, Version
from nexa_dist.stages.train import CHECKPOINT
from nexa_dist.train import checkpoint


def faults(registry: Registry, version: Version, step: StepConfig) -> tuple[str, ...]:
    """What keeps this evaluation from being enough: scores that are too low, too high, or not there."""
    if not step.min and not step.max:
        return ()
    scores = aliases.scores_in(files.read_json(_file(registry, version)))
    return tuple(aliases.missed(_named(step.min), scores, _named(step.max)))


def promote(ctx: Context, pipeline: PipelineConfig, made: Mapping[str, Version]) -> None:
    """Give the model of a pipeline whose stages are all done its name, once. Raises NexaError."""
    assert pipeline.promote
    names, to = Aliases(ctx.workspace.root), pipeline.promote.to
    if wanted := _promotion(ctx.workspace.root, pipeline.promote, pipeline.stages, made):
        names.give(wanted)
        ctx.say(f"✓ {to} is {wanted.run}, step {wanted.step} (promote, {wanted.by})")
    elif now := names.get(to):
        ctx.say(f"✓ it was given the name {to} before, which {now.run}, step {now.step}, has now")


def _promotion(
    root: Path, wish: PromoteConfig, steps: Mapping[str, StepConfig], made: Mapping[str, Version]
) -> Promotion | None:
    """The name for the model whose stages are all done; None where it was given before, also if it was taken back
    since: whoever did that had a reason. Raises NexaError for a model of no run."""
    registry, step = Registry(root), steps[wish.evaluation]
    model = made[step.needs[MODEL]]
    run, number = model.provenance.get("run_id"), model.counts.get("step")
    if not isinstance(run, str) or not isinstance(number, int):
        raise NexaError(
            f"{model.label} is not promoted to {wish.to}: it was trained on this machine, as no run",
            hint="nexa pipeline run, with another seed, trains one where: cluster; nexa serve takes a folder",
        )
    digest = checkpoint.digest(registry.path(model) / CHECKPOINT)
    for one in Aliases(root).history(wish.to):
        if one.why == "promote" and (one.run, one.step, one.sha256) == (run, number, digest):
            return None
    path, served = _file(registry, made[wish.evaluation]), made[wish.smoke]
    wanted, most, scores = _named(step.min), _named(step.max), aliases.scores_in(files.read_json(path))
    answers: list[dict[str, Any]] = files.read_object(registry.path(served) / "serve.json").get("answers", [])
    if not answers:
        raise NexaError(f"{served.label} has no answer of the model", hint="promote.smoke names a stage serve")
    return aliases.made(
        wish.to, run, number, digest, why="promote", wanted=wanted, most=most,
        scores={name: scores[name] for name in (*wanted, *most)}, smoke={"version": served.label, **answers[0]},
        evaluation=str(path.relative_to(root)),
    )  # fmt: skip


def _file(registry: Registry, version: Version) -> Path:
    """The figures of an evaluation. Raises NexaError."""
    found = sorted((registry.path(version) / "evals").glob("*.json"))
    if len(found) != 1:
        raise NexaError(f"{version.label} has no figures in evals/", hint=f"nexa data verify {version.label}")
    return found[0]


def _named(bounds: Bounds) -> dict[str, float]:
    """As scores are named: in small letters."""
    return {name.lower(): bound for name, bound in bounds.items()}
