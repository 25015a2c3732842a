"""Sections of train.yaml that the trainers of our own backends read: the model, the text, the steps."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator


def _not_an_option(value: str) -> str:
    """A path that no program can read as an option."""
    if value.startswith("-"):
        raise ValueError("must not begin with '-'; write ./-name for such a file")
    if any(ord(char) < 32 for char in value):
        raise ValueError("must not contain control characters")
    return value


FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_not_an_option)]


IN_DATA = re.compile(r"\$(?:NEXA_DATA|\{NEXA_DATA\})/([^/]+)((?:/.*)?)")
"""A path in what train.yaml names under `data`: the name, and the rest."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): the model stays as it is, and B·A · alpha / rank is learned
    beside each chosen linear layer."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="Scale of the adapters, times rank; without it, twice the rank."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before an adapter, a probability.")
    target_modules: tuple[Annotated[str, StringConstraints(pattern=r"^\w[\w.]*$")], ...] = Field(
        (), max_length=50, description="Names of linear layers (q_proj, v_proj); without it, all but the output layer."
    )

    @property
    def scale(self) -> float:
        """Alpha, as it is used."""
        return self.alpha or 2.0 * self.rank


class ModelConfig(Section):
    """Either a pretrained directory (`path`), or the shape of a Llama that starts from random weights."""

    path: FilePath | None = Field(
        None,
        description="Directory of a pretrained Hugging Face causal language model, on every node; $NEXA_DATA/NAME "
        "where data names it.",
    )
    tokenizer: FilePath | None = Field(
        None,
        description="For a model from scratch, in place of vocab_size: the directory of a pretrained model whose "
        "tokenizer it takes, as a student that of its teacher; $NEXA_DATA/NAME too.",
    )
    vocab_size: int | None = Field(
        None, ge=300, le=1_000_000, description="Tokens in the byte-level BPE vocabulary trained on the data."
    )
    hidden_size: int | None = Field(None, ge=8, le=65_536, description="Width of the model, in features.")
    layers: int | None = Field(None, ge=1, le=512, description="Number of decoder layers.")
    heads: int | None = Field(
        None, ge=1, le=1024, description="Attention heads a layer; hidden_size / heads must be an even number."
    )
    intermediate_size: int | None = Field(
        None, ge=8, le=262_144, description="Width of the feed-forward block, in features."
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Attention dropout, a probability; only for a model from scratch."
    )

    lora: LoraConfig | None = Field(
        None, description="Train adapters of low rank beside a pretrained model; a checkpoint then holds them alone."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        shape = ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size")
        given = [name for name in shape if getattr(self, name) is not None]
        if self.path is not None:
            beyond = [name for name in ("tokenizer", "dropout") if getattr(self, name)]
            if given or beyond:
                extra = ", ".join([*given, *beyond])
                raise ValueError(f"path brings its own shape: remove {extra}, or remove path")
            return self
        if self.lora is not None:
            raise ValueError("lora needs path: adapters of a model with random weights learn nothing")
        if self.tokenizer is not None and self.vocab_size is not None:
            raise ValueError("tokenizer has its own vocabulary: remove vocab_size, or remove tokenizer")
        missing = [name for name in shape if name not in given and (name != "vocab_size" or self.tokenizer is None)]
        if missing:
            raise ValueError(f"needs {', '.join(missing)} (a model from scratch), or path (a pretrained directory)")
        assert self.hidden_size is not None and self.heads is not None
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} / heads {self.heads} must be an even whole number (rotary positions)"
            )
        return self

    @property
    def words(self) -> str | None:
        """The directory whose tokenizer is taken; None: one is trained on the data."""
        return self.path or self.tokenizer


