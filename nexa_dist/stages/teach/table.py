"""The columns of what a teacher said. Those of its probabilities are what `kd` of train.yaml reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from nexa_dist.errors import UsageError
from nexa_dist.stages.row_files import TURNS, Row, as_column, kind_of_values, plain
from nexa_dist.stages.teach.config import TeachConfig

COLUMNS = {
    "id": pa.string(),
    "messages": TURNS,
    "prompt": pa.string(),
    "completion": pa.string(),
    "finish": pa.string(),
    "teacher": pa.string(),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "usd": pa.float64(),
}
"""`prompt` is the last turn that was asked, `messages` are all turns with the completion; `usd` with all its tries."""
LOGITS = {
    "teacher_tokens": pa.list_(pa.int32()),
    "teacher_top_ids": pa.list_(pa.list_(pa.int32())),
    "teacher_top_logprobs": pa.list_(pa.list_(pa.float32())),
}
JSON = "json"
_ID_MARK = "token_id:"


def check_names(kept: Sequence[str]) -> None:
    """Refuse columns that would have the name of one of ours."""
    if both := [name for name in kept if name in {*COLUMNS, *LOGITS, JSON}]:
        raise UsageError(f"keep: {', '.join(both)} is a column of the answer", hint="rename it in the rows")


def schema(config: TeachConfig, lines: Iterable[Row]) -> pa.Schema:
    """The schema of the output. Kept columns have the type that all their values share; else they are JSON."""
    found: dict[str, set[type]] = {name: set() for name in config.keep}
    whole_ids = True
    for line in lines:
        whole_ids = whole_ids and isinstance(line["id"], int)
        for name, kinds in found.items():
            kinds.add(type(line["keep"][name]))
    columns = {**COLUMNS, "id": pa.int64() if whole_ids else pa.string()}
    columns |= {name: kind_of_values(kinds) for name, kinds in found.items()}
    columns |= {JSON: pa.string()} if config.json_schema is not None else {}
    columns |= LOGITS if config.top_logprobs else {}
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


def output_row(config: TeachConfig, schema: pa.Schema, line: Row) -> Row:
    """A row of the output, from a line of the journal."""
    reply, usage, turns = line["reply"], line["usage"], line["messages"]
    row = {
        "id": line["id"],
        "messages": [*turns, {"role": "assistant", "content": reply["text"]}],
        "prompt": turns[-1]["content"],
        "completion": reply["text"],
        "finish": reply["finish"],
        "teacher": config.endpoint.model,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "usd": usage["usd"],
    }
    row |= line["keep"]
    if config.json_schema is not None:
        row[JSON] = plain(reply["data"])
    row |= _logits(reply["tokens"]) if config.top_logprobs else {}
    return {field.name: as_column(row[field.name], field.type) for field in schema}


def _logits(tokens: Sequence[Row]) -> Row:
    """Columns of the teacher's probabilities; null where the server gave no ids or not of every place."""
    try:
        ids = [_id(one["token"]) for one in tokens]
        top = [[_id(token) for token, _ in one["top"]] for one in tokens]
    except ValueError:
        return dict.fromkeys(LOGITS)
    if not ids or not all(top):
        return dict.fromkeys(LOGITS)
    logprobs = [[logprob for _, logprob in one["top"]] for one in tokens]
    return {"teacher_tokens": ids, "teacher_top_ids": top, "teacher_top_logprobs": logprobs}


def _id(token: str) -> int:
    if not token.startswith(_ID_MARK):
        raise ValueError(token)
    return int(token.removeprefix(_ID_MARK))


def failed_row(line: Row) -> Row:
    """A line of failed/KIND.jsonl: enough to see what happened, and to ask again by hand."""
    reply: Any = line["reply"] or {}
    told = {"id": line["id"], "kind": line["kind"], "detail": line["detail"], "completion": reply.get("text")}
    return told | {"messages": line.get("messages"), "usd": line["usage"]["usd"], **line["keep"]}
