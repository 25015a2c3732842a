"""What else has to fit: sequence and positions, tokenizer and vocabulary, rows of data, checkpoints and disk.

Each is a row: `ok` is None where nobody here can know. Only what lies on this machine is read, and little of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import UsageError
from nexa_dist.plan.fit.disk import SHARE, on_a_node
from nexa_dist.plan.fit.method import Work
from nexa_dist.plan.fit.model_shape import ModelShape
from nexa_dist.train.text import examples, vocabulary

GB = 10**9
ROWS = 64
"""Rows of a file that are looked at beside the first."""
MOST_FILES = 50
_LINE = 1 << 22


@dataclass(frozen=True)
class Check:
    """`ok`: None when it is not known. `next`: what a person does about it."""

    name: str
    ok: bool | None
    said: str
    next: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def positions(shape: ModelShape, work: Work) -> Check:
    if work.sequence > shape.positions:
        said = f"windows of {work.sequence} tokens, and the model has {shape.positions} positions"
        return Check("sequence", False, said, "a shorter sequence_length, or a model with more positions")
    return Check("sequence", True, f"{work.sequence} tokens of {shape.positions} positions")


def tokenizer(shape: ModelShape, folder: str) -> Check:
    """The largest id of the model's tokenizer.json against the rows of its table."""
    file = Path(folder, "tokenizer.json")
    if not folder:
        return Check("tokenizer", True, f"is made of the text, with {shape.vocabulary} tokens")
    if not file.is_file():
        return Check("tokenizer", None, f"{folder} has no tokenizer.json on this machine")
    try:
        most = _largest_id(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Check("tokenizer", False, f"{file} cannot be read: {error}", "save the tokenizer anew")
    if most >= shape.vocabulary:
        said = f"{file} has ids up to {most}, and the model's table {shape.vocabulary} rows"
        return Check("tokenizer", False, said, "the model's own tokenizer, or resize_token_embeddings and save both")
    return Check("tokenizer", True, f"ids up to {most} of {shape.vocabulary}")


def teacher(student: str, folder: str) -> Check:
    """Whether an id means the same token to a pretrained student and to its teacher."""
    if not all(Path(one, "tokenizer.json").is_file() for one in (student, folder)):
        return Check("teacher", None, f"{folder} and {student} are not both on this machine with a tokenizer.json")
    if why := vocabulary.difference(Path(student), Path(folder)):
        return Check("teacher", False, why, vocabulary.CURE)
    return Check("teacher", True, f"{folder} has the tokens and ids of {student}")


def data(paths: tuple[str, ...], root: Path, *, ours: str | None = None, other: tuple[str, ...] = ()) -> list[Check]:
    """A row for each named file or folder. `ours`: the one that our own trainer reads rows of; `other` may hold
    anything, and has a row where it holds rows."""
    found = (
        _data(name, Path(name) if Path(name).exists() else root / name, name == ours, name in other)
        for name in (*paths, *other)
    )
    return [row for row in found if row is not None]


def disk(shape: ModelShape, work: Work, nodes: int, keep: int, nvme: int, gb: float | None) -> Check:
    """`gb`: of one node's disk, None when it is not known; `nvme`: bytes that are offloaded to it."""
    need = (on_a_node(shape, work, nodes, keep) + nvme) / GB
    said = f"{keep} checkpoints and the next one take {need:,.1f} GB of a node"
    if gb is None:
        return Check("disk", None, f"{said}; its size is not known here")
    if need > SHARE * gb:
        said += f", and of its {gb:g} GB they may take {SHARE:.0%}"
        return Check("disk", False, said, f"volume_gb: {round(need / SHARE + 1)} in the cluster's file")
    return Check("disk", True, f"{said}, which has {gb:g} GB")


def _largest_id(made: dict[str, Any]) -> int:
    vocabulary = made["model"]["vocab"]
    own = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
    return int(max([own, *(row["id"] for row in made.get("added_tokens") or ())]))


def _data(name: str, path: Path, ours: bool, anything: bool) -> Check | None:
    if not path.exists():
        return Check(f"data {name}", None, "is not on this machine: nothing was looked at")
    files = sorted(p for p in path.rglob("*") if p.is_file())[:MOST_FILES] if path.is_dir() else [path]
    if not files:
        return Check(f"data {name}", False, "has no file in it", "name a folder that has")
    looked = 0
    for file in files:
        rows = file.suffix == ".jsonl" or (ours and path.is_file())
        if file.suffix == ".parquet" or (anything and not rows):  # pyarrow is on the nodes
            continue
        for line, raw in _sample(file):
            looked += 1
            if wrong := _row(raw, ours) if rows else _text(raw):
                return Check(f"data {name}", False, f"{file}: {line}: {wrong}", "mend or remove it, then look again")
    if anything and not looked:
        return None
    return Check(f"data {name}", True, f"{looked} lines of {len(files)} files looked at")


def _sample(file: Path) -> Iterator[tuple[str, bytes]]:
    """(where, one line) of the first one and of some at random: always the same ones."""
    size, chosen = file.stat().st_size, random.Random(0)  # noqa: S311
    with file.open("rb") as lines:
        if first := lines.readline(_LINE):
            yield "line 1", first
        for at in sorted(chosen.randrange(size) for _ in range(ROWS if size > len(first) else 0)):
            lines.seek(at)
            lines.readline(_LINE)  # the rest of the line into which it fell
            begins = lines.tell()
            if line := lines.readline(_LINE):
                yield f"the line at byte {begins}", line


def _text(raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        if error.end < len(raw) or raw.endswith(b"\n"):  # else the line was cut within a letter
            return f"not UTF-8 ({error.reason})"
    return ""


def _row(raw: bytes, ours: bool) -> str:
    """What is wrong with a row of JSONL for training: it holds text, a chat, or a prompt and what comes after it.
    `ours`: as `dataset.source: examples` takes it."""
    try:
        row = json.loads(raw)
    except ValueError as error:
        return f"not JSON ({error})"
    if ours:
        try:
            examples.check("", row)
        except UsageError as error:
            return str(error).removeprefix(": ")
        return ""
    if not isinstance(row, dict):
        return "not a JSON object"
    for key in ("messages", "conversations"):
        if key in row:
            return _chat(key, row[key])
    texts = [key for key in ("text", "prompt", "completion", "instruction", "input", "output") if key in row]
    if not texts:
        return f"has none of text, messages, prompt, instruction (it has {', '.join(map(str, list(row)[:8]))})"
    wrong = next((key for key in texts if not isinstance(row[key], str)), None)
    return f"{wrong} is no text" if wrong else ""


def _chat(key: str, turns: Any) -> str:
    if not isinstance(turns, list) or not turns:
        return f"{key} is no list of turns"
    for turn in turns:
        pair = (
            (turn.get("role", turn.get("from")), turn.get("content", turn.get("value")))
            if isinstance(turn, dict)
            else ()
        )
        if len(pair) != 2 or not all(isinstance(word, str) for word in pair):
            return f"a turn of {key} lacks role or content"
    return ""
