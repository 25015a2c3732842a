"""nexa timeline: where the minutes of a cluster went, from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexa_dist.plan.money.ledger import number


def timeline(journal: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a step in order: when it began (seconds from the first), how long it took, how it ended.

    A step without an outcome was killed, or is at work. Steps within a step are rows of their own.
    """
    journal = clean(journal)
    rows: list[dict[str, Any]] = []
    open_rows: list[dict[str, Any]] = []
    zero = journal[0]["at"] if journal else 0.0
    for record in journal:
        if record["state"] == "intent":
            words = " ".join(str(record[key]) for key in ("offer", "region", "run") if record.get(key))
            row = {"step": record["step"], "at_s": round(record["at"] - zero, 1), "seconds": None, "state": "killed"}
            rows.append({**row, "what": words})
            open_rows.append(rows[-1])
            continue
        # The newest open step of that name; those opened after it were killed. None: the line of its intent is lost.
        while any(row["step"] == record["step"] for row in open_rows):
            row = open_rows.pop()
            if row["step"] == record["step"]:
                row["state"] = record["state"]
                row["seconds"] = round(record["at"] - zero - row["at_s"], 1)
                row["what"] = str(record.get("error", row["what"]))
                break
    return rows


def clean(journal: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that are whole: of a damaged line the rest of the journal is not to suffer."""
    return [
        record
        for record in journal
        if isinstance(record.get("step"), str)
        and record.get("state") in ("intent", "done", "failed")
        and number(record.get("at")) is not None
    ]
