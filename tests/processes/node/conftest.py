from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_dist.run.agent_file import NAME, content
from tests.processes.node.rig import Rig


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / NAME
    path.write_bytes(content())
    return path


@pytest.fixture
def rig(tmp_path: Path, agent_file: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "a run's dir", agent_file)
    yield made
    assert made.stop()["left"] == []
    assert made.groups() == []
