"""Which tests one worker gets together, since they share what takes long to make."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = {
    "tests/e2e/test_runs.py": "lab 1",
    "tests/e2e/test_logs.py": "lab 1",
    "tests/e2e/test_own_hosts.py": "lab 1",
    "tests/e2e/test_own_hosts_provision.py": "lab 1",
    "tests/e2e/test_hostile_cli.py::test_a_command_for_a_node": "lab 1",
    "tests/e2e/test_lifecycle.py": "lab 2",
    "tests/e2e/test_recovery.py": "lab 2",
    "tests/e2e/test_diag.py": "diag",
    "tests/e2e/test_diag_hosts.py": "diag hosts",
    "tests/e2e/test_mesh.py": "mesh",
    "tests/e2e/test_tailnet.py": "tailnet",
    "tests/emulated/test_cloud_api.py": "cloud api",  # one worker loads moto for all of them
    "tests/emulated/test_cloud_faults.py": "cloud api",
}
"""Group by what the name of a test begins with. Any other test goes to any worker."""


LONG = ("tests/e2e/test_region.py", "tests/e2e/test_nobody_home.py", "tests/e2e/test_chaos.py")
"""Minutes each. They begin before the others, or one worker still has them when the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Not by xdist's own marks: pytest 9.2 does not read what xdist 3.8 writes for them, so that they do nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for name, group in TOGETHER.items() if nodeid.startswith(name)), nodeid)

    return Grouped(config, log)
