"""Which steps the nodes hold together, and what a folder of one says of the whole. Standard library only.

The manifest of a node's folder lists the files of this node, and under `shards` those of all: {"of": {relpath:
{"bytes", "sha256"}}, "nodes": [[relpath] that each node wrote], "world_size", "layout": [ranks of each node],
"digest"}. The digest is the SHA-256 of the rest and of the step: folders with one digest go together, whatever
attempts made them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K")
KEY = "shards"


@dataclass(frozen=True)
class Part:
    """What one whole folder holds: of `of` files of `bytes` together, in the order of their names, those numbered
    `has`."""

    digest: str
    attempt: int
    of: int
    has: frozenset[int]
    bytes: int = 0

    @property
    def is_all(self) -> bool:
        return len(self.has) == self.of

    def row(self) -> dict[str, Any]:
        """As JSON, without the names of the files."""
        return {**asdict(self), "has": sorted(self.has)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any] | None) -> Part | None:
        """Of `row`, which somebody else may have written; None where there is none."""
        return cls(**{**row, "has": frozenset(row["has"]).intersection(range(row["of"]))}) if row else None


@dataclass(frozen=True)
class Cover(Generic[K]):
    """A step that is whole on the cluster. `holders` of each file, in the order of the names."""

    digest: str
    holders: tuple[tuple[K, ...], ...]

    def enough(self) -> list[K]:
        """So many folders that they have all files, those with the most first."""
        number = Counter(key for keys in self.holders for key in keys)
        taken: list[K] = []
        for keys in self.holders:
            if not set(taken).intersection(keys):
                taken.append(max(keys, key=lambda key: number[key]))
        return taken


def describe(
    step: int, of: Mapping[str, Mapping[str, Any]], nodes: Sequence[Sequence[str]], layout: Sequence[int]
) -> dict[str, Any]:
    """`shards` of a manifest: all files of a step, and by node those that it wrote."""
    body = {
        "of": {name: dict(of[name]) for name in sorted(of)},
        "nodes": [sorted(names) for names in nodes],
        "world_size": sum(layout),
        "layout": list(layout),
    }
    return {**body, "digest": hashlib.sha256(json.dumps([step, body], sort_keys=True).encode()).hexdigest()}


def part_of(manifest: Mapping[str, Any]) -> Part | None:
    """None for a checkpoint that is no sharded one. Raises KeyError, TypeError on what no writer of ours made."""
    shards = manifest.get(KEY)
    if shards is None:
        return None
    has = frozenset(number for number, name in enumerate(sorted(shards["of"])) if name in manifest["files"])
    size = sum(about["bytes"] for about in shards["of"].values())
    return Part(shards["digest"], int(manifest.get("attempt", 0)), len(shards["of"]), has, size)


def union(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of all files in one folder, without its own SHA-256, from that of any node."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**body, "files": manifest[KEY]["of"]}


def cover(parts: Mapping[K, Part]) -> Cover[K] | str:
    """What the folders hold together, or why they hold no whole step. Of two saves that are both whole the later."""
    saves: dict[str, dict[K, Part]] = {}
    for key, part in parts.items():
        saves.setdefault(part.digest, {})[key] = part
    newest = sorted(saves, key=lambda digest: (max(part.attempt for part in saves[digest].values()), digest))
    missing = {}
    for digest in reversed(newest):
        mine = saves[digest]
        of = max(part.of for part in mine.values())
        there = frozenset[int]().union(*(part.has for part in mine.values()))
        if of and len(there) == of:
            return Cover(digest, tuple(tuple(key for key, part in mine.items() if n in part.has) for n in range(of)))
        missing[digest] = f"{of - len(there)} of its {of} files are on no node"
    if len(missing) > 1:
        return f"its shards are of {len(missing)} saves, and none is whole: {', '.join(missing.values())}"
    return next(iter(missing.values()), "no node holds it whole")
