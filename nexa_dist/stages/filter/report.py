"""What went and why: report.json for programs, report.md for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nexa_dist.stages.filter.config import FilterConfig
from nexa_dist.stages.filter.judge import Fate
from nexa_dist.stages.filter.learned import Learned
from nexa_dist.stages.whole import whole

_MEANS = {
    "form": "neither messages nor a prompt and a completion, or a chat that the template cannot lay out",
    "duplicate": "an earlier row has the same in a column of unique",
    "too_long": "more tokens than max_tokens",
    "nothing_learned": "no token of it would be learned",
    "drawn": "drawn for a person to see",
}


def summary(config: FilterConfig, fates: Collection[Fate], learned: Learned) -> dict[str, Any]:
    """Counts of rows by fate, and of reasons by fate: a row may have several."""
    words = Counter(fate.word for fate in fates)
    reasons: dict[str, Counter[str]] = {}
    for fate in fates:
        for reason in fate.reasons:
            reasons.setdefault(reason, Counter())[fate.word] += 1
    stays = sum(fate.stays for fate in fates)
    counts = {"rows_in": len(fates), "rows": stays, "dropped": words["drop"], "pending": words["pending"],
              "accepted": words["accept"], "rejected": words["reject"]}  # fmt: skip
    order = sorted(reasons, key=lambda reason: (-sum(reasons[reason].values()), reason))
    told: dict[str, Any] = {
        "counts": counts,
        "reasons": {reason: dict(sorted(reasons[reason].items())) for reason in order},
    }
    silent = [rule.name for rule in config.rules if not any(reason.split(":")[0] == rule.name for reason in reasons)]
    told["rules_without_effect"] = silent
    if learned.tokens:
        told["tokens"] = {"all": learned.tokens, "learned": learned.learned_tokens}
    return told


def write(folder: Path, told: dict[str, Any]) -> None:
    for name, text in (("report.json", json.dumps(told, indent=2) + "\n"), ("report.md", markdown(told))):
        with whole(folder / name) as scratch:
            scratch.write_text(text, encoding="utf-8")


def markdown(told: dict[str, Any]) -> str:
    counts = told["counts"]
    lines = ["# What went and why", "", line(told), ""]
    lines += ["| reason | rows | became | |", "|---|---|---|---|"] if told["reasons"] else []
    for reason, words in told["reasons"].items():
        became = ", ".join(f"{word} {count}" for word, count in words.items())
        lines.append(f"| {reason} | {sum(words.values())} | {became} | {_MEANS.get(reason, '')} |")
    if told["rules_without_effect"]:
        lines += ["", f"Rules that no row met: {', '.join(told['rules_without_effect'])}."]
    if "tokens" in told:
        lines += ["", f"{told['tokens']['learned']} of {told['tokens']['all']} tokens are learned."]
    if counts["pending"]:
        lines += ["", f"{counts['pending']} rows wait for a person: fill in the column review of review.csv, and give "
                  "that file as the input review."]  # fmt: skip
    return "\n".join(lines) + "\n"


def line(told: dict[str, Any]) -> str:
    counts = told["counts"]
    more = ", ".join(
        f"{counts[name]} {name}" for name in ("dropped", "rejected", "accepted", "pending") if counts[name]
    )
    return f"{counts['rows']} of {counts['rows_in']} rows stay" + (f"; {more}" if more else "")
