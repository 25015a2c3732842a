"""Asks the judge about each row, as often as it takes, and tells why it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.stages.contract import StageEnv
from nexa_dist.stages.endpoint import Question
from nexa_dist.stages.endpoint_reply import KINDS, OK, Failed, Reply
from nexa_dist.stages.eval.config import Judge
from nexa_dist.stages.eval.judge import Asked
from nexa_dist.stages.eval.record import Record
from nexa_dist.stages.row_files import Id, Row
from nexa_dist.stages.teach.one_pass import ask_and_keep

PASSES = 3
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
    def keep(key: tuple[Id, str], outcome: Reply | Failed) -> None:
        record.reply(*key, outcome)
        env.report(sum(kind == OK for kind, _ in record.replies.values()), total, usd=record.spent.usd)

    try:
        return ask_and_keep(
            config.endpoint, _questions(asked, record, left), keep, who="judge", spent=record.spent, stop=env.stop
        )
    finally:
        record.sync()


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
