"""Frees a machine's disk of runs that are over: old scratch, old checkpoints.

What lives is not touched, nor is the newest whole checkpoint of any run. The shards of a step go together, from all
folders, or not at all: where some are in no folder that was named, those that are stay. Before a run's scratch goes its
record (events, logs, spec, result) is packed into the archive.
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
from nexa_dist.train.shards.steps import held

RUN = re.compile(r"([a-z][a-z0-9-]*_[0-9]{8}_[0-9]{6}_[a-z0-9-]+)(\.[a-z0-9-]+)?")
"""Folder of a run; on hosts of one's own with the node's name behind it."""
RECORD = re.compile(r"(?:agent\.(?:jsonl|err)|(?:spec|train|code|result|setup)\.json|[a-z]+\.attempt_\d+\.log|"
                    r"rank_\d+/[^/]+\.(?:log|json))")  # fmt: skip
"""What tells of a run, by its name in the folder."""
DAY_S = 86_400.0
ASIDE = ".tmp-cleanup-"
ELSEWHERE = "here: name the folders of its other nodes too (--scratch, --durable), or none goes"


@dataclass(frozen=True)
class Doomed:
    """Folders of one run that go together; `but` stays of them."""

    paths: tuple[Path, ...]
    why: str
    record: bool = False
    """True for folders of a run, whose record is archived first."""
    but: tuple[Path, ...] = ()

    @property
    def run(self) -> str:
        """Name of the run, from the innermost folder that has one."""
        names = [found[1] for part in self.paths[0].parts if (found := RUN.fullmatch(part))]
        return names[-1]

    def bytes(self, path: Path) -> int:
        return _size(path) - sum(_size(one) for one in self.but if one.is_relative_to(path))


@dataclass
class Found:
    """What goes, and why the rest of what is old stays."""

    doomed: list[Doomed] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def look(scratch: Sequence[Path], durable: Sequence[Path], days: float, keep: int, now: float) -> Found:
    """Pure reading. `days`: younger ones are left alone; `keep`: whole checkpoints of a run that stay where it saved
    them for good."""
    found = Found()
    living = _living_runs(scratch)
    saved = {name: [folder / "checkpoints" for folder in folders] for name, folders in _runs(durable).items()}
    for name, roots in saved.items():
        if name in living:
            found.stays += [f"{root.parent}: its run lives" for root in roots]
        elif min(_age(root, now) for root in roots) > days * DAY_S:
            _old_checkpoints(found, roots, keep)
    for name, folders in _runs(scratch).items():
        if name in living:
            found.stays += [f"{folder}: its run lives" for folder in folders]
        elif min(_age(folder, now) for folder in folders) > days * DAY_S:
            _old_scratch(found, folders, saved.get(name, []))
    return found


def _old_checkpoints(found: Found, roots: Sequence[Path], keep: int) -> None:
    """Those behind the `keep` newest whole ones; as in checkpoint.prune a broken one makes no room."""
    whole = 0
    for step in held(roots):
        if whole < keep and step.is_whole():
            whole += 1
        elif step.missing:
            found.stays += [f"{folder}: {step.missing} {ELSEWHERE}" for folder in step.folders]
        elif whole >= keep:
            found.doomed.append(Doomed(step.folders, f"older than the {keep} newest whole ones"))


def _old_scratch(found: Found, folders: Sequence[Path], durable: Sequence[Path]) -> None:
    """All of it, but for the newest whole checkpoint if that is nowhere else."""
    steps = held([folder / "checkpoints" for folder in folders])
    saved = next((step.step for step in held(durable) if step.is_whole()), -1)
    # What is not newer than a whole one in the durable place is but a copy of what nobody goes on from.
    if unsure := next((step for step in steps if step.step > saved and step.missing), None):
        name = checkpoint.step_name(unsure.step)
        found.stays += [f"{folder}: of {name} {unsure.missing} {ELSEWHERE}" for folder in folders]
        return
    newest = next((step for step in steps if step.step > saved and step.is_whole()), None)
    but = newest.folders if newest else ()
    if any(set(_files(folder)) - {file for one in but for file in _files(one)} for folder in folders) or not but:
        why = "its run is over" + (f"; {but[0].name}, which is nowhere else, stays" if but else "")
        found.doomed.append(Doomed(tuple(folders), why, record=True, but=but))


def _runs(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """Folders of each run, whichever of its nodes they are of."""
    found: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            name = RUN.fullmatch(path.name)
            if name and path.is_dir() and not path.is_symlink():
                found.setdefault(name[1], []).append(path)
    return found


def _living_runs(scratch: Sequence[Path]) -> set[str]:
    """Runs of which an agent or any process lives on this machine."""
    found = {name for name, folders in _runs(scratch).items() if any(map(_agent_lives, folders))}
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


def _files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in names)


def _size(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def remove(doomed: Doomed, archive: Path) -> list[Path]:
    """Removes it; answers the archives of its record. Raises NexaError or OSError, with all of it still there, when
    those cannot be written, or when a folder cannot be moved."""
    kept = [made for path in doomed.paths if doomed.record and (made := _archived(path, archive))]
    if not doomed.but:
        _together(doomed.paths)
        return kept
    stay = {parent for path in doomed.but for parent in (path, *path.parents)}
    for folder in doomed.paths:
        for path in (*folder.iterdir(), *(folder / "checkpoints").glob("*")):
            if path not in stay:
                _gone(path)
    return kept


def _together(paths: Sequence[Path]) -> None:
    """All of them or none: each loses its name before any loses a byte."""
    moved: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            moved.append((path, path.rename(path.with_name(f"{ASIDE}{path.name}"))))
    except OSError:
        for path, aside in moved:
            aside.rename(path)
        raise
    for _, aside in moved:
        _gone(aside)


def _aside(roots: Sequence[Path]) -> list[Path]:
    """What a cleanup that was killed had taken the name of."""
    return [path for root in roots for below in ("", "*/checkpoints/") for path in root.glob(f"{below}{ASIDE}*")]


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
    stem = f"{folder.name}_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = (f"{stem}{more}.tar.gz" for more in ("", *(f"_{number}" for number in range(1, 100_000))))
    final = next(path for name in names if not (path := archive / name).exists())  # two nodes' folders have one name
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
    args = _parsed(words)
    scratch, durable = (_named(args, name) for name in ("scratch", "durable"))
    if not scratch and not durable:
        raise UsageError("neither --scratch nor --durable is given", hint="or set NEXA_SCRATCH, NEXA_DURABLE")
    if args.keep < 1 or not args.days >= 0:
        raise UsageError("--keep is at least 1, --days at least 0")
    if missing := [str(root) for root in (args.scratch or []) + (args.durable or []) if not root.is_dir()]:
        raise UsageError(f"no such folder: {', '.join(missing)}", hint="NEXA_SCRATCH of a node has a folder a run")
    act = args.delete and not args.dry_run
    found = look(scratch, durable, args.days, args.keep, time.time())
    for path in _aside([*scratch, *durable]) if act else ():  # only now, since it makes its folder young
        say(f"removing: {path}: a cleanup was killed there")
        _gone(path)
    for line in found.stays:
        say(f"stays: {line}")
    failed, total = 0, 0.0
    for one in found.doomed:
        for path in one.paths:
            size = one.bytes(path) / 1e6
            total += size
            say(f"{'removing' if act else 'would remove'}: {path} ({size:.1f} MB): {one.why}")
        if act:
            try:
                if one.run in _living_runs(scratch):  # begun since: to read checkpoints takes a while
                    raise NexaError(f"{one.paths[0]} stays: its run lives now")
                for kept in remove(one, args.archive or (scratch or durable)[0] / "archive"):
                    say(f"  record: {kept}")
            except (NexaError, OSError) as error:
                say(f"error: {error}")
                failed += 1
    count = sum(len(one.paths) for one in found.doomed)
    say(f"{count} folders, {total:.1f} MB" + ("" if act else "; --delete removes them"))
    return 1 if failed else 0


def _named(args: argparse.Namespace, name: str) -> list[Path]:
    """Folders of an option, else that of the variable; each once."""
    variable = os.environ.get(f"NEXA_{name.upper()}")
    named = getattr(args, name) or ([Path(variable)] if variable else [])
    return list({path.resolve(): path for path in named}.values())


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cleanup.sh", description="Free disk of runs that are over, on this machine.")
    for name in ("scratch", "durable"):
        more = "; again for those of other nodes that are mounted here"
        parser.add_argument(
            f"--{name}", type=Path, action="append", metavar="DIR", help=f"default: $NEXA_{name.upper()}{more}"
        )
    parser.add_argument("--archive", type=Path, help="where records go (default: archive beside the runs)")
    parser.add_argument("--days", type=float, default=14.0, help="leave alone what changed in so many (default: 14)")
    parser.add_argument("--keep", type=int, default=2, help="newest whole checkpoints of a run that stay (default: 2)")
    parser.add_argument("--delete", action="store_true", help="do it; without it, it is only said")
    parser.add_argument("--dry-run", action="store_true", help="only say it, also with --delete")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(2)
