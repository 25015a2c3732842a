"""Schema of pipeline.yaml: stages by name, each a file of its own, and what each one reads of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexa_dist.config.problems import nearest
from nexa_dist.config.train import DataName, Word
from nexa_dist.config.trainer import FilePath, Section

StepName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
Score = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][\w.-]{0,63}$")]
Bounds = dict[Score, Annotated[float, Field(allow_inf_nan=False)]]
MODEL = "model"
"""The input of an evaluation, and of the stage serve, that is the model."""


class StepConfig(Section):
    """One stage of a pipeline."""

    config: FilePath = Field(description="Its stage.yaml, or a train.yaml; a path in the project.")
    set: tuple[Word, ...] = Field((), max_length=100, description="Values over those of the file, as --set takes them.")
    inputs: dict[DataName, FilePath] = Field(
        default_factory=dict,
        max_length=50,
        description="Over those of the file: stage:NAME or stage:NAME/FOLDER is another stage's output, data:NAME@v1 a "
        "version, else a path. A train.yaml finds each as $NEXA_DATA/NAME.",
    )
    where: Literal["here", "cluster"] = Field("here", description="Where: on this machine, or as a run on the cluster.")
    min: Bounds = Field(
        default_factory=dict, description="Of a stage eval: scores that must reach this, else nothing behind it begins."
    )
    max: Bounds = Field(
        default_factory=dict, description="Of a stage eval: scores that must not be above this, such as perplexity."
    )

    @property
    def needs(self) -> dict[str, str]:
        """The stage that an input comes from, by the input's name."""
        return {name: of.removeprefix("stage:").partition("/")[0] for name, of in self.inputs.items()
                if of.startswith("stage:")}  # fmt: skip


class PromoteConfig(Section):
    """The last step: the run that was evaluated and answered gets a name, as nexa promote gives it."""

    to: Literal["staging", "production"] = Field(description="The name.")
    evaluation: StepName = Field(description="Stage eval with min or max; its input model is what gets the name.")
    smoke: StepName = Field(description="Stage serve of that same model: proof that it answers.")


def is_pipeline(data: Mapping[str, Any]) -> bool:
    """Whether a file with these keys is a pipeline."""
    return "pipeline" in data or ("stage" not in data and "stages" in data)


class PipelineConfig(Section):
    """A graph of stages. What a stage makes is a version, named after the stage."""

    pipeline: StepName = Field(description="Name of the pipeline.")
    stages: dict[StepName, StepConfig] = Field(min_length=1, max_length=100, description="The stages by name.")
    cluster: FilePath | None = Field(None, description="Name or file of the cluster, for stages with where: cluster.")
    budget_usd: float | None = Field(
        None, ge=0.0, allow_inf_nan=False, description="No stage begins once those before it have cost so much."
    )

    promote: PromoteConfig | None = Field(None, description="The name that the model gets when all stages are done.")

    @model_validator(mode="after")
    def _promotes_a_run(self) -> Self:
        if self.promote is None:
            return self
        for key in ("evaluation", "smoke"):
            name = getattr(self.promote, key)
            if name not in self.stages:
                raise ValueError(f"promote.{key}: there is no stage {name!r} ({nearest(name, list(self.stages))})")
        judged, smoke = self.stages[self.promote.evaluation], self.stages[self.promote.smoke]
        if not judged.min and not judged.max:
            raise ValueError(f"promote: {self.promote.evaluation} has neither min nor max, so nothing is asked of it")
        trained = judged.needs.get(MODEL)
        if trained is None or judged.inputs[MODEL] != smoke.inputs.get(MODEL):
            raise ValueError("promote: evaluation and smoke need the same inputs.model here, of a stage: stage:NAME")
        if trained in self.stages and self.stages[trained].where != "cluster":
            raise ValueError(f"promote: {trained} is where: here, so it is no run, and only a run can have a name")
        return self

    @model_validator(mode="after")
    def _is_a_graph(self) -> Self:
        for name, step in self.stages.items():
            for key, other in step.needs.items():
                if other not in self.stages:
                    hint = nearest(other, list(self.stages))
                    raise ValueError(f"{name}.inputs.{key}: there is no stage {other!r} ({hint})")
        self.order()
        return self

    def order(self) -> list[str]:
        """Names of the stages, each behind all that it reads; those of one level as in the file. Raises ValueError for
        a circle."""
        waiting, done = dict(self.stages), list[str]()
        while waiting:
            ready = next((name for name, step in waiting.items() if set(step.needs.values()) <= set(done)), None)
            if ready is None:
                raise ValueError(f"{', '.join(waiting)} wait for one another: a stage cannot read what comes of it")
            done.append(ready)
            del waiting[ready]
        return done
