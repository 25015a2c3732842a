"""Results that a run wrote on its nodes: which of them come, where they go here, and what is on the nodes alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

SHOWN = 5
"""Names in a line; the rest is counted."""


@dataclass(frozen=True)
class Wrote:
    """A file that a run wrote on one node; `path` is that in the run's folder there."""

    node: str
    name: str
    path: str
    bytes: int
    mtime_ns: int
    kind: str
    """outputs (named so in train.yaml), tracking (of W&B, TensorBoard) or other."""
    kept: bool = False
    """Whether the bucket has it too."""
    sha256: str = ""
    """Of a file that comes from the bucket."""


def latest(attempts: Mapping[int, Sequence[Wrote]]) -> list[Wrote]:
    """Of each name the file of the newest attempt that had one."""
    return list({row.name: row for _, rows in sorted(attempts.items()) for row in rows}.values())


@dataclass(frozen=True)
class Placed:
    """Place of a file below `outputs/`; `first` is the file of the same name that an earlier node wrote: an equal file
    does not come."""

    row: Wrote
    into: str
    first: Wrote | None = None


def placed(rows: Iterable[Wrote]) -> list[Placed]:
    """`rows` by node, rank 0's first: its files, and those that nobody else wrote, come under their own names, the
    others' below `<node>/`."""
    first: dict[str, Wrote] = {}
    taken: set[str] = set()
    folders: set[str] = set()
    found = []
    for row in rows:
        above = "" if row.name not in first else row.node
        into = f"{above}/{row.name}" if above else row.name
        while into in taken | folders or taken & set(_above(into)):
            above = f"{above}~" if above else row.node
            into = f"{above}/{row.name}"
        taken.add(into)
        folders.update(_above(into))
        found.append(Placed(row, into, first.get(row.name)))
        first.setdefault(row.name, row)
    return found


def _above(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def bounded(files: Sequence[Placed], most_bytes: float) -> tuple[list[Placed], list[Placed]]:
    """Split the files into as many as fit into so many bytes, in their order, and the rest: the small ones come."""
    fit, room = set[int](), most_bytes
    for at in sorted(range(len(files)), key=lambda at: files[at].row.bytes):
        room -= files[at].row.bytes
        if room >= 0:
            fit.add(at)
    return [f for at, f in enumerate(files) if at in fit], [f for at, f in enumerate(files) if at not in fit]


def sized(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(rows: Collection[Wrote], *, names: bool = False) -> str:
    """`3 files (1.2 MB)`, and with `names` some of them, the largest first."""
    made = f"{len(rows)} file{'s' * (len(rows) != 1)} ({sized(sum(row.bytes for row in rows))})"
    if not names:
        return made
    shown = [row.name for row in sorted(rows, key=lambda row: -row.bytes)[:SHOWN]]
    return f"{made}: {', '.join(shown)}" + (", …" if len(rows) > len(shown) else "")
