"""The table of known ways to fail, and the page that shows it."""

from __future__ import annotations

import re

from nexa_dist.plan.known_data import DATA
from nexa_dist.plan.known_ends import ENDS
from nexa_dist.plan.known_gpu import CUDA
from nexa_dist.plan.known_library import LIBRARY
from nexa_dist.plan.known_machine import MACHINE
from nexa_dist.plan.known_network import NETWORK
from nexa_dist.plan.known_program import PROGRAM
from nexa_dist.plan.known_ranks import CHILDREN, RANKS
from nexa_dist.plan.known_service import SERVICE
from nexa_dist.plan.known_software import COMPILED, SOFTWARE
from nexa_dist.plan.signature import Signature

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
