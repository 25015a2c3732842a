"""Schema of a filter.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from nexa_dist.config.trainer import Section
from nexa_dist.stages.contract import Column, StageConfig

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]
Fate = Literal["drop", "review"]
OURS = ("rubric", "duplicate", "form", "too_long", "nothing_learned", "rejected")
"""Reasons that are no rule's."""


class Rule(Section):
    """What a column has to be; a row that is not so goes, or to a person. All that the rule names has to hold."""

    name: Name = Field(description="Name of the rule in the report.")
    column: Column = Field(description="Column; json.score is the value under score of the JSON in column json.")
    min_chars: int | None = Field(None, ge=0, description="Least characters.")
    max_chars: int | None = Field(None, ge=0, description="Most characters.")
    min_words: int | None = Field(None, ge=0, description="Least words.")
    max_words: int | None = Field(None, ge=0, description="Most words.")
    matches: str | None = Field(None, description="Regular expression that is found in it.")
    not_matches: str | None = Field(None, description="Regular expression that is not found in it.")
    least: float | None = Field(None, allow_inf_nan=False, description="Least number.")
    most: float | None = Field(None, allow_inf_nan=False, description="Largest number.")
    one_of: tuple[str, ...] = Field((), description="Values that it may have, as texts.")
    missing: Literal["drop", "review", "keep"] = Field("drop", description="What becomes of a row without the column.")
    otherwise: Fate = Field("drop", description="What becomes of a row for which it does not hold.")

    @field_validator("matches", "not_matches")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        asked = set(type(self).model_fields) - {"name", "column", "missing", "otherwise"}
        if not any(getattr(self, name) not in (None, ()) for name in asked):
            raise ValueError(f"rule {self.name} asks nothing: give one of {', '.join(sorted(asked))}")
        if self.name in OURS:
            raise ValueError(f"{self.name} is the name of a reason of the stage's own; name the rule otherwise")
        return self


class Rubric(Section):
    """Scores that a row needs. A criterion that is missing is a missing score, and never 0."""

    least: dict[Column, float] = Field(
        min_length=1, description="Least score, by column: {dss: 0.6, json.safety: 0.8}."
    )
    missing: Literal["drop", "review", "keep"] = Field("review", description="What becomes of a row without a score.")
    otherwise: Fate = Field("drop", description="What becomes of a row with a score below it.")


class Review(Section):
    """Which rows a person is to see, beside those that a rule or the rubric sends there: review.csv of the output."""

    share: float = Field(0.0, ge=0.0, le=1.0, description="Share of the other rows, 0 to 1, drawn by id and seed.")
    columns: tuple[Column, ...] = Field((), max_length=50, description="Columns to see; without it prompt, completion.")
    pending: Literal["hold", "keep"] = Field(
        "hold", description="Rows without a decision: hold (they are in no rows.parquet) or keep."
    )


class FilterConfig(StageConfig):
    """Rows of the input `rows`; the input `review` is the review.csv that came back, `tokenizer` a model's folder."""

    stage: Literal["filter"] = Field(description="filter.")
    id: Column = Field("id", description="Column with the rows' ids, unique.")
    rules: tuple[Rule, ...] = Field((), max_length=200, description="What the rows have to be.")
    rubric: Rubric | None = Field(None, description="Scores that a row needs.")
    unique: tuple[Column, ...] = Field(
        (),
        max_length=20,
        description="Columns whose values, spaces and case aside, no two rows share; the first stays.",
    )
    review: Review = Field(default_factory=Review, description="What a person is to see.")
    form: Literal["messages", "prompt_completion"] = Field(
        "messages", description="Rows to learn: a chat that the model's template lays out, or plain texts."
    )
    prompt: Column = Field("prompt", description="Column of the prompt, where the rows have no messages.")
    completion: Column = Field("completion", description="Column of what is learned.")
    system: str | None = Field(None, description="A system turn for every chat that has none.")
    keep: tuple[Column, ...] = Field((), max_length=100, description="Columns that go on to the output.")
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="Most tokens of a row, by the input tokenizer: more would not fit the training's window.",
    )

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [rule.name for rule in self.rules]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two rules are called {twice}")
        if self.max_tokens is not None and "tokenizer" not in self.inputs:
            raise ValueError("max_tokens needs inputs.tokenizer, the folder of the model that is to learn")
        return self
