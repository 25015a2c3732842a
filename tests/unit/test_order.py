"""In which order the workers get the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest

REGION, HOSTS, STACK = "tests/e2e/a.py::region", "tests/e2e/b.py::hosts", "tests/e2e/c.py::stack"
LAST = "tests/unit/e.py::last"


class Worker:
    gateway = SimpleNamespace(id="gw")

    def __init__(self, everything: list[str]) -> None:
        self.shutting_down, self.got, self.everything = False, list[str](), everything

    def send_runtest_some(self, places: list[int]) -> None:
        self.got += [self.everything[place] for place in places]

    def shutdown(self) -> None:
        self.shutting_down = True


def test_behind_a_long_test_waits_nothing_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker has two, since it begins none before it knows the next."""
    durations = tmp_path_factory.mktemp("order") / "durations.txt"
    durations.write_text(f"400 {REGION}\n200 {HOSTS}\n150 {STACK}\n")
    monkeypatch.setattr(conftest, "DURATIONS", durations)
    tests = [REGION, HOSTS, STACK, *(f"tests/unit/d.py::{n}" for n in range(4)), LAST]
    tx = ["popen", "popen"]
    config: Any = SimpleNamespace(getvalue=lambda _: tx, option=SimpleNamespace(loadscopereorder=False, tx=tx))
    order = conftest.scheduling()(config)
    one, two = Worker(tests), Worker(tests)
    for worker in (one, two):
        order.add_node(worker)
        order.add_node_collection(worker, tests)
    order.schedule()
    assert (one.got[:2], two.got[:1]) == ([REGION, LAST], [HOSTS])
    assert STACK not in one.got + two.got, "it goes to whoever is through first"
    order.mark_test_complete(two, tests.index(HOSTS))
    done = len(two.got)
    for test in two.got[1:done]:
        order.mark_test_complete(two, tests.index(test))
    assert STACK in two.got
