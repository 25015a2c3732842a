"""What is known of each row so far, a line each in the journal of an evaluation: nothing is done or asked twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nexa_dist.stages.endpoint_reply import NOTHING, PASSING, Failed, Reply, Usage
from nexa_dist.stages.row_files import Id
from nexa_dist.stages.teach.keeping import KeptJournal

NAME = ".journal.jsonl"


class Record(KeptJournal):
    """The journal of one evaluation. `answers` and `nll` are what the checkpoint came to; `replies` what a judge said,
    by question and row, as (kind, data)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / NAME)
        self.answers: dict[Id, dict[str, Any]] = {}
        self.nll: dict[Id, dict[str, Any]] = {}
        self.replies: dict[tuple[Id, str], tuple[str, Any]] = {}
        self.spent = NOTHING
        for _, line in self.lines():
            self._learn(line)

    def __exit__(self, *error: object) -> None:
        try:
            self.finish(self._done)
        finally:
            super().__exit__(*error)

    def local(self, what: str, row: Id, **told: Any) -> None:
        """Keep what the checkpoint came to: `what` is answer or nll."""
        self._put(row, {"what": what, **told})

    def reply(self, row: Id, question: str, outcome: Reply | Failed) -> None:
        told = {"kind": outcome.kind, "usage": asdict(outcome.usage), "detail": outcome.detail}
        data = outcome.data if isinstance(outcome, Reply) else None
        self._put(row, {"what": question, **told, "data": data, "text": outcome.reply.text if outcome.reply else None})

    def is_asked(self, row: Id, question: str) -> bool:
        """Tell whether there is a reply, or one that the next try would not change."""
        found = self.replies.get((row, question))
        return found is not None and found[0] not in PASSING

    def _put(self, row: Id, told: Mapping[str, Any]) -> None:
        self.append(row, told)
        self._learn({"id": row, **told})
        self.offer(self._done)

    @property
    def _done(self) -> int:
        return len(self.answers) + len(self.nll) + len(self.replies)

    def _learn(self, line: Mapping[str, Any]) -> None:
        what, row = str(line["what"]), line["id"]
        if what == "answer":
            self.answers[row] = dict(line)
        elif what == "nll":
            self.nll[row] = dict(line)
        else:
            self.replies[row, what] = str(line["kind"]), line.get("data")
            self.spent += Usage(**line["usage"])
