"""Packages that take seconds to import: every worker collects all tests, and few of them need these."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest


def needs(*packages: str) -> None:
    """Skips the tests of a file where a package is not installed. None is imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)


class Late:
    """A module that is imported when a test first asks for something of it. What a test replaces in it has to be named
    by a string: `monkeypatch.setattr("nexa_dist.train.control.gather", …)`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest asks everything that a file names for these
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
