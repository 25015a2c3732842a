"""git, asked about a repository that somebody else may have written: nothing that its files name is run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_dist.run.runner import Result, Runner

OFF = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.sshCommand=false",
    "core.pager=cat",
    "core.alternateRefsCommand=",
)
"""Programs that a repository's own config can name for what we ask. What the user's config allows stays: without it
`safe.directory` would not hold."""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
"""Set where a hook of another repository has called us."""
MOST_ASKED = 200
"""Names in one command line."""
ALONE = {
    "GIT_ALLOW_PROTOCOL": "none",  # an object that is missing is not fetched, by whatever program the config names
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


def argv(folder: Path, *words: str) -> tuple[str, ...]:
    """git in `folder`. For commands that read the index and refs: what looks at the content of work files (status,
    diff, add) would start the filters that `.gitattributes` names, for which git has no switch."""
    unset = [word for name in ELSEWHERE for word in ("-u", name)]
    off = [word for setting in OFF for word in ("-c", setting)]
    return ("env", *unset, "git", "-C", str(folder), *off, *words)


def ask(runner: Runner, folder: Path, *words: str, timeout_s: float = 60.0) -> Result:
    """Ask git; exit code 127 without git. It looks for the repository no higher than `top` finds one."""
    found = top(folder)
    ceiling = {"GIT_CEILING_DIRECTORIES": str(found.parent)} if found else {}
    return runner.run(argv(folder, *words), timeout_s=timeout_s, env={**ALONE, **ceiling})


def top(folder: Path) -> Path | None:
    """The folder that has `.git`, whatever that is and whether or not git takes it: `folder` or the nearest above."""
    return next((place for place in (folder, *folder.parents) if os.path.lexists(place / ".git")), None)


def commit(runner: Runner, root: Path, sent: Mapping[str, bytes]) -> str | None:
    """HEAD, with `-dirty` when `sent` (bytes of files and links, by name) is not what that commit has: changed, new, or
    missing. None without a commit. git itself is not asked what has changed: for that it may start programs."""
    head = ask(runner, root, "rev-parse", "--verify", "HEAD")
    listed = ask(runner, root, "ls-tree", "-r", "-z", "HEAD")
    if head.code or listed.code:
        return None
    rows = [row.partition(b"\t") for row in listed.out.split(b"\0") if row]
    entries = {os.fsdecode(name): words.split() for words, _, name in rows}
    modules = tuple(f"{name}/" for name, words in entries.items() if words[1] == b"commit")
    blobs = {name: words[2].decode() for name, words in entries.items() if words[1] == b"blob"}
    differ = [
        name
        for name, content in sent.items()
        if not name.startswith(modules) and blobs.get(name) not in _blobs(content, blobs.get(name, ""))
    ]
    gone = any(name not in sent and not os.path.lexists(root / name) for name in blobs)
    dirty = gone or (bool(differ) and not _filtered(runner, root, differ))
    return head.out.decode().strip() + ("-dirty" if dirty else "")


def _blobs(content: bytes, like: str) -> set[str]:
    """Hashes by which git calls these bytes, as they are and with the line ends that it would keep."""
    kind = hashlib.sha256 if len(like) == 64 else hashlib.sha1
    forms = {content, content.replace(b"\r\n", b"\n")}
    return {kind(b"blob %d\0" % len(form) + form, usedforsecurity=False).hexdigest() for form in forms}


def _filtered(runner: Runner, root: Path, names: Sequence[str]) -> bool:
    """Tell whether what git keeps of all these files is made by programs (LFS), so that it cannot be compared."""
    if len(names) > MOST_ASKED:
        return False
    told = ask(runner, root, "check-attr", "-z", "filter", "--", *names).out.split(b"\0")
    return len(told) > 2 and not {b"unspecified", b"unset"} & set(told[2::3])


def tracks(runner: Runner, root: Path, *patterns: str) -> str:
    """The first file by these patterns that the repository brings; empty when there is none, or no git."""
    if not top(root):
        return ""
    listed = ask(runner, root, "ls-files", "-z", "--cached", "--", *patterns)
    return os.fsdecode(listed.out.partition(b"\0")[0]) if listed.code == 0 else ""
