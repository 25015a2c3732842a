"""A rank tells how far it is: one fixed-size record, often enough and not too often."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.train import progress
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress.json"
    monkeypatch.setenv("NEXA_PROGRESS", str(path))
    for name, value in (("_state", {}), ("_path", ""), ("_written", 0.0)):
        monkeypatch.setattr(progress, name, value)
    return path


def clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr("nexa_dist.train.progress.time.monotonic", lambda: now)


def read(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    assert len(raw) == 512
    return dict(json.loads(raw))


def test_nothing_is_written_without_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXA_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    progress.report(1, 2, loss=0.5)
    progress.note(saved=1)
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_what_the_agent_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 100.0)
    progress.report(0, 240)
    first = read(file)
    assert (first["step"], first["of"], first["loss"], first["tokens_per_s"]) == (0, 240, None, None)
    assert abs(first["at"] - time.time()) < 60
    clock(monkeypatch, 101.0)
    progress.report(41, 240, loss=4.25, tokens_per_s=900.0, learning_rate=1.23456789e-7, held_out=4.5)
    clock(monkeypatch, 102.0)
    progress.report(42)
    assert {**read(file), "at": 0} == {
        "step": 42, "of": 240, "loss": 4.25, "tokens_per_s": 900.0, "learning_rate": 1.23457e-7, "held_out": 4.5,
        "at": 0,
    }  # fmt: skip


def test_at_most_twenty_writes_a_second_but_the_last_step_and_a_save_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for tick in range(1000):
        clock(monkeypatch, 100 + tick / 1000)
        progress.report(tick, 5000)
        seen.append(read(file)["step"])
    assert len(set(seen)) <= 21 and seen[0] == 0
    progress.note(saved=999)
    assert (read(file)["step"], read(file)["saved"]) == (999, 999)
    progress.report(5000, 5000)
    assert read(file)["step"] == 5000


def test_a_rank_that_does_not_train_yet_is_silent(file: Path) -> None:
    progress.note(saved=40, durable=None, saving=False)
    assert not file.exists()
    progress.report(40, 240)
    assert (read(file)["saved"], read(file)["durable"], read(file)["saving"]) == (40, None, False)


def test_what_is_no_number_is_null(file: Path) -> None:
    progress.report(1, 2, loss=float("nan"), tokens_per_s=float("inf"))
    assert (read(file)["loss"], read(file)["tokens_per_s"]) == (None, None)


def test_a_missing_folder_does_not_end_the_training(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_PROGRESS", str(file.parent / "gone" / "progress.json"))
    progress.report(1, 2)
    (file.parent / "gone").mkdir()
    progress.report(2, 2)
    assert read(file.parent / "gone" / "progress.json")["step"] == 2


def test_the_keeper_tells_what_is_saved_and_durable(file: Path, tmp_path: Path) -> None:
    env = RankEnv.read("t", {"NEXA_RUN_DIR": str(tmp_path / "run"), "NEXA_DURABLE": str(tmp_path / "d")})
    keeper = Keeper(env)
    keeper.begin()
    progress.report(0, 40)
    assert (read(file)["saved"], read(file)["durable"]) == (None, None)
    seen = []
    keeper.save(20, lambda path: seen.append(read(file)["saving"]))
    keeper.finish()
    assert seen == [True]
    assert (read(file)["saved"], read(file)["durable"], read(file)["saving"]) == (20, 20, False)
    again = Keeper(env)
    again.begin(20)
    assert (read(file)["saved"], read(file)["durable"]) == (20, 20)
