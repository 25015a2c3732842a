"""The text that a training reads: which files, cut into which documents, and which of them are held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nexa_dist.config.trainer import DatasetConfig
from nexa_dist.errors import UsageError

SUFFIXES = (".jsonl", ".parquet")
"""Of files of examples in a folder."""
_NOT_SOURCES = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_WHOLE_FILE_BYTES = 1 << 18
_PIECE_BYTES = 1 << 16


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name is held out: the same answer on every machine and day."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def sources(config: DatasetConfig) -> tuple[Path, list[Path]]:
    """The root and its text files, sorted."""
    if config.source == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [path for path in root.rglob("*.py") if not _NOT_SOURCES & {*path.relative_to(root).parts}]
        return root, sorted(path for path in found if path.is_file())
    root, wanted = Path(config.path or ""), SUFFIXES if config.source == "examples" else ("",)
    named = " or ".join(suffix for suffix in wanted if suffix)
    if root.is_file():
        return root.parent, [root]
    if not root.is_dir():
        raise UsageError(f"dataset.path {root}: no such file or directory on this node")
    found = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    if not (files := sorted(path for path in found if path.name.endswith(wanted))):
        raise UsageError(f"dataset.path {root}: no {named + ' ' if named else ''}files in it")
    return root, files


def documents(root: Path, files: list[Path]) -> Iterator[tuple[str, str]]:
    """(name, text) of each file; a file over 256 KiB comes in pieces of whole lines, 64 KiB each.

    So no single file (the standard library has one of 757 kB) decides what the held-out part is like.
    """
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            with open(path, encoding="utf-8", newline="") as text:
                if path.stat().st_size <= _WHOLE_FILE_BYTES:
                    yield name, text.read()
                    continue
                number = 0
                while lines := text.readlines(_PIECE_BYTES):
                    yield f"{name}#{number}", "".join(lines)
                    number += 1
        except UnicodeDecodeError as err:
            raise UsageError(f"{path}: not UTF-8 text ({err.reason} at byte {err.start})") from err
