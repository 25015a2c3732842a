"""Ranks that would train on different data, or from different steps, say so and stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.train import agree, checkpoint
from nexa_dist.train.env import RankEnv


def env(folder: Path, **extra: str) -> RankEnv:
    return RankEnv.read("t", {"NEXA_RUN_DIR": str(folder), **extra})


def save(root: Path, step: int) -> Path:
    def fill(path: Path) -> None:
        (path / "w").write_bytes(b"weights")

    return checkpoint.write(root, step, fill, {})


def test_the_ranks_that_differ_are_named() -> None:
    agree.check_same("the dataset", ["a", "a"], "")
    with pytest.raises(NexaError, match="the dataset differs: rank 0 has a, rank 1 has b, rank 3 has c"):
        agree.check_same("the dataset", ["a", "b", "a", "c"], "")


def test_a_fresh_run_starts_fresh(tmp_path: Path) -> None:
    here = env(tmp_path)
    assert agree.local_step(here) == 0
    assert agree.start(here, [0, None, 0, None]) is None


def test_only_one_rank_a_node_reads(tmp_path: Path) -> None:
    assert agree.local_step(env(tmp_path, LOCAL_RANK="1")) is None


def test_the_newest_whole_checkpoint_of_the_run_folder(tmp_path: Path) -> None:
    here = env(tmp_path)
    save(here.checkpoints, 20)
    (save(here.checkpoints, 40) / "w").write_bytes(b"weightz")
    assert agree.local_step(here) == 20
    assert agree.start(here, [20, None]) == (20, here.checkpoints / "step_00000020")


@pytest.mark.parametrize("damage", ["flipped bit", "cut by a byte", "cut in half", "zero tail"])
def test_a_damaged_newest_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    here = env(tmp_path)
    save(here.checkpoints, 20)
    file = save(here.checkpoints, 40) / "w"
    good = file.read_bytes()
    bad = {
        "flipped bit": bytes([good[0] ^ 4]) + good[1:],
        "cut by a byte": good[:-1],
        "cut in half": good[: len(good) // 2],
        "zero tail": good[:4] + bytes(len(good) - 4),
    }[damage]
    file.write_bytes(bad)
    assert agree.start(here, [agree.local_step(here)]) == (20, here.checkpoints / "step_00000020")


def test_a_given_checkpoint_is_verified(tmp_path: Path) -> None:
    path = save(tmp_path / "given", 20)
    given = {"NEXA_RESUME_FROM": str(path), "NEXA_RESUME_STEP": "20"}
    assert agree.local_step(env(tmp_path, **given)) == 20
    assert agree.start(env(tmp_path, **given), [20]) == (20, path)
    assert "NEXA_RESUME_STEP is 21" in str(agree.local_step(env(tmp_path, **{**given, "NEXA_RESUME_STEP": "21"})))
    (path / "w").write_bytes(b"weightz")
    entry = agree.local_step(env(tmp_path, **given))
    with pytest.raises(NexaError, match=r"rank 2: checkpoint .* is damaged: w: its SHA-256"):
        agree.start(env(tmp_path, **given), [20, None, entry, None])


def test_nodes_at_different_steps_are_named(tmp_path: Path) -> None:
    with pytest.raises(NexaError, match="rank 0 at step 40, rank 2 at step 0") as caught:
        agree.start(env(tmp_path), [40, None, 0, None])
    assert "NEXA_RESUME_FROM" in caught.value.hint
