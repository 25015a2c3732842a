"""Which tests are of the long tier, which ones one worker gets together, and in which order they begin."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.state import own_places

own_places()  # before any test: workers of xdist inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are all workers' together, and torch's threads spin
gc.disable()  # until all are collected: a quarter of that would be looking at thousands of tests that stay

TOGETHER = {
    "tests/e2e/test_runs.py": "lab 1",
    "tests/e2e/test_logs.py": "lab 1",
    "tests/e2e/test_notify.py": "lab 1",
    "tests/e2e/test_own_hosts.py": "lab 1",
    "tests/e2e/test_other_users.py": "lab 1",
    "tests/e2e/test_axolotl.py": "lab 3",
    "tests/e2e/test_sharded_nodes.py": "lab 4",
    "tests/e2e/test_slow_rank.py": "lab 1",
    "tests/e2e/test_hostile_cli.py::test_a_command_for_a_node": "lab 1",
    "tests/e2e/test_lifecycle.py::test_killed_anywhere": "killed anywhere",  # on a cluster of its own
    "tests/e2e/test_lifecycle.py::test_killed_then": "killed then",  # the same
    "tests/e2e/test_lifecycle.py": "lab 2",
    "tests/e2e/test_project.py": "lab 2",
    "tests/e2e/test_queue.py": "lab 2",
    "tests/e2e/test_serve.py": "lab 2",
    "tests/e2e/test_recovery.py": "lab 2",
    "tests/e2e/test_reproduce.py": "lab 2",
    "tests/e2e/test_own_hosts_provision.py": "own hosts",
    "tests/e2e/test_diag.py::test_an_unfit_node": "lab 2",
    "tests/e2e/test_diag.py": "diag",
    "tests/e2e/test_diag_hosts.py": "diag hosts",
    "tests/e2e/test_mesh.py": "mesh",
    "tests/e2e/test_slurm.py": "slurm",
    "tests/e2e/test_region_kept.py": "kept region",
    "tests/e2e/test_tailnet.py": "tailnet",
    "tests/emulated/test_cloud_api.py": "cloud api",  # one worker loads moto for all of them
    "tests/emulated/test_cloud_faults.py": "cloud api",
    "tests/emulated/test_rights.py::test_a_provision_without_one_right_names_it": "rights that lack",
    "tests/emulated/test_rights.py": "rights",
    "tests/emulated/": "emulated",
    "tests/e2e/test_bootstrap.py": "bootstrap",
    "tests/e2e/test_containers.py": "containers",  # an image each, unpacked
    "tests/processes/node/test_agent_container.py": "agent in containers",
    "tests/e2e/test_durable.py": "durable",
    "tests/e2e/test_slurm_cluster.py": "slurm cluster",
    "tests/e2e/test_wheel.py": "wheel",
    "tests/processes/infra/test_dockerfile_build.py": "dockerfile",  # minutes of installing
    "tests/processes/test_serve_model.py": "served models",
    "tests/processes/train/test_ds.py": "deepspeed",
    "tests/processes/train/test_fits_sharded.py": "fits sharded",  # two starts for all of them
    "tests/processes/train/test_hf_state.py": "transformers",
    "tests/unit/train/": "torch",  # one worker imports it
    "tests/processes/stages/test_eval_local.py": "torch",
    "tests/unit/stages/test_filter.py": "torch",
}
"""What shares something that takes long to make: a group by what the name of a test begins with. Any other test goes to
any worker."""
DURATIONS = Path(__file__).with_name("durations.txt")
"""Seconds of the tests that take some, as `scripts/test --long --durations=0` says them."""
LONG_S = 20.0
"""Nothing that takes long waits behind a group of more seconds."""


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


def known_s(nodeids: Iterable[str]) -> Counter[str]:
    """Seconds that these tests took when they were measured, by group."""
    wanted, found = set(nodeids), Counter[str]()
    for line in DURATIONS.read_text().splitlines():
        if not line.startswith("#"):
            seconds, nodeid = line.split(maxsplit=1)
            if nodeid in wanted:
                found[group_of(nodeid)] += float(seconds)  # type: ignore[assignment]
    return found


@pytest.hookimpl(trylast=True)  # when it is known which tests are of this tier
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker("long")) and not (mark.args and isinstance(mark.args[0], str)):
            raise pytest.UsageError(f"{item.nodeid}: the mark `long` says why: @pytest.mark.long('why')")
    # The longest first, or one worker still has it when the others have nothing left.
    seconds = known_s(item.nodeid for item in items)
    items.sort(key=lambda item: -seconds[group_of(item.nodeid)])


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20)  # a test makes little that goes round in circles, and 5,000 of them take a tenth less
    gc.enable()


def scheduling() -> Any:
    """Not by xdist's own marks: pytest 9.2 does not read what xdist 3.8 writes for them, so that they do nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        @cached_property
        def _seconds(self) -> Counter[str]:
            return known_s(self.collection or ())

        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

        def _reschedule(self, node: Any) -> None:
            """A worker begins a test when it knows the next one. Behind a long one that is something short: it is
            nobody else's any more, and would begin when all others have nothing left."""
            work = self.assigned_work[node]
            busy = [group for group, tests in work.items() if not all(tests.values())]
            if self.workqueue and self._pending_of(work) <= 2 and any(self._seconds[group] > LONG_S for group in busy):
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._reschedule(node)

    return Grouped


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    config.option.loadscopereorder = False  # by the number of their tests, which says nothing of their seconds
    return scheduling()(config, log)
