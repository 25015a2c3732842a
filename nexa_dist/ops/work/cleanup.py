"""Frees a machine's disk of runs that are over: old scratch, old checkpoints.

What lives is not touched, nor is the newest whole checkpoint of any run, nor shards, which are whole only with those of
other nodes. Before a run's scratch goes its record (events, logs, spec, result) is packed into the archive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.train import checkpoint
from nexa_dist.train.shards import cover

RUN = re.compile(r"([a-z][a-z0-9-]*_[0-9]{8}_[0-9]{6}_[a-z0-9-]+)(\.[a-z0-9-]+)?")
"""Folder of a run; on hosts of one's own with the node's name behind it."""
RECORD = re.compile(r"(?:agent\.(?:jsonl|err)|(?:spec|train|code|result|setup)\.json|[a-z]+\.attempt_\d+\.log|"
                    r"rank_\d+/[^/]+\.(?:log|json))")  # fmt: skip
"""What tells of a run, by its name in the folder."""
DAY_S = 86_400.0


@dataclass(frozen=True)
class Doomed:
    """One folder that goes; `but` stays of it."""

    path: Path
    bytes: int
    why: str
    record: bool = False
    """True for the folder of a run, whose record is archived first."""
    but: Path | None = None

    @property
    def run(self) -> str:
        """Name of the run, from the innermost folder that has one."""
        names = [found[1] for part in self.path.parts if (found := RUN.fullmatch(part))]
        return names[-1]


@dataclass
class Found:
    """What goes, and why the rest of what is old stays."""

    doomed: list[Doomed] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def look(scratch: Path | None, durable: Path | None, days: float, keep: int, now: float) -> Found:
    """Pure reading. `days`: younger ones are left alone; `keep`: whole checkpoints of a run that stay where it saved
    them for good."""
    found = Found()
    living = _living_runs(scratch)
    for folder in _runs(durable):
        root = folder / "checkpoints"
        if folder.name in living:
            found.stays.append(f"{folder}: its run lives")
        elif _age(root, now) > days * DAY_S:
            _old_checkpoints(found, root, keep)
    for folder in _runs(scratch):
        name = RUN.fullmatch(folder.name)
        assert name
        if name[1] in living:
            found.stays.append(f"{folder}: its run lives")
        elif _age(folder, now) > days * DAY_S:
            _old_scratch(found, folder, durable / name[1] / "checkpoints" if durable else None)
    return found


def _old_checkpoints(found: Found, root: Path, keep: int) -> None:
    """Those behind the `keep` newest whole ones; as in checkpoint.prune a broken one makes no room."""
    if _sharded(root):
        found.stays.append(f"{root}: shards, which are whole only with those of other nodes")
        return
    whole = 0
    for step in checkpoint.steps(root):
        path = root / checkpoint.step_name(step)
        if whole < keep:
            whole += not checkpoint.verify(path)
        else:
            found.doomed.append(Doomed(path, _size(path), f"older than the {keep} newest whole ones"))


def _old_scratch(found: Found, folder: Path, durable: Path | None) -> None:
    root = folder / "checkpoints"
    if _sharded(root):
        found.stays.append(f"{folder}: shards, which are whole only with those of other nodes")
        return
    newest = checkpoint.newest_whole(root, lambda _: None)
    saved = checkpoint.newest_whole(durable, lambda _: None) if durable else None
    only = newest is not None and (saved is None or saved[0] < newest[0])
    but = newest[1] if newest and only else None
    size = _size(folder) - (_size(but) if but else 0)
    if (
        but
        and not [path for path in folder.iterdir() if path != root]
        and checkpoint.steps(root) == [newest and newest[0]]
    ):
        return  # nothing else is left of it
    why = "its run is over" + (f"; {but.name}, which is nowhere else, stays" if but else "")
    found.doomed.append(Doomed(folder, size, why, record=True, but=but))


def _runs(root: Path | None) -> list[Path]:
    if root is None or not root.is_dir():
        return []
    return sorted(
        path for path in root.iterdir() if RUN.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def _living_runs(scratch: Path | None) -> set[str]:
    """Runs of which an agent or any process lives on this machine."""
    folders = {str(path): path for path in _runs(scratch)}
    found = {name[1] for path in folders.values() if _agent_lives(path) and (name := RUN.fullmatch(path.name))}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            for word in environ.read_bytes().split(b"\0"):
                key, _, value = word.partition(b"=")
                if key in (b"NEXA_RUN_DIR", b"NEXA_WARM_DIR") and (
                    name := RUN.fullmatch(Path(os.fsdecode(value)).name)
                ):
                    found.add(name[1])
    return found


def _agent_lives(folder: Path) -> bool:
    """As node/oslib.py tells it: the pid with the start time that it was noted with."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        holder = json.loads((folder / "agent.pid").read_bytes())
        fields = Path(f"/proc/{int(holder['pid'])}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0] not in "ZX" and int(fields[19]) == holder["start_time"]
    return False


def _age(folder: Path, now: float) -> float:
    """Seconds since anything at the top of it, or in a checkpoint's place, changed."""
    seen = [0.0]
    for path in (folder, *folder.glob("*"), *folder.glob("checkpoints/*")):
        with contextlib.suppress(OSError):
            seen.append(path.lstat().st_mtime)
    return now - max(seen)


def _sharded(root: Path) -> bool:
    for step in checkpoint.steps(root):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if cover.KEY in checkpoint.manifest(root / checkpoint.step_name(step)):
                return True
    return False


def _files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in names)


