"""Which tests are of the long tier, which ones one worker gets together, and in which order they begin."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.state import own_state

own_state()  # before any test: workers of xdist inherit it

TOGETHER = {
    "tests/e2e/test_runs.py": "lab 1",
    "tests/e2e/test_logs.py": "lab 1",
    "tests/e2e/test_own_hosts.py": "lab 1",
    "tests/e2e/test_other_users.py": "lab 1",
    "tests/e2e/test_hostile_cli.py::test_a_command_for_a_node": "lab 1",
    "tests/e2e/test_lifecycle.py": "lab 2",
    "tests/e2e/test_project.py": "lab 2",
    "tests/e2e/test_queue.py": "lab 2",
    "tests/e2e/test_recovery.py": "lab 2",
    "tests/e2e/test_own_hosts_provision.py": "own hosts",
    "tests/e2e/test_diag.py::test_an_unfit_node": "lab 2",
    "tests/e2e/test_diag.py": "diag",
    "tests/e2e/test_diag_hosts.py": "diag hosts",
    "tests/e2e/test_mesh.py": "mesh",
    "tests/e2e/test_tailnet.py": "tailnet",
    "tests/emulated/test_cloud_api.py": "cloud api",  # one worker loads moto for all of them
    "tests/emulated/test_cloud_faults.py": "cloud api",
    "tests/emulated/test_rights.py": "rights",
    "tests/emulated/": "emulated",
    "tests/processes/train/test_hf_state.py": "transformers",
}
"""What shares something that takes long to make: a group by what the name of a test begins with. Any other test goes to
any worker."""
DURATIONS = Path(__file__).with_name("durations.txt")
"""Seconds of the tests that take some, as `scripts/test --long --durations=0` says them."""


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """As most users have it. A command that runs in this process sets its own."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def group_of(nodeid: str) -> str:
    """A file of unit tests stays whole: handing them out one by one takes longer than they do."""
    alone = nodeid.partition("::")[0] if nodeid.startswith("tests/unit/") else nodeid
    return next((group for name, group in TOGETHER.items() if nodeid.startswith(name)), alone)


def known_s() -> Counter[str]:
    """Seconds that a group took when it was measured."""
    found: Counter[str] = Counter()
    for line in DURATIONS.read_text().splitlines():
        if not line.startswith("#"):
            seconds, nodeid = line.split(maxsplit=1)
            found[group_of(nodeid)] += float(seconds)  # type: ignore[assignment]
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker("long")) and not (mark.args and isinstance(mark.args[0], str)):
            raise pytest.UsageError(f"{item.nodeid}: the mark `long` says why: @pytest.mark.long('why')")
    seconds = known_s()  # the longest first, or one worker still has it when the others have nothing left
    items.sort(key=lambda item: -seconds[group_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Not by xdist's own marks: pytest 9.2 does not read what xdist 3.8 writes for them, so that they do nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # by the number of their tests, which says nothing of their seconds
    return Grouped(config, log)
