"""Windows of tokens of whole documents: a document that does not fit into what is left of a window begins the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError

Window = tuple[list[int], list[int], list[int]]
"""Tokens, number of the document of each within its window (1, 2, … and 0 for padding), and its place in there."""


def tokenizer(root: Path) -> Any:
    """The tokenizer of a tokenizer.json, or of a folder with one. Raises NexaError."""
    path = root / "tokenizer.json" if root.is_dir() else root
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except ImportError:
        raise NexaError("pack needs the package tokenizers", hint="it is in the environment light") from None
    except Exception as error:  # the library raises nothing narrower
        raise NexaError(f"{path} is no tokenizer: {error}") from None


def windows(documents: Iterable[Sequence[int]], length: int, padding: int = 0) -> Iterator[Window]:
    """Windows of exactly `length` tokens. A longer document has windows of its own but for its rest."""
    tokens: list[int] = []
    numbers: list[int] = []
    places: list[int] = []

    def closed() -> Window:
        rest = length - len(tokens)
        return tokens + [padding] * rest, numbers + [0] * rest, places + [0] * rest

    for document in documents:
        for begin in range(0, len(document), length):
            piece = document[begin : begin + length]
            if len(tokens) + len(piece) > length:
                yield closed()
                tokens, numbers, places = [], [], []
            numbers += [(numbers[-1] if numbers else 0) + 1] * len(piece)
            tokens += piece
            places += range(begin, begin + len(piece))
    if tokens:
        yield closed()
