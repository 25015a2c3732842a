"""Where a version or a run comes from: the graph of its parents down to the raw files, each checked by its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.errors import UsageError
from nexa_dist.run import files
from nexa_dist.run.workspace import Workspace
from nexa_dist.stages.registry import FOLDER, Registry, Version
from nexa_dist.stages.whole import hashes, tree_sha256


@dataclass(frozen=True)
class Origin:
    """One thing in a lineage: a version, a run, or a path; `parents` by the name of the input that each one was."""

    label: str
    kind: str
    """Stage that made it; run; or path."""
    facts: dict[str, Any]
    faults: tuple[str, ...] = ()
    """What of it is not as it was when it was used."""
    parents: dict[str, Origin] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "kind": self.kind, **self.facts, "faults": list(self.faults),
                "parents": {name: one.to_json() for name, one in self.parents.items()}}  # fmt: skip

    def all(self) -> Iterator[Origin]:
        yield self
        for one in self.parents.values():
            yield from one.all()

    def lines(self, indent: str = "", name: str = "") -> Iterator[str]:
        """The tree as text."""
        said = ", ".join(f"{key} {value}" for key, value in self.facts.items() if value not in (None, "", {}))
        yield f"{name}{self.label} ({self.kind}{': ' * bool(said)}{said})" + "".join(
            f"  ✗ {one}" for one in self.faults
        )
        for at, (key, one) in enumerate(self.parents.items()):
            last = at == len(self.parents) - 1
            below = one.lines(indent + ("   " if last else "│  "), f"{key}: ")
            yield f"{indent}{'└─ ' if last else '├─ '}{next(below)}"
            yield from below


def lineage(workspace: Workspace, named: str) -> Origin:
    """Lineage of a version (NAME, NAME@v2, the beginning of a hash) or of a run. Raises UsageError."""
    registry = Registry(workspace.root)
    try:
        return _of_version(workspace, registry, registry.find(named), set())
    except UsageError as error:
        try:
            return _of_run(workspace, registry, workspace.run(named).run_id, set())
        except UsageError:
            raise UsageError(f"{named!r} is neither a version nor a run here", hint=error.hint) from None


def _of_version(workspace: Workspace, registry: Registry, version: Version, above: set[str]) -> Origin:
    faults = tuple(registry.faults(version))
    counts: dict[str, Any] = {name: version.counts[name] for name in ("rows", "step") if name in version.counts}
    known: dict[str, Any] = {name: version.provenance.get(name) for name in ("seconds", "usd", "run_id")}
    facts: dict[str, Any] = {"sha256": version.sha256[:16], **counts, **known}
    named: dict[str, str] = version.provenance.get("inputs", {})
    parents = {
        name: _of_reference(workspace, registry, of, version.parents.get(name, ""), above | {version.label})
        for name, of in named.items()
    }
    return Origin(version.label, version.stage, facts, faults, parents)


def _of_run(workspace: Workspace, registry: Registry, run_id: str, above: set[str]) -> Origin:
    if made := next((one for one in reversed(registry.versions()) if one.provenance.get("run_id") == run_id), None):
        return _of_version(workspace, registry, made, above)
    path = workspace.root / "runs" / "manifests" / f"{run_id}.json"
    told = files.read_object(path) if path.exists() else {}
    facts: dict[str, Any] = {name: told.get(name) for name in ("status", "model", "cost_usd")}
    sources: dict[str, str] = dict((told.get("config") or {}).get("data") or {})
    parents = {name: _of_reference(workspace, registry, of, "", above | {run_id}) for name, of in sources.items()}
    return Origin(run_id, "run", facts, () if told else ("has no manifest yet",), parents)


def _of_reference(workspace: Workspace, registry: Registry, of: str, sha256: str, above: set[str]) -> Origin:
    """What a reference meant. A path among the objects of the registry is the version that lies there."""
    kind, _, rest = of.partition(":")
    if kind == "run" and rest not in above:
        return _of_run(workspace, registry, rest, above)
    if kind == "data":
        version = registry.find(rest.partition("/")[0])
        if version.label not in above:
            return _of_version(workspace, registry, version, above)
    objects = f"/{FOLDER}/objects/"
    if objects in of:
        return _of_version(workspace, registry, registry.find(of.partition(objects)[2].partition("/")[0]), above)
    faults: tuple[str, ...] = ()
    place = workspace.root / of
    if not place.exists():
        faults = ("is not there any more",)
    elif sha256 and tree_sha256(hashes(place)) != sha256:
        faults = ("has other bytes now than were read",)
    return Origin(of, "path", {"sha256": sha256[:16]}, faults)
