"""nexa cost: where the money went, and what it costs now."""

from __future__ import annotations

import datetime
from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_OK
from nexa_dist.ops.money import cost as costing
from nexa_dist.ops.money.cost import Ledger
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, name_of


def cost(args: Arguments) -> int:
    ctx = context(acts=False)
    ledger, run = costing.find(ctx, name_of(args.what))
    report = costing.report(ctx, ledger)
    if run:
        report = _of_run(report, run)
    if args.json:
        terminal.emit(report)
    elif args.waste:
        for line in ledger.waste.lines():
            terminal.out(line)
    elif run:
        _show_run(report)
    else:
        _show(report, ledger)
    return EXIT_OK


def _of_run(report: dict[str, Any], run: str) -> dict[str, Any]:
    (row,) = (row for row in report["runs"] if row["run"] == run)
    return {"cluster": report["cluster"], **row, "unpriced": report["unpriced"]}


def _show(report: dict[str, Any], ledger: Ledger) -> None:
    nodes = [
        {
            **{key: row[key] for key in ("node", "id", "offer")},
            "from": _when(row["start_unix"]), "to": _when(row["stop_unix"]),
            "hours": _hours(row["seconds"]), "usd": _usd(row["usd"]),
        }
        for row in report["nodes"]
    ]  # fmt: skip
    terminal.table(nodes, ("node", "id", "offer", "from", "to", "hours", "usd"))
    phases = {name: part for name, part in report["phases"].items() if part["seconds"]}
    for title, shares in (("phase", phases), ("day", report["days"]), ("tag", report["tags"])):
        if shares:
            rows = [{title: name, "hours": _hours(p["seconds"]), "usd": _usd(p["usd"])} for name, p in shares.items()]
            terminal.table(rows, (title, "hours", "usd"))
    if report["runs"]:
        terminal.table([_run_cells(row) for row in report["runs"]], RUN_COLUMNS)
    _say_total(report)
    for line in ledger.waste.lines()[1:]:
        terminal.say(f"  {line}")


RUN_COLUMNS = (
    "run",
    "state",
    "hours",
    "usd",
    "training",
    "lost",
    "recovering",
    "usd_per_step",
    "usd_per_million_tokens",
)


def _run_cells(row: dict[str, Any]) -> dict[str, Any]:
    parts = {name: _usd(part["usd"]) for name, part in row["phases"].items()}
    figures = {key: None if row[key] is None else f"{row[key]:.4g}" for key in RUN_COLUMNS[-2:]}
    return {"run": row["run"], "state": row["state"], "hours": _hours(row["seconds"]), "usd": _usd(row["usd"]),
            **parts, **figures}  # fmt: skip


def _show_run(row: dict[str, Any]) -> None:
    terminal.table([_run_cells(row)], RUN_COLUMNS)
    usd = "cost unknown" if row["usd"] is None else f"{row['usd']:.2f} USD"
    terminal.say(
        f"{row['run']}: {usd} on {row['cluster']}, {_hours(row['seconds'])} h of nodes in {row['attempts']} attempts"
    )


def _say_total(report: dict[str, Any]) -> None:
    parts = [f"instances {report['instances_usd']:.2f}", f"disks {report['disks_usd']:.2f}"]
    parts += [f"addresses {report['addresses_usd']:.2f}", f"logs sent here {report['egress_usd']:.2f}"]
    total = f"{report['known_usd']:.2f} USD ({', '.join(parts)})"
    if report["unpriced"]:
        total += f", and what nobody knows the price of: {', '.join(report['unpriced'])}"
    terminal.say(f"{report['cluster']}: {total}; now {report['usd_per_hour']:.2f} USD/h")
    if report["uncounted"]:
        terminal.say(f"  no price is known for: {', '.join(report['uncounted'])}")
    if report["budget_usd"]:
        terminal.say(f"  budget {report['budget_usd']:.2f} USD")
    if report["egress_usd_per_gb"] is not None:
        terminal.say(
            f"  what your own code sends to the internet is not counted: {report['egress_usd_per_gb']:.2f} USD/GB"
        )


def _when(unix: float | None) -> str | None:
    if unix is None:
        return None
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3f}"


def _usd(usd: float | None) -> str | None:
    return None if usd is None else f"{usd:.4f}"