def _size(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def remove(doomed: Doomed, archive: Path) -> Path | None:
    """Removes it; answers the archive of its record. Raises NexaError, with all of it still there, when that cannot be
    written."""
    kept = _archived(doomed.path, archive) if doomed.record else None
    if doomed.but is None:
        shutil.rmtree(doomed.path)
        return kept
    for path in doomed.path.iterdir():
        if path != doomed.but.parent:
            _gone(path)
    for path in doomed.but.parent.iterdir():
        if path != doomed.but:
            _gone(path)
    return kept


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _archived(folder: Path, archive: Path) -> Path | None:
    files = [path for path in _files(folder) if RECORD.fullmatch(path.relative_to(folder).as_posix())]
    plain = [path for path in files if stat.S_ISREG(path.lstat().st_mode)]
    if not plain:
        return None
    final = archive / f"{folder.name}_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.tar.gz"
    temporary = archive / f".tmp-{final.name}"
    try:
        archive.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                for path in sorted(plain):
                    tar.add(path, f"{folder.name}/{path.relative_to(folder)}", recursive=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise NexaError(f"{folder} stays: its record cannot be archived in {archive}: {error.strerror}") from None
    return final


def main(words: Sequence[str], say: Callable[[str], object] = print) -> int:
    """The command line of scripts/cleanup.sh."""
    parser = argparse.ArgumentParser(prog="cleanup.sh", description="Free disk of runs that are over, on this machine.")
    parser.add_argument(
        "--scratch", type=Path, default=os.environ.get("NEXA_SCRATCH") or None, help="default: $NEXA_SCRATCH"
    )
    parser.add_argument(
        "--durable", type=Path, default=os.environ.get("NEXA_DURABLE") or None, help="default: $NEXA_DURABLE"
    )
    parser.add_argument("--archive", type=Path, help="where records go (default: archive beside the runs)")
    parser.add_argument("--days", type=float, default=14.0, help="leave alone what changed in so many (default: 14)")
    parser.add_argument("--keep", type=int, default=2, help="newest whole checkpoints of a run that stay (default: 2)")
    parser.add_argument("--delete", action="store_true", help="do it; without it, it is only said")
    parser.add_argument("--dry-run", action="store_true", help="only say it, also with --delete")
    args = parser.parse_args(words)
    roots = [Path(root) for root in (args.scratch, args.durable) if root]
    if not roots:
        raise UsageError("neither --scratch nor --durable is given", hint="or set NEXA_SCRATCH, NEXA_DURABLE")
    if args.keep < 1 or args.days < 0:
        raise UsageError("--keep is at least 1, --days at least 0")
    found = look(args.scratch, args.durable, args.days, args.keep, time.time())
    for line in found.stays:
        say(f"stays: {line}")
    act = args.delete and not args.dry_run
    failed = 0
    for one in found.doomed:
        say(f"{'removing' if act else 'would remove'}: {one.path} ({one.bytes / 1e6:.1f} MB): {one.why}")
        if act:
            try:
                if one.run in _living_runs(args.scratch):  # begun since: to read checkpoints takes a while
                    raise NexaError(f"{one.path} stays: its run lives now")
                if kept := remove(one, args.archive or roots[0] / "archive"):
                    say(f"  record: {kept}")
            except (NexaError, OSError) as error:
                say(f"error: {error}")
                failed += 1
    total = sum(one.bytes for one in found.doomed) / 1e6
    say(f"{len(found.doomed)} folders, {total:.1f} MB" + ("" if act else "; --delete removes them"))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
