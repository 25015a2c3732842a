"""What may be spent on an endpoint, in tokens and US dollars: reserved before a question, settled by what it took."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from nexa_dist.stages.endpoint_reply import NOTHING, Usage


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int, *, estimated: bool = False) -> Usage:
        usd = (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
        return Usage(prompt_tokens, completion_tokens, usd, estimated)


class Spending:
    """The account of one endpoint, shared by its threads. A question that does not fit beside those that are being
    asked waits for them, since most take less than was reserved; only when nothing is being asked is it refused."""

    def __init__(self, tokens: int | None, usd: float | None, spent: Usage = NOTHING) -> None:
        self._tokens, self._usd = tokens, usd
        self.spent = spent
        self._held: list[Usage] = []
        self._changed = threading.Condition()

    def reserve(self, most: Usage, stop: Callable[[], bool] = bool) -> bool:
        """Reserve the most that a question can take; false when that is more than is left."""
        with self._changed:
            while not self._fits(most):
                if not self._held or stop():
                    return False
                self._changed.wait(0.2)
            self._held.append(most)
            return True

    def settle(self, held: Usage, took: Usage) -> None:
        """Book what a question took in place of what was reserved for it."""
        with self._changed:
            self._held.remove(held)
            self.spent += took
            self._changed.notify_all()

    def _fits(self, most: Usage) -> bool:
        all_of = sum(self._held, self.spent + most)
        tokens = all_of.prompt_tokens + all_of.completion_tokens
        return (self._tokens is None or tokens <= self._tokens) and (self._usd is None or all_of.usd <= self._usd)
