"""The ledger of a cluster on disk: read, and added to in whole lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_dist.plan.money import ledger
from nexa_dist.plan.money.ledger import Period
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder


def read(folder: Path) -> list[dict[str, Any]]:
    """The events in a cluster's folder, or in what is kept of one that is gone."""
    return ledger.clean(files.read_lines(folder / "ledger.jsonl"))


def stop(folder: ClusterFolder, period: Period, at: float, why: str, source: str) -> None:
    """A machine has ended."""
    folder.ledger("node_stop", at=at, node=period.node, id=period.id, why=why, source=source)


def open_periods(folder: ClusterFolder) -> list[Period]:
    """The machines that are on, as far as the ledger knows."""
    return [period for period in ledger.periods(read(folder.path)) if period.stop_unix is None]
