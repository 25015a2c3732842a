"""The spot prices that were asked last, kept in the workspace for whoever is offline. Their age is told with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nexa_dist.ops.context import Context
from nexa_dist.run import files, trust
from nexa_dist.shape import lenient, number, rows, table, text

Spot = Mapping[tuple[str, str], float]
"""USD/h by (type, zone)."""
ROWS = lenient(table(text(200, r"\S+ \S+"), rows(number(1e-6), 2, 2), 10_000))
"""[USD/h, unix time at which it was asked] by type and zone."""


def _file(ctx: Context, region: str) -> Path:
    return ctx.workspace.root / ".nexa" / "prices" / f"{region}.json"


def keep(ctx: Context, region: str, spot: Spot) -> None:
    """Replaces what is known of these types and zones."""
    if spot:
        trust.claim(ctx.workspace.root)
        asked = {f"{kind} {zone}": [usd, ctx.now()] for (kind, zone), usd in spot.items()}
        files.write_json(_file(ctx, region), {**_read(ctx, region), **asked})


def kept(ctx: Context, region: str) -> tuple[dict[tuple[str, str], float], float]:
    """Prices that are known, and the age of the oldest in seconds."""
    rows = {tuple(name.split()): row for name, row in _read(ctx, region).items()}
    spot = {(name[0], name[1]): row[0] for name, row in rows.items()}
    return spot, max((max(0.0, ctx.now() - row[1]) for row in rows.values()), default=0.0)


def _read(ctx: Context, region: str) -> dict[str, list[float]]:
    """A damaged file is a file that knows nothing."""
    return ROWS(files.object_or_empty(_file(ctx, region))) or {}
