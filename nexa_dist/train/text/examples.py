"""Rows of JSONL or Parquet to tokens, with a mask of those that are learned: chats, prompts with completions, text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nexa_dist.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from nexa_dist.train.text.stored import Said

ROLES = ("system", "user", "assistant", "tool")
_FORMS = "messages (a chat), prompt and completion, or text"
_BATCH = 64


class Example(NamedTuple):
    """One row as text. `learned` are ranges of characters; `ended`: with the tokenizer's own beginning and end."""

    where: str
    text: str
    learned: tuple[tuple[int, int], ...]
    ended: bool
    said: Said | None = None
    """What a teacher said of the last of them."""


def rows(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """(where, row) of each line of each file; `where` is FILE:LINE, or FILE row N of a Parquet file."""
    for path in files:
        with open(path, "rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet or path.suffix == ".parquet":
            yield from _parquet(path)
            continue
        with open(path, encoding="utf-8") as lines:
            try:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{path}:{number}", json.loads(line)
            except ValueError as err:  # UnicodeDecodeError is one too
                raise UsageError(f"{path}:{number}: no JSON: {err}", hint="one object a line") from err


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    parquet: Any = import_module("pyarrow.parquet")
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except import_module("pyarrow").ArrowException as err:
        raise UsageError(f"{path}: no Parquet file: {str(err).splitlines()[0]}") from err


def check(where: str, row: Any) -> tuple[str, ...]:
    """The keys of a row that are read. Raises UsageError, naming the row, for any other form."""
    if not isinstance(row, dict):
        raise UsageError(f"{where}: {type(row).__name__}, expected an object with {_FORMS}")
    if row.get("messages") is not None:
        _check_turns(where, row["messages"])
        return ("messages",)
    keys = ("text",) if row.get("text") is not None else ("prompt", "completion")
    if missing := [name for name in keys if not isinstance(row.get(name), str)]:
        found = ", ".join(map(str, row)) or "none"
        raise UsageError(f"{where}: no text under {', '.join(missing)}; its keys: {found}", hint=f"a row has {_FORMS}")
    return keys


def _check_turns(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: messages is no list of turns")
    for number, turn in enumerate(messages):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise UsageError(
                f"{where}: messages[{number}] needs content (text) and a role of {', '.join(ROLES)}",
                hint=f"found {turn!r:.200}",
            )


def example(where: str, row: Any, tokenizer: Any) -> Example:
    """The text of a row and what of it is learned: the turns of the assistant, the completion, or all.

    Raises UsageError as `check` does, and for a chat that the tokenizer's template cannot lay out.
    """
    keys = check(where, row)
    if keys == ("messages",):
        return _chat(where, row["messages"], tokenizer)
    text = "".join(row[name] for name in keys)
    return Example(where, text, ((len(text) - len(row[keys[-1]]), len(text)),), ended=True)


def _chat(where: str, messages: list[dict[str, Any]], tokenizer: Any) -> Example:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{where}: a chat, but the tokenizer of model.path has no chat template",
            hint="put chat_template.jinja beside tokenizer.json, or give rows of prompt and completion",
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        learned = []
        for number, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            before = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
            through = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
            if not (text.startswith(through) and through.startswith(before)):
                raise UsageError(
                    f"{where}: the chat template lays turn {number} out otherwise once more turns follow, so "
                    "nobody can tell what the assistant said",
                    hint="give each answer as a row of its own, of prompt and completion",
                )
            learned.append((len(before), len(through)))
    except import_module("jinja2").TemplateError as err:
        raise UsageError(f"{where}: the chat template refuses it: {err}") from err
    return Example(where, text, tuple(learned), ended=False)


def encoded(tokenizer: Any, examples: Iterable[Example]) -> Iterator[tuple[Example, list[int], np.ndarray[Any, Any]]]:
    """(example, token ids, mask); the mask is bool, shape (tokens,), true for a token that is learned."""
    left = iter(examples)
    while batch := [one for _, one in zip(range(_BATCH), left, strict=False)]:
        for ended in (True, False):
            chosen = [one for one in batch if one.ended is ended]
            if chosen:
                yield from _encode(tokenizer, chosen, ended)


def _encode(
    tokenizer: Any, batch: list[Example], ended: bool
) -> Iterator[tuple[Example, list[int], np.ndarray[Any, Any]]]:
    import numpy as np

    told = tokenizer([one.text for one in batch], add_special_tokens=ended, return_offsets_mapping=True)
    for one, ids, offsets in zip(batch, told["input_ids"], told["offset_mapping"], strict=True):
        at = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in one.learned:
            mask |= (at[:, 0] >= start) & (at[:, 0] < end) & (at[:, 1] > at[:, 0])
        end_id = tokenizer.eos_token_id
        if ended and end_id is not None and ids[-1:] != [end_id]:
            ids, mask = [*ids, end_id], np.append(mask, True)
        elif ended and end_id is not None:
            mask[-1] = True  # the tokenizer puts the end itself, without a place in the text
        mask[:1] = False  # the first has no context
        yield one, ids, mask
