"""One pass over questions: each answer kept as it comes, until all have come or something ends them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from nexa_dist.errors import EXIT_BUDGET, EXIT_OK, NexaError
from nexa_dist.stages.contract import EXIT_STOPPED
from nexa_dist.stages.endpoint import Endpoint, Question
from nexa_dist.stages.endpoint_config import EndpointConfig
from nexa_dist.stages.endpoint_reply import ENDING, KINDS, NOTHING, PASSING, Failed, Reply, Usage

K = TypeVar("K")
DEAD_AFTER = 20
"""So many failures of the server in a row, or twice the concurrency, mean that it is not there."""


def ask_and_keep(
    config: EndpointConfig, questions: Iterable[tuple[K, Question]], keep: Callable[[K, Reply | Failed], object], *,
    who: str, spent: Usage, stop: Callable[[], bool],
) -> int:  # fmt: skip
    """Returns the exit code. Raises NexaError when the server, which is called `who`, answers nobody."""
    end: Failed | None = None
    in_a_row = 0
    with Endpoint(config, spent=spent, stop=lambda: stop() or end is not None) as server:
        for key, outcome in server.ask_all(questions):
            if isinstance(outcome, Failed) and outcome.kind in ENDING:
                end = end or (outcome if outcome.kind != "stopped" else None)
                if outcome.usage != NOTHING:  # what was stopped while it was asked may be billed all the same
                    keep(key, replace(outcome, kind="timeout"))
                continue
            keep(key, outcome)
            in_a_row = in_a_row + 1 if outcome.kind in PASSING else 0
            if in_a_row >= max(DEAD_AFTER, 2 * config.concurrency):
                end = Failed(outcome.kind, f"{in_a_row} questions in a row: {outcome.detail}")
    if stop():
        return EXIT_STOPPED
    if end and end.kind == "budget":
        print(f"the budget ended it: {end.detail}", flush=True)
        return EXIT_BUDGET
    if end:
        raise NexaError(
            f"the {who} answers nobody ({KINDS[end.kind]}): {end.detail}",
            hint="what was answered is kept, and the same command goes on",
        )
    return EXIT_OK
