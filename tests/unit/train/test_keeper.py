"""Rank 0 keeps two whole checkpoints here and two in the durable store, and no attempt writes after a newer one."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_dist.train import checkpoint, fence
from nexa_dist.train.durable import Durable
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded
from nexa_dist.train.keeper import Keeper

MakeEnv = Callable[..., RankEnv]


@pytest.fixture
def make_env(tmp_path: Path) -> MakeEnv:
    def make(attempt: int = 1, **more: str) -> RankEnv:
        names = {"NEXA_RUN_DIR": str(tmp_path / "run"), "NEXA_DURABLE": str(tmp_path / "durable"), "NEXA_RUN_ID": "r1"}
        return RankEnv.read("t", {**names, "NEXA_ATTEMPT": str(attempt), **more})

    return make


@pytest.fixture
def env(make_env: MakeEnv) -> RankEnv:
    return make_env()


def fill(path: Path) -> None:
    (path / "w").write_bytes(b"weights")


def full_disk(path: Path) -> None:
    raise OSError(28, "No space left on device")


def steps(root: Path | None) -> list[str]:
    assert root is not None
    return sorted(path.name for path in root.iterdir())


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_two_newest_checkpoints_stay_here_and_in_the_store(env: RankEnv) -> None:
    keeper = Keeper(env)
    keeper.begin()
    for step in (10, 20, 30):
        keeper.save(step, fill)
    assert keeper.finish().startswith("step 30 is durable")
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000020", "step_00000030"]
    body = checkpoint.manifest(env.checkpoints / "step_00000030")
    assert (body["world_size"], body["run_id"], body["attempt"]) == (1, "r1", 1)
    about = keeper.describe(30)
    assert Path(about["path"]) == (env.durable or Path()) / "step_00000030"
    assert about["sha256"] == body["sha256"]


def test_without_a_durable_place_two_stay_here(tmp_path: Path) -> None:
    env = RankEnv.read("t", {"NEXA_RUN_DIR": str(tmp_path / "run")})
    keeper = Keeper(env)
    for step in (10, 20, 30):
        keeper.save(step, fill)
    assert keeper.finish() == "no durable store"
    assert steps(env.checkpoints) == ["step_00000020", "step_00000030"]
    assert keeper.describe(30)["path"] == str(env.checkpoints / "step_00000030")


def test_a_failed_save_keeps_what_was_there(env: RankEnv) -> None:
    keeper = Keeper(env)
    keeper.save(10, fill)
    with pytest.raises(OSError, match="No space"):
        keeper.save(20, full_disk)
    keeper.finish()
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000010"]


def test_a_checkpoint_from_elsewhere_is_adopted(env: RankEnv, tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "sent", 40, fill, {})
    for source in (path, env.checkpoints / "step_00000040"):
        keeper = Keeper(env)
        keeper.adopt(source)
        keeper.finish()
        assert steps(env.checkpoints) == steps(env.durable) == ["step_00000040"]


def test_the_result_is_left_whole(env: RankEnv) -> None:
    env.run_dir.mkdir()
    Keeper(env).write_result({"model": "m"})
    assert [path.name for path in env.run_dir.iterdir()] == ["result.json"]
    assert json.loads((env.run_dir / "result.json").read_text()) == {"model": "m"}


def test_a_save_waits_for_the_upload_before_it(
    env: RankEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release, put = threading.Event(), []

    def slow(self: Durable, path: Path) -> None:
        assert release.wait(90)
        put.append(path.name)

    monkeypatch.setattr(Durable, "put", slow)
    keeper = Keeper(env)
    keeper.save(10, fill)  # comes back while its upload has not ended
    second = threading.Thread(target=keeper.save, args=(20, fill))
    second.start()
    said = ""

    def waits() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "step 20 waits, step 10 is still on its way" in said

    until(waits)
    assert second.is_alive() and put == []
    release.set()
    second.join(90)
    keeper.finish()
    assert put == ["step_00000010", "step_00000020"]
    assert re.search(r"^waited \d+\.\d s for the durable store$", capsys.readouterr().out, re.M)


def test_a_failed_upload_is_a_warning_and_is_tried_again(
    env: RankEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put, failures = Durable.put, [OSError(28, "No space left on device")] * 2

    def failing(self: Durable, path: Path) -> None:
        if failures:
            raise failures.pop()
        put(self, path)

    monkeypatch.setattr(Durable, "put", failing)
    keeper = Keeper(env)
    keeper.save(10, fill)
    keeper.save(20, fill)
    assert keeper.finish().startswith("step 20 is durable")
    assert steps(env.durable) == ["step_00000020"]
    said = capsys.readouterr().out
    assert "warning: step 10 did not reach the durable store: [Errno 28]" in said
    assert "warning: step 20 did not reach the durable store: [Errno 28]" in said


def test_what_never_gets_through_is_told_and_described_where_it_is(
    env: RankEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Durable, path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Durable, "put", failing)
    keeper = Keeper(env)
    keeper.save(10, fill)
    assert keeper.finish() == f"step 10 did not reach the durable store; it is in {env.checkpoints}/step_00000010"
    assert keeper.describe(10)["path"] == f"{env.checkpoints}/step_00000010"


def test_a_stop_says_how_long_it_took(env: RankEnv) -> None:
    keeper = Keeper(env)
    signal_at = time.monotonic() - 2
    keeper.save(10, fill)
    line = keeper.stopped(10, signal_at)
    said = re.fullmatch(
        r"stopped by SIGTERM at step 10, checkpoint saved (\S+) s after the signal, durable (\S+) s after it", line
    )
    assert said and 2 <= float(said[1]) <= float(said[2])


def test_a_background_save_is_one_at_a_time_and_its_error_comes_up(env: RankEnv) -> None:
    keeper = Keeper(env)
    release, order = threading.Event(), []

    def slow(path: Path) -> None:
        assert release.wait(90)
        fill(path)
        order.append(10)

    keeper.save_later(10, slow)
    assert keeper.pending == 10 and not env.checkpoints.joinpath("step_00000010").exists()
    threading.Timer(0.01, release.set).start()

    def quick(path: Path) -> None:
        fill(path)
        order.append(20)

    keeper.save_later(20, quick)
    keeper.settle()
    assert order == [10, 20]
    keeper.save_later(30, full_disk)
    assert keeper.pending == 30
    with pytest.raises(OSError, match="No space"):
        keeper.save_later(40, fill)
    assert keeper.pending is None
    keeper.save_later(50, full_disk)
    with pytest.raises(OSError, match="No space"):
        keeper.finish()
    assert keeper.finish().startswith("step 20 is durable")
    assert steps(env.checkpoints) == ["step_00000010", "step_00000020"]


def test_an_older_attempt_writes_nothing_here(make_env: MakeEnv) -> None:
    old = Keeper(make_env(1))
    old.begin()
    old.save(10, fill)
    old.finish()
    env = make_env(2)
    (env.run_dir / "generation").write_text("2\n")  # the node's agent
    acts: list[Callable[[], None]] = [lambda: old.save(20, fill), old.begin, lambda: old.write_result({})]
    for act in acts:
        with pytest.raises(Superseded, match=r"attempt 1 may write no checkpoint any more: .*run/generation says"):
            act()
    old.save_later(30, fill)
    with pytest.raises(Superseded):
        old.settle()
    new = Keeper(env)
    new.begin(10)
    new.save(20, fill)
    new.finish()
    assert steps(env.checkpoints) == steps(env.durable) == ["step_00000010", "step_00000020"]
    assert checkpoint.manifest(env.checkpoints / "step_00000020")["attempt"] == 2


def test_an_older_attempt_on_a_lost_node_writes_nothing_durable(make_env: MakeEnv, tmp_path: Path) -> None:
    away = make_env(1, NEXA_RUN_DIR=str(tmp_path / "lost-node"))
    old = Keeper(away)
    old.begin()
    Keeper(make_env(2)).begin()
    assert (tmp_path / "durable" / "r1" / "generation").read_text() == "2\n"
    with pytest.raises(Superseded, match="durable/r1/generation says attempt 2"):
        old.save(20, fill)
    assert not (tmp_path / "durable" / "r1" / "checkpoints").exists()
    with pytest.raises(Superseded):
        Keeper(make_env(1)).begin()
    assert (tmp_path / "durable" / "r1" / "generation").read_text() == "2\n"


def test_an_upload_that_finds_a_newer_attempt_ends_the_training_at_the_next_save(
    make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env(1)
    old = Keeper(env)
    old.begin()
    gate = threading.Event()
    monkeypatch.setattr(old, "_prune", lambda: gate.wait(90))
    old.save(10, fill)
    Keeper(make_env(2)).begin()
    gate.set()
    until(lambda: not old._uploader._thread or not old._uploader._thread.is_alive())
    with pytest.raises(Superseded):
        old.finish()
    assert env.durable and not list(env.durable.glob("*"))


class Sleepy(fence.Fence):
    """Falls asleep between its last look at the files and the rename; `meanwhile` a newer attempt begins."""

    looks = 0

    def check(self) -> None:
        super().check()
        object.__setattr__(self, "looks", self.looks + 1)
        if self.looks == 2:
            self.meanwhile()

    def meanwhile(self) -> None:
        raise NotImplementedError


def test_a_writer_asleep_before_its_rename_finds_nothing_to_rename(make_env: MakeEnv) -> None:
    old, new = make_env(1), make_env(2)

    class Asleep(Sleepy):
        def meanwhile(self) -> None:
            Keeper(new).begin()

    asleep = Asleep(old.fence.generation, old.fence.files)
    for root in (old.checkpoints, old.durable):
        assert root is not None
        object.__setattr__(asleep, "looks", 0)
        (new.durable or Path()).parent.joinpath("generation").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            checkpoint.write(root, 10, fill, {}, asleep)
        assert steps(root) == []


def test_half_written_things_of_a_newer_attempt_are_spared(tmp_path: Path) -> None:
    for name in (".tmp-1-a-7", ".tmp-2-b-7", ".tmp-3-c-7", ".tmp-old"):
        (tmp_path / name).mkdir()
    fence.Fence(2).sweep(tmp_path)
    assert steps(tmp_path) == [".tmp-3-c-7"]


def test_the_generation_never_goes_down(tmp_path: Path) -> None:
    file = tmp_path / "r" / "generation"
    assert fence.read(file) == 0
    for asked, found in ((2, 2), (1, 2), (2, 2), (10, 10)):
        fence.raise_to(file, asked)
        assert fence.read(file) == found
    assert os.listdir(file.parent) == ["generation"]
    file.write_text("torn")
    assert fence.read(file) == 0
