"""Rows as `dataset.source: examples` of train.yaml reads them, held against the tokenizer that will."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_dist.errors import UsageError
from nexa_dist.stages.filter.config import FilterConfig
from nexa_dist.stages.row_files import TURNS, Id, Row, as_column, kind_of_values
from nexa_dist.stages.teach.table import LOGITS
from nexa_dist.train.text import examples


class Learned:
    """What is learned of a row. With a tokenizer each row is laid out and tokenized as the training will do it."""

    def __init__(self, config: FilterConfig, tokenizer: Path | None) -> None:
        self._config = config
        self._tokenizer: Any = None
        self.tokens = self.learned_tokens = 0
        """Of all rows that fit; 0 without a tokenizer."""
        if tokenizer is not None:
            transformers = import_module("transformers")
            try:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            except (OSError, ValueError) as error:
                raise UsageError(f"inputs.tokenizer: {tokenizer}: {str(error).splitlines()[0]}") from None

    def unfit(self, row_id: Id, row: Row) -> str:
        """Why the row can teach nothing: form, too_long, nothing_learned; empty where it can."""
        made = self._example(row)
        try:
            examples.check(str(row_id), made)
            if self._tokenizer is None:
                return "" if self._has_words(made) else "nothing_learned"
            one = examples.example(str(row_id), made, self._tokenizer)
        except UsageError:
            return "form"
        ((_, ids, mask),) = examples.encoded(self._tokenizer, [one])
        if self._config.max_tokens is not None and len(ids) > self._config.max_tokens:
            return "too_long"
        self.tokens, self.learned_tokens = self.tokens + len(ids), self.learned_tokens + int(mask.sum())
        return "" if mask.any() and self._has_words(made) else "nothing_learned"

    def row(self, row_id: Id, row: Row, schema: pa.Schema) -> Row:
        """A row of the output."""
        told = {"id": row_id, **self._example(row), **{name: row.get(name) for name in (*self._config.keep, *LOGITS)}}
        return {field.name: as_column(told.get(field.name), field.type) for field in schema}

    def _example(self, row: Row) -> Row:
        config = self._config
        if config.form == "prompt_completion":
            return {"prompt": row.get(config.prompt), "completion": row.get(config.completion)}
        turns = row.get("messages")
        if turns is None:
            turns = [{"role": "user", "content": row.get(config.prompt)},
                     {"role": "assistant", "content": row.get(config.completion)}]  # fmt: skip
        has_system = (
            isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system"
        )
        if config.system is not None and isinstance(turns, list) and not has_system:
            turns = [{"role": "system", "content": config.system}, *turns]
        return {"messages": turns}

    def _has_words(self, made: Row) -> bool:
        said = [made["completion"]] if "completion" in made else [
            turn["content"] for turn in made["messages"] if turn["role"] == "assistant"]  # fmt: skip
        return any(text.strip() for text in said)


def output_schema(config: FilterConfig, rows: Iterable[tuple[Id, Row]]) -> pa.Schema:
    """id, what is learned, the columns to keep, and the teacher's probabilities where a row has them."""
    kinds: dict[str, set[type]] = {name: set() for name in ("id", *config.keep)}
    has_logits = False
    for row_id, row in rows:
        has_logits = has_logits or row.get("teacher_tokens") is not None
        for name, found in kinds.items():
            found.add(type(row_id if name == "id" else row.get(name)))
    form = {"messages": TURNS} if config.form == "messages" else {"prompt": pa.string(), "completion": pa.string()}
    columns = {"id": pa.int64() if kinds.pop("id") == {int} else pa.string(), **form}
    columns |= {name: kind_of_values(found) for name, found in kinds.items() if name not in columns}
    return pa.schema(list({**columns, **(LOGITS if has_logits else {})}.items()))
