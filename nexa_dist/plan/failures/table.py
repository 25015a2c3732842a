"""The table of known ways to fail, and the page that shows it."""

from __future__ import annotations

import re

from nexa_dist.plan.failures.known.data import DATA
from nexa_dist.plan.failures.known.external import ENDS
from nexa_dist.plan.failures.known.gpu import CUDA
from nexa_dist.plan.failures.known.library import LIBRARY
from nexa_dist.plan.failures.known.machine import MACHINE
from nexa_dist.plan.failures.known.network import NETWORK
from nexa_dist.plan.failures.known.program import PROGRAM
from nexa_dist.plan.failures.known.ranks import CHILDREN, RANKS
from nexa_dist.plan.failures.known.service import SERVICE
from nexa_dist.plan.failures.known.signature import Signature
from nexa_dist.plan.failures.known.software import COMPILED, SOFTWARE

TITLES = (
    ("GPUs", CUDA),
    ("Ranks and their processes", RANKS),
    ("Network and rendezvous", NETWORK),
    ("Memory, disk, files", MACHINE),
    ("Software of the node", SOFTWARE),
    ("Data", DATA),
    ("Libraries", LIBRARY),
    ("Services", SERVICE),
    ("torch.compile, children", (*COMPILED, *CHILDREN)),
    ("The program", PROGRAM),
    ("Ends from outside", ENDS),
)
TABLE: tuple[Signature, ...] = tuple(signature for _, part in TITLES for signature in part)
"""In the order of the search within one log: what is special comes before what is general."""
BY_NAME = {signature.name: signature for signature in TABLE}


def as_markdown() -> str:
    """The tables of docs/WHY.md."""
    parts = []
    for title, signatures in TITLES:
        rows = [
            (f"`{s.name}`", s.sees, re.sub(r":? ?\(?\{\w+\}( ms\))?", "", s.words) or "an exception", s.fix)
            for s in signatures
        ]
        lines = ["| name | what you see | cause | what to do |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
