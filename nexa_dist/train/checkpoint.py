"""Checkpoint directories that are whole or absent. Standard library only.

`<root>/step_00000040/` holds the files and `manifest.json`: `{"version": 1, "step": 40, "world_size": …,
"run_id": …, "attempt": …, "files": {relpath: {"bytes", "sha256"}}, "sha256": …}`. The last key is the SHA-256 of
the others in this same JSON form, so that a flipped byte in the manifest itself is found too. A directory is
filled under a `.tmp-` name, its files are fsynced, the manifest is written last, then it is renamed and the
parent is fsynced. One writer a root and attempt; `fence` keeps those of older attempts out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.train.fence import OPEN, Fence
from nexa_dist.train.shards import cover

VERSION = 1
MANIFEST = "manifest.json"
_STEP_DIR = re.compile(r"^step_(\d{8,})\Z")


def write(root: Path, step: int, fill: Callable[[Path], None], meta: Mapping[str, Any], fence: Fence = OPEN) -> Path:
    """Make `root/step_<step>`: `fill(dir)` writes the files, `meta` goes into the manifest. Returns its path.

    A directory of the same step is replaced. Whatever `fill` raises is passed on, and nothing is left behind.
    Raises fence.Superseded, before and after the work, when a newer attempt has begun.
    """
    temp = begin(root, step, fence)
    try:
        fill(temp)
        files = {name: sync_and_hash(temp / name) for name in names(temp)}
        seal(temp, {"version": VERSION, "step": step, **meta, "files": files})
        return put(temp, root / step_name(step), fence)
    finally:
        fence.sweep(root)


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a folder's name tells; None when it has no checkpoint's name."""
    found = _STEP_DIR.match(path.name)
    return int(found[1]) if found else None


def steps(root: Path) -> list[int]:
    """Of everything that has a checkpoint's name, newest first. Nothing is read."""
    return [step for step, _ in _candidates(root)]


def begin(root: Path, step: int, fence: Fence = OPEN) -> Path:
    """An empty folder in `root` for the files of a step; whoever makes it sweeps `root` in the end."""
    fence.check()
    root.mkdir(parents=True, exist_ok=True)
    fence.sweep(root)
    temp = fence.temp(root, step_name(step))
    temp.mkdir()
    return temp


def seal(temp: Path, body: Mapping[str, Any]) -> None:
    """The manifest, with its own SHA-256, into a folder whose files are on the disk already."""
    with open(temp / MANIFEST, "wb") as out:
        out.write(manifest_bytes(body))
        out.flush()
        os.fsync(out.fileno())
    for folder in {temp, *(path for path in temp.rglob("*") if path.is_dir())}:
        _sync_dir(folder)


def put(temp: Path, final: Path, fence: Fence = OPEN) -> Path:
    """Give a sealed folder its name, in place of one that has it; returns that. Raises fence.Superseded."""
    fence.check()
    if final.exists():
        os.rename(final, fence.temp(final.parent, f"old-{final.name}"))
    os.rename(temp, final)
    _sync_dir(final.parent)
    return final


def verify(path: Path) -> list[str]:
    """Every reason why the directory is not a whole checkpoint; empty when it is. Hashes all of it."""
    try:
        return _problems(path, (path / MANIFEST).read_bytes())
    except OSError as err:
        return [f"{err.filename or path}: {err.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST}: damaged (not a checkpoint manifest)"]


def _problems(path: Path, raw: bytes) -> list[str]:
    body = json.loads(raw)
    del body["sha256"]
    if body["version"] != VERSION:
        return [f"{MANIFEST}: version {body['version']}, expected {VERSION}"]
    # Byte for byte: a flip in the white space or in an escape would read the same.
    if raw != manifest_bytes(body):
        return [f"{MANIFEST}: damaged (its own SHA-256 does not fit)"]
    problems = []
    if path.name != step_name(body["step"]):
        problems.append(f"{MANIFEST}: is of step {body['step']}, in directory {path.name}")
    present = set(names(path)) - {MANIFEST}
    problems += [f"{name}: not in the manifest" for name in sorted(present - body["files"].keys())]
    for name, want in body["files"].items():
        if name not in present:
            problems.append(f"{name}: missing")
        elif reason := _compare(path / name, want):
            problems.append(f"{name}: {reason}")
    return problems


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that `verify` found whole."""
    data: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    return data


def digest(path: Path) -> str:
    """SHA-256 of a whole checkpoint: its manifest's own, which covers the SHA-256 of every file."""
    return str(manifest(path)["sha256"])


