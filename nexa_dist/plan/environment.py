"""An environment beside light: what is asked for, what it is named by, and which line of it uv complains about."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import UsageError

FORMAT = 1
"""Part of every hash: another one builds all environments anew."""
PACKAGES = "environment: packages"
"""Stand-in for the name of a file, where there is none."""
OURS = "torch.txt"
PROVEN = {"heavy": ("axolotl", "deepspeed"), "infer": ("vllm",)}
"""Environments of ours by name, and what is imported to prove them."""
_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(.*)")
_OPTION = re.compile(r"(-r|--requirement|-c|--constraint|-e|--editable)(?:\s*=\s*|\s+|(?<=^-[rce]))(.+)")
_COMMENT = re.compile(r"(^|\s)#.*")
_PINS = re.compile(r"^\(?\s*(@|={2,3}|~=|<|!=)|[,\s](={2,3}|~=|<|!=)")
_TORCH = ("torch", "torchvision", "torchaudio")


@dataclass(frozen=True)
class Line:
    """One package that was asked for, and where."""

    file: str
    number: int
    text: str
    name: str
    """Normalized; empty for an address without a name."""

    def __str__(self) -> str:
        place = f"[{self.number}]" if self.file == PACKAGES else f":{self.number}"
        return f"{self.file}{place}: {self.text}"


@dataclass(frozen=True)
class Asked:
    """All that an environment is made from, but for what the cluster has. A run keeps it for its later attempts."""

    kind: str
    """packages, requirements or lock, as the user says; or ours."""
    what: str
    """The environment in a word or two."""
    files: dict[str, str]
    """Text of every file, by its name in the project."""
    lines: tuple[Line, ...]
    extras: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Notes on the environment for the user."""

    @property
    def own_torch(self) -> bool:
        """Tell whether these files say which torch there is; torchvision and torchaudio fit one torch each."""
        pinned = (line.name in _TORCH and _PINS.search(rest_of(line.text)) for line in self.lines)
        return self.kind == "lock" or any(pinned)

    @property
    def names(self) -> list[str]:
        """Packages whose import proves the environment."""
        left_out = {canonical(name) for name in self.unproven}
        return sorted({line.name for line in self.lines} - left_out - {""})

    def key(self, *cluster: str) -> str:
        """Name of the environment: of what is asked for, and of what it stands on."""
        made = [FORMAT, self.kind, self.files, self.extras, self.unproven, *cluster]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file, for the manifest."""
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(self.files.items())}

    def to_json(self) -> dict[str, Any]:
        """Texts by lines: what reads our files cuts words of more than 1 MiB."""
        data = {name: value for name, value in asdict(self).items() if name != "notes"}
        return data | {"files": {name: text.splitlines(keepends=True) for name, text in self.files.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Asked:
        lists = {name: tuple(data[name]) for name in ("extras", "unproven")}
        texts = {name: "".join(parts) for name, parts in data["files"].items()}
        return cls(**{**data, **lists, "files": texts, "lines": tuple(Line(**line) for line in data["lines"])})


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def rest_of(text: str) -> str:
    """Rest of a requirement behind the name."""
    found = _NAME.match(text)
    return found[2] if found else ""


def asked(config: OwnEnvironment, read: Callable[[str], str]) -> Asked:
    """`read` answers the text of a file of the project. Raises UsageError for what cannot go to a node."""
    files: dict[str, str] = {}
    notes: list[str] = []
    if config.lock:
        project = posixpath.join(posixpath.dirname(config.lock), "pyproject.toml")
        files = {"uv.lock": read(config.lock), "pyproject.toml": read(project)}
        lines = _of_project(project, files["pyproject.toml"], config.extras)
    elif config.requirements:
        lines = _of_file(config.requirements, read, files, notes)
    else:
        files = {"packages.txt": "\n".join(config.packages) + "\n"}
        lines = [Line(PACKAGES, n, text, name_of(text)) for n, text in enumerate(config.packages)]
    kind = "lock" if config.lock else "requirements" if config.requirements else "packages"
    return Asked(kind, config.what, files, tuple(lines), config.extras, config.unproven, tuple(notes))


def ours(name: str, lock: str, pins: str) -> Asked:
    """`lock` has hashes and is of heavy or infer; `pins` are what fits one build of torch alone (torchvision)."""
    files = {f"{name}.txt": lock} | ({"pins.txt": pins} if pins else {})
    found = ((number, row.split(" ")[0]) for number, row in enumerate(lock.splitlines(), 1) if row[:1].isalnum())
    lines = (Line(f"{name}.txt", number, row, name_of(row)) for number, row in found)
    return Asked("ours", name, files, tuple(line for line in lines if line.name in PROVEN[name]))


def name_of(text: str) -> str:
    """Normalized name of the package that a requirement asks for; empty where only an address is given."""
    if egg := re.search(r"#(?:.*&)?egg=([A-Za-z0-9._-]+)", text):
        return canonical(egg[1])
    found = _NAME.match(text)
    return "" if "://" in text.partition("@")[0] or not found else canonical(found[1])


def _of_project(file: str, text: str, extras: Sequence[str]) -> list[Line]:
    try:
        project = tomllib.loads(text).get("project", {})
        wanted = [*project.get("dependencies", ())]
        for extra in extras:
            wanted += project.get("optional-dependencies", {}).get(extra, ())
        rows = text.splitlines()
        return [
            Line(file, next((n for n, row in enumerate(rows, 1) if one in row), 1), one, name_of(one)) for one in wanted
        ]
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _of_file(
    name: str, read: Callable[[str], str], files: dict[str, str], notes: list[str], constrains: bool = False
) -> list[Line]:
    """The packages of a requirement file and of those that it includes, whose texts come into `files`."""
    if name in files:
        return []
    files[name] = text = read(name)
    found: list[Line] = []
    rows = text.splitlines()
    for number, row, last in _logical(rows):
        option = _OPTION.fullmatch(row)
        where = f"{name}:{number}"
        if option and option[1] in ("-r", "--requirement", "-c", "--constraint"):
            other = posixpath.normpath(posixpath.join(posixpath.dirname(name), _unquoted(option[2])))
            if "://" in option[2] or other.startswith(("../", "/")):
                raise UsageError(f"{where}: {row}: only files of the project are sent", hint="copy it into the project")
            found += _of_file(other, read, files, notes, constrains or option[1] in ("-c", "--constraint"))
        elif (option and option[2].strip() in (".", "./")) or row in (".", "./"):
            notes.append(f"{where}: {row}: left out: the project itself is sent as it is, and found by its imports")
            rows[number - 1 : last] = [""] * (last - number + 1)
        elif option or row.startswith(("./", "../", "/", "~", "file:")):
            raise UsageError(
                f"{where}: {row}: a path of this machine is nowhere on the nodes",
                hint="name a package or an address (NAME @ git+https://…); what is in the project is sent as it is",
            )
        elif not row.startswith("-") and not constrains:
            found.append(Line(name, number, row, name_of(row)))
    files[name] = "\n".join(rows) + "\n"
    return found


def _logical(rows: Sequence[str]) -> list[tuple[int, str, int]]:
    """Lines that say something, with the numbers of their first and last one; `\\` at the end goes on."""
    out, begun, parts = [], 0, list[str]()
    for number, row in enumerate(rows, 1):
        begun = begun if parts else number
        plain = _COMMENT.sub("", row).strip()
        parts.append(plain.removesuffix("\\").strip())
        if not plain.endswith("\\"):
            if whole := " ".join(filter(None, parts)):
                out.append((begun, whole.partition(" --hash")[0], number))
            parts = []
    return out


def _unquoted(path: str) -> str:
    try:
        return shlex.split(path)[0]
    except (ValueError, IndexError):
        return path


def blamed(said: str, lines: Sequence[Line]) -> list[Line]:
    """The lines that asked for what uv's words name."""
    words = {canonical(word) for word in re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.sub(r"[\[{<>=!~,]", " ", said))}
    return [line for line in lines if line.name in words]
