"""What becomes of one row, and for which reasons. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nexa_dist.stages.filter.config import FilterConfig, Rule
from nexa_dist.stages.filter.review import Decision
from nexa_dist.stages.row_files import Id, Row

Verdict = tuple[Literal["keep", "drop", "review"], tuple[str, ...]]


@dataclass(frozen=True)
class Fate:
    """What becomes of a row: keep, drop, or, where a person was asked, pending, accept or reject."""

    word: str
    reasons: tuple[str, ...] = ()
    decision: Decision | None = None

    @property
    def stays(self) -> bool:
        return self.word in ("keep", "accept")


def judge(config: FilterConfig, row_id: Id, row: Row) -> Verdict:
    """The verdict of all rules and the rubric: drop before review before keep, and what spoke so."""
    found = [*_by_rules(config, row), *_by_rubric(config, row)]
    for fate in ("drop", "review"):
        if reasons := tuple(reason for said, reason in found if said == fate):
            return fate, reasons
    if drawn(config.seed, row_id) < config.review.share:
        return "review", ("drawn",)
    return "keep", ()


def _by_rules(config: FilterConfig, row: Row) -> Iterator[tuple[str, str]]:
    for rule in config.rules:
        value = value_at(row, rule.column)
        if value is None:
            yield rule.missing, f"{rule.name}: missing"
        elif not holds(rule, value):
            yield rule.otherwise, rule.name


def _by_rubric(config: FilterConfig, row: Row) -> Iterator[tuple[str, str]]:
    for column, least in config.rubric.least.items() if config.rubric else ():
        score = number(value_at(row, column))
        if score is None:
            yield config.rubric.missing, f"rubric {column}: missing"  # type: ignore[union-attr]
        elif score < least:
            yield config.rubric.otherwise, f"rubric {column}"  # type: ignore[union-attr]


def holds(rule: Rule, value: Any) -> bool:
    """Tell whether a value is what a rule asks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    chars, words, figure = len(text), len(text.split()), number(value)
    return (
        (rule.min_chars is None or chars >= rule.min_chars)
        and (rule.max_chars is None or chars <= rule.max_chars)
        and (rule.min_words is None or words >= rule.min_words)
        and (rule.max_words is None or words <= rule.max_words)
        and (rule.matches is None or re.search(rule.matches, text) is not None)
        and (rule.not_matches is None or re.search(rule.not_matches, text) is None)
        and (rule.least is None or (figure is not None and figure >= rule.least))
        and (rule.most is None or (figure is not None and figure <= rule.most))
        and (not rule.one_of or text in rule.one_of)
    )


def value_at(row: Row, column: str) -> Any:
    """The value of a column, or of a name within the JSON or the object in one; None where there is none."""
    if row.get(column) is not None:
        return row[column]
    head, dot, rest = column.partition(".")
    inner = row.get(head) if dot else None
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except (ValueError, RecursionError):
            return None
    return value_at(inner, rest) if isinstance(inner, dict) else None


def number(value: Any) -> float | None:
    """A finite number; a text is one where it reads so."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def drawn(seed: int, row_id: Id) -> float:
    """A number from 0 to 1 that the seed and the id alone decide, so a row more or less changes no other's."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
