"""One evaluation: the rows, what the checkpoint does with them, what a judge says, and the table of it all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_dist.errors import EXIT_OK, NexaError, UsageError
from nexa_dist.stages import row_files
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.endpoint import Endpoint
from nexa_dist.stages.eval import asking, local, summary, tasks
from nexa_dist.stages.eval.config import EvalConfig, Judge
from nexa_dist.stages.eval.judge import Asked, Verdicts, judge_sha256
from nexa_dist.stages.eval.record import Record
from nexa_dist.stages.eval.rubric import DSS
from nexa_dist.stages.filter.judge import drawn
from nexa_dist.stages.references import model_in
from nexa_dist.stages.row_files import Id, Row, as_column, in_order, kind_of_values, plain, rows_of, write_rows
from nexa_dist.stages.serve.at_hand import at_hand, refuse
from nexa_dist.stages.whole import whole

ROWS, MODEL, JUDGE, TASKS = "rows", "model", "judge", "tasks"
FOLDER, SAMPLE = "evals", "sample.json"
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
OURS = ("id", "prompt", "answer", DSS, "winner", "nats", "tokens", "failed")


def prepare(config: EvalConfig, env: StageEnv) -> None:
    """Refuse what is not there: an input, a column, a key, lm-eval."""
    if MODEL not in env.inputs and (config.generate or config.perplexity or config.tasks):
        raise UsageError(f"inputs: {MODEL} is missing", hint=f"inputs: {{{MODEL}: run:RUN}}")
    if MODEL in env.inputs:
        model_in(env.inputs[MODEL], f"inputs.{MODEL}")
    if config.judge or config.generate or config.perplexity:
        _check_rows(config, env)
    if config.judge:
        Asked(config.judge)
        refuse(config.judge.endpoint, env.inputs, JUDGE)
        with Endpoint(config.judge.endpoint):
            pass
    if config.tasks:
        tasks.refuse_without()
        if TASKS in env.inputs and not env.inputs[TASKS].is_dir():
            raise UsageError(f"inputs.{TASKS}: {env.inputs[TASKS]} is no folder", hint="of lm-eval's YAML, a task each")


def _check_rows(config: EvalConfig, env: StageEnv) -> None:
    first = row_files.first_of(env.inputs, ROWS, config.id, "data:NAME")
    judge, perplexity = config.judge, config.perplexity
    wanted = {"prompt": config.prompt, **{f"groups[{at}]": name for at, name in enumerate(config.groups)}}
    wanted |= {"answer": config.answer} if judge and not config.generate else {}
    wanted |= {"perplexity.column": perplexity.column} if perplexity else {}
    wanted |= {"perplexity.context": perplexity.context} if perplexity and perplexity.context else {}
    wanted |= {"judge.against": judge.against} if judge and judge.against else {}
    wanted |= {f"judge.labels.{name}": column for name, column in judge.labels.items()} if judge else {}
    for key, name in wanted.items():
        row_files.refuse_lacking(key, (name,), first)


def run(config: EvalConfig, env: StageEnv) -> int:
    """Returns 0, 3 when the judge's budget ended it, 143 after SIGTERM. Raises NexaError."""
    rows = chosen(config, env)
    with Record(env.output) as record:
        code = local.measure(config, env, record, rows) if config.generate or config.perplexity else EXIT_OK
        if code == EXIT_OK and config.judge:
            try:
                code = _judged(config.judge, env, record, [_asked(config, record, *row) for row in rows])
            finally:
                _note(config, env, record)
        if code == EXIT_OK and env.stop():
            code = EXIT_STOPPED
        if code == EXIT_OK:
            _write(config, env, record, rows)
    return code


def _judged(judge: Judge, env: StageEnv, record: Record, rows: asking.Rows) -> int:
    """Ask the judge, which is served for as long as that takes if it is an input. Returns the exit code."""
    if asking.is_done(judge, record, rows):
        return asking.ask(judge, env, record, rows)
    with at_hand(judge.endpoint, env.inputs, JUDGE, env.stop) as endpoint:
        if endpoint is None:
            return EXIT_STOPPED
        return asking.ask(judge.model_copy(update={"endpoint": endpoint}), env, record, rows)


def chosen(config: EvalConfig, env: StageEnv) -> list[tuple[Id, Row]]:
    """The rows that are evaluated, in the order of their ids. Which of them follows from id and seed alone."""
    if ROWS not in env.inputs:
        return []
    found = dict(rows_of(env.inputs[ROWS], config.id))
    ids = list(found)
    if config.most_rows is not None:
        ids = sorted(ids, key=lambda row: drawn(config.seed, row))[: config.most_rows]
    return [(row, found[row]) for row in in_order(ids)]


def _asked(config: EvalConfig, record: Record, row: Id, columns: Row) -> tuple[Id, Row, str, str]:
    return row, columns, _text(columns.get(config.prompt)), _answer(config, record, row, columns)


