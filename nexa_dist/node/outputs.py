"""The commands `wrote`, what runs have left on this node, and `send`, files of it from byte offsets.

Of a run's working folder that is all that is neither code, as RUN_DIR/code.json and the marks in it tell, nor made by
the run's setup; elsewhere in the run's folder only what W&B and TensorBoard write. Links are not followed, and
`__pycache__` is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import time
from typing import Any, BinaryIO

from .code import taking, tree
from .oslib import read_json, say

ROWS_BYTES = 1500000
"""Size in bytes of the rows of files in one answer; a reader asks again for more."""
MOST_SEEN = 500000
HASHED_BYTES = 64 << 20
"""A larger file of the code, touched since it was put there, is taken to be rewritten without a look."""
CHUNK_BYTES = 1 << 18
NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,1024}")
STEP, SHA256 = re.compile(r"step_[0-9]{8}"), re.compile(r"[0-9a-f]{64}")
MOST_STEPS = 500
"""Checkpoints of an answer in each place, the newest."""
TRACKED = re.compile(
    r"(?:.*/)?(?:wandb/(?:offline-)?run-[^/]+/.+|events\.out\.tfevents\.[^/]+)|"
    r"profile/(?:rank_[0-9]+\.trace\.json\.gz|summary\.json)|rank_[0-9]+/flight\.attempt_[0-9]+\.json\.gz",
    re.DOTALL,
)
KINDS = ("outputs", "tracking", "other")
KEPT = "kept.json"
"""File in the run's folder that names those which are in the bucket (keep.py)."""


def matcher(patterns: list[str]) -> re.Pattern[str]:
    """Matches the names that `outputs:` of train.yaml means: `*`, `?` and `[…]` stay within a folder, `**` does not,
    and a folder's name means all that is in it."""
    return re.compile("|".join("(?:%s)" % _translated(word.rstrip("/")) for word in patterns) or r"(?!)", re.DOTALL)


def _translated(pattern: str) -> str:
    made, at = "", 0
    while at < len(pattern):
        rest = pattern[at:]
        inside = re.match(r"\[([!^]?)([^\]/]+)\]", rest)
        if rest.startswith("**/") and (at == 0 or pattern[at - 1] == "/"):
            made, at = made + "(?:.*/)?", at + 3
        elif rest.startswith("**"):
            made, at = made + ".*", at + 2
        elif inside:
            made, at = made + "(?!/)[%s%s]" % ("^" if inside[1] else "", _set(inside[2])), at + inside.end()
        else:
            made, at = made + {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])), at + 1
    return made + "(?:/.*)?"


def _set(inside: str) -> str:
    """A range that is the wrong way round holds nothing; a set without anything holds NUL, which no name has."""
    parts = re.findall(r"(.)-(.)|(.)", inside, re.DOTALL)
    made = [
        re.escape(one) if one else re.escape(low) + "-" + re.escape(high) for low, high, one in parts if low <= high
    ]
    return "".join(made) or r"\0"


def wrote(message: dict[str, Any]) -> dict[str, Any]:
    """`message` is {"runs": [{"dir", "durable", "outputs", "skip"}], "look_s"}. Answers for each whether it is there,
    its files from the one numbered `skip` on (`kept`: the bucket has it too), whether there are `more`, and whether it
    was `cut` off after `look_s` seconds; and its checkpoints, of which nothing is hashed."""
    until, room = time.monotonic() + message["look_s"], ROWS_BYTES
    found = []
    for asked in message["runs"]:
        folder = asked["dir"]
        there = os.path.isdir(folder)
        files, cut = files_of(folder, matcher(asked["outputs"]), until) if there else ([], False)
        rows, skip = [], int(asked["skip"])
        kept = noted(folder)
        for row in sorted(files, key=lambda row: (KINDS.index(row["kind"]), row["name"]))[skip:]:
            row.update({"kept": True} if same(row, kept) else {})
            room -= len(json.dumps(row)) + 2
            if room < 0:
                break
            rows.append(row)
        roots = [(os.path.join(folder, "checkpoints"), False), (asked["durable"], True)]
        steps = [row for root, durable in roots for row in _checkpoints(root, durable)]
        more = skip + len(rows) < len(files)
        found.append({"there": there, "files": rows, "more": more, "cut": cut, "checkpoints": steps})
    return {"runs": found}


def files_of(folder: str, named: re.Pattern[str], until: float) -> tuple[list[dict[str, Any]], bool]:
    """List the files that the run wrote, and tell whether the list was cut since there is too much to look through."""
    code = _Code(folder)
    found: dict[str, dict[str, Any]] = {}
    seen = 0
    for base, folders, names in os.walk(folder):
        inside = os.path.relpath(base, folder)
        folders[:] = sorted(name for name in folders if name != tree.CACHE)
        if inside == ".":
            folders[:] = sorted(set(folders) - {"checkpoints", "torchrun"}, key=lambda name: (name != "work", name))
        top, _, rest = inside.partition("/")
        for name in names:
            seen += 1
            if seen > MOST_SEEN or time.monotonic() > until:
                return list(found.values()), True
            whole = os.path.normpath(os.path.join(rest if top == "work" else inside, name))
            tracked = TRACKED.fullmatch(whole)
            if not NAME.fullmatch(whole) or whole in found or not (tracked or top in ("work", "aside")):
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                told = os.lstat(os.path.join(base, name))
                if stat.S_ISREG(told.st_mode) and not (top == "work" and code.has(whole, told)):
                    kind = "outputs" if top == "work" and named.fullmatch(whole) else "tracking" if tracked else "other"
                    path = os.path.join(inside, name)
                    if kind == "other" and code.made.get(whole) == taking.mark(os.path.join(folder, path)):
                        continue
                    found[whole] = {"name": whole, "path": os.path.normpath(path), "bytes": told.st_size,
                                    "mtime_ns": max(0, told.st_mtime_ns), "kind": kind}  # fmt: skip
    return list(found.values()), False


