"""Patterns as in .gitignore, for what git does not decide: .nexaignore, and folders without git."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nexa_dist.errors import NexaError

FILE = ".nexaignore"


@dataclass
class Rules:
    """The last pattern that fits decides; what lies in an ignored folder is ignored."""

    lines: list[tuple[re.Pattern[str], bool, bool]] = field(default_factory=list)
    """Pattern over the whole name, whether it takes back, whether it is for folders alone."""

    def read(self, file: Path, base: str = "") -> None:
        """Adds the patterns of a file, if it is there, which hold below `base`."""
        try:
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return
        except OSError as error:
            raise NexaError(f"cannot read {file}: {error.strerror}", hint="it says which files are not sent") from error
        for line in text.splitlines():
            line = re.sub(r"(?<!\\) +\Z", "", line)
            if line and not line.startswith("#"):
                self.add(line, base)

    def add(self, line: str, base: str = "") -> None:
        back, folders = line.startswith("!"), line.endswith("/")
        line = line[1:] if back else line
        anchored = "/" in line.rstrip("/")
        pattern = (re.escape(base + "/") if base else "") + ("" if anchored else "(?:.*/)?") + _regex(line.strip("/"))
        with contextlib.suppress(re.error):  # as [z-a], which fits nothing
            self.lines.append((re.compile(pattern, re.DOTALL), back, folders))

    def fits(self, name: str, folder: bool = False) -> bool:
        """Tell whether this one name is ignored, its folders aside."""
        for pattern, back, folders in reversed(self.lines):
            if (folder or not folders) and pattern.fullmatch(name):
                return not back
        return False

    def first(self, name: str) -> str:
        """Part of a file's name that is ignored: a folder that it lies in, the outermost, or all of it; else
        nothing."""
        if not self.lines:
            return ""
        above = [str(path) for path in reversed(PurePosixPath(name).parents) if str(path) != "."]
        return next((path for path in above if self.fits(path, folder=True)), "") or (name if self.fits(name) else "")


_PART = re.compile(r"(?P<all>(?:(?<=/)|\A)\*\*/)|(?P<rest>/\*\*\Z)|(?P<stars>\*+)|(?P<one>\?)"
                   r"|\[(?P<no>[!^])?(?P<set>\]?[^\]]*)\]|\\(?P<plain>.)|(?P<char>.)", re.DOTALL)  # fmt: skip


def _regex(glob: str) -> str:
    def part(found: re.Match[str]) -> str:
        kind = found.lastgroup
        if found["set"] is not None:
            inside = re.sub(r"([\[\\&~|^])", r"\\\1", found["set"])
            return f"(?!/)[{'^' if found['no'] else ''}{inside}]"
        fixed = {"all": "(?:.*/)?", "rest": "/.+", "stars": "\0", "one": "[^/]"}
        return fixed.get(kind or "") or re.escape(found[kind or 0])

    first, *more = _PART.sub(part, glob.replace("\0", "")).split("\0")
    if not more:
        return first
    # The nearest fit of what is between two stars is as good as any: a pattern with many of them is no trap.
    return first + "".join(f"(?>[^/]*?{between})" for between in more[:-1]) + "[^/]*" + more[-1]
