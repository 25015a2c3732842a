"""Listing of a project's files: those that go to the nodes, and those that stay here, with the reason.

In a repository git decides: what is tracked, and what is neither tracked nor ignored. Where git refuses to answer,
nothing is guessed. A folder without git is walked. In both, `.nexaignore` leaves out more, `files:` of train.yaml adds.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import dotenv, git
from nexa_dist.run.code import ignore
from nexa_dist.run.runner import Result, Runner

CACHE = "__pycache__"
CACHES = {".venv", "venv", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", ".ipynb_checkpoints"}
SECRET = (
    "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    "!id_*.pub", ".netrc", "_netrc", ".pgpass", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", ".vault-token",
    ".aws/", ".ssh/", ".gnupg/", ".kube/", ".azure/", ".gcloud/", ".docker/config.json", ".env", ".env.*",
    "!.env.example", "credentials", "credentials.*", "!credentials.py", "client_secret*", "!client_secret*.py",
    "service[-_]account*.json", "secret", "secrets", "secret.*", "secrets.*", "!secret.py", "!secrets.py",
    "terraform.tfstate*", "*.tfvars",
)  # fmt: skip
"""Names of files that hold keys, when nobody has put them under git."""
OURS = re.compile(r"runs/(manifests|[a-z]+_[0-9]{8}_[0-9]{6}_[^/]+)/")
"""Paths that nexa itself writes into a workspace, beside `.nexa`."""
NAME_IT = "name it in files: of train.yaml"


@dataclass(frozen=True)
class LeftOut:
    """File that the nodes do not get: why, and what would change that."""

    name: str
    why: str
    cure: str = ""

    def __str__(self) -> str:
        return shown(f"{self.name}: {self.why}" + (f" ({self.cure})" if self.cure else ""))


def shown(name: object) -> str:
    """Show a name to people: the name of a file may hold anything, also what rewrites a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(name))


@dataclass
class Listing:
    """Files to send: name on the nodes → the folder that its links may not leave, and its path here."""

    files: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    followed: dict[str, Path] = field(default_factory=dict)
    """Names in `files:` that lead out of the project, and where to."""

    def leave(self, name: str, why: str, cure: str = "") -> None:
        self.left_out.setdefault(name, LeftOut(name, why, cure))


def listed(runner: Runner, root: Path, also: Sequence[str] = ()) -> Listing:
    """The project at `root`. `also` are paths in it that are sent whatever git says; a link among them is followed.

    Raises NexaError where git refuses, UsageError for a path in `also` that is none.
    """
    made, rules, secret = Listing(), ignore.Rules(), _secrets()
    rules.read(root / ignore.FILE)
    for name, tracked in _names(runner, root, made, git.top(root)):
        if not rules.first(name) and _wanted(name, tracked, secret, made):
            made.files[name] = (root, root / name)
    for word in also:
        _add(runner, root, word.rstrip("/"), made)
    return made


def _secrets() -> ignore.Rules:
    rules = ignore.Rules()
    for pattern in SECRET:
        rules.add(pattern)
    return rules


def is_dotenv(name: str) -> bool:
    """`.env`, `.env.local` and the like are for this machine alone, also where they are under git."""
    file = name.rpartition("/")[2]
    return file == dotenv.NAME or (file.startswith(f"{dotenv.NAME}.") and file != f"{dotenv.NAME}.example")


def _wanted(name: str, tracked: bool, secret: ignore.Rules, made: Listing) -> bool:
    """Tell whether a file is sent; a file that git tracks, or that somebody has named, is missed if it is not."""
    parts = tuple(name.split("/"))
    ours = OURS.match(name)
    if name.startswith("/") or ".." in parts or ".git" in parts:
        made.leave(name, "not a name within the project")
    elif ours or not {".nexa", CACHE}.isdisjoint(parts):
        if tracked:
            own = ours.group().rstrip("/") if ours else _down_to(parts, {".nexa", CACHE})
            made.leave(own, "Python makes it on the nodes" if own.endswith(CACHE) else "nexa's own")
    elif is_dotenv(name):
        made.leave(name, "for this machine alone")
    elif not tracked and (found := secret.first(name)):
        made.leave(found, "looks like a secret", NAME_IT)
    else:
        return True
    return False


def _down_to(parts: tuple[str, ...], names: set[str]) -> str:
    return "/".join(parts[: next(n for n, part in enumerate(parts) if part in names) + 1])


def _names(runner: Runner, root: Path, made: Listing, repository: Path | None) -> Iterator[tuple[str, bool]]:
    """Names below `root`, and whether git tracks them."""
    if repository is None:
        return ((name, False) for name in _walk(root, made))
    return iter(_from_git(runner, root, made, ""))


