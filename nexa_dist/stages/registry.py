"""Versions of what stages made: folders named by their content, and registry.jsonl that says what they are.

`versions/registry.jsonl` in the workspace only grows, a line a version, under a lock; `versions/objects/<sha256>/` are
the folders. A folder is renamed into its place before its line is written, so a line always has its folder.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files
from nexa_dist.stages.whole import MANIFEST, file_sha256, remove, tree_sha256

FOLDER = "versions"
DIGITS = 32
"""Of a SHA-256 in the name of a folder."""
WAIT_S = 30.0
_REFERENCE = re.compile(r"([a-z0-9][a-z0-9-]{0,31})(?:@v?([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Version:
    """One line of the registry."""

    name: str
    version: int
    stage: str
    sha256: str
    """Of the folder's tree (stages/whole.py)."""
    key: str
    """Of the config and inputs that it follows from."""
    parents: dict[str, str]
    """SHA-256 of each input by its name."""
    schema: dict[str, Any]
    counts: dict[str, Any]
    provenance: dict[str, Any]
    """References of the inputs, hash of config and code, seconds, USD, run."""
    created_unix: float

    @property
    def label(self) -> str:
        return f"{self.name}@v{self.version}"

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "version": f"v{self.version}"}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Version | None:
        """A line of the file; None when it is none of ours."""
        try:
            known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
            return cls(**{**known, "version": int(str(row["version"]).removeprefix("v"))})
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Registry:
    """The versions of one workspace."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / FOLDER / "registry.jsonl"

    def versions(self, name: str = "") -> list[Version]:
        """All of them, or those of a name, oldest first."""
        found = [version for row in files.read_lines(self.file) if (version := Version.of(row))]
        return [one for one in found if name in ("", one.name)]

    def find(self, reference: str) -> Version:
        """NAME (the newest), NAME@v2, or the beginning of a SHA-256. Raises UsageError."""
        known = self.versions()
        by_hash = [one for one in known if len(reference) >= 8 and one.sha256.startswith(reference)]
        match = _REFERENCE.fullmatch(reference)
        if by_hash or match is None:
            found = by_hash
        else:
            found = [one for one in known if one.name == match[1] and match[2] in (None, str(one.version))]
        if not found:
            labels = ", ".join(sorted({one.label for one in known})[:20]) or "none"
            raise UsageError(f"no version {reference!r} is in {self.file}", hint=f"known: {labels}; nexa data list")
        return found[-1]

    def by_key(self, name: str, key: str) -> Version | None:
        """The version of a name that follows from the same config and inputs, if its folder is there."""
        known = reversed(self.versions(name))
        return next((one for one in known if one.key == key and (self.path(one) / MANIFEST).exists()), None)

    def path(self, version: Version) -> Path:
        return self.root / FOLDER / "objects" / version.sha256[:DIGITS]

    def verified(self, reference: str) -> Path:
        """The folder of a version whose bytes are what the registry says. Raises NexaError with what is not."""
        version = self.find(reference)
        if faults := list(self.faults(version)):
            raise NexaError(f"{version.label} is damaged: {'; '.join(faults[:5])}", hint=self.cure(version))
        return self.path(version)

    def cure(self, version: Version) -> str:
        """What makes a damaged version whole: while its folder is there, it is taken for done."""
        return f"rm -r {shlex.quote(str(self.path(version)))}, then nexa pipeline run FILE makes it again"

    def faults(self, version: Version) -> Iterator[str]:
        """What is not as it was registered, by file."""
        return _faults(self.path(version), version.sha256)

    def add(self, folder: Path, more: Mapping[str, Any] | None = None) -> Version:
        """Register a whole output, and move it to its place among the objects. What is registered already gets no
        second line. `more` is what the provenance has beside what the manifest says."""
        manifest = files.read_object(folder / MANIFEST)
        sha256 = str(manifest["outputs"]["sha256"])
        place = self.root / FOLDER / "objects" / sha256[:DIGITS]
        is_whole = next(_faults(place, sha256), None) is None  # reads every byte, so not under the lock
        with self._locked():
            before = self.versions(manifest["name"])
            self._placed(folder, place, is_whole)
            same = next((one for one in reversed(before) if one.sha256 == sha256), None)
            if same and same.key == manifest["key"]:
                return same
            number = same.version if same else max((one.version for one in before), default=0) + 1
            version = _version(manifest, number, more or {})
            files.append_json(self.file, version.to_json())
            return version

    def _placed(self, folder: Path, place: Path, is_whole: bool) -> None:
        if folder.absolute() == place.absolute():
            return
        files.make_folder(place.parent)
        files.hide_from_git(place.parents[1])
        if is_whole:
            remove(folder)
        else:
            remove(place)
            folder.rename(place)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry; another one that writes is waited for, which takes milliseconds."""
        until = time.monotonic() + WAIT_S
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(files.locked(self.file.with_name("lock"), "data"))
                    break
                except NexaError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
            yield


def _faults(folder: Path, sha256: str) -> Iterator[str]:
    if not (folder / MANIFEST).exists():
        yield f"{folder}/{MANIFEST} is missing"
        return
    try:
        outputs = files.read_object(folder / MANIFEST).get("outputs", {})
        told: dict[str, Any] = dict(outputs.get("files", {}))
        same = tree_sha256(told) == sha256
    except (NexaError, KeyError, TypeError, ValueError) as error:
        yield f"{folder}/{MANIFEST} cannot be read: {error}"
        return
    if not same:
        yield f"{folder}/{MANIFEST} names other files than were registered"
    for name, row in told.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != row["bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, not {row['bytes']}"
        elif file_sha256(path) != row["sha256"]:
            yield f"{name} has other bytes than were registered"


def _version(manifest: dict[str, Any], number: int, more: Mapping[str, Any]) -> Version:
    inputs = manifest["inputs"]
    kept = ("config_sha256", "code_sha256", "format", "package", "seconds", "usd", "run_id")
    return Version(
        name=manifest["name"],
        version=number,
        stage=manifest["stage"],
        sha256=manifest["outputs"]["sha256"],
        key=manifest["key"],
        parents={name: row["sha256"] for name, row in inputs.items()},
        schema=manifest.get("schema", {}),
        counts=manifest.get("counts", {}),
        provenance={
            **{name: manifest.get(name) for name in kept},
            "inputs": {name: row["reference"] for name, row in inputs.items()},
            "bytes": manifest["outputs"]["bytes"],
            **more,
        },
        created_unix=round(time.time(), 3),
    )
