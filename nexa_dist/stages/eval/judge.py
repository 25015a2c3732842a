"""The judge: what it is asked about each row, and what its replies come to. No I/O but the questions themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.stages.endpoint import Question
from nexa_dist.stages.endpoint_reply import OK
from nexa_dist.stages.eval import rubric
from nexa_dist.stages.eval.config import Judge
from nexa_dist.stages.row_files import Id, Row
from nexa_dist.stages.teach.prompt import Prompts, prompt_sha256

PAIR_SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["winner"],
    "additionalProperties": False,
}
TURNED = {"A": "B", "B": "A", "tie": "tie"}


def judge_sha256(config: Judge) -> str:
    """Name of the judge with all that it is asked: model, sampling, templates, schemas."""
    endpoint = config.endpoint.model_dump(
        include={"model", "max_tokens", "temperature", "top_p", "seed", "json_mode"}, mode="json"
    )
    prompts = prompt_sha256(config.prompt, config.system, {**rubric.schema(list(config.criteria)), "pair": config.pair})
    told = {"endpoint": endpoint, "prompts": prompts, "meanings": meanings(config), "swap": config.swap}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def meanings(config: Judge) -> dict[str, str]:
    return {name: config.meanings.get(name) or rubric.CRITERIA[name][1] for name in config.criteria}


def orders(config: Judge, what: str) -> list[str]:
    """Names of a question in each order that it is asked in."""
    return [f"{what}{order}" for order in range(2 if config.swap else 1)]


class Asked:
    """The questions of one judge."""

    def __init__(self, config: Judge) -> None:
        self._config = config
        self._grade, self._pair = Prompts(config.prompt, config.system), Prompts(config.pair, config.system)
        self._meanings = meanings(config)
        self.kinds = [*orders(config, "grade"), *(orders(config, "pair") if config.against else [])]
        """Names of the questions about each row."""

    def question(self, kind: str, row: Row, prompt: str, answer: str) -> Question:
        """Raises NexaError for a row that does not fit the template."""
        turned = kind.endswith("1")
        if kind.startswith("pair"):
            other = str(row.get(str(self._config.against)) or "")
            if not other.strip():
                raise NexaError(f"no {self._config.against} to compare with")
            a, b = (other, answer) if turned else (answer, other)
            return Question(self._pair.of({**row, "prompt": prompt, "a": a, "b": b}), PAIR_SCHEMA)
        names = list(self._config.criteria)
        names = names[::-1] if turned else names
        told = "".join(f"- {name}: {self._meanings[name]}\n" for name in names)
        values = {**row, "prompt": prompt, "answer": answer, "criteria": told}
        return Question(self._grade.of(values), rubric.schema(names))


class Verdicts:
    """What the replies come to, which are (kind, JSON) by row and question, as the record has them."""

    def __init__(self, config: Judge, replies: Mapping[tuple[Id, str], tuple[str, Any]]) -> None:
        self.config = config
        self.replies: dict[Id, dict[str, Any]] = {}
        self.failures: dict[Id, list[str]] = {}
        """Kinds of the failed questions of a row."""
        for (row, question), (kind, data) in replies.items():
            if kind == OK:
                self.replies.setdefault(row, {})[question] = data
            else:
                self.failures.setdefault(row, []).append(kind)

    def of(self, row: Id) -> dict[str, Any]:
        """Columns of a row: criteria and score; `winner` (answer, other, tie, or None where an order changed it)."""
        names = list(self.config.criteria)
        asked = self.replies.get(row, {})
        grades = [rubric.read(asked.get(kind), names) for kind in orders(self.config, "grade")]
        scores = rubric.merged(grades, names)
        made: dict[str, Any] = {**scores, rubric.DSS: rubric.dss(scores, self.config.criteria)}
        if self.config.against:
            made["winner"] = self.winner(asked)
        return made

    def winner(self, asked: Mapping[str, Any]) -> str | None:
        """What both orders say; `tie` where they contradict each other, since the place then decided."""
        said = []
        for kind in orders(self.config, "pair"):
            found = asked.get(kind)
            word = str(found.get("winner")) if isinstance(found, dict) else ""
            word = {"a": "A", "b": "B", "tie": "tie"}.get(word.strip().lower(), "")
            if not word:
                return None
            said.append(TURNED[word] if kind.endswith("1") else word)
        agreed = said[0] if len(set(said)) == 1 else "tie"
        return {"A": "answer", "B": "other", "tie": "tie"}[agreed]

    def first_place(self) -> dict[str, Any]:
        """How often the answer in the first place won, of pairs that had a winner: 0.5 where the place does not
        count. And how often the two orders said the same."""
        first = won = same = both = 0
        for asked in self.replies.values():
            words = [str(asked[kind].get("winner", "")).strip().lower() for kind in orders(self.config, "pair")
                     if isinstance(asked.get(kind), dict)]  # fmt: skip
            won += sum(word in ("a", "b") for word in words)
            first += sum(word == "a" for word in words)
            if len(words) == 2:
                both += 1
                same += words in (["a", "b"], ["b", "a"], ["tie", "tie"])
        return {"first_wins": first / won if won else None, "orders_agree": same / both if both else None}
