"""Schema of train.yaml. Values only: no file is opened here, units are in the names or descriptions."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from nexa_dist.config.backends import BACKENDS, SECTIONS
from nexa_dist.config.launchers import refuse_nested
from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.config.trainer import (
    IN_DATA,
    DatasetConfig,
    FilePath,
    ModelConfig,
    ProfileConfig,
    Section,
    TrainerConfig,
)
from nexa_dist.config.work import Engine, Environment, Image, OwnEnvironment

ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED_ENV = re.compile(
    r"^(NEXA_.*|TORCHELASTIC_.*|RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|NODE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|GROUP_WORLD_SIZE|ROLE_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)\Z"
)
NO_SECRET = re.compile(r"^(AWS_.*|TS_.*|LD_.*|PYTHON.*|PATH|HOME|USER|SHELL|TMPDIR)\Z")
"""Cloud credentials stay here, and what belongs to this machine is wrong on another."""
S3_PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f]{0,1024})?")


def _plain_text(value: str) -> str:
    """One command line word: no NUL byte (the kernel would cut it there)."""
    if "\0" in value:
        raise ValueError("must not contain a NUL byte")
    return value


def _inside(value: str) -> str:
    """A pattern below the working folder."""
    if value.startswith("/") or ".." in value.split("/") or not value.strip("/"):
        raise ValueError("must be below the working folder of the run: figures/**, '*.csv', out")
    return value


def _source(value: str) -> str:
    """A place in S3, or a path here."""
    if "://" in value and not S3_PLACE.fullmatch(value):
        raise ValueError("must be s3://bucket/prefix, or a path of a file or folder here")
    return value


def name_of(stem: str) -> str:
    """A name for a training from that of a file or module."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in stem.lower())
    return plain.strip("-")[:32].strip("-") or "train"


Word = Annotated[str, AfterValidator(_plain_text)]
DataName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
DataSource = Annotated[FilePath, AfterValidator(_source)]
Pattern = Annotated[FilePath, AfterValidator(_inside)]
NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}$")]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000, pattern=r"^[^\n]*$")]
Debian = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?$")]
"""A package of the system, as apt-get takes it."""


