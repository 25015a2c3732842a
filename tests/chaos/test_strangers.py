"""Data of strangers and damaged files: a small slice for every landing, many seeds for the long tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import damage, messages


def test_some_messages_of_a_hostile_node(tmp_path: Path) -> None:
    tally = messages.rounds(tmp_path, 11, 400)
    assert tally.faults == []


def test_some_damaged_files(tmp_path: Path) -> None:
    tally = damage.rounds(tmp_path, 11, 60)
    assert tally.faults == []
    assert tally.ended


@pytest.mark.long("10,000 messages")
def test_many_messages_of_a_hostile_node(tmp_path: Path) -> None:
    assert messages.rounds(tmp_path, 1, 10_000).faults == []


@pytest.mark.long("1,000 damaged files")
def test_many_damaged_files(tmp_path: Path) -> None:
    assert damage.rounds(tmp_path, 1, 1000).faults == []
