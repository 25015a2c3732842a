"""The agent's commands are rows of a table, which names modules and functions as text: each of them is there."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from nexa_dist.node import main


@pytest.mark.parametrize("name", [*main.ANSWERED, *main.SPOKEN])
def test_a_command_leads_to_a_function_and_is_explained(name: str) -> None:
    place, _ = {**main.ANSWERED, **main.SPOKEN}[name]
    module, _, function = place.rpartition(".")
    assert inspect.isfunction(getattr(import_module(f"nexa_dist.node.{module}"), function))
    assert f"agent.pyz {name} " in str(main.__doc__)


def test_no_command_is_of_both_kinds() -> None:
    assert not main.ANSWERED.keys() & main.SPOKEN.keys()
