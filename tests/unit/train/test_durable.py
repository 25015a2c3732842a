"""The bucket as rank 0 sees it: run_sync.sh's answers and exit codes. The script here is a fake; S3 is in tests/e2e."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_dist.train import checkpoint
from nexa_dist.train.durable import Durable
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded
from nexa_dist.train.keeper import Keeper

Make = Callable[..., RankEnv]
SYNC = """
echo "$* attempt $NEXA_ATTEMPT bucket $NEXA_BUCKET" >>"{log}"
case "$1" in fence) {fence} ;; push) {push} ;; esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(fence: str = """echo '{"step": null}'""", push: str = ":", **more: str) -> RankEnv:
        (tmp_path / "sync.sh").write_text(SYNC.format(log=tmp_path / "log", fence=fence, push=push))
        names = {"NEXA_RUN_DIR": str(tmp_path / "run"), "NEXA_RUN_ID": "r1", "NEXA_ATTEMPT": "3"}
        names |= {"NEXA_BUCKET": "s3://b/c1/", "NEXA_SYNC": str(tmp_path / "sync.sh")}
        return RankEnv.read("t", {**names, **more})

    return made


def fill(path: Path) -> None:
    (path / "w").write_bytes(b"weights")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_every_checkpoint_is_pushed_under_its_attempt(make: Make, tmp_path: Path) -> None:
    env = make()
    keeper = Keeper(env)
    keeper.begin()
    keeper.save(10, fill)
    assert keeper.finish().startswith("step 10 is durable")
    assert (tmp_path / "log").read_text().splitlines() == [
        "fence r1 3 attempt 3 bucket s3://b/c1",
        f"push r1 {env.checkpoints}/step_00000010 attempt 3 bucket s3://b/c1",
    ]


def test_durable_is_what_all_stores_have(make: Make, tmp_path: Path) -> None:
    env = make(fence="""echo '{"step": 20}'""", NEXA_DURABLE=str(tmp_path / "durable"))
    assert Durable(env, 2).enter() is None
    assert env.durable is not None
    for step in (10, 30):
        path = checkpoint.write(env.durable, step, fill, {})
    assert Durable(env, 2).enter() == 20
    (path / "w").write_bytes(b"cut")
    assert Durable(env, 2).enter() == 10


def test_a_newer_attempt_in_the_bucket_ends_this_one(make: Make) -> None:
    keeper = Keeper(make(fence="echo 'error: attempt 3 may write no more' >&2; exit 3"))
    keeper.begin()  # asks, and does not wait for the answer
    with pytest.raises(Superseded, match="attempt 3 may write no more"):
        keeper.save(10, fill)
    keeper = Keeper(make(push="echo 'error: attempt 3 may write no more' >&2; exit 3"))
    keeper.begin()
    keeper.save(10, fill)
    with pytest.raises(Superseded):
        keeper.finish()


def test_a_bucket_out_of_reach_is_a_warning(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    keeper = Keeper(make(fence="exit 1", push="echo 'error: no route' >&2; exit 1"))
    keeper.begin()
    keeper.save(10, fill)
    assert "step 10 did not reach the durable store; it is in" in keeper.finish()
    said = capsys.readouterr().out
    assert "warning: the durable store cannot be reached: s3://b/c1: exit code 1" in said
    assert said.count("warning: step 10 did not reach the durable store: s3://b/c1: no route") == 2


def test_an_upload_that_does_not_end_is_ended(make: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    keeper = Keeper(make(push=f"sleep 600 & echo $! >{pid}.new && mv {pid}.new {pid}; wait", NEXA_DURABLE_WAIT_S="0"))
    keeper.save(10, fill)
    end = time.monotonic() + 90
    while not pid.exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    assert "step 10 did not reach the durable store within 0 s" in keeper.finish()
    while alive(int(pid.read_text())):
        assert time.monotonic() < end, "the upload goes on"
        time.sleep(0.005)


def test_a_checkpoint_in_the_bucket_is_described_where_it_is(make: Make) -> None:
    for push, uri in ((":", "s3://b/c1/r1/checkpoints/step_00000010/g000003"), ("exit 1", None)):
        keeper = Keeper(make(push=push, NEXA_DURABLE_WAIT_S="60"))
        keeper.begin()
        keeper.save(10, fill)
        keeper.finish()
        assert keeper.describe(10).get("uri") == uri
