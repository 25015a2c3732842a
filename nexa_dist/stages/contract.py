"""What a stage is: a config, and a module with `prepare(config, env) -> None` and `run(config, env) -> int`.

A stage reads verified inputs and writes one folder, `env.output`. Started again after a kill it goes on with what is
there, and comes to the same bytes. Whatever changes the output is in the config or is an input: nothing else is hashed.
`run` returns the exit code: 0 done, 1 failed, 3 when a budget ended it gracefully, 143 after SIGTERM (`env.stop`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from nexa_dist.config.backends import resolve
from nexa_dist.config.train import DataName, Line, NodeName, Tag, Word, secret_names
from nexa_dist.config.trainer import FilePath, Section
from nexa_dist.config.work import Environment

EXIT_STOPPED = 143
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""Name of a column of rows."""
StageName = Literal["data", "teach", "filter", "train", "eval", "serve"]


def _reference(value: str) -> str:
    """data:NAME[@vN][/FOLDER], run:RUN, stage:NAME[/FOLDER] (within a pipeline), or a path."""
    kind, colon, rest = value.partition(":")
    if colon and kind in ("data", "run", "stage") and not rest:
        raise ValueError(f"{kind}: needs a name behind it: data:science@v1, run:RUN, stage:NAME, or a path")
    return value


Reference = Annotated[FilePath, AfterValidator(_reference)]
"""Something that a stage reads: a version of the registry, a run's checkpoint, another stage's output, or a path."""


class StageLaunch(Section):
    """How `nexa run` starts a stage on a cluster; the keys mean what they mean in train.yaml."""

    nodes: tuple[NodeName, ...] = Field((), max_length=64, description="Nodes; without it the first of the cluster.")
    nproc_per_node: int = Field(1, ge=1, le=64, description="Ranks on each node.")
    max_hours: float | None = Field(None, gt=0.0, le=8760.0, description="Deadline of the run, in hours.")
    budget_usd: float | None = Field(None, gt=0.0, le=1e7, description="Most that the nodes may cost, in US dollars.")
    secrets: tuple[Word, ...] = Field((), max_length=50, description="Variables that the ranks get from here or .env.")
    env: dict[str, Word] = Field(default_factory=dict, description="Environment of every rank.")
    setup: tuple[Line, ...] = Field((), max_length=100, description="Shell lines for every node before its ranks.")
    files: tuple[FilePath, ...] = Field((), description="Paths in the project that are sent although git ignores them.")
    tags: tuple[Tag, ...] = Field((), description="Labels for the manifest.")
    hang_timeout_s: float | None = Field(
        600.0, ge=1.0, le=86_400.0, description="Silence after a first report that is taken to be a hang, in seconds."
    )

    _secret_names = field_validator("secrets")(secret_names)


class StageConfig(Section):
    """What every stage's YAML has; a stage's own Config is a subclass with its own keys."""

    stage: StageName = Field(
        description="Which stage it is: data, teach, filter, eval or serve; train is a train.yaml."
    )
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")] = Field(
        "", description="Name of the output in the registry, of which each new content is a version; else the file's."
    )
    inputs: dict[DataName, Reference] = Field(
        default_factory=dict,
        max_length=50,
        description="What it reads, by name: data:NAME[@vN], run:RUN, or a path. In a pipeline also stage:NAME.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    environment: Environment = Field("light", description="Packages of the ranks, as in train.yaml.")
    launch: StageLaunch = Field(default_factory=StageLaunch, description="How nexa run starts it on a cluster.")

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the config that the output follows from: where it runs and what it is called are not in it."""
        return self.model_dump(mode="json", exclude={"name", "inputs", "environment", "launch"})


class Report(Protocol):
    """How far the stage is: `done` of `total` rows (None: nobody knows); `figures` are shown beside it."""

    def __call__(self, done: int, total: int | None = None, **figures: float | int | str) -> None: ...


@dataclass(frozen=True)
class StageEnv:
    """Where a stage works."""

    inputs: Mapping[str, Path]
    """Verified files and folders by the input's name."""
    output: Path
    """Folder of this stage, which is there. Half-done work is gone on with; each file whole or absent under its final
    name (`whole.py`). A name that begins with '.' is scratch: removed at the end, and in no hash."""
    rank: int
    world_size: int
    stop: Callable[[], bool]
    """True after SIGTERM: end at the next row with EXIT_STOPPED; what is done stays."""
    report: Report
    note: Callable[..., None]
    """Facts for manifest.json, by key: `counts={"rows": 10}`, `usd=0.02`, `schema={…}`, or whatever a stage has to
    say (`prompt_sha256=…`). Notes of an earlier attempt are kept; a key that is noted again is replaced."""


@dataclass(frozen=True)
class Stage:
    """A stage by the names of its parts, each opened when it is asked for: what the work imports is on the nodes, and
    not where a config is read. Rank 0 alone is called."""

    config: str
    """`module:Class` of its YAML, a StageConfig."""
    work: str
    """Module with `prepare` and `run`."""
    format: int = 1
    """Raised when the same config and inputs give other bytes than before: outputs of older formats are stale then."""

    @property
    def model(self) -> type[StageConfig]:
        return cast("type[StageConfig]", resolve(self.config))

    def prepare(self, config: StageConfig, env: StageEnv) -> None:
        """Refuse what cannot work (NexaError), before anything is done or paid for. Called before run, each time; what
        it raises is exit code 2, and no other attempt is begun. So is what run raises with `code=EXIT_USAGE`."""
        resolve(f"{self.work}:prepare")(config, env)

    def run(self, config: StageConfig, env: StageEnv) -> int:
        return int(resolve(f"{self.work}:run")(config, env))