class DatasetConfig(Section):
    """Text to train on. Each node prepares it once: tokenizer, token files, held-out part."""

    source: Literal["python-stdlib", "path", "examples"] = Field(
        "python-stdlib",
        description="python-stdlib: the sources of the node's own Python standard library (11 MB and more); "
        "path: your text; examples: rows of JSONL or Parquet, each with messages (a chat: the assistant's turns are "
        "learned), prompt and completion (the completion is), or text.",
    )
    path: FilePath | None = Field(
        None,
        description="With source: path, a UTF-8 text file, with source: examples, a .jsonl or .parquet file; or a "
        "directory of them. On every node; $NEXA_DATA/NAME where data names it.",
    )
    min_mb: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="Refuse to train on less text than this, in MB (10^6 bytes)."
    )
    sequence_length: int = Field(
        128,
        ge=8,
        le=1_048_576,
        description="Length of a training window, in tokens; a longer example is cut, and that is said.",
    )
    held_out: float = Field(
        0.05, gt=0.0, le=0.5, description="Share of the files or examples, 0 to 0.5, that only the evaluation sees."
    )

    @model_validator(mode="after")
    def _path_with_source(self) -> Self:
        if (self.source == "python-stdlib") != (self.path is None):
            raise ValueError("source: path or examples needs path: DIR; python-stdlib takes no path")
        return self


Steps = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*-[1-9]\d*$")]


class ProfileConfig(Section):
    """Which steps torch.profiler looks at. They are slower than the others, and so is the end of the last."""

    steps: Annotated[int, Field(ge=1, le=1000)] | Annotated[str, StringConstraints(pattern=r"^[1-9]\d*-[1-9]\d*$")] = (
        Field(description="FIRST-LAST, or a number of steps: those after the tenth.")
    )
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), max_length=64, description="Ranks whose trace is kept; the summary is of all."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if isinstance(self.steps, str):
            first, last = map(int, self.steps.split("-"))
            if not first <= last < first + 1000:
                raise ValueError(f"steps {self.steps}: FIRST is not after LAST, and at most 1000 steps are kept")
        return self

    def range(self, of: int) -> tuple[int, int]:
        """First and last step (both 1-based, both profiled) of a training of so many."""
        if isinstance(self.steps, str):
            first, last = map(int, self.steps.split("-"))
            return first, last
        first = max(1, min(11, of - self.steps + 1))
        return first, first + self.steps - 1


class TrainerConfig(Section):
    """How to train. Steps are optimizer steps."""

    steps: int = Field(ge=1, description="Length of the training, in optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Windows a step on each rank.")
    learning_rate: float = Field(
        1e-3, gt=0.0, allow_inf_nan=False, description="Peak learning rate of AdamW; a cosine takes it to zero."
    )
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up of the learning rate, in steps.")
    weight_decay: float = Field(0.01, ge=0.0, allow_inf_nan=False, description="Weight decay of AdamW.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 runs the forward pass under bfloat16 autocast; the weights stay float32."
    )
    log_every: int = Field(10, ge=1, description="A line on stdout every so many steps.")
    save_every: int = Field(
        100, ge=1, description="A checkpoint every so many steps, and one at the end. At most this much work is lost."
    )
    async_save: bool = Field(
        False,
        description="Copy the state to memory, go on training, and write the checkpoint meanwhile. Costs that memory.",
    )
    eval_every: int | None = Field(
        None, ge=1, description="Held-out loss every so many steps; without it, at the end only."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the weights, the data order and the dropout.")
    use_kd: bool = Field(
        False,
        description="Learn from a teacher (Hinton et al. 2015): (1 - kd_lambda) CE + kd_lambda kd_temperature² "
        "KL(teacher ‖ student), of each token that is learned.",
    )
    kd_teacher: FilePath | None = Field(
        None,
        description="Directory of the teacher, of the student's tokenizer, on every node; $NEXA_DATA/NAME where data "
        "names it. Each rank holds it, frozen. Without it rows of dataset bring its top-k logits.",
    )
    kd_temperature: float = Field(
        1.5, gt=0.0, le=100.0, description="Divides the logits of both before they are compared."
    )
    kd_lambda: float = Field(0.5, ge=0.0, le=1.0, description="Share of the teacher in the loss; not TRL's lmbda.")

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        fields = type(self).model_fields.items()
        given = [name for name, field in fields if name.startswith("kd_") and getattr(self, name) != field.default]
        if given and not self.use_kd:
            raise ValueError(f"{', '.join(given)} means nothing without use_kd: true")
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}")
        return self
