"""Versions from Python: `DataQuery().get_dataset("science", version="v1")`; and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files
from nexa_dist.stages.references import find_root
from nexa_dist.stages.registry import Registry, Version
from nexa_dist.stages.whole import MANIFEST

if TYPE_CHECKING:
    import polars as pl


class DataQuery:
    """The registry of a workspace: that of `root`, else of NEXA_WORKSPACE, or of the nearest folder upwards."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.registry = Registry(Path(root).absolute() if root else find_root())

    def versions(self, name: str = "") -> list[Version]:
        """Versions of a name, or all of them, oldest first."""
        return self.registry.versions(name)

    def path(self, name: str, version: str = "") -> Path:
        """Folder of a version, its bytes checked; without `version` the newest. Raises NexaError."""
        return self.registry.verified(f"{name}@{version}" if version else name)

    def get_dataset(self, name: str, version: str = "", part: str = "train") -> pl.DataFrame:
        """Rows of a part of a version as a polars frame (`datasets.Dataset.from_polars` takes it). Raises NexaError."""
        folder = self.path(name, version)
        found = sorted((folder / part).glob("*.parquet"))
        if not found:
            parts = sorted({path.parent.name for path in folder.glob("*/*.parquet")})
            raise UsageError(f"{name} {version} has no part {part!r}", hint=f"it has {', '.join(parts) or 'none'}")
        frame: pl.DataFrame = _polars().read_parquet(found)
        return frame


def compared(registry: Registry, old: Version, new: Version) -> dict[str, Any]:
    """What differs: config, counts, schema (before and after, by key), and the drift of each column."""
    configs = [files.read_object(registry.path(one) / MANIFEST).get("config", {}) for one in (old, new)]
    told: dict[str, Any] = {
        "config": _differences(*map(_flat, configs)),
        "counts": _differences(_flat(old.counts), _flat(new.counts)),
        "schema": _differences(old.schema, new.schema),
    }
    _polars()
    from nexa_dist.stages.data.statistics import drift, frames

    return {**told, "drift": drift(frames(registry.path(old)), frames(registry.path(new)))}


def _polars() -> Any:
    try:
        import polars
    except ImportError:
        raise NexaError(
            "this needs the package polars", hint='uv pip install "nexacompute[train]", or polars'
        ) from None
    return polars


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted({*old, *new})
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: one for name, inner in value.items()
            for key, one in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}  # fmt: skip
