"""Asks the judge about each row, as often as it takes, and tells why it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from nexa_dist.errors import EXIT_BUDGET, EXIT_OK, NexaError
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.endpoint import Endpoint, Question
from nexa_dist.stages.endpoint_reply import KINDS, PASSING, Failed
from nexa_dist.stages.eval.config import Judge
from nexa_dist.stages.eval.judge import Asked
from nexa_dist.stages.eval.record import OK, Record
from nexa_dist.stages.row_files import Id, Row

PASSES = 3
DEAD_AFTER = 20
"""So many failures of the server in a row, or twice the concurrency, mean that it is not there."""
NO_ANSWER, BAD_ROW = "no_answer", "row"
"""Kinds of rows about which nothing is asked."""
Rows = Sequence[tuple[Id, Row, str, str]]
"""Id, row, prompt and answer."""


def ask(config: Judge, env: StageEnv, record: Record, rows: Rows) -> int:
    """Returns the exit code. Raises NexaError when too many questions have no usable reply."""
    asked = Asked(config)
    total = len(rows) * len(asked.kinds)
    for _ in range(PASSES):
        left = [(row, kind) for row in rows for kind in asked.kinds if not record.is_asked(row[0], kind)]
        if not left:
            break
        if (code := _pass(config, env, record, asked, left, total)) != EXIT_OK:
            return code
    kinds = Counter(kind for kind, _ in record.replies.values())
    failed = total - kinds[OK]
    if failed > config.failed_most * total:
        told = ", ".join(f"{kind} {count} ({KINDS.get(kind, 'the row')})" for kind, count in sorted(kinds.items())
                         if kind != OK)  # fmt: skip
        raise NexaError(
            f"{failed} of {total} questions to the judge have no usable reply: {told}",
            hint="the same command asks again where the server failed; judge.failed_most says how many may be missing",
        )
    return EXIT_OK


def is_done(config: Judge, record: Record, rows: Rows) -> bool:
    """Whether no question is left that the server has to answer."""
    return all(record.is_asked(row[0], kind) for row in rows for kind in Asked(config).kinds)


def _pass(
    config: Judge, env: StageEnv, record: Record, asked: Asked, left: Sequence[tuple[tuple[Id, Row, str, str], str]],
    total: int,
) -> int:  # fmt: skip
    end: list[Failed] = []
    in_a_row = 0
    most = max(DEAD_AFTER, 2 * config.endpoint.concurrency)
    with Endpoint(config.endpoint, spent=record.spent, stop=lambda: env.stop() or bool(end)) as server:
        for (row, kind), outcome in server.ask_all(_questions(asked, record, left)):
            if isinstance(outcome, Failed) and outcome.ends:
                end += [outcome] if outcome.kind != "stopped" else []
                continue
            record.reply(row, kind, outcome)
            in_a_row = in_a_row + 1 if isinstance(outcome, Failed) and outcome.kind in PASSING else 0
            if isinstance(outcome, Failed) and in_a_row >= most:
                end.append(Failed(outcome.kind, f"{in_a_row} questions in a row: {outcome.detail}"))
            done = sum(kind == OK for kind, _ in record.replies.values())
            env.report(done, total, usd=record.spent.usd)
    record.sync()
    if env.stop():
        return EXIT_STOPPED
    if end and end[0].kind == "budget":
        print(f"the budget ended it: {end[0].detail}", flush=True)
        return EXIT_BUDGET
    if end:
        raise NexaError(
            f"the judge answers nobody ({KINDS[end[0].kind]}): {end[0].detail}",
            hint="what was answered is kept, and the same command goes on",
        )
    return EXIT_OK


def _questions(
    asked: Asked, record: Record, left: Sequence[tuple[tuple[Id, Row, str, str], str]]
) -> Iterator[tuple[tuple[Id, str], Question]]:
    for (row, columns, prompt, answer), kind in left:
        if not answer.strip():
            record.reply(row, kind, Failed(NO_ANSWER))
            continue
        try:
            yield (row, kind), asked.question(kind, columns, prompt, answer)
        except NexaError as error:
            record.reply(row, kind, Failed(BAD_ROW, str(error)))


def counts(replies: Mapping[tuple[Id, str], tuple[str, object]]) -> dict[str, int]:
    return dict(sorted(Counter(kind for kind, _ in replies.values()).items()))
