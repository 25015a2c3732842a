"""Asks the teacher for each row that has no answer yet, then writes the answers in the order of the rows' ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from nexa_dist.errors import EXIT_OK, NexaError, UsageError
from nexa_dist.stages import row_files
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.endpoint import Endpoint, Question
from nexa_dist.stages.endpoint_config import EndpointConfig
from nexa_dist.stages.endpoint_reply import NOTHING, OK, PASSING, Failed, Reply, Usage
from nexa_dist.stages.row_files import ROWS, Id, Row, in_order, rows_of, write_lines, write_rows
from nexa_dist.stages.serve.at_hand import at_hand, refuse
from nexa_dist.stages.teach import table
from nexa_dist.stages.teach.config import TeachConfig
from nexa_dist.stages.teach.keeping import KeptJournal
from nexa_dist.stages.teach.one_pass import ask_and_keep
from nexa_dist.stages.teach.prompt import Prompts, prompt_sha256

INPUT, TEACHER = "rows", "teacher"
JOURNAL = ".journal.jsonl"
KEPT = ("text", "model", "finish", "data", "tokens")
"""Of a reply: what does not depend on when it came."""
BAD_ROW = "row"
"""Kind of a row that the template cannot take."""


def prepare(config: TeachConfig, env: StageEnv) -> None:
    """Refuse an input without rows, ids that are not unique, a column that is not there, and a missing key."""
    prompts = Prompts(config.prompt, config.system)
    first = row_files.first_of(env.inputs, INPUT, config.id, "data:NAME")
    try:
        prompts.of(first)
    except NexaError as error:
        raise UsageError(f"the first row does not fit: {error}", hint=f"its columns: {', '.join(first)}") from None
    row_files.refuse_lacking("keep", config.keep, first)
    table.check_names(config.keep)
    refuse(config.endpoint, env.inputs, TEACHER)
    with Endpoint(config.endpoint):
        pass


def run(config: TeachConfig, env: StageEnv) -> int:
    """Returns 0, 3 when the budget ended it, 143 after SIGTERM. Raises NexaError when the server failed too often."""
    with KeptJournal(env.output / JOURNAL) as journal:
        work = Work(config, env, journal)
        try:
            code = work.ask() if work.left() else EXIT_OK
        finally:
            journal.finish(work.done)
        work.note()
        if code == EXIT_OK:
            work.write()
    return code


class Work:
    """The rows of one teach stage: where the answer of each stands in the journal, and its kind."""

    def __init__(self, config: TeachConfig, env: StageEnv, journal: KeptJournal) -> None:
        self._config, self._env, self._journal = config, env, journal
        self._prompts = Prompts(config.prompt, config.system)
        self._answers: dict[Id, tuple[str, int]] = {}
        self._counts: Counter[str] = Counter()
        self._spent = NOTHING
        for offset, line in journal.lines():
            self._set(line["id"], line["kind"], offset)
            self._spent += Usage(**line["usage"])
        self._total = sum(1 for _ in rows_of(env.inputs[INPUT], config.id))

    def ask(self) -> int:
        """Ask for all rows, several times where the server failed. Returns the exit code."""
        with at_hand(self._config.endpoint, self._env.inputs, TEACHER, self._env.stop) as endpoint:
            for _ in range(self._config.passes):
                before = self.left()
                if endpoint is None or (code := self._pass(endpoint)) == EXIT_STOPPED:
                    return EXIT_STOPPED
                if code != EXIT_OK:
                    return code
                if self.left() in (0, before):
                    break
        left = self.left()
        if left > self._config.failed_most * self._total:
            kinds = {kind: n for kind, n in sorted(self._counts.items()) if kind in PASSING}
            raise NexaError(
                f"the server failed on {left} of {self._total} rows ({told_counts(kinds)})",
                hint="the same command asks for those alone; failed_most says how many may be left out",
            )
        return EXIT_OK

    def write(self) -> None:
        """The output, in the order of the ids: rows.parquet, and what is no answer below failed/, a file a kind."""
        config, out, ids = self._config, self._env.output, in_order(self._answers)
        ok = [self._answers[row][1] for row in ids if self._answers[row][0] == OK]
        schema = table.schema(config, (self._journal.at(at) for at in ok))
        write_rows(out / ROWS, schema, (table.output_row(config, schema, self._journal.at(at)) for at in ok))
        for kind, count in self._counts.items():
            if kind != OK and count:
                places = [self._answers[row][1] for row in ids if self._answers[row][0] == kind]
                write_lines(out / "failed" / f"{kind}.jsonl", (table.failed_row(self._journal.at(at)) for at in places))
        self._env.note(schema={field.name: str(field.type) for field in schema})

    def note(self) -> None:
        """What the manifest says of it; an attempt that was ended says it too."""
        config, spent = self._config, self._spent
        counts = {kind: count for kind, count in sorted(self._counts.items()) if count}
        self._env.note(
            counts={"rows_in": self._total, "rows": self._counts[OK], "unanswered": self.left(), **counts},
            usd=round(spent.usd, 6),
            tokens={"prompt": spent.prompt_tokens, "completion": spent.completion_tokens},
            prompt_sha256=prompt_sha256(config.prompt, config.system, config.json_schema),
            teacher=config.endpoint.model,
        )
        print(f"{told_counts(counts)} of {self._total} rows; {spent.usd:.4f} USD, "
              f"{spent.prompt_tokens} + {spent.completion_tokens} tokens", flush=True)  # fmt: skip

    def _pass(self, endpoint: EndpointConfig) -> int:
        if self._config.top_logprobs:
            endpoint = endpoint.model_copy(update={"token_ids": True})
        try:
            return ask_and_keep(
                endpoint, self._questions(), lambda asked, outcome: self._keep(*asked, outcome),
                who="server", spent=self._spent, stop=self._env.stop,
            )  # fmt: skip
        finally:
            self._journal.sync()

    def _questions(self) -> Iterator[tuple[tuple[Id, Row], Question]]:
        """A question for each row that has no answer, with what the journal keeps of the row."""
        config = self._config
        for row, columns in rows_of(self._env.inputs[INPUT], config.id):
            if self._is_done(row):
                continue
            kept: Row = {"keep": {name: columns.get(name) for name in config.keep}}
            try:
                messages = self._prompts.of(columns)
            except NexaError as error:
                self._keep(row, kept, Failed(BAD_ROW, str(error)))
                continue
            kept["messages"] = messages
            yield (row, kept), Question(messages, config.json_schema, config.top_logprobs)

    def _keep(self, row: Id, record: Row, outcome: Reply | Failed) -> None:
        reply = outcome.reply
        if outcome.kind == "truncated" and self._config.keep_truncated and reply:
            outcome = replace(reply, usage=outcome.usage)
        told = {
            "kind": outcome.kind,
            "usage": asdict(outcome.usage),
            "detail": outcome.detail,
            "reply": reply and {name: value for name, value in asdict(reply).items() if name in KEPT},
            **record,
        }
        self._set(row, outcome.kind, self._journal.append(row, told))
        self._spent += outcome.usage
        done = self.done
        self._journal.offer(done)
        self._env.report(done, self._total, failed=done - self._counts[OK], usd=self._spent.usd)

    def _is_done(self, row: Id) -> bool:
        return row in self._answers and self._answers[row][0] not in PASSING

    @property
    def done(self) -> int:
        return self._total - self.left()

    def left(self) -> int:
        """Rows that have no answer, nor a failure that asking again would not mend."""
        return self._total - sum(count for kind, count in self._counts.items() if kind not in PASSING)

    def _set(self, row: Id, kind: str, offset: int) -> None:
        if before := self._answers.get(row):
            self._counts[before[0]] -= 1
        self._answers[row] = kind, offset
        self._counts[kind] += 1


def told_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
