"""Whether the values of a column, as JSON or CSV has them, are of one kind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow

KINDS: dict[str, Any] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
SORTS: dict[type, str] = {str: "string", int: "number", float: "number", bool: "boolean", dict: "object", list: "list"}
MOST = 100
"""Nested values of one batch that are looked for one by one."""
SMALLEST, LARGEST = -(2**63), 2**63 - 1


def typed(values: list[Any], kind: str) -> dict[int, str]:
    """What is wrong with each value that is not of a kind, by its place; texts that read as one are put right in place.
    For `any` the kind is what most have, and all of one kind are such that Arrow takes them together. Raises ValueError
    where too many are not."""
    if kind in KINDS:
        return {at: why for at, value in enumerate(values) if value is not None and (why := _put(values, at, kind))}
    count = Counter(SORTS[one] for one in map(type, values) if one is not type(None))
    if not count:
        return {}
    most = count.most_common(1)[0][0]
    faults = {}
    if len(count) > 1:
        faults = {at: f"expected {most}, as most rows around have" for at, value in enumerate(values)
                  if value is not None and SORTS[type(value)] != most}  # fmt: skip
    left = [None if at in faults else value for at, value in enumerate(values)]
    while why := _refused(left):
        if len(faults) > MOST:
            raise ValueError(f"its values are of too many kinds: {why}")
        # The first that does not go with those before it.
        low, high = 0, len(left)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _refused(left[:middle]) else (middle, high)
        faults[low], left[low] = _refused(left[: low + 1]) or why, None
    return faults


def _refused(values: list[Any]) -> str:
    try:
        pyarrow.array(values)
    except UnicodeError:
        return "no UTF-8"
    except (pyarrow.ArrowException, OverflowError) as error:
        return str(error).splitlines()[0][:200]
    return ""


def _put(values: list[Any], at: int, kind: str) -> str:
    """What is wrong with a value of a given kind; one of a CSV is put into its kind."""
    value: Any = values[at]
    if isinstance(value, str):
        if kind == "string":
            return "" if is_text(value) else "no UTF-8"
        value = values[at] = _of_text(value, kind, value)
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"expected {kind}"
    if kind == "integer" and not SMALLEST <= value <= LARGEST:
        return "expected integer of 64 bits"
    if kind == "number":
        try:
            values[at] = float(value)
        except OverflowError:
            return "expected number of 64 bits"
    return ""


def is_text(value: str) -> bool:
    """Tell whether UTF-8 has all characters; halves of surrogate pairs stand for bytes that are no UTF-8."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _of_text(value: str, kind: str, otherwise: Any) -> Any:
    """What a text of a CSV means as another kind; `otherwise` where it is none."""
    try:
        if kind == "boolean":
            return {"true": True, "false": False, "1": True, "0": False}[value.strip().lower()]
        return int(value) if kind == "integer" else float(value)
    except (KeyError, ValueError):
        return otherwise
