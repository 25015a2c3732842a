"""What a teacher said of a row's completion, stored beside it: docs/DISTILLATION.md has the columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nexa_dist.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

TOKENS, IDS, LOGPROBS = COLUMNS = ("teacher_tokens", "teacher_top_ids", "teacher_top_logprobs")
VOCABULARY = "teacher_vocab_sha256"
MOST = 1000
"""Tokens of one position."""


class Said(NamedTuple):
    """Ids of a completion's n tokens, and of each the k most probable ones: shape (n, k), minus infinity where fewer
    are known."""

    tokens: tuple[int, ...]
    ids: np.ndarray[Any, Any]
    logprobs: np.ndarray[Any, Any]


def said(where: str, row: Mapping[str, Any], size: int, digest: str) -> Said | None:
    """Of a row; None where it has nothing. `size` is of the vocabulary, `digest` names it (vocabulary.digest). Raises
    UsageError, naming the row, for what cannot be a teacher's word on tokens of this vocabulary."""
    import numpy as np

    missing = [name for name in COLUMNS if row.get(name) is None]
    if len(missing) == len(COLUMNS):
        return None
    if missing:
        raise UsageError(f"{where}: no {', '.join(missing)}", hint=f"{', '.join(COLUMNS)} go together")
    if row.get(VOCABULARY) not in (None, digest):
        raise UsageError(
            f"{where}: {VOCABULARY} is {row[VOCABULARY]!r:.80}, of the student {digest}",
            hint="the teacher has another tokenizer, so its ids mean other tokens: take a student that has the same",
        )
    tokens, ids, logprobs = (row[name] for name in COLUMNS)
    try:
        width = max(map(len, ids), default=0)
        lengths = [len(one) for one in ids]
        if not len(tokens) == len(ids) == len(logprobs) or lengths != [len(one) for one in logprobs]:
            raise ValueError(f"{', '.join(COLUMNS)} are not of the same lengths")
        if tokens and not 0 < min(lengths) <= width <= MOST:
            raise ValueError(f"{IDS} has {min(lengths)} to {width} tokens in a position, 1 to {MOST} are possible")
        made = Said(
            tuple(map(_whole, tokens)),
            np.zeros((len(ids), width), np.int32),
            np.full((len(ids), width), -np.inf, np.float32),
        )
        for at, (those, sizes) in enumerate(zip(ids, logprobs, strict=True)):
            made.ids[at, : len(those)] = [*map(_whole, those)]
            made.logprobs[at, : len(those)] = sizes
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: {error}", hint=f"docs/DISTILLATION.md says what {', '.join(COLUMNS)} are") from None
    given = made.logprobs[made.logprobs > -np.inf]
    if made.ids.size and (int(made.ids.max()) >= size or int(made.ids.min()) < 0):
        raise UsageError(f"{where}: {IDS} has id {int(made.ids.max())}, the vocabulary {size} tokens")
    if len(given) != sum(lengths) or (given.size and not -math.inf < float(given.max()) <= 1e-3):
        raise UsageError(f"{where}: {LOGPROBS} are natural logarithms of probabilities, finite and 0 at most")
    return made


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is no token's id")
    return value


def begins(ids: list[int], mask: np.ndarray[Any, Any], said: Said) -> int | None:
    """At which of the row's tokens the teacher's begin: with the last stretch that is learned, whose first tokens they
    must be. None where they are others, as text may be tokenized otherwise than it was generated."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask]).astype(np.int8)) == 1)
    if not len(edges) or not said.tokens:
        return None
    first = int(edges[-1])
    return first if tuple(ids[first : first + len(said.tokens)]) == said.tokens else None


def joined(told: list[tuple[int, tuple[int, Said] | None]]) -> dict[str, np.ndarray[Any, Any]]:
    """Of one row after the other, each (how many tokens, from which of them on what was said): `_kd_at`, shape
    (tokens,): the row of `_kd_ids` and `_kd_logprobs`, shape (positions, k), or -1. Something was said of one."""
    import numpy as np

    width = max((one[1].ids.shape[1] for _, one in told if one is not None), default=0)
    at = np.full(sum(count for count, _ in told), -1, np.int64)
    ids, logprobs, start, rows = [], [], 0, 0
    for count, one in told:
        if one is not None:
            begin, words = start + one[0], one[1]
            known, more = len(words.tokens), ((0, 0), (0, width - words.ids.shape[1]))
            at[begin : begin + known] = np.arange(rows, rows + known)
            rows += known
            ids.append(np.pad(words.ids, more))
            logprobs.append(np.pad(words.logprobs, more, constant_values=-np.inf))
        start += count
    return {"_kd_at": at, "_kd_ids": np.concatenate(ids), "_kd_logprobs": np.concatenate(logprobs)}
