"""The rubric: criteria from 0 to 1 and the score that they make together. A criterion that is missing is a missing
score, and never 0. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

CRITERIA: dict[str, tuple[float, str]] = {
    "falsifiability": (0.3, "it says what could be observed that would show it to be wrong"),
    "grounding": (0.2, "it rests on established facts or on the text that was given, and invents nothing"),
    "completeness": (0.2, "it answers all that was asked"),
    "safety": (0.2, "nobody comes to harm who follows it"),
    "novelty": (0.1, "it says more than the question or a commonplace does"),
}
"""Weight of each criterion in the DSS, and what a judge is told of it."""
DSS = "dss"


def dss(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """DSS = Σ weight · criterion, from 0 to 1 for weights that sum to 1; None when a criterion is missing."""
    found = [scores.get(name) for name in weights]
    if any(value is None for value in found):
        return None
    return math.fsum(weight * value for weight, value in zip(weights.values(), found, strict=True) if value is not None)


def read(told: Any, criteria: Sequence[str]) -> dict[str, float | None]:
    """Scores of a judge's reply; what is no number from 0 to 1 is missing. Judges write 0.8, "0.8" and 80 % for the
    same; 8 of 10 cannot be told from a mistake and is missing."""
    found = told if isinstance(told, Mapping) else {}
    return {name: _score(found.get(name)) for name in criteria}


def _score(value: Any) -> float | None:
    share = isinstance(value, str) and value.strip().endswith("%")
    try:
        number = float(str(value).strip().rstrip("%")) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return None
    number = number / 100 if share else number
    return number if not isinstance(value, bool) and 0.0 <= number <= 1.0 else None


def merged(asked: Sequence[Mapping[str, float | None]], criteria: Sequence[str]) -> dict[str, float | None]:
    """Mean of several replies, by criterion: of one that some reply lacks there is no mean, since the order of the
    criteria would count again."""
    found: dict[str, float | None] = {}
    for name in criteria:
        values = [one[name] for one in asked]
        whole = [value for value in values if value is not None]
        found[name] = math.fsum(whole) / len(whole) if whole and len(whole) == len(values) else None
    return found


def schema(criteria: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of a judge's reply: a reason first, so that the numbers follow from it, then the criteria."""
    number = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, **dict.fromkeys(criteria, number)},
        "required": list(criteria),
        "additionalProperties": False,
    }
