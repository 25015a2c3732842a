"""Tokens and ids of two models, side by side: a student learns from a teacher whose id means the same token.

Standard library alone: a preflight compares them where nothing else is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CURE = "a student and a teacher of one family, or a student that was saved with the teacher's tokenizer"


def of(folder: Path) -> dict[str, int]:
    """Token to id, added tokens too, as get_vocab() of its tokenizer has them. Raises OSError, and ValueError for a
    tokenizer.json that is none."""
    try:
        made: Any = json.loads((folder / "tokenizer.json").read_bytes())
        vocabulary = made["model"]["vocab"]
        if isinstance(vocabulary, list):  # of a Unigram model, pairs of token and score
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {row["content"]: row["id"] for row in made.get("added_tokens") or ()}
        return {str(token): int(number) for token, number in {**vocabulary, **added}.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no tokenizer.json of tokenizers ({type(error).__name__}: {error})") from None


def digest(tokens: Mapping[str, int]) -> str:
    """`teacher_vocab_sha256` of a dataset."""
    return hashlib.sha256(json.dumps(sorted(tokens.items(), key=lambda pair: pair[1])).encode()).hexdigest()


def difference(student: Path, teacher: Path) -> str:
    """Why the logits of two pretrained directories cannot be compared, with both paths; empty when they can."""
    found: list[tuple[int, dict[str, int]]] = []
    for folder in (student, teacher):
        try:
            size = json.loads((folder / "config.json").read_bytes()).get("vocab_size")
            found.append((int(size), of(folder)))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return f"{folder}: {error}"
    (rows, ours), (wanted, theirs) = found
    if ours == theirs and rows == wanted:
        return ""
    if ours == theirs:
        return f"the student {student} has logits of {rows} tokens, the teacher {teacher} of {wanted}"
    token = min({*ours.items()} ^ {*theirs.items()}, key=lambda pair: (pair[1], pair[0]))[0]
    said = [f"{folder} {'has no such token' if number is None else number}"
            for folder, number in ((student, ours.get(token)), (teacher, theirs.get(token)))]  # fmt: skip
    return (
        f"the tokenizers of student and teacher differ ({len(ours)} and {len(theirs)} tokens), first in the id of "
        f"{token!r}: {said[0]}, {said[1]}"
    )
