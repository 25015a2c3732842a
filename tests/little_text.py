"""A little text to train on: the standard library's json, 20,000 tokens in pieces.

A whole file is a document, and one of five is held out: each evaluation was longer than the training beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

PIECE = 1000
"""Characters."""


def write(folder: Path) -> None:
    """Below `folder`, which may be there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in Path(json.__file__).parent.glob("*.py"):
        text = source.read_text()
        for at in range(0, len(text), PIECE):
            (folder / f"{at}_{source.name}").write_text(text[at : at + PIECE])
