"""Backends of train.yaml, a row each: read by the schema, the launcher, the agent's spec and the preflight alike."""

from __future__ import annotations

from dataclasses import dataclass


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
    check: str = ""
    """`(name, bytes, names of all files that are sent) -> None`, of the file that `config` names, before anything is
    sent. Raises ConfigError."""
    preload: tuple[str, ...] = ("torch",)
    """Modules that a warm interpreter has imported before the ranks are forked."""
    needs: tuple[str, ...] = ()
    """Packages that it cannot do without, beside torch."""
    environment: str = "light"
    """Where train.yaml names none."""
    most_parameters: int | None = None
    """The largest model that it takes."""


SECTIONS = ("model", "dataset", "trainer", "config")
_OURS = ("model", "dataset", "trainer")
_TRANSFORMERS = ("accelerate", "numpy", "pydantic", "pyyaml", "safetensors", "tokenizers", "transformers")
_PREPARE = "nexa_dist.train.data:prepare"
_WARM = ("torch", "transformers.trainer")

BACKENDS = {
    "hf": Backend(
        _PREPARE,
        "nexa_dist.train.backends.hf:train",
        _OURS,
        preload=_WARM,
        needs=_TRANSFORMERS,
        # DDP keeps the whole model, its gradients and AdamW's moments on every rank.
        most_parameters=15_000_000_000,
    ),
    "ax": Backend(
        "nexa_dist.train.backends.ax:prepare",
        "nexa_dist.train.backends.ax:train",
        ("config",),
        config="an Axolotl YAML",
        check="nexa_dist.config.axolotl.check:check",
        needs=("axolotl", "pydantic", "pyyaml"),
        environment="heavy",
    ),
}
