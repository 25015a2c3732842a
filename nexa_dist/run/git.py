"""git, asked about a repository that somebody else may have written: nothing that its files name is run."""

from __future__ import annotations

import os
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
    """What git answers; exit code 127 without git. It looks for the repository no higher than `top` finds one."""
    found = top(folder)
    ceiling = {"GIT_CEILING_DIRECTORIES": str(found.parent)} if found else {}
    return runner.run(argv(folder, *words), timeout_s=timeout_s, env={**ALONE, **ceiling})


def top(folder: Path) -> Path | None:
    """The folder that has `.git`, whatever that is and whether or not git takes it: `folder` or the nearest above."""
    return next((place for place in (folder, *folder.parents) if os.path.lexists(place / ".git")), None)


def tracks(runner: Runner, root: Path, *patterns: str) -> str:
    """The first file by these patterns that the repository brings; empty when there is none, or no git."""
    if not top(root):
        return ""
    listed = ask(runner, root, "ls-files", "-z", "--cached", "--", *patterns)
    return os.fsdecode(listed.out.partition(b"\0")[0]) if listed.code == 0 else ""
