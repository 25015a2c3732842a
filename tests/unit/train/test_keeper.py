"""Rank 0 keeps two whole checkpoints here and two in the durable place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexa_dist.train import checkpoint
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper


@pytest.fixture
def env(tmp_path: Path) -> RankEnv:
    names = {"NEXA_RUN_DIR": str(tmp_path / "run"), "NEXA_DURABLE": str(tmp_path / "durable"), "NEXA_RUN_ID": "r1"}
    return RankEnv.read("t", names)


def fill(path: Path) -> None:
    (path / "w").write_bytes(b"weights")


def steps(root: Path | None) -> list[str]:
    assert root is not None
    return sorted(path.name for path in root.iterdir())


def test_two_stay_in_both_places(env: RankEnv) -> None:
    for step in (10, 20, 30):
        Keeper(env).save(step, fill)
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000020", "step_00000030"]
    body = checkpoint.manifest(env.checkpoints / "step_00000030")
    assert (body["world_size"], body["run_id"], body["attempt"]) == (1, "r1", 1)
    about = Keeper(env).describe(30)
    assert Path(about["path"]) == (env.durable or Path()) / "step_00000030"
    assert about["sha256"] == body["sha256"]


def test_a_failed_save_keeps_what_was_there(env: RankEnv) -> None:
    Keeper(env).save(10, fill)

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Keeper(env).save(20, full_disk)
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000010"]


def test_a_checkpoint_from_elsewhere_is_adopted(env: RankEnv, tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "sent", 40, fill, {})
    Keeper(env).adopt(path)
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000040"]
    Keeper(env).adopt(env.checkpoints / "step_00000040")
    assert steps(env.checkpoints) == ["step_00000040"]


def test_the_result_is_left_whole(env: RankEnv) -> None:
    env.run_dir.mkdir()
    Keeper(env).write_result({"model": "m"})
    assert [path.name for path in env.run_dir.iterdir()] == ["result.json"]
    assert json.loads((env.run_dir / "result.json").read_text()) == {"model": "m"}
