"""One file laid over another, key by key, with where each value came from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nexa_dist.config.yaml.tree import Document, PathKey


def overlay(below: Document, above: Document, without: Collection[str]) -> dict[PathKey, str]:
    """Puts the data of `above` into that of `below`: mappings are merged, all else is replaced. Its top keys `without`
    are left out. Returns file and line of what was put there, by path."""
    found: dict[PathKey, str] = {}
    kept = {key: value for key, value in above.data.items() if key not in without}
    _merge(below.data, kept, (), above, found)
    return found


def _merge(into: dict[str, Any], more: dict[str, Any], at: PathKey, above: Document, found: dict[PathKey, str]) -> None:
    for key, value in more.items():
        path, there = (*at, key), into.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _merge(there, value, path, above, found)
            continue
        into[key] = value
        found[path] = f"{above.file}:{above.lines[path]}"
        found |= {p: f"{above.file}:{line}" for p, line in above.lines.items() if p[: len(path)] == path and p != path}


def places(document: Document, *given: dict[PathKey, str]) -> dict[PathKey, str]:
    """Where each path of the data came from: its line in the file, or what was laid over it later. What a later one
    replaced whole is forgotten."""
    found = {path: f"{document.file}:{line}" for path, line in document.lines.items() if path}
    for over in given:
        for path, label in over.items():
            gone = [p for p in found if p[: len(path)] == path and not _stays(p, path, over, document)]
            found = {p: known for p, known in found.items() if p not in gone}
            found[path] = label
    return found


def _stays(path: PathKey, over: PathKey, given: dict[PathKey, str], document: Document) -> bool:
    """Whether `path`, below or at `over`, is still what it was: within a mapping that was merged, and not replaced."""
    node: Any = document.data
    for part in over:
        node = node.get(part) if isinstance(node, dict) else node[part] if isinstance(part, int) else None
    return path != over and isinstance(node, dict) and path not in given
