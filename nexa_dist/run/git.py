"""git on a repository that somebody else may have written: it reads, and starts nothing that the repository names."""

from __future__ import annotations

import os
from pathlib import Path

from nexa_dist.run.runner import Result, Runner

OFF = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.sshCommand=false", "core.pager=cat")
"""Settings of `.git/config` that name programs; one on the command line counts before it."""
ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "none",  # a partial clone fetches what it lacks, with programs of its remote's
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


def argv(root: Path, *words: str) -> tuple[str, ...]:
    """For commands that read the index and refs. What looks at the content of work files (status, diff, add) would
    start the filters that `.gitattributes` names, for which git has no switch."""
    return ("git", *(word for setting in OFF for word in ("-c", setting)), "-C", str(root), *words)


def run(runner: Runner, root: Path, *words: str, timeout_s: float = 60.0) -> Result:
    return runner.run(argv(root, *words), env=ENVIRONMENT, timeout_s=timeout_s)


def tracks(runner: Runner, root: Path, *patterns: str) -> str:
    """The first file by these patterns that the repository brings; empty when there is none, or no git."""
    if not _is_inside(root):
        return ""
    listed = run(runner, root, "ls-files", "-z", "--cached", "--", *patterns)
    return os.fsdecode(listed.out.partition(b"\0")[0]) if listed.code == 0 else ""


def _is_inside(root: Path) -> bool:
    """Whether `root` lies in a work tree, without asking git."""
    return any(os.path.lexists(folder / ".git") for folder in (root, *root.parents))
