"""What an evaluation comes to: figures with intervals, overall and by group. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from nexa_dist.stages.eval import statistics
from nexa_dist.stages.eval.config import EvalConfig
from nexa_dist.stages.eval.judge import Verdicts
from nexa_dist.stages.eval.rubric import DSS
from nexa_dist.stages.filter.judge import number
from nexa_dist.stages.row_files import Row, plain, rounded

Table = Sequence[Mapping[str, Any]]
MOST_GROUPS = 50
OTHERS = "(others)"


def of_table(config: EvalConfig, table: Table, verdicts: Verdicts | None) -> dict[str, Any]:
    """Figures of all rows; `groups` has those of each value of each column that was asked for."""
    told = _figures(config, table)
    if verdicts and config.judge:
        told["judge"] = _of_judge(config, table, verdicts)
    if config.groups:
        told["groups"] = {column: _by(config, table, column) for column in config.groups}
    return told


def _figures(config: EvalConfig, table: Table) -> dict[str, Any]:
    told: dict[str, Any] = {"rows": len(table)}
    if config.judge:
        told["scores"] = {name: statistics.described([row[name] for row in table], config.seed)
                          for name in (DSS, *config.judge.criteria)}  # fmt: skip
        if config.judge.against:
            told["wins"] = _wins([row["winner"] for row in table], config.seed)
    if config.perplexity:
        told["perplexity"] = perplexity([row["nats"] for row in table], [row["tokens"] for row in table], config.seed)
    return told


def _wins(winners: Sequence[str | None], seed: int) -> dict[str, Any]:
    """Share of won pairs, a tie being half of one."""
    worth = {"answer": 1.0, "tie": 0.5, "other": 0.0}
    told = statistics.described([None if word is None else worth[word] for word in winners], seed)
    return {**told, **{word: Counter(winners)[word] for word in worth}}


def perplexity(nats: Sequence[float], tokens: Sequence[int], seed: int) -> dict[str, Any]:
    """exp(Σ nats / Σ tokens) with an interval from drawing rows; None without a token."""
    total = sum(tokens)
    mean = math.fsum(nats) / total if total else None
    low = statistics.ratio_interval(nats, tokens, seed) if total else None
    return {"value": _exp(mean), "nats_per_token": mean, "tokens": total,
            "interval": [_exp(low[0]), _exp(low[1])] if low else None}  # fmt: skip


def _exp(value: float | None) -> float | None:
    return math.exp(value) if value is not None and value < 700 else None


def _of_judge(config: EvalConfig, table: Table, verdicts: Verdicts) -> dict[str, Any]:
    assert config.judge
    told: dict[str, Any] = {"failures": dict(sorted(Counter(chain(*verdicts.failures.values())).items()))}
    if config.judge.against:
        told |= verdicts.first_place()
    told["agreement"] = {
        name: statistics.agreement([row[name] for row in table], [row[f"label_{name}"] for row in table], config.seed)
        for name in config.judge.labels
    }
    if badly := [name for name, found in told["agreement"].items() if statistics.ranks_badly(found)]:
        told["warning"] = f"as far as the labels can say this judge ranks no better than a coin: {', '.join(badly)}"
    return told


def label(row: Row, column: str) -> float | None:
    """A person's score, from 0 to 1; what is none of these is missing."""
    value = number(row.get(column))
    return value if value is not None and 0.0 <= value <= 1.0 else None


def _by(config: EvalConfig, table: Table, column: str) -> dict[str, Any]:
    """Figures by value, the most frequent values; what is beyond is one group."""
    values = [str(row[column]) if isinstance(row[column], str) else plain(row[column]) for row in table]
    shown = {value for value, _ in Counter(values).most_common(MOST_GROUPS)}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row, value in zip(table, values, strict=True):
        found.setdefault(value if value in shown else OTHERS, []).append(row)
    return {value: _figures(config, rows) for value, rows in sorted(found.items())}


def next_sample(told: Mapping[str, Any], by: str, rows: int) -> dict[str, Any]:
    """The key `sample` of a stage data: quotas by group, in proportion to how often the group is there and how weak the
    checkpoint is at it: 1 − dss, without a judge the nats of a token. A group without a figure counts as all do."""
    groups = {value: figures for value, figures in told["groups"][by].items() if value != OTHERS}
    overall = _weakness(told)
    shares = {}
    for value, figures in groups.items():
        weak = _weakness(figures)
        shares[value] = figures["rows"] * (weak if weak is not None else 1.0 if overall is None else overall)
    total = math.fsum(shares.values())
    exact = {value: rows * (share / total if total else 1 / len(shares)) for value, share in shares.items()}
    return {"policy": "quota", "by": by, "quotas": rounded(exact, rows)}


def _weakness(figures: Mapping[str, Any]) -> float | None:
    if "scores" in figures:
        mean = figures["scores"][DSS]["mean"]
        return None if mean is None else 1 - float(mean)
    nats = figures.get("perplexity", {}).get("nats_per_token")
    return None if nats is None else float(nats)


def lines(told: Mapping[str, Any], name: str) -> list[str]:
    """The same for people."""
    found = []
    for score, figures in told.get("scores", {}).items():
        found.append(f"{score}: {shown(figures)}" + (f", {figures['missing']} missing" if figures["missing"] else ""))
    if wins := told.get("wins"):
        found.append(f"wins: {shown(wins)} ({wins['answer']} won, {wins['tie']} tied, {wins['other']} lost)")
    if perplexed := told.get("perplexity"):
        found.append(
            f"perplexity: {shown({**perplexed, 'mean': perplexed['value']})} over {perplexed['tokens']} tokens"
        )
    judge = told.get("judge", {})
    for score, agreed in judge.get("agreement", {}).items():
        alike, spearman = agreed["ordered_alike"], agreed["spearman"]
        found.append(
            f"agreement with people on {score}, {agreed['rows']} rows: {_of(alike)} of their pairs ordered alike, "
            f"Spearman {_of(spearman)}, off by {_of(agreed['difference'])}"
        )
    found += [f"warning: {judge['warning']}"] if "warning" in judge else []
    return [f"{name}: {told['rows']} rows", *(f"  {line}" for line in found)]


def shown(figures: Mapping[str, Any]) -> str:
    span = figures.get("interval")
    return _of(figures["mean"]) + (f" [{_of(span[0])}, {_of(span[1])}]" if span else "")


def _of(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
