"""Schema of an eval.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexa_dist.config.trainer import Section
from nexa_dist.stages.contract import Column, StageConfig
from nexa_dist.stages.endpoint_config import EndpointConfig
from nexa_dist.stages.eval.rubric import CRITERIA, DSS

Criterion = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Task = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
SYSTEM = "You grade answers. You are strict, and you give no number that you cannot give a reason for."
PROMPT = """\
Question:
{{ prompt }}

Answer:
{{ answer }}

Grade the answer by each criterion, with a number from 0 to 1:
{{ criteria }}
Reply with JSON alone: a short "reason", then the numbers under these names, in this order.
"""
PAIR = """\
Question:
{{ prompt }}

Answer A:
{{ a }}

Answer B:
{{ b }}

Which answer is better? Reply with JSON alone: a short "reason", then "winner": "A", "B" or "tie".
"""


class Judge(Section):
    """A model that grades each answer by the rubric, asked twice: the second time with the order turned round."""

    endpoint: EndpointConfig = Field(description="Server of the judge.")
    criteria: dict[Criterion, Annotated[float, Field(gt=0.0, le=1.0)]] = Field(
        default_factory=lambda: {name: weight for name, (weight, _) in CRITERIA.items()},
        min_length=1,
        max_length=20,
        description="Weight of each criterion in the score (dss), 1 together.",
    )
    meanings: dict[Criterion, str] = Field(
        default_factory=dict, description="What the judge is told of a criterion, in place of ours."
    )
    system: str | None = Field(SYSTEM, description="Jinja template of the judge's system turn.")
    prompt: str = Field(
        PROMPT, min_length=1, description="Jinja template of what it is asked; beside the columns {{ prompt }}, "
        "{{ answer }} and {{ criteria }}."
    )  # fmt: skip
    swap: bool = Field(True, description="Ask twice, with the criteria (of a pair, the answers) in the other order.")
    against: Column | None = Field(
        None, description="Column of another answer: which of the two is better is asked as well, in both orders."
    )
    pair: str = Field(PAIR, min_length=1, description="Jinja template for a pair: {{ prompt }}, {{ a }} and {{ b }}.")
    labels: dict[Criterion, Column] = Field(
        default_factory=dict,
        description="Columns with people's own scores, 0 to 1, by criterion (or dss): agreement is reported.",
    )
    failed_most: float = Field(
        0.2, ge=0.0, le=1.0, description="Share of the questions, 0 to 1, that may go without a usable reply."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not math.isclose(math.fsum(self.criteria.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"the weights of criteria sum to {math.fsum(self.criteria.values()):g}, and not to 1")
        for name in self.criteria:
            if name not in self.meanings and name not in CRITERIA:
                raise ValueError(f"meanings does not say what {name} means")
        if odd := [name for name in (*self.meanings, *self.labels) if name not in (*self.criteria, DSS)]:
            raise ValueError(f"{', '.join(odd)} is no criterion")
        if DSS in self.criteria:
            raise ValueError(f"{DSS} is the name of the score")
        return self


class Generate(Section):
    """Answers of the checkpoint itself, written greedily, and how fast."""

    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Most tokens of an answer.")
    batch: int = Field(8, ge=1, le=1024, description="Rows at a time.")


class Perplexity(Section):
    """exp of the mean negative log-likelihood of a token, of what the rows should say."""

    column: Column = Field("completion", description="Column whose tokens count; those of the prompt do not.")
    context: Column | None = Field("prompt", description="Column that stands before it; null: nothing does.")
    window: int = Field(1024, ge=8, le=1 << 20, description="Most tokens of a row; what is longer is cut, and counted.")
    batch: int = Field(8, ge=1, le=1024, description="Rows at a time.")


class Tasks(Section):
    """Standard tasks by lm-eval, in an environment that has it."""

    names: tuple[Task, ...] = Field(min_length=1, max_length=100, description="Tasks, as lm-eval calls them.")
    limit: int | None = Field(None, ge=1, description="Rows of each task, the first; without it all.")
    shots: int | None = Field(None, ge=0, le=64, description="Examples before each question; else the task's own.")
    batch: int = Field(8, ge=1, le=1024, description="Rows at a time.")
    max_minutes: float = Field(120.0, gt=0.0, le=10_080.0, description="Time limit in minutes.")


class NextSample(Section):
    """Sampling for the next version of the data: more of what this checkpoint is weak at."""

    by: Column = Field(description="Column of the groups; it has to be one of groups.")
    rows: int = Field(ge=1, le=10**9, description="Rows of that sample, in all.")


class EvalConfig(StageConfig):
    """Rows of the input `rows`, the checkpoint of the input `model`: either, or both. With `judge.endpoint.url: input`
    the model of the input `judge` is served for as long as it is asked."""

    stage: Literal["eval"] = Field(description="eval.")
    id: Column = Field("id", description="Column with the rows' ids, unique.")
    prompt: Column = Field("prompt", description="Column with the question.")
    answer: Column = Field("completion", description="Column with the answer that is judged, without generate.")
    most_rows: int | None = Field(None, ge=1, description="Rows that are evaluated, drawn by id and seed; else all.")
    groups: tuple[Column, ...] = Field((), max_length=20, description="Columns by whose values scores are told apart.")
    judge: Judge | None = Field(None, description="LLM as judge.")
    generate: Generate | None = Field(None, description="Answers and speed of the checkpoint.")
    perplexity: Perplexity | None = Field(None, description="Perplexity of the checkpoint.")
    tasks: Tasks | None = Field(None, description="Standard tasks.")
    next_sample: NextSample | None = Field(
        None, description="Leave sample.json: the key sample of a stage data, with quotas by the weak spots."
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not (self.judge or self.generate or self.perplexity or self.tasks):
            raise ValueError("nothing is asked for: give judge, generate, perplexity or tasks")
        if self.next_sample and self.next_sample.by not in self.groups:
            raise ValueError(f"next_sample.by: {self.next_sample.by} is none of groups")
        if self.next_sample and not (self.judge or self.perplexity):
            raise ValueError("next_sample needs judge or perplexity, which tell what is weak")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        told = super().identity
        if self.judge:
            told["judge"]["endpoint"] = self.judge.endpoint.identity
            told["judge"].pop("failed_most")
        return told