def secret_names(value: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no name of a variable, or one that is never taken from here. Raises ValueError."""
    for number, name in enumerate(value):
        if not ENV_NAME.match(name):  # which is not shown: it may be the secret itself
            raise ValueError(f"item {number} is no name of an environment variable; give names, not values")
        if RESERVED_ENV.match(name) or NO_SECRET.match(name):
            raise ValueError(f"{name} is never taken from here to a node")
    return value


class TrainConfig(Section):
    """One training: what torchrun starts on every node, and how the run is labelled."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")] = Field(
        "",
        description="Short name of the training: a-z, 0-9 and '-', at most 32 characters. Without it, that of the "
        "file, or of the script.",
    )
    stage: Literal["train", "data", "teach", "filter", "eval", "serve"] = Field(
        "train",
        description="Stage of the pipeline that the manifest names. Another one than train has keys of its own: "
        "docs/PIPELINE.md.",
    )
    backend: Literal["hf", "acc", "ds", "ax"] | None = Field(
        None,
        description="hf: the transformers Trainer under DDP, set by model, dataset and trainer. acc: the same under "
        "FSDP2, which shards the model over the ranks as the accelerate YAML in config asks. ds: the same under "
        "DeepSpeed's ZeRO, as the DeepSpeed JSON in config asks. ax: Axolotl by the YAML in config, in environment: "
        "heavy.",
    )
    script: FilePath | None = Field(
        None, description="Any torchrun script, a path in the project: it runs unchanged with args."
    )
    module: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")] | None = Field(
        None, description="Any module torchrun can start (python -m style): it runs unchanged with args."
    )
    program: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = Field(
        None,
        description="A console script of the project's pyproject.toml, or of a package in the environment: it runs "
        "unchanged with args, in every rank.",
    )
    args: tuple[Word, ...] = Field(
        (), description="Arguments of script, module or program, one a list item, never split."
    )
    install: bool | None = Field(
        None,
        description="Install the project itself, editable, into a layer over the environment that is the run's own. "
        "Without it: where pyproject.toml has a [build-system], or a [project] with scripts or a src folder.",
    )
    apt: tuple[Debian, ...] = Field(
        (),
        max_length=100,
        description="Debian packages that every node gets before the run, by root: where the system is nexa's to set "
        "up (aws, or system_changes: true in the cluster's file).",
    )
    setup: tuple[Line, ...] = Field(
        (),
        max_length=100,
        description="Shell lines for every node before its ranks: one shell, in the run's working folder, with the "
        "environment on PATH; the first that fails ends the run. Once for the same lines, environment and code: what "
        "they wrote there is copied for a later run. nexa logs --rank setup has their output.",
    )
    expand: bool = Field(
        False,
        description="Put values in for ${NEXA_X} in args (NEXA_DURABLE, NEXA_NODE and so on; not RANK, which "
        "each rank reads itself). Without it args arrive as they are.",
    )
    env: dict[str, Word] = Field(
        default_factory=dict,
        description="Environment of every rank. NEXA_*, RANK, WORLD_SIZE, MASTER_ADDR and the like are the launcher's.",
    )
    secrets: tuple[Word, ...] = Field(
        (),
        max_length=50,
        description="Names of variables that every rank gets beside WANDB_API_KEY and HF_TOKEN, from your environment "
        "or .env; their values are in no file, argument or log of nexa's. Not for cloud or Tailscale credentials.",
    )
    files: tuple[FilePath, ...] = Field(
        (),
        description="Paths in the project that are sent although git ignores or leaves them out: files, folders, "
        "clones of other repositories. A link is followed, also out of the project.",
    )
    environment: Environment = Field(
        "light",
        description="Packages of the ranks: light (what nexa provision puts on a node), heavy (axolotl, DeepSpeed), "
        "infer (vLLM), {packages: [NAME==VERSION]} on top of light, {requirements: requirements.txt} or "
        "{lock: uv.lock} of the project, none (the node's own python3).",
    )
    image: Image | None = Field(
        None,
        description="Container image that the ranks run in on every node, with its own packages: NAME:TAG or "
        "NAME@sha256:DIGEST. It needs python3 (3.9 or newer) with torch. environment is then none.",
    )
    engine: Engine = Field(
        "auto",
        description="Container engine for image: auto takes docker, else podman; or the path of one on the nodes.",
    )
    data: dict[DataName, DataSource] = Field(
        default_factory=dict,
        max_length=50,
        description="Data by name: a file or folder here, or s3://bucket/prefix, which a node reads with its own "
        "credentials. Each is on every node before the ranks start, as $NEXA_DATA/NAME, and stays for the next run.",
    )
    outputs: tuple[Pattern, ...] = Field(
        (),
        max_length=100,
        description="What of the files that the run writes below its working folder comes here when it ends, to "
        "runs/RUN/outputs: names, folders, patterns (* ? [ab] within a folder, ** across folders). What W&B and "
        "TensorBoard write comes without being named.",
    )
    tags: tuple[Tag, ...] = Field((), description="Labels for the manifest.")
    experiment: Tag | None = Field(None, description="Experiment the run belongs to; becomes the tag experiment:NAME.")
    nodes: tuple[NodeName, ...] = Field(
        (),
        max_length=64,
        description="Names of the nodes that it runs on; without it all of the cluster. Runs that share no node may go "
        "on at once.",
    )
    nproc_per_node: int | None = Field(
        None, ge=1, le=64, description="Processes (ranks) on each node; without it, the node's GPU count."
    )
    max_hours: float | None = Field(
        None, gt=0.0, le=8760.0, allow_inf_nan=False, description="Deadline of the run, in hours."
    )
    budget_usd: float | None = Field(
        None,
        gt=0.0,
        le=10_000_000.0,
        allow_inf_nan=False,
        description="Most that the run may cost, in US dollars; it is stopped with a checkpoint before.",
    )
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="For a backend: as many steps as fit into so many tokens of training, trainer.steps at most.",
    )
    launcher: Literal["torchrun", "direct"] = Field(
        "torchrun",
        description="Who starts the ranks of a node: torchrun, or the node agent itself (torch is then imported once, "
        "and a relaunch comes from an interpreter that has it already). The environment of a rank is the same.",
    )
    preload: bool = Field(
        True,
        description="With launcher: direct, whether each node keeps an interpreter with torch ready, from which ranks "
        "are forked. Without it each rank imports what it needs itself: for scripts without torch, or little memory.",
    )
    replicas: int | None = Field(
        None,
        ge=0,
        le=8,
        description="Of a sharded checkpoint, so many other nodes keep what each node wrote, so that so many may go. "
        "Without it: 1 where there are several nodes and neither a bucket nor a durable folder that all of them see.",
    )
    hang_timeout_s: float | None = Field(
        600.0,
        ge=1.0,
        le=86_400.0,
        allow_inf_nan=False,
        description="A rank that has reported a step and then reports none for so long, in seconds, is taken to hang: "
        "the stacks of all ranks go into their logs, and the run is started again. null: never. A script that reports "
        "no step (nexa_dist.train.progress) is never taken to hang.",
    )
    on_disconnect: Literal["keep", "kill"] = Field(
        "keep",
        description="When the controller is gone: keep training (under the deadline), or end the run on the nodes.",
    )
    restarts_per_hour: int = Field(
        10,
        ge=0,
        le=1000,
        description="Restarts within an hour that made no progress before the run is given up; 0: never start again.",
    )
    min_nodes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Go on with so few nodes when a lost one cannot be replaced. The world size and so the batch "
        "change, hence nothing shrinks without this key.",
    )
    wait_for_nodes_minutes: float = Field(
        10.0,
        ge=0.0,
        le=10_080.0,
        allow_inf_nan=False,
        description="How long to wait for a lost node that cannot be replaced, or for capacity to replace it.",
    )
    lost_after_s: float | None = Field(
        None,
        ge=60.0,
        le=604_800.0,
        allow_inf_nan=False,
        description="Replace a node that says nothing for so long, in seconds, though nobody says that it is dead "
        "(the cloud, another node). Without it: 1800 while another node answers, and never while none does, which is "
        "this machine's own line first. Less ends healthy nodes with all that is on their disks; more lets a dead one "
        "keep the others waiting, at the price of all.",
    )
    wandb: Literal["off", "offline", "online"] | None = Field(
        None,
        description="Weights & Biases: off, offline (files in the run folder, no network) or online. Without it, a "
        "script that uses it is online when WANDB_API_KEY is there, and else off.",
    )
    model: ModelConfig | None = Field(None, description="backends hf, acc, ds: the model.")
    dataset: DatasetConfig | None = Field(None, description="backends hf, acc, ds: the text.")
    trainer: TrainerConfig | None = Field(None, description="backends hf, acc, ds: steps, rates and intervals.")
    profile: ProfileConfig | None = Field(
        None, description="backends hf, acc, ds: steps of which is said where the time went, by rank."
    )
    config: FilePath | None = Field(
        None,
        description="The backend's own config file, a path in the project: of acc what accelerate config writes "
        "(FSDP2), of ds a DeepSpeed JSON, of ax an Axolotl YAML. hf has none.",
    )

    slurm: SlurmConfig | None = Field(
        None, description="What nexa slurm submit asks of Slurm; nexa run takes no notice of it."
    )

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value

    @field_validator("nodes")
    @classmethod
    def _nodes_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((name for name in value if value.count(name) > 1), ""):
            raise ValueError(f"{twice} is there twice")
        return value

    @field_validator("env")
    @classmethod
    def _env_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not ENV_NAME.match(name):
                raise ValueError(f"{name!r} is no environment variable name (letters, digits, '_')")
            if RESERVED_ENV.match(name):
                raise ValueError(f"{name} is set by the launcher and cannot be changed here")
        return value

    _secret_names = field_validator("secrets")(secret_names)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            program = self.script or self.module or self.program or self.backend or ""
            object.__setattr__(self, "name", name_of(program.rpartition("/")[2].removesuffix(".py")))
        return self

    @model_validator(mode="after")
    def _image_is_whole(self) -> Self:
        """What an image has is not added to on a node."""
        if self.image is None:
            if self.engine != "auto":
                raise ValueError("engine is of no use without image")
            return self
        if "environment" in self.model_fields_set and self.environment != "none":
            raise ValueError("environment is not for a run in an image, which has its own packages")
        if wrong := [key for key in ("apt", "setup", "install") if getattr(self, key)]:
            raise ValueError(f"{', '.join(wrong)} cannot change an image: put into it what the run needs")
        if self.launcher == "direct":
            raise ValueError("launcher: direct starts the ranks with the node's Python, and the ranks have the image's")
        object.__setattr__(self, "environment", "none")
        return self

    @model_validator(mode="after")
    def _data_is_named(self) -> Self:
        for key, path in (
            ("model.path", self.model and self.model.path),
            ("model.tokenizer", self.model and self.model.tokenizer),
            ("dataset.path", self.dataset and self.dataset.path),
            ("trainer.kd_teacher", self.trainer and self.trainer.kd_teacher),
        ):
            if path and (found := IN_DATA.fullmatch(path)) and found[1] not in self.data:
                raise ValueError(f"{key} is {path}, and data has no {found[1]}")
        return self

    @model_validator(mode="after")
    def _can_be_taught(self) -> Self:
        if self.backend is None or self.trainer is None or not self.trainer.use_kd:
            return self
        if not BACKENDS[self.backend].distils:
            raise ValueError(f"backend: {self.backend} takes no trainer.use_kd; hf and acc do")
        if self.model is not None and self.model.words is None:
            raise ValueError(
                "trainer.use_kd needs model.path or model.tokenizer: a student with the teacher's tokenizer"
            )
        if self.trainer.kd_teacher is None and self.dataset is not None and self.dataset.source != "examples":
            raise ValueError("trainer.use_kd needs kd_teacher, or dataset.source: examples whose rows have its logits")
        return self

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        programs = [name for name in ("backend", "script", "module", "program") if getattr(self, name) is not None]
        if len(programs) != 1:
            found = f"found {' and '.join(programs)}" if programs else "found none"
            raise ValueError(f"exactly one of backend, script, module, program is needed: {found}")
        if programs[0] != "backend":
            refuse_nested(programs[0], str(self.script or self.module or self.program), self.args)
        given = [name for name in SECTIONS if getattr(self, name) is not None]
        if self.min_nodes is not None and self.restarts_per_hour == 0:
            raise ValueError("min_nodes has no effect with restarts_per_hour: 0, which starts nothing again")
        if not self.preload and self.launcher != "direct":
            raise ValueError("preload: false needs launcher: direct; torchrun imports torch itself")
        if self.max_tokens is not None and self.backend is None:
            raise ValueError("max_tokens is for a backend, which counts them; budget_usd and max_hours end any program")
        if self.profile is not None and (self.backend is None or "trainer" not in BACKENDS[self.backend].sections):
            raise ValueError(
                "profile is for our own trainer; a script starts torch.profiler itself, and outputs names its files"
            )
        if both := sorted({*self.secrets} & {*self.env}):
            raise ValueError(f"{', '.join(both)} cannot be in env: and in secrets:")
        if self.backend is None and given:
            raise ValueError(f"{', '.join(given)} belong to a backend, not to {programs[0]}; give args instead")
        if self.backend is not None:
            row = BACKENDS[self.backend]
            if missing := [name for name in row.sections if name not in given]:
                raise ValueError(f"backend: {self.backend} needs {', '.join(missing)}")
            if beyond := [name for name in given if name not in row.sections]:
                raise ValueError(f"backend: {self.backend} takes no {', '.join(beyond)}")
            if self.model is not None and self.model.lora is not None and not row.adapters:
                raise ValueError(f"backend: {self.backend} takes no model.lora")
            if self.max_tokens is not None and "trainer" not in row.sections:
                raise ValueError(f"max_tokens is not for backend: {self.backend}, whose own file says how long")
            if self.args:
                raise ValueError(f"args are for script, module or program; backend: {self.backend} takes none")
            if "environment" not in self.model_fields_set and self.image is None:
                more = OwnEnvironment(packages=row.packages) if row.packages else None
                object.__setattr__(self, "environment", more or row.environment)
        return self

    @property
    def keep_warm(self) -> bool:
        """Whether the ranks of a node are forked from an interpreter that is kept ready there."""
        return self.launcher == "direct" and self.preload
