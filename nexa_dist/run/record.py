"""The record of a run: run.json, which `start`, `close` and `decide` alone write, each whole and on the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nexa_dist.model import ACTIVE, GOES_ON, Cluster, Count, Decision, End, Unix
from nexa_dist.run import files
from nexa_dist.secrets import redact, redact_text

LATER = ("ended_unix", "why", "laid", "replaced", "changed", "notices", "end", "next")
"""Fields of an attempt that are not written before they are known."""
BROUGHT = ("environment", "data", "snapshot", "reproduces")
"""Fields of a run that are written only where it has them."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run. `more` holds what another version wrote beside it."""

    attempt: Count
    state: str
    """starting, running, completed, failed or stopped."""
    started_unix: Unix
    world_size: Count
    rdzv: str
    resume_step: Count | None = None
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First and last rank, by node."""
    hardware: dict[str, dict[str, Any]] = field(default_factory=dict)
    skew_s: dict[str, float] = field(default_factory=dict)
    """Seconds by which each node's clock is ahead of ours, by node."""
    commands: dict[str, list[str]] = field(default_factory=dict)
    laid: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Files by node, of the user's, that were kept, or set aside, where the code was laid out."""
    replaced: list[str] = field(default_factory=list)
    """Nodes that were made anew for it."""
    changed: list[str] = field(default_factory=list)
    """Keys of the training that were changed by hand for this attempt."""
    ended_unix: Unix | None = None
    cause: str = ""
    why: str | None = None
    notices: dict[str, dict[str, float | None]] = field(default_factory=dict)
    end: End | None = None
    next: Decision | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        more: dict[str, Any] = data.pop("more")
        return more | {name: value for name, value in data.items() if value or name not in LATER}


@dataclass
class Run:
    """run.json of one run, whose place is `path`; `more` as of an attempt."""

    cluster: Cluster
    """Cluster as it is now: with nodes that were made anew, and without those that it shrank by."""
    config: dict[str, Any]
    nodes: dict[str, dict[str, str]]
    """Run folder of each node, by name. Also of nodes that are no longer there."""
    attempts: list[Attempt]
    """Oldest first."""
    run_id: str = ""
    by_hand: Count = 1
    """The attempt that somebody began last: earlier ones count for no decision."""
    code_hash: str = ""
    package_hash: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    """The environment of the newest attempt, and what is installed in it."""
    data: dict[str, Any] = field(default_factory=dict)
    """Each of `data:` with its hash."""
    snapshot: dict[str, Any] = field(default_factory=dict)
    """Name and time of the newest snapshot of the cluster when the run began."""
    reproduces: dict[str, Any] = field(default_factory=dict)
    """The run that this one is to be the same as, and what of it is not."""
    config_file: str = ""
    git_commit: str | None = None
    created_unix: Unix = 0.0
    version: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    path: Path = field(default=Path(), init=False, repr=False, compare=False)

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def active(self) -> bool:
        """True while the newest attempt has not been closed."""
        return bool(self.attempts) and self.last.state in ACTIVE

    @property
    def pending(self) -> bool:
        """True when the newest attempt has ended and another one was decided, but not begun."""
        return bool(self.attempts and self.last.next and self.last.next.action in GOES_ON)

    @property
    def going_on(self) -> bool:
        """True while more may come."""
        return self.active or self.pending

    @property
    def ends(self) -> list[End]:
        """Ends of the attempts, oldest first, since somebody last started the run by hand."""
        return [row.end for row in self.attempts if row.end and row.attempt >= self.by_hand]

    def changed(self, **fields: Any) -> Run:
        """The record with other fields, which `start` is to write."""
        made = replace(self, **fields)
        made.path = self.path
        return made

    def run_dir(self, node: str) -> str:
        return self.nodes[node]["run_dir"]

    def start(self, attempt: Attempt, run_dirs: Mapping[str, str], code_hash: str, package_hash: str) -> None:
        """Writes an attempt down before anything of it is started."""
        self.code_hash, self.package_hash = code_hash, package_hash
        self.nodes |= {name: {"run_dir": run_dir} for name, run_dir in run_dirs.items()}
        self.attempts.append(attempt)
        self._save()

    def started(self, **known: Any) -> None:
        """Every agent has begun the newest attempt; `known` are fields of it."""
        self._change(state="running", **known)

    def close(
        self, state: str, cause: str, end: End | None = None, *, unwritten: Attempt | None = None, **known: Any
    ) -> None:
        """Writes down how the newest attempt ended, before anything is decided from it. `unwritten` is one that did not
        get as far as `start`; `known` are other fields of it."""
        self.attempts += [unwritten] if unwritten else []
        if end:
            known["end"] = End(**redact(asdict(end)))
        ended_unix = self.last.ended_unix or (end.ended_unix if end else time.time())
        self._change(state=state, cause=redact_text(cause), ended_unix=ended_unix, **known)

    def decide(self, decision: Decision, cluster: Cluster | None = None) -> None:
        """Writes down what comes next before it is done, or the `cluster` that came of it."""
        self.cluster = cluster or self.cluster
        self._change(next=decision)

    def _change(self, **fields: Any) -> None:
        self.attempts[-1] = replace(self.last, **fields)
        self._save()

    def _save(self) -> None:
        files.write_json(self.path, self.to_json(), 0o600)

    def to_json(self) -> dict[str, Any]:
        data = asdict(replace(self, attempts=[])) | {"attempts": [row.to_json() for row in self.attempts]}
        more: dict[str, Any] = data.pop("more")
        return more | {name: value for name, value in data.items() if name != "path" and (value or name not in BROUGHT)}
