"""Backends of train.yaml, a row each: read by the schema, the launcher, the agent's spec and the preflight alike."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Backend:
    """A trainer of ours. `module:function` names, since nothing heavy is imported before it is needed."""

    prepare: str
    """`(TrainConfig, RankEnv) -> object`, once a node."""
    train: str
    """`(TrainConfig, RankEnv) -> int`, once a rank; returns the exit code."""
    sections: tuple[str, ...]
    """Keys of train.yaml that it must have. Of `SECTIONS` it takes no other."""
    config: str = ""
    """What its key `config` names; empty: it takes none."""
    reads: str = ""
    """`(TrainConfig) -> object`: that file, checked. Raises ConfigError. Called wherever train.yaml is read.
    Its `files`, where it has them, are paths that the file names itself."""
    preload: tuple[str, ...] = ("torch",)
    """Modules that a warm interpreter has imported before the ranks are forked."""
    without: tuple[str, ...] = ()
    """Packages that are as if not installed while `preload` is imported and `train` runs: transformers and accelerate
    would import them for what no backend of ours uses, and pyarrow below `datasets` leaves a thread, beside which no
    rank is forked."""
    needs: tuple[str, ...] = ()
    """Packages that it cannot do without, beside torch."""
    environment: str = "light"
    """Where train.yaml names none."""
    packages: tuple[str, ...] = ()
    """On top of light, where train.yaml names no environment."""
    most_parameters: int | None = None
    """The largest model that it takes."""
    adapters: bool = False
    """Whether it takes model.lora."""
    distils: bool = False
    """Whether it takes trainer.use_kd."""


SECTIONS = ("model", "dataset", "trainer", "config")
_OURS = ("model", "dataset", "trainer")
_TRANSFORMERS = ("accelerate", "numpy", "pydantic", "pyyaml", "safetensors", "tokenizers", "transformers")
_PREPARE = "nexa_dist.train.data:prepare"
_WARM = ("torch", "transformers.trainer")
_WITHOUT = ("datasets", "scipy")

BACKENDS = {
    "hf": Backend(
        _PREPARE,
        "nexa_dist.train.backends.hf:train",
        _OURS,
        preload=_WARM,
        without=_WITHOUT,
        needs=_TRANSFORMERS,
        # DDP keeps the whole model, its gradients and AdamW's moments on every rank.
        most_parameters=15_000_000_000,
        adapters=True,
        distils=True,
    ),
    "acc": Backend(
        _PREPARE,
        "nexa_dist.train.backends.acc:train",
        (*_OURS, "config"),
        config="the YAML of `accelerate config`",
        reads="nexa_dist.config.backend_files.accelerate:read",
        preload=_WARM,
        without=_WITHOUT,
        needs=_TRANSFORMERS,
        adapters=True,
        distils=True,
    ),
    "ds": Backend(
        "nexa_dist.train.backends.ds_ops:prepare",
        "nexa_dist.train.backends.ds:train",
        (*_OURS, "config"),
        config="a DeepSpeed JSON",
        reads="nexa_dist.config.backend_files.deepspeed:read",
        preload=_WARM,
        without=_WITHOUT,
        needs=(*_TRANSFORMERS, "deepspeed"),
        adapters=True,
        packages=("deepspeed==0.19.8",),
    ),
    "ax": Backend(
        "nexa_dist.train.backends.ax:prepare",
        "nexa_dist.train.backends.ax:train",
        ("config",),
        config="an Axolotl YAML",
        reads="nexa_dist.config.backend_files.axolotl:read",
        needs=("axolotl", "pydantic", "pyyaml"),
        environment="heavy",
    ),
}


def resolve(name: str) -> Callable[..., Any]:
    """The function that a `module:function` of a row names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


@contextlib.contextmanager
def hidden(packages: Sequence[str]) -> Iterator[None]:
    """Packages that are as if not installed meanwhile, unless they are imported already."""
    loaded: dict[str, Any] = sys.modules
    missing = [package for package in packages if loaded.setdefault(package, None) is None]
    try:
        yield
    finally:
        for package in missing:
            loaded.pop(package, None)
