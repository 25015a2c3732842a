"""The folder of one stage's output: begun, gone on with, sealed by its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist import __version__
from nexa_dist.config.load import without_secrets
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.run import files
from nexa_dist.stages.contract import StageConfig
from nexa_dist.stages.whole import MANIFEST, hashes, remove, tree_sha256

STATE = ".state.json"


@dataclass(frozen=True)
class Told:
    """What is said of a stage: `identity` is what its output follows from beside its inputs, `config` all of it."""

    stage: str
    name: str
    references: Mapping[str, str]
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    format: int

    @classmethod
    def of(cls, config: StageConfig, form: int) -> Told:
        whole = config.model_dump(mode="json")
        return cls(config.stage, config.name, config.inputs, config.identity, whole, form)

    def key(self, inputs: Mapping[str, str]) -> str:
        """SHA-256 of the config, the format and the hashes of the inputs: the name of what comes out."""
        told = {"config": self.identity, "format": self.format, "inputs": dict(sorted(inputs.items()))}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Output:
    """A folder, and the key of what it is to hold."""

    folder: Path
    key: str

    def is_done(self) -> bool:
        """Whether it is whole. Raises UsageError when it holds something else."""
        for name in (MANIFEST, STATE):
            path = self.folder / name
            if path.exists() and files.read_object(path).get("key") != self.key:
                what = "the output" if name == MANIFEST else "a half-done output"
                raise UsageError(
                    f"{self.folder} holds {what} of another config or other inputs",
                    hint="give another --output, or remove that folder",
                )
        if not (self.folder / MANIFEST).exists() and not (self.folder / STATE).exists() and self.folder.exists():
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise UsageError(f"{self.folder} has files that no stage wrote", hint="give another --output")
        return (self.folder / MANIFEST).exists()

    def begin(self) -> None:
        state = self._state()
        self._write({**state, "attempts": int(state.get("attempts", 0)) + 1})

    def note(self, **facts: Any) -> None:
        state = self._state()
        self._write({**state, "notes": {**state.get("notes", {}), **facts}})

    def spent(self, seconds: float) -> None:
        state = self._state()
        self._write({**state, "seconds": round(float(state.get("seconds", 0.0)) + seconds, 3)})

    def seal(self, told: Told, inputs: Mapping[str, Path]) -> None:
        """Write the manifest, by which the output is whole, and remove what is scratch."""
        state = self._state()
        out = hashes(self.folder)
        notes = dict(state.get("notes", {}))
        code = hashes(Path(__file__).parent)
        manifest = {
            "version": 1,
            "stage": told.stage,
            "name": told.name,
            "status": "completed",
            "key": self.key,
            "inputs": {name: _read(told.references.get(name, ""), place) for name, place in inputs.items()},
            "outputs": {"sha256": tree_sha256(out), "bytes": sum(int(row["bytes"]) for row in out.values()),
                        "files": out},
            "counts": notes.pop("counts", {}),
            "schema": notes.pop("schema", {}),
            "usd": notes.pop("usd", None),
            "seconds": state.get("seconds", 0.0),
            "attempts": state["attempts"],
            "started_unix": state["started_unix"],
            "ended_unix": round(time.time(), 3),
            "run_id": notes.pop("run_id", None) or os.environ.get("NEXA_RUN_ID"),
            "config": without_secrets({name: value for name, value in told.config.items() if name != "inputs"}),
            "config_sha256": hashlib.sha256(json.dumps(told.identity, sort_keys=True).encode()).hexdigest(),
            "format": told.format,
            "notes": notes,
            "code_sha256": tree_sha256({name: row for name, row in code.items() if name.endswith(".py")}),
            "package": __version__,
        }  # fmt: skip
        files.write_json(self.folder / MANIFEST, manifest)
        for path in self.folder.rglob(".*"):
            remove(path)

    def _state(self) -> dict[str, Any]:
        path = self.folder / STATE
        if path.exists():
            return files.read_object(path)
        return {"key": self.key, "started_unix": round(time.time(), 3)}

    def _write(self, state: Mapping[str, Any]) -> None:
        files.write_json(self.folder / STATE, state)


def made(told: Told, inputs: Mapping[str, Path], folder: Path, do: Callable[[Output], int]) -> int:
    """The exit code of `do`, which makes the output in `folder` or goes on with it; 0 at once where it is whole."""
    sums = {name: tree_sha256(hashes(path)) for name, path in inputs.items()}
    output = Output(folder.absolute(), told.key(sums))
    if output.is_done():
        print(f"{told.name}: done before, {folder} has it", flush=True)
        return EXIT_OK
    with files.locked(output.folder / ".lock", told.stage):
        output.begin()
        began = time.monotonic()
        try:
            code = do(output)
        finally:
            output.spent(time.monotonic() - began)
        if code == EXIT_OK:
            output.seal(told, inputs)
    return code


def _read(reference: str, place: Path) -> dict[str, Any]:
    found = hashes(place)
    size = sum(int(row["bytes"]) for row in found.values())
    return {"reference": reference, "sha256": tree_sha256(found), "bytes": size, "files": len(found)}
