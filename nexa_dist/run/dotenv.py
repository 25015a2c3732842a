"""`.env` in the workspace: the keys of other people's services, which are in no file that is sent or shown.

Only the names below are taken, and those that a training names as its secrets. A repository that somebody else wrote
must not choose where our cloud is (AWS_ENDPOINT_URL) or which program gives its credentials (AWS_CONFIG_FILE). What the
environment has already stays.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

from nexa_dist.errors import UsageError

NAME = ".env"
SECRET = (
    "WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "TS_AUTHKEY", "TS_OAUTH_CLIENT_ID", "TS_OAUTH_CLIENT_SECRET",
)  # fmt: skip
KNOWN = (*SECRET, "AWS_REGION", "AWS_PROFILE", "WANDB_ENTITY", "WANDB_PROJECT")
CLOSE = 0.85
_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_QUOTED = re.compile(r"(?P<quote>['\"])(?P<text>.*)(?P=quote)\s*(?:#.*)?")


def load(root: Path, environ: MutableMapping[str, str], is_tracked: Callable[[], bool] = lambda: False) -> list[str]:
    """Adds what `.env` of this folder has and `environ` lacks; answers what is to be said about it.

    Raises UsageError when others may read its secrets, or chose them: by their file, or by the repository that tracks
    it. Also when a line is none.
    """
    values, said = _checked(root, KNOWN, SECRET, is_tracked)
    for name, value in values.items():
        environ.setdefault(name, value)
    return said


def named(root: Path, names: Sequence[str], is_tracked: Callable[[], bool] = lambda: False) -> dict[str, str]:
    """Values of this folder's `.env` under these names, every one of them a secret. Raises as `load`."""
    return _checked(root, names, names, is_tracked)[0]


def _checked(
    root: Path, known: Sequence[str], secrets: Sequence[str], is_tracked: Callable[[], bool]
) -> tuple[dict[str, str], list[str]]:
    path = root / NAME
    try:
        with path.open(encoding="utf-8") as file:
            told, text = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return {}, []
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    values, said = parse(text, str(path), known)
    mode, secret = stat.S_IMODE(told.st_mode), set(values) & set(secrets)
    if mode & 0o077 and secret:
        raise UsageError(f"{path} holds secrets, and others may read it (mode {mode:04o})", hint=f"chmod 600 {path}")
    if told.st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to user {told.st_uid}, and we are {os.geteuid()}", hint="make one of your own"
        )
    if secret and is_tracked():
        raise UsageError(
            f"{path} holds secrets, and git tracks it: whoever wrote the repository chose whose accounts are used",
            hint=f"git rm -q --cached {NAME} takes it out of git, if the keys are yours; they are in its history",
        )
    return values, said


def parse(text: str, where: str, known: Sequence[str] = KNOWN) -> tuple[dict[str, str], list[str]]:
    """NAME=value lines as a shell has them: quotes, `export`, comments; nothing is expanded. Values are never said."""
    values: dict[str, str] = {}
    said: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise UsageError(f"{where}:{number}: expected NAME=value")
        name, value = found["name"], found["value"].strip()
        if value[:1] in ("'", '"'):
            quoted = _QUOTED.fullmatch(value)
            if not quoted:
                raise UsageError(f"{where}:{number}: the quote of {name} is not closed")
            value = quoted["text"]
        else:
            value = value.split(" #")[0].rstrip()
        if name in known:
            values |= {name: value} if value else {}
        elif close := difflib.get_close_matches(name, known, 1, CLOSE):
            said.append(f"warning: {where}:{number}: {name} is not used; did you mean {close[0]}?")
    return values, [line for line in said if line.rpartition("did you mean ")[2][:-1] not in values]
