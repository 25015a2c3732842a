"""Trust: what in this folder is ours.

A repository can bring a `.nexa` of its own, and what lies there names programs: ssh's ProxyCommand, Terraform's
provisioners, a terraform. So a workspace counts as ours only when it was made here: the user's state folder, which no
repository can write, has a mark for this path, and the folder is the one that was marked (by its inode), or holds what
the mark says in `.nexa/id`. Either is enough, so neither a damaged `id` nor a restored backup locks anybody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files, git
from nexa_dist.run.runner import Runner

ID, LOCK = "id", ".lock"
HARMLESS = {"schema", ID, ".gitignore"}
"""Below .nexa: what `nexa init` writes for editors, which a repository may have, and what a kill left of a mark."""
LONGEST = 8192
"""Characters of a mark that are read."""
KEPT = 1000
"""Marks beyond this many make room: those of folders that are gone."""


def state() -> Path:
    """The user's folder of what nexa remembers (XDG): marks and consents, never a secret."""
    named = os.environ.get("XDG_STATE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state") / "nexa"


def claim(root: Path) -> None:
    """Before the first file of a workspace: from here on it is ours. One that holds something stays as it is."""
    if not is_ours(root) and next(_findings(root), None) is None:
        _mark(root)


def adopt(root: Path) -> None:
    """The user says that the workspace is theirs. Raises UsageError when it is somebody else's by its owner."""
    if (found := next(_findings(root), None)) and (stranger := _stranger(root)):
        raise UsageError(f"{found} {stranger}")
    _mark(root)


def is_workspace(folder: Path) -> bool:
    """Tell whether nexa has worked in this folder, ours or not. `.nexa` alone says little: on a node it is in the
    home."""
    return any(os.path.lexists(folder / ".nexa" / name) for name in (ID, "clusters"))


def roots() -> list[Path]:
    """The workspaces of ours that are still there."""
    marks = sorted((state() / "workspaces").glob("[0-9a-f]*"))[: 2 * KEPT]
    found = [Path(path) for mark in marks if (path := _read(mark, 3)[2])]
    return sorted(root for root in found if root.is_dir() and is_ours(root))


def refuse_foreign(runner: Runner, root: Path, *, above: bool = False) -> None:
    """Raises Foreign when this folder holds what nexa would act on, and we did not make it. One that was found above
    the folder that we are in has to be ours whatever it holds: nobody named it."""
    found = next(_findings(root), root / ".nexa" if above else None)
    if found is None:
        return
    if stranger := _stranger(root):
        raise Foreign(f"{found} {stranger}", hint="work in a folder of your own", cure=False)
    if not is_ours(root):
        raise not_ours(root, found)
    if brought := git.tracks(runner, root, ".nexa", ":(exclude).nexa/schema"):
        raise Foreign(
            f"git tracks {root / brought}: a pull can change what nexa acts on",
            hint="git rm -r -q --cached .nexa takes it out of git and leaves it here; "
            "its keys are in the history of the repository",
            cure=False,
        )


def refuse_foreign_file(path: str) -> None:
    """The same for one file that nexa makes: raises Foreign when it lies in a `.nexa` that is not ours."""
    parts = Path(os.path.abspath(path)).parts
    if ".nexa" in parts and not is_ours(root := Path(*parts[: parts.index(".nexa")])):
        raise not_ours(root, Path(path))


class Foreign(UsageError):
    """Refusal to act on what lies in the workspace and is not ours. `cure`: the user's word is enough."""

    def __init__(self, message: str, *, hint: str, cure: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.cure = cure


def not_ours(root: Path, found: Path) -> Foreign:
    return Foreign(
        f"{found} was not made here by you: it may have come with somebody else's files, and it can name programs that "
        "nexa would start",
        hint=f"if it is yours (older than this check, moved or copied): nexa trust {shlex.quote(str(root))}; "
        "else move it away",
    )


def _findings(root: Path) -> Iterator[Path]:
    """Paths that nexa would act on, the most telling first."""
    ours = root / ".nexa"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted((ours / "clusters").iterdir())
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(path for path in ours.iterdir() if path.name not in HARMLESS)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from (path for path in (root / "runs").iterdir() if os.path.lexists(path / "run.json"))


def _stranger(root: Path) -> str:
    """Stranger who owns one of the folders; empty when all are ours."""
    for folder in (root / ".nexa", root / "runs"):
        with contextlib.suppress(FileNotFoundError):
            if (owner := folder.stat().st_uid) != os.geteuid():
                return f"belongs to user {owner}, and we are {os.geteuid()}"
    return ""


def _place(root: Path) -> Path:
    real = os.fsencode(os.path.realpath(root))
    return state() / "workspaces" / hashlib.sha256(real).hexdigest()[:32]


def _mark(root: Path) -> None:
    """Two commands at once make one mark."""
    inside, outside = root / ".nexa", _place(root)
    try:
        outside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(outside.parent / LOCK, "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_ours(root):
                return
            ident = secrets.token_hex(16)
            _make_room(outside.parent)
            inside.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_text(outside, f"{ident}\n{_inode(root)}\n{os.path.realpath(root)}\n", 0o600)
            files.hide_from_git(inside)
            files.write_text(inside / ID, ident + "\n", 0o600)
    except OSError as error:
        where = error.filename or inside
        raise NexaError(
            f"cannot note that {root} is ours: {where}: {error.strerror}",
            hint="XDG_STATE_HOME names another folder for what nexa remembers",
        ) from None


def is_ours(root: Path) -> bool:
    """Tell whether this workspace was made here, or the user said that it is theirs."""
    ident, inode, path = _read(_place(root), 3)
    return path == os.path.realpath(root) and (inode == _inode(root) or [ident] == _read(root / ".nexa" / ID, 1))


def _read(path: Path, count: int) -> list[str]:
    """The first lines of a file, empty ones where it has none: a mark that is damaged is no mark."""
    lines: list[str] = []
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n") for line in file.readlines(LONGEST)]
    return [*lines, *[""] * count][:count]


def _inode(root: Path) -> str:
    told = root.stat()
    return f"{told.st_dev}:{told.st_ino}"


def _make_room(folder: Path) -> None:
    marks = list(folder.iterdir())
    for mark in marks if len(marks) >= KEPT else ():
        with contextlib.suppress(OSError):
            if mark.name != LOCK and not os.path.lexists(_read(mark, 3)[2]):
                mark.unlink()
