"""Plugin of pytest for `scripts/shake`: threads of the tests and of the product in them begin up to 0.03 s late, drawn
from the seed, so that now one of them and now another is the first."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

LONGEST_S = 0.03


def late(chance: random.Random, function: Callable[..., Any]) -> Callable[..., Any]:
    def begun_late(*args: Any, **more: Any) -> Any:
        if chance.random() < 0.6:
            time.sleep(chance.uniform(0, LONGEST_S))
        return function(*args, **more)

    return begun_late


def pytest_configure() -> None:
    chance, submit = random.Random(os.environ["NEXA_SHAKE"].rpartition("-")[2]), ThreadPoolExecutor.submit

    def submit_late(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        return submit(pool, late(chance, function), *args, **more)

    threading.Thread.run = late(chance, threading.Thread.run)  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_late  # type: ignore[assignment, method-assign]