def _from_git(runner: Runner, root: Path, made: Listing, prefix: str) -> list[tuple[str, bool]]:
    """Submodules that are checked out are listed as what they are: a part of the project."""
    told = git.ask(runner, root, "ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard")
    if told.code:
        raise _refused(root, told)
    found: dict[str, bool] = {}
    for entry in filter(None, told.out.split(b"\0")):
        tag, _, name = os.fsdecode(entry).partition(" ")
        if name.endswith("/"):
            made.leave(prefix + name.rstrip("/"), "a clone of another repository", NAME_IT)
        elif _is_folder(path := root / name):
            if (path / ".git").exists():
                inner = f"{prefix}{name}/"
                found |= {f"{name}/{below}": tracked for below, tracked in _from_git(runner, path, made, inner)}
            elif not any(path.iterdir()):
                made.leave(prefix + name, "a submodule that is not checked out", "git submodule update --init")
        else:
            found[name] = tag != "?"
    return sorted(found.items())


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _refused(root: Path, told: Result) -> NexaError:
    place = git.top(root)
    said = told.tail(3)
    if told.code == 127:
        return NexaError(
            f"{place} is a git repository, and git is not installed: nobody can say which files are meant to be sent",
            hint="install git, e.g. apt-get install git",
        )
    cure = f"mend the repository at {place}, or move its .git away: {ignore.FILE} then says what is not sent"
    if "dubious ownership" in said:
        cure = f"if you trust it: git config --global --add safe.directory {place}"
    return NexaError(f"git does not say which files of {root} are meant to be sent, so none are: {said}", hint=cure)


def _walk(root: Path, made: Listing, ignores: Sequence[str] = (".gitignore", ignore.FILE)) -> list[str]:
    """A folder that no git knows, by the files in it that say what is ignored, if there are any."""
    found: list[str] = []
    rules = ignore.Rules()

    def closed(error: OSError) -> None:
        made.leave(os.path.relpath(error.filename, root), "cannot be read")

    for folder, folders, files in os.walk(root, onerror=closed):
        base = "" if Path(folder) == root else os.path.relpath(folder, root)
        for file in ignores:
            rules.read(Path(folder, file), base)
        kept = []
        for name in sorted(folders):
            inside = f"{base}/{name}" if base else name
            path = Path(folder, name)
            if path.is_symlink():
                files.append(name)
            elif name in CACHES and not rules.fits(inside, folder=True):
                made.leave(inside, "a cache", NAME_IT)
            elif (path / ".git").exists() and not rules.fits(inside, folder=True):
                made.leave(inside, "a clone of another repository", NAME_IT)
            elif name not in (".git", ".nexa", CACHE) and not rules.fits(inside, folder=True):
                kept.append(name)
        folders[:] = kept
        names = [f"{base}/{name}" if base else name for name in files]
        found += [name for name in names if not rules.fits(name)]
    return sorted(found)


def _add(runner: Runner, root: Path, name: str, made: Listing) -> None:
    """One path of `files:`. Keys of this machine stay here all the same."""
    real = Path(os.path.realpath(root / name))
    if os.path.isabs(name) or ".." in PurePosixPath(name).parts or not real.exists():
        raise UsageError(
            f"files: {name} is not there (in {root})",
            hint="paths lie in this folder; for what is elsewhere make a link here and name the link",
        )
    if not real.is_relative_to(root.resolve()):
        if _private(real):
            raise UsageError(f"files: {name} leads to {shown(real)}, where keys may lie", hint="copy what it needs")
        made.followed[name] = real
    for path in (name, *map(str, PurePosixPath(name).parents)):
        made.files.pop(path, None)  # the link itself, or one on the way
        made.left_out.pop(path, None)
    if real.is_file():
        found, where, secret = [("", True)], real.parent, ignore.Rules()
    else:
        inner, where, secret = Listing(), real, _secrets()
        if (real / ".git").exists():
            found = _from_git(runner, real, inner, "")
        else:  # its own .gitignore is for whoever keeps it elsewhere: who names a folder means all of it
            found = [(inside, False) for inside in _walk(real, inner, (ignore.FILE,))]
        for one in inner.left_out.values():
            made.leave(f"{name}/{one.name}", one.why, one.cure)
    for inside, tracked in found:
        path = f"{name}/{inside}".rstrip("/")
        if _wanted(path, tracked, secret, made):
            made.files[path] = (where, real / inside)


def _private(real: Path) -> bool:
    """A repository of somebody else's may name any place of this machine: hidden folders hold keys, and so do these."""
    home = Path.home().resolve()
    system = real.parts[1:2] and real.parts[1] in ("etc", "proc", "sys", "dev", "run", "boot", "root")
    inside = real.relative_to(home) if real.is_relative_to(home) else real
    return (
        home.is_relative_to(real)
        or any(part.startswith(".") for part in inside.parts)
        or bool(system and not real.is_relative_to(home))
    )
