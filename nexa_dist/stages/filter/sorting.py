"""Goes through the rows once to judge, and once to write: those to learn, those that went and why, those for people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from nexa_dist.errors import EXIT_OK
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.filter import report, review
from nexa_dist.stages.filter.config import FilterConfig
from nexa_dist.stages.filter.judge import Fate, judge, value_at
from nexa_dist.stages.filter.learned import Learned, output_schema
from nexa_dist.stages.filter.review import Decision
from nexa_dist.stages.row_files import ROWS, Id, Row, first_of, plain, refuse_lacking, rows_of, write_lines, write_rows

INPUT = "rows"
GONE = "gone/rows.jsonl"
SEEN = ("prompt", "completion")


def prepare(config: FilterConfig, env: StageEnv) -> None:
    """Refuse an input without rows, and columns that the first row has not."""
    first = first_of(env.inputs, INPUT, config.id, "stage:teach")
    wanted = {"keep": config.keep, "review.columns": config.review.columns, "unique": config.unique}
    for key, names in wanted.items():
        refuse_lacking(key, names, first)


def run(config: FilterConfig, env: StageEnv) -> int:
    """Returns 0, or 143 after SIGTERM: what is written is whole or absent, and to judge again takes little."""
    learned = Learned(config, env.inputs.get("tokenizer"))
    fates = _judged(config, env, learned)
    if fates is None:
        return EXIT_STOPPED
    fates = _decided(config, env.inputs.get("review"), fates)
    schema = _write(config, env, fates, learned)
    told = report.summary(config, fates.values(), learned)
    report.write(env.output, told)
    env.report(len(fates), len(fates), kept=told["counts"]["rows"])
    env.note(counts=told["counts"], reasons=told["reasons"], schema={one.name: str(one.type) for one in schema})
    print(report.line(told), flush=True)
    return EXIT_OK


def _write(config: FilterConfig, env: StageEnv, fates: Mapping[Id, Fate], learned: Learned) -> pa.Schema:
    """Write rows.parquet, what is gone, and what people are to see. Returns the schema of the first."""

    def rows(wanted: Callable[[Fate], bool]) -> Iterator[tuple[Id, Row, Fate]]:
        return ((i, row, fates[i]) for i, row in rows_of(env.inputs[INPUT], config.id) if wanted(fates[i]))

    schema = output_schema(config, ((i, row) for i, row, _ in rows(lambda fate: fate.stays)))
    write_rows(env.output / ROWS, schema, (learned.row(i, row, schema) for i, row, _ in rows(lambda fate: fate.stays)))
    write_lines(
        env.output / GONE,
        ({"id": i, "fate": fate.word, "reasons": fate.reasons, "note": fate.decision.note if fate.decision else "",
          "row": row} for i, row, fate in rows(lambda fate: fate.word in ("drop", "reject"))),
    )  # fmt: skip
    if any(fate.decision for fate in fates.values()):
        seen = config.review.columns or SEEN
        review.write(
            env.output / review.NAME,
            ((i, fate.reasons, fate.decision, {name: _shown(row, name) for name in seen})
             for i, row, fate in rows(lambda fate: fate.decision is not None) if fate.decision),
        )  # fmt: skip
    return schema


def _judged(config: FilterConfig, env: StageEnv, learned: Learned) -> dict[Id, Fate] | None:
    """The fate of each row by rules, rubric and form; a row for a person is pending. None when it was stopped."""
    fates: dict[Id, Fate] = {}
    seen: dict[str, set[bytes]] = {name: set() for name in config.unique}
    for row_id, row in rows_of(env.inputs[INPUT], config.id):
        if env.stop():
            return None
        word, reasons = judge(config, row_id, row)
        if word != "drop" and (unfit := learned.unfit(row_id, row)):
            word, reasons = "drop", (unfit,)
        if word != "drop" and _is_twice(row, seen):
            word, reasons = "drop", ("duplicate",)
        asked = Decision("pending") if word == "review" else None
        fates[row_id] = Fate("pending" if asked else word, reasons, asked)
        env.report(len(fates))
    return fates


def _is_twice(row: Row, seen: dict[str, set[bytes]]) -> bool:
    """Tell whether an earlier row has the same in one of the columns."""
    texts = {name: " ".join(plain(row.get(name)).lower().split()) for name in seen}
    marks = {name: hashlib.sha256(text.encode(errors="replace")).digest() for name, text in texts.items()}
    if any(mark in seen[name] for name, mark in marks.items()):
        return True
    for name, mark in marks.items():
        seen[name].add(mark)
    return False


def _decided(config: FilterConfig, back: Path | None, fates: dict[Id, Fate]) -> dict[Id, Fate]:
    """The fates with what people said. Raises UsageError for a CSV that does not fit the rows."""
    if back is not None:
        known = {review.key_of(i): i for i, fate in fates.items()}
        for row_id, decision in review.read(back / review.NAME if back.is_dir() else back, known).items():
            fate = fates[row_id]
            # What a rule drops now is dropped, whatever was said of it before.
            if fate.word != "drop" and (fate.decision or decision.review != "pending"):
                fates[row_id] = replace(fate, word=decision.review, decision=decision)
    if config.review.pending == "keep":
        return {i: replace(fate, word="keep") if fate.word == "pending" else fate for i, fate in fates.items()}
    return fates


def _shown(row: Row, column: str) -> object:
    value = value_at(row, column)
    return value if isinstance(value, str | int | float) else "" if value is None else plain(value)
