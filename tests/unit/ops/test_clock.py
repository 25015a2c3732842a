"""A clock that is set while a command runs uses up neither its budget nor its deadline."""

from __future__ import annotations

import time

import pytest

from nexa_dist.ops import context


def test_a_jump_of_the_wall_clock_is_no_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(context.steady_now() - time.time()) < 60
    before = context.steady_now()
    monkeypatch.setattr(time, "time", lambda: before + 86_400)
    assert 0 <= context.steady_now() - before < 60
