"""Where this process stands in the run: torchrun's variables and the node agent's, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.trainer import IN_DATA
from nexa_dist.errors import NexaError
from nexa_dist.train import fence
from nexa_dist.train.fence import Fence


@dataclass(frozen=True)
class RankEnv:
    """One rank, or (without torchrun) the only one. Paths are absolute."""

    rank: int
    local_rank: int
    world_size: int
    run_id: str
    attempt: int
    """1-based."""
    run_dir: Path
    shared: Path
    durable: Path | None
    """Checkpoint root that outlives the node; None when there is no such place."""
    resume_from: Path | None
    resume_step: int | None
    bucket: str | None = None
    """s3://bucket/prefix; checkpoints go to <prefix>/<run_id>/checkpoints."""
    sync: Path | None = None
    """run_sync.sh on this node."""
    durable_wait_s: float = 60.0
    """Seconds that the end of a training waits for the durable copy."""

    replicas: int | None = None
    """Other nodes that keep each node's files of a sharded checkpoint; None: as ShardKeeper finds right."""

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def fence(self) -> Fence:
        """The generation files that this rank's checkpoints must not be older than."""
        beside = () if self.durable is None else (self.durable.parent / fence.NAME,)
        return Fence(self.attempt, (self.run_dir / fence.NAME, *beside))

    @classmethod
    def read(cls, name: str, environ: Mapping[str, str]) -> RankEnv:
        """`name` is the training's: it names the run folder when no agent does. Raises NexaError."""
        run_id = environ.get("NEXA_RUN_ID", name)
        run_dir = Path(environ.get("NEXA_RUN_DIR", f"runs/{name}")).absolute()
        durable = environ.get("NEXA_DURABLE")
        resume = environ.get("NEXA_RESUME_FROM")
        world_size = _number(environ, "WORLD_SIZE", 1)
        planned = _number(environ, "NEXA_WORLD_SIZE", world_size)
        if "WORLD_SIZE" in environ and world_size != planned:
            raise NexaError(
                f"WORLD_SIZE is {world_size}, the plan says {planned}: the ranks did not find each other",
                hint="check the rendezvous address, and torchrun's --nnodes and --nproc_per_node",
            )
        return cls(
            rank=_number(environ, "RANK", 0),
            local_rank=_number(environ, "LOCAL_RANK", 0),
            world_size=world_size,
            run_id=run_id,
            attempt=_number(environ, "NEXA_ATTEMPT", 1),
            run_dir=run_dir,
            shared=Path(environ.get("NEXA_SHARED", "runs/.shared")).absolute(),
            durable=Path(durable).absolute() / run_id / "checkpoints" if durable else None,
            resume_from=Path(resume).absolute() if resume else None,
            resume_step=_number(environ, "NEXA_RESUME_STEP", 0) if "NEXA_RESUME_STEP" in environ else None,
            bucket=environ.get("NEXA_BUCKET", "").rstrip("/") or None,
            sync=Path(environ["NEXA_SYNC"]).absolute() if environ.get("NEXA_SYNC") else None,
            durable_wait_s=_number(environ, "NEXA_DURABLE_WAIT_S", 60),
            replicas=_number(environ, "NEXA_REPLICAS", 0) if "NEXA_REPLICAS" in environ else None,
        )


def placed(value: Any, environ: Mapping[str, str]) -> Any:
    """A value of a config with this node's NEXA_DATA in its texts, which begin with `$NEXA_DATA/`."""
    if isinstance(value, Mapping):
        return {key: placed(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [placed(inner, environ) for inner in value]
    found = IN_DATA.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    if "NEXA_DATA" not in environ:
        raise NexaError(
            f"{value}: no data was brought to this node", hint="data: of train.yaml names it, and nexa run brings it"
        )
    return f"{environ['NEXA_DATA']}/{found[1]}{found[2]}"


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise NexaError(f"{name} must be a whole number, found {text!r}")
    return int(text)
