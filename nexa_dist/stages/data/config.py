"""Keys of a data stage's YAML."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexa_dist.config.train import DataName
from nexa_dist.config.trainer import Section
from nexa_dist.stages.contract import StageConfig

Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Part = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class ColumnConfig(Section):
    """What a value of one column must be."""

    type: Literal["string", "integer", "number", "boolean", "any"] = Field(
        "string", description="Kind of the values; a text of a CSV that reads as one is one. any: as it is."
    )
    required: bool = Field(True, description="Whether a row without a value is a bad row.")
    choices: tuple[str, ...] = Field((), max_length=1000, description="The only texts allowed.")
    minimum: float | None = Field(None, description="Least number, or least length of a text in characters.")
    maximum: float | None = Field(None, description="Largest number, or largest length of a text in characters.")


class BadRows(Section):
    """Rows that are not what `columns` asks: put apart in bad/, with row, column and reason."""

    most: int = Field(1000, ge=0, description="More bad rows than this end the stage…")
    most_share: Share = Field(0.01, description="…when they are also more than this share of all rows.")


class Length(Section):
    """Bounds of the text."""

    min_characters: int = Field(1, ge=0, description="Fewer characters are dropped.")
    max_characters: int = Field(1_000_000, ge=1, description="More characters are dropped.")
    min_words: int = Field(0, ge=0, description="Fewer words are dropped.")
    max_words: int = Field(1_000_000, ge=1, description="More words are dropped.")


class Language(Section):
    """A cheap guess: the share of a language's commonest words among all words, and the share of Latin letters."""

    keep: Literal["en", "de", "fr", "es", "it", "pt", "nl"] = Field("en", description="Language that is kept.")
    min_share: Share = Field(0.1, description="Least share of its commonest words; short texts have few of them.")
    from_words: int = Field(8, ge=1, description="Texts of fewer words are kept: too short to tell.")


class Quality(Section):
    """Heuristics of Gopher's MassiveText (Rae et al. 2021, arXiv 2112.11446, appendix A), each with its own bound."""

    max_symbol_share: Share = Field(0.3, description="Most characters that are neither letters, digits nor spaces.")
    max_digit_share: Share = Field(0.5, description="Most characters that are digits.")
    max_upper_share: Share = Field(0.7, description="Most letters that are capitals.")
    min_mean_word: float = Field(1.5, ge=0.0, description="Least mean length of a word, in characters.")
    max_mean_word: float = Field(20.0, ge=1.0, description="Largest mean length of a word, in characters.")
    max_repeated_share: Share = Field(0.6, description="Most words that were in the same text before.")


class Near(Section):
    """Near duplicates by MinHash (Broder 1997) of word shingles, in bands as LSH does."""

    threshold: Annotated[float, Field(ge=0.3, le=1.0)] = Field(
        0.8, description="Jaccard similarity of the shingles from which the later row is dropped."
    )
    shingle: int = Field(3, ge=1, le=20, description="Words in a shingle.")
    permutations: int = Field(64, ge=16, le=256, description="Hashes in a signature; more tell 0.8 from 0.7 better.")


class Duplicates(Section):
    exact: bool = Field(True, description="Drop a row whose text, without case and spaces, was there before.")
    near: Near | None = Field(None, description="Drop rows whose text is almost one that was there before.")


class Contamination(Section):
    """Rows that share a run of words with the evaluation's, as in GPT-3 (Brown et al. 2020, appendix C)."""

    input: DataName = Field(description="Name of the input that holds the evaluation's rows.")
    column: Column = Field("text", description="Its text.")
    words: int = Field(13, ge=2, le=50, description="Words in a row that both have: 13 in GPT-3, 8 in PaLM.")


class Sample(Section):
    """Which of the clean rows are taken."""

    policy: Literal["first", "random", "stratified", "quota"] = Field(
        "first", description="first rows; random by the seed; stratified: as many of each value of `by` as its share; "
        "quota: as many of each value as `quotas` says."
    )  # fmt: skip
    rows: int | None = Field(None, ge=1, description="How many in all; not with quota.")
    by: Column | None = Field(None, description="Column of the strata or quotas.")
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, max_length=10_000, description="Rows by value; values that are not named get none."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.policy == "quota") == (self.rows is not None):
            raise ValueError("rows says how many, but for quota, which has quotas instead")
        if (self.policy in ("stratified", "quota")) != (self.by is not None):
            raise ValueError("by names the column of stratified and quota, and has no meaning in others")
        if (self.policy == "quota") != bool(self.quotas):
            raise ValueError("quotas go with policy: quota, which needs them")
        return self


class Split(Section):
    """Shares of the rows; all rows of a group are in one part, and stay there whatever other rows come."""

    parts: dict[Part, Share] = Field(
        default_factory=lambda: {"train": 0.9, "validation": 0.05, "test": 0.05},
        min_length=1, max_length=20, description="Share of each part; together 1.",
    )  # fmt: skip
    by: Column | None = Field(None, description="Column of the group; without it each text is its own.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if abs(sum(self.parts.values()) - 1.0) > 1e-6:
            raise ValueError(f"the shares of parts are {sum(self.parts.values()):g} together, not 1")
        if taken := {"bad", "packed"} & set(self.parts):
            raise ValueError(f"{taken.pop()} is the name of another folder of the output")
        return self


class Pack(Section):
    """Windows of tokens, none of which crosses from one document into the next: the rest of a window is padding."""

    tokenizer: DataName = Field(description="Name of the input that holds a tokenizer.json, or a folder with one.")
    length: int = Field(ge=8, le=1_048_576, description="Tokens of a window.")


class Drift(Section):
    """How far the rows are from those of another version."""

    against: DataName = Field(description="Name of the input that holds the other version.")
    max_psi: float | None = Field(
        None, gt=0.0, description="A column whose PSI is above ends the stage: 0.1 is some, 0.25 much drift."
    )


class DataConfig(StageConfig):
    """Every input that nothing else names is a source of rows, in the order of the inputs."""

    stage: Literal["data"] = Field(description="data")
    columns: dict[Column, ColumnConfig] = Field(
        default_factory=dict, max_length=1000, description="Columns that are kept, and what they must be; else all."
    )
    text: Column = Field("text", description="Column that the filters and duplicates look at.")
    bad: BadRows = Field(default_factory=BadRows, description="Bad rows that are bearable.")
    normalize: bool = Field(True, description="Unicode NFC, and white space of any kind as one space, in the text.")
    length: Length = Field(default_factory=Length, description="Bounds of the text.")
    language: Language | None = Field(None, description="Language of the text.")
    quality: Quality | None = Field(None, description="Bounds of what a text looks like.")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="Rows that were there before.")
    contamination: Contamination | None = Field(None, description="Rows that the evaluation has.")
    sample: Sample | None = Field(None, description="Which rows are taken; without it all.")
    split: Split | None = Field(None, description="Parts of the dataset; without it all rows are in train.")
    pack: Pack | None = Field(None, description="Windows of tokens beside the rows.")
    drift: Drift | None = Field(None, description="Comparison with another version.")
    rows_per_file: int = Field(100_000, ge=1, le=10_000_000, description="Rows of a file of the output, at most.")

    @property
    def special(self) -> tuple[str, ...]:
        """Inputs that are no sources of rows."""
        named = (
            self.contamination and self.contamination.input,
            self.pack and self.pack.tokenizer,
            self.drift and self.drift.against,
        )
        return tuple(name for name in named if name)