def _answer(config: EvalConfig, record: Record, row: Id, columns: Row) -> str:
    return str(record.answers[row]["text"]) if config.generate else _text(columns.get(config.answer))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else plain(value)


def _note(config: EvalConfig, env: StageEnv, record: Record) -> None:
    """Facts about the judge, for the manifest; an attempt that was ended says them too."""
    assert config.judge
    env.note(
        usd=round(record.spent.usd, 6),
        judge={"model": config.judge.endpoint.model, "sha256": judge_sha256(config.judge), "swap": config.judge.swap},
        judge_tokens={"prompt": record.spent.prompt_tokens, "completion": record.spent.completion_tokens},
        replies=asking.counts(record.replies),
    )


def _write(config: EvalConfig, env: StageEnv, record: Record, rows: list[tuple[Id, Row]]) -> None:
    verdicts = Verdicts(config.judge, record.replies) if config.judge else None
    table = [_row(config, record, verdicts, row, columns) for row, columns in rows]
    told = summary.of_table(config, table, verdicts)
    if config.tasks:
        told["tasks"] = _tasks(config, env)
    name = run_of(config, env)
    if table:
        write_rows(env.output / FOLDER / f"{config.name}_{name}.parquet", _schema(table), table)
    if figures := tasks.rows(told.get("tasks", {})):
        write_rows(env.output / FOLDER / f"{config.name}_{name}.tasks.parquet", tasks.SCHEMA, figures)
    with whole(env.output / FOLDER / f"{config.name}_{name}.json") as scratch:
        scratch.write_text(json.dumps({"run": name, "name": config.name, **told}, indent=2) + "\n")
    if config.next_sample and table:
        sample = summary.next_sample(told, config.next_sample.by, config.next_sample.rows)
        with whole(env.output / SAMPLE) as scratch:
            scratch.write_text(json.dumps(sample, indent=2) + "\n")
    counts = {"rows": len(table)}
    env.note(counts=counts, evaluated=name, schema={one.name: str(one.type) for one in _schema(table)} if table else {})
    if config.generate:
        env.note(speed=speed(record))
    print("\n".join(summary.lines(told, f"{config.name} of {name}")), flush=True)


def _tasks(config: EvalConfig, env: StageEnv) -> Any:
    """Figures of the standard tasks, measured once: a kill after that does not do it again."""
    assert config.tasks
    kept = env.output / ".tasks.json"
    if not kept.exists():
        model, own = model_in(env.inputs[MODEL], f"inputs.{MODEL}"), env.inputs.get(TASKS)
        told = tasks.measure(config.tasks, model, env.output / ".tasks", config.seed, own)
        with whole(kept) as scratch:
            scratch.write_text(json.dumps(told))
    return json.loads(kept.read_bytes())


def _row(config: EvalConfig, record: Record, verdicts: Verdicts | None, row: Id, columns: Row) -> dict[str, Any]:
    made: dict[str, Any] = {"id": row, "prompt": _text(columns.get(config.prompt))}
    if config.generate or config.judge:
        made["answer"] = _answer(config, record, row, columns)
    if verdicts and config.judge:
        made |= verdicts.of(row)
        made |= {f"label_{name}": summary.label(columns, column) for name, column in config.judge.labels.items()}
        made["failed"] = ", ".join(sorted(set(verdicts.failures.get(row, ())))) or None
    if config.perplexity:
        made |= {"nats": record.nll[row]["nats"], "tokens": record.nll[row]["tokens"]}
    return made | {name: columns.get(name) for name in config.groups if name not in made}


def _schema(table: list[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in table for name in row)
    kinds = {name: kind_of_values({type(row.get(name)) for row in table}) for name in names}
    for name in names:
        if name in ("nats", DSS) or name.startswith("label_"):
            kinds[name] = pa.float64()
    for row in table:
        row.update({name: as_column(row.get(name), kind) for name, kind in kinds.items()})
    return pa.schema(list(kinds.items()))


def speed(record: Record) -> dict[str, float | int]:
    """Tokens and seconds of the answers, batches one after the other; of this machine alone."""
    tokens = sum(int(one["tokens"]) for one in record.answers.values())
    seconds = sum(float(one["seconds"]) for one in record.answers.values())
    return {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / max(seconds, 1e-9), 2)}


def run_of(config: EvalConfig, env: StageEnv) -> str:
    """Name of what is evaluated: the run of the checkpoint, else its folder; without one the rows' own answers."""
    reference = config.inputs.get(MODEL, "")
    if reference.startswith("run:"):
        return reference.removeprefix("run:")
    if MODEL not in env.inputs:
        return "answers"
    place = env.inputs[MODEL]
    manifest = place / "manifest.json"
    told: Any = {}
    if manifest.is_file():
        try:
            told = json.loads(manifest.read_bytes())
        except ValueError as error:
            raise NexaError(f"{manifest} is damaged: {error}") from None
    name = told.get("run_id") if isinstance(told, dict) else None
    found = str(name or Path(reference or place).name)
    return found if RUN.fullmatch(found) else "model"
