"""Snapshot of a cluster as data: its name by content, and what differs between two. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1
NO_CONTENT = ("sha256", "at_unix")
"""Keys that are no part of what a snapshot is named by: the same cluster tomorrow has the same name."""


def digest(snapshot: Mapping[str, Any]) -> str:
    """SHA-256 of the content."""
    return hashlib.sha256(json.dumps(_content(snapshot), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """One value that is not the same; None where one side has none."""

    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.what}: {_word(self.before)} → {_word(self.after)}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Everything that two snapshots do not have in common, in the order of their keys."""
    old, new = dict(flat(_content(before))), dict(flat(_content(after)))
    return [
        Difference(what, old.get(what), new.get(what))
        for what in dict.fromkeys([*old, *new])
        if old.get(what) != new.get(what)
    ]


def _content(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in snapshot.items() if key not in NO_CONTENT}


def flat(value: Any, between: str = " ", above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value within, by the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, between, f"{above}{between}{key}" if above else str(key))
    else:
        yield above, value


def _word(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