def noted(folder: str) -> dict[str, dict[str, Any]]:
    """Files of this node that are in the bucket, by name, as they were when they went there. A rank can write here."""
    found = read_json(os.path.join(folder, KEPT), {})
    return {name: row for name, row in found.items() if isinstance(row, dict)} if isinstance(found, dict) else {}


def same(row: dict[str, Any], kept: dict[str, dict[str, Any]]) -> bool:
    """Tell whether a file is as it was when it went to the bucket."""
    return all(kept.get(row["name"], {}).get(key) == row[key] for key in ("bytes", "mtime_ns"))


class _Code:
    """The code in a run's working folder, as it was laid out there."""

    def __init__(self, folder: str) -> None:
        note = os.path.join(folder, "code.json")
        said = read_json(note, {})
        self.files, self.kept = dict(said.get("files") or {}), set(said.get("kept") or ())
        self.work = os.path.join(folder, "work")
        self.laid_ns = os.lstat(note).st_mtime_ns if os.path.exists(note) else 0
        notes = [os.path.join(folder, "setup.json"), os.path.join(folder, "layer", taking.NOTE)]
        self.made = {name: left for note in notes for name, left in taking.noted(note)["files"].items()}
        """Files that the run's setup made: every run makes them again."""

    def has(self, name: str, told: os.stat_result) -> bool:
        """Tell whether the file is code, as it was put there."""
        if name not in self.files or name in self.kept:
            return False
        if told.st_mtime_ns <= self.laid_ns:
            return True
        seen = tree.content(os.path.join(self.work, name)) if told.st_size <= HASHED_BYTES else None
        return seen is not None and tree.mark(seen) == self.files[name]


def _checkpoints(root: str, durable: bool) -> list[dict[str, Any]]:
    """Checkpoints with a manifest and files of the right sizes."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):  # there is no such folder
        for name in sorted(name for name in os.listdir(root) if STEP.fullmatch(name))[-MOST_STEPS:]:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                path = os.path.join(root, name)
                told = read_json(os.path.join(path, "manifest.json"))
                sizes = {one: int(want["bytes"]) for one, want in told["files"].items()}
                there = all(os.stat(os.path.join(path, one)).st_size == size for one, size in sizes.items())
                if there and SHA256.fullmatch(told["sha256"]):
                    found.append({"step": int(name[5:]), "path": path, "sha256": told["sha256"],
                                  "bytes": sum(sizes.values()), "durable": durable, **_part(told)})  # fmt: skip
    return found


def _part(manifest: dict[str, Any]) -> dict[str, Any]:
    """Of a sharded one which of all nodes' files are here, as train/shards/cover.py tells it."""
    if "shards" not in manifest:
        return {}
    of = manifest["shards"]["of"]
    return {"shards": {
        "digest": manifest["shards"]["digest"], "attempt": int(manifest["attempt"]), "of": len(of),
        "bytes": sum(int(want["bytes"]) for want in of.values()),
        "has": [at for at, name in enumerate(sorted(of)) if name in manifest["files"]],
    }}  # fmt: skip


def send(folder: str, fd: int = 0, out: BinaryIO | None = None) -> None:
    """Asked on standard input, a line: {"files": [{"name", "off", "unless"}]}. On stdout, for the file numbered `at`:
    {"at", "off", "len"} and so many bytes, as often as it takes, then {"at", "bytes", "sha256"} of the whole file;
    {"at", "same"} instead where its SHA-256 is `unless`, {"at", "error"} where it cannot be read; {"through"} at last.
    """
    out = out or sys.stdout.buffer
    with os.fdopen(fd, "rb", closefd=False) as door:
        asked = json.loads(door.readline())["files"]
    for at, one in enumerate(asked):
        try:
            with open(os.path.join(folder, one["name"]), "rb", opener=plain) as file:
                _send_one(file, at, one, out)
        except BrokenPipeError:
            raise
        except OSError as error:
            say(out, {"at": at, "error": "%s" % (error.strerror or error)})
    say(out, {"through": True})
    out.flush()


def plain(path: str, flags: int) -> int:
    """Opens no link, and waits for no pipe."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("it is no plain file")
    return fd


def _send_one(file: BinaryIO, at: int, asked: dict[str, Any], out: BinaryIO) -> None:
    """Send as many bytes as the file has now, so that a file that grows meanwhile comes to an end all the same."""
    size, whole = os.fstat(file.fileno()).st_size, hashlib.sha256()
    off = asked["off"] if asked["off"] <= size else 0
    wanted = asked.get("unless")
    if wanted:
        if _hashed(file, size, hashlib.sha256()).hexdigest() == wanted:
            say(out, {"at": at, "same": True})
            return
        file.seek(0)
    _hashed(file, off, whole)
    while off < size:
        data = file.read(min(CHUNK_BYTES, size - off))
        if not data:
            raise OSError("it became shorter while it was read")
        whole.update(data)
        say(out, {"at": at, "off": off, "len": len(data)})
        out.write(data)
        off += len(data)
    say(out, {"at": at, "bytes": size, "sha256": whole.hexdigest()})
    out.flush()


def _hashed(file: BinaryIO, size: int, whole: Any) -> Any:
    """The hash after the next `size` bytes."""
    while size > 0:
        data = file.read(min(CHUNK_BYTES, size))
        if not data:
            break
        whole.update(data)
        size -= len(data)
    return whole
