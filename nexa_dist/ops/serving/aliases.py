"""Names of models that are in use: models/aliases.json, and models/promotions.jsonl, which says who, when and what."""

from __future__ import annotations

import getpass
import operator
import os
import re
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import files

NAMES = ("staging", "production")
FOLDER = "models"


@dataclass(frozen=True)
class Promotion:
    """A name that was given to a model: the run and step, what it had to reach, and what it reached."""

    alias: str
    run: str
    step: int
    sha256: str
    """Of the checkpoint's manifest."""
    by: str
    at_unix: float
    why: str = ""
    """promote, or rollback."""
    wanted: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    """Scores that it must not be above, such as perplexity."""
    scores: dict[str, float] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)
    evaluation: str = ""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Promotion | None:
        try:
            found = cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})
        except TypeError:
            return None
        return found if isinstance(found.run, str) and isinstance(found.step, int) else None


class Aliases:
    """The names of one workspace. The journal is the truth, aliases.json is written from it."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    @property
    def file(self) -> Path:
        return self._folder / "aliases.json"

    @property
    def journal(self) -> Path:
        return self._folder / "promotions.jsonl"

    def history(self, alias: str) -> list[Promotion]:
        """All promotions to a name, oldest first."""
        rows = (Promotion.of(row) for row in files.read_lines(self.journal))
        return [one for one in rows if one and one.alias == alias]

    def get(self, alias: str) -> Promotion | None:
        """What has the name now."""
        return next(reversed(self.history(alias)), None) if alias in NAMES else None

    def before(self, alias: str) -> Promotion:
        """What a rollback goes back to: the newest that is not what has the name now, and was not itself given up by a
        rollback. Raises UsageError."""
        stack: list[Promotion] = []
        for one in self.history(alias):
            if one.why == "rollback":
                stack = stack[:-1]
            elif not stack or (stack[-1].run, stack[-1].step) != (one.run, one.step):
                stack.append(one)
        if len(stack) < 2:
            raise UsageError(f"nothing had the name {alias} before", hint=f"{self.journal} has all promotions")
        return stack[-2]

    def give(self, promotion: Promotion) -> None:
        """Write the promotion down, then the names: killed in between, the journal is right. Raises UsageError for a
        rollback that another command was quicker to do."""
        with files.locked(self._folder / "lock", "promote"):
            back = self.before(promotion.alias) if promotion.why == "rollback" else promotion
            if (back.run, back.step) != (promotion.run, promotion.step):
                hint = "nexa promote --list shows who has it now"
                raise UsageError(f"{promotion.alias} was given to another meanwhile", hint=hint)
            files.append_json(self.journal, asdict(promotion))
            now = {alias: asdict(one) for alias in NAMES if (one := self.get(alias))}
            files.write_json(self.file, now, 0o644)


def made(alias: str, run: str, step: int, sha256: str, **facts: Any) -> Promotion:
    """A promotion of now, by whoever calls it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number alone
        user = str(os.getuid())
    return Promotion(alias, run, step, sha256, f"{user}@{socket.gethostname()}", round(time.time(), 3), **facts)


def thresholds(words: list[str], option: str = "--min") -> dict[str, float]:
    """`DSS=0.6` as {"dss": 0.6}. Raises UsageError."""
    found: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(r"([A-Za-z][\w.-]*)=(-?[0-9]+(?:\.[0-9]+)?)", word)
        if not match:
            raise UsageError(f"{option} {word!r} is no NAME=NUMBER", hint=f"{option} DSS=0.6")
        found[match[1].lower()] = float(match[2])
    return found


def scores_in(told: Any) -> dict[str, float]:
    """Every score of an evaluation's JSON by its name in small letters: numbers under scores, metrics or results, or
    {"mean": number} and {"value": number} there; perplexity stands by itself."""
    found: dict[str, float] = {}
    sections = [one for one in (told, told.get("notes")) if isinstance(one, dict)] if isinstance(told, dict) else []
    for section in sections:
        alone = {name: section[name] for name in ("perplexity",) if name in section}
        parts = [section.get(part) for part in ("scores", "metrics", "results")] + [alone]
        for rows in parts:
            for name, value in rows.items() if isinstance(rows, dict) else ():
                inner = value.get("mean", value.get("value")) if isinstance(value, dict) else value
                if isinstance(inner, int | float) and not isinstance(inner, bool) and inner == inner:
                    found[str(name).lower()] = float(inner)
    return found


def missed(least: dict[str, float], scores: dict[str, float], most: dict[str, float] | None = None) -> list[str]:
    """What keeps a model from its name: scores that are below `least` or above `most`, and those that nobody has, which
    are not 0."""
    faults = []
    for bounds, is_over, word in ((least, operator.lt, "less"), (most or {}, operator.gt, "more")):
        for name, bound in bounds.items():
            if name not in scores:
                faults.append(f"{name}: no score of it ({', '.join(sorted(scores)) or 'none'} are known)")
            elif is_over(scores[name], bound):
                faults.append(f"{name}: {scores[name]:g} is {word} than {bound:g}")
    return faults


def evaluation_of(root: Path, run: str, named: str) -> Path:
    """The file with the scores of a run: the one that is named, else the newest evals/NAME_RUN.json, of this folder
    or of an output of the stage eval. Raises NexaError."""
    if named:
        return Path(named)
    places = ("", "evals/*/", "runs/*/outputs/stage_output/", "versions/objects/*/")
    known = [path for place in places for path in root.glob(f"{place}evals/*_{run}.json")]
    found = sorted(known, key=lambda path: path.stat().st_mtime)
    if not found:
        raise NexaError(f"evals/ has no scores of {run}", hint="evaluate it first, or name the file: --eval FILE")
    return found[-1]
