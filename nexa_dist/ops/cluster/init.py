"""nexa init: a commented cluster.yaml and train.yaml to start from, with the editor's schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nexa_dist.config.json_schema import json_schema
from nexa_dist.errors import UsageError
from nexa_dist.run import bundle, files

KINDS: tuple[Literal["cluster", "train"], ...] = ("cluster", "train")


def init(folder: Path, *, dry: bool = False) -> list[Path]:
    """Writes the files, or with `dry` none of them; refuses to write over any. Returns what it made, or would."""
    there = [f"{kind}.yaml" for kind in KINDS if (folder / f"{kind}.yaml").exists()]
    if there:
        raise UsageError(
            f"{', '.join(there)} already there in {folder}", hint="nothing was written; name another folder"
        )
    made: list[Path] = []
    for kind in KINDS:
        name = f"{kind}.yaml"
        text = (bundle.root() / "configs" / "templates" / name).read_text(encoding="utf-8")
        schema = folder / ".nexa" / "schema" / f"{kind}.schema.json"
        made += [folder / name, schema]
        if dry:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / name, text, 0o666)  # the user's own, and not only his: as his umask has it
        files.write_json(schema, json_schema(kind))
    return made
