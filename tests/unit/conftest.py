"""Fixtures of the controller's cloud code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cloud_server import Desk, Emulated, emulated


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def _emulated() -> Iterator[Emulated]:
    yield from emulated()


@pytest.fixture
def emulated_region(_emulated: Emulated) -> Iterator[Emulated]:
    yield _emulated
    _emulated.control.clear()