def identity(body: Mapping[str, Any]) -> str:
    """What two copies have in common: `sha256` of a manifest, or of a sharded one the digest of all nodes' files."""
    return str(body.get(cover.KEY, {}).get("digest") or body["sha256"])


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def newest_whole(root: Path, report: Callable[[str], None] = _to_stderr) -> tuple[int, Path] | None:
    """The whole checkpoint with the highest step. `report` gets a line for each newer one skipped."""
    for step, path in _candidates(root):
        problems = verify(path)
        if not problems:
            return step, path
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        report(f"skipped checkpoint {path}: {problems[0]}{more}")
    return None


def newest_named(root: Path) -> int | None:
    """The highest step with a manifest and files of the right sizes. Nothing is hashed: to show, not to load."""
    for step, path in _candidates(root):
        try:
            files = json.loads((path / MANIFEST).read_bytes())["files"]
            if all((path / name).stat().st_size == want["bytes"] for name, want in files.items()):
                return step
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def prune(root: Path, keep: int = 2, fence: Fence = OPEN) -> list[Path]:
    """Remove what is older than the `keep` newest whole checkpoints; returns what was removed.

    Broken ones are not counted, so a whole one never makes room for them; with fewer than `keep` whole ones
    nothing is removed.
    """
    whole = 0
    removed = []
    for _, path in _candidates(root):
        if whole < keep:
            whole += not verify(path)
            continue
        fence.discard(path)
        removed.append(path)
    return removed


def copy(src: Path, dst_root: Path, fence: Fence = OPEN) -> Path:
    """Copy a whole checkpoint into another root, whole or absent again. A broken source raises NexaError."""
    problems = verify(src)
    if problems:
        raise NexaError(f"checkpoint {src} is damaged: {problems[0]}", hint="use an older one")
    body = manifest(src)
    target = dst_root / src.name
    if target.exists() and not verify(target) and digest(target) == body["sha256"]:
        return target

    def fill(temp: Path) -> None:
        for name in body["files"]:
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            copyfile(src / name, temp / name)
            if reason := _compare(temp / name, body["files"][name]):
                raise NexaError(f"checkpoint copy {target}: {name}: {reason}", hint="check the disk")

    meta = {key: value for key, value in body.items() if key not in ("version", "step", "files", "sha256")}
    return write(dst_root, int(body["step"]), fill, meta, fence)


def link(source: Path, into: Path) -> None:
    """Put a file of a checkpoint into another folder too; a copy on the disk where that is another file system."""
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, into)
    except FileExistsError:
        raise
    except OSError:
        copyfile(source, into)
        with open(into, "rb") as data:
            os.fsync(data.fileno())


def _candidates(root: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything that has a checkpoint's name, newest first."""
    if not root.is_dir():
        return []
    found = [(match, path) for path in root.iterdir() if (match := _STEP_DIR.match(path.name)) and path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def names(folder: Path) -> list[str]:
    """Relative POSIX paths of everything in the folder that is not a directory."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _compare(path: Path, want: Mapping[str, Any]) -> str:
    """Why the file is not the one the manifest describes; empty when it is."""
    if path.is_symlink() or not path.is_file():
        return "not a regular file"
    size = path.stat().st_size
    if size != want["bytes"]:
        return f"{size} bytes, expected {want['bytes']}"
    return "" if sha256_of(path) == want["sha256"] else "its SHA-256 does not fit"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def sync_and_hash(path: Path) -> dict[str, Any]:
    with open(path, "rb") as data:
        os.fsync(data.fileno())
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def digest_of(body: Mapping[str, Any]) -> str:
    """`sha256` of a manifest that has none yet."""
    return hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()


def manifest_bytes(body: Mapping[str, Any]) -> bytes:
    return json.dumps({**body, "sha256": digest_of(body)}, indent=1).encode()


def _sync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(words: list[str]) -> int:
    """`ROOT…` prints, as JSON, every checkpoint below: the whole ones (newest first), and why others are not.

    `--verify DIR` says on stderr what is wrong with one checkpoint; exit code 1 when anything is.
    """
    if words[:1] == ["--verify"]:
        problems = [problem for word in words[1:] for problem in verify(Path(word))]
        for problem in problems:
            _to_stderr(f"error: {problem}")
        return 1 if problems else 0
    whole: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for step, path in [found for root in words for found in _candidates(Path(root))]:
        if problems := verify(path):
            skipped.append({"path": str(path), "step": step, "why": problems[0]})
        else:
            part = cover.part_of(manifest(path))
            whole.append({"path": str(path), "step": step, **({"shards": part.row()} if part else {})})
    print(json.dumps({"whole": whole, "skipped": skipped}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
