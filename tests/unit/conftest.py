"""Fixtures of the controller's cloud code, and how property tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nexa_dist.run import trust
from tests.unit.cloud_server import Desk

settings.register_profile(
    "here",
    max_examples=50,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("here")  # a busy machine fails nothing, and every run tries the same


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    trust.claim(tmp_path)  # as any command does before it makes something
    return Desk(tmp_path)
