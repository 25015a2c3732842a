"""Progress, and its want: what counts as a hang, and what a rank that hangs leaves in its log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nexa_dist.node.oslib import stat
from nexa_dist.node.watch import hang as watch_hang
from tests.processes.node.rig import PASS_ON, REPORT, Rig, freeze, until

STUCK = (
    REPORT
    + """
import threading
def wait_for_the_others():
    open("in%d" % threading.get_native_id(), "w").close()
    time.sleep(600)
def report_of_both():
    while len(os.listdir()) < 5:  # time counts from the first report on, so all are where they will hang by then
        time.sleep(0.01)
    run_dir = os.environ["NEXA_RUN_DIR"]
    os.mkdir(run_dir + "/reports.new")
    for other, step in ((0, 8), (1, LAST)):
        os.environ["NEXA_PROGRESS"] = "%s/reports.new/%d" % (run_dir, other)
        report(step, of=100, loss=1.5)
        os.symlink("../reports/%d" % other, "%s/rank_%d/progress.json" % (run_dir, other))
    os.rename(run_dir + "/reports.new", run_dir + "/reports")  # both at once: time counts from the first one on
if rank == 0:
    threading.Thread(target=report_of_both, daemon=True).start()
threading.Thread(target=wait_for_the_others, daemon=True, name="second").start()
print("ready", flush=True)
wait_for_the_others()
"""
)
"""Two threads of each rank hang; rank 0 reports for both ranks once the file "go" is in their folder, too."""


def feed(watch: watch_hang.Stall, now: float, steps: dict[int, int], gone: tuple[int, ...] = ()) -> bool:
    return watch.step(now, steps, set(gone))


def test_only_the_slowest_rank_counts_and_only_once_it_has_reported() -> None:
    watch = watch_hang.Stall(10)
    assert not any(feed(watch, float(now), {}) for now in range(100))  # still loading
    assert not any(feed(watch, 100.0 + now, {0: now, 1: now // 8}) for now in range(60))
    verdicts = [feed(watch, 160.0 + now, {0: 60 + now, 1: 7}) for now in range(12)]
    assert verdicts.index(True) in (5, 6, 7, 8, 9, 10)  # rank 1 stands since 56 at the latest
    assert watch.slowest == 7


def test_a_rank_that_is_through_does_not_hang() -> None:
    watch = watch_hang.Stall(10)
    assert not any(feed(watch, float(now), {0: 5, 1: now}, gone=(0,)) for now in range(60))
    assert not any(feed(watch, 60.0 + now, {0: 5, 1: 59}, gone=(0, 1)) for now in range(60))


@pytest.mark.parametrize("slept_s", [60, 100_000])
def test_time_that_the_agent_did_not_see_is_no_hang(slept_s: float) -> None:
    watch = watch_hang.Stall(10)
    feed(watch, 0, {0: 1})
    assert not any(feed(watch, float(now), {0: 1}) for now in range(1, 7))
    assert not feed(watch, 6 + slept_s, {0: 1})
    assert not feed(watch, 7 + slept_s, {0: 1})
    assert feed(watch, 8 + slept_s, {0: 1}) is True


def test_without_a_timeout_nothing_hangs() -> None:
    watch = watch_hang.Stall(None)
    assert not any(feed(watch, float(now), {0: 1}) for now in range(5000))


@pytest.mark.parametrize(
    ("steps", "states", "named"),
    [
        ({0: 5, 1: 5}, {0: "S", 1: "T"}, [1]),  # stopped by a signal
        ({0: 5, 1: 4, 2: 5}, {0: "S", 1: "S", 2: "R"}, [1]),  # behind
        ({0: 5, 1: 5}, {0: "S", 1: "D"}, [1]),  # in the kernel, on a disk that does not answer
        ({0: 5, 1: 5}, {0: "S", 1: "S"}, [0, 1]),  # nothing tells them apart
        ({0: 5}, {0: "S", 1: "S"}, [0, 1]),  # one of them does not report
        ({}, {}, []),
    ],
)
def test_the_rank_to_blame_is_named(steps: dict[int, int], states: dict[int, str], named: list[int]) -> None:
    assert watch_hang.stuck(steps, states) == named


def test_a_report_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "rank_3" / "progress.json"
    path.parent.mkdir()
    path.write_text('{"step": 4, "tokens_per_s": 90.5}'.ljust(512))
    first = watch_hang.read_all(str(tmp_path), {})
    path.write_text('{"step": 5, "tok')
    second = watch_hang.read_all(str(tmp_path), first)
    assert second == first
    assert watch_hang.fields(second) == {
        "steps": {"3": 4}, "of": None, "loss": None, "held_out": None, "learning_rate": None, "tokens_per_s": 90.5,
        "saved": None, "durable": None,
    }  # fmt: skip
    path.write_text('{"step": 5, "own_s": 0.25}')
    assert watch_hang.fields(watch_hang.read_all(str(tmp_path), {}))["own_s"] == {"3": 0.25}
    path.write_text('{"step": 5, "own_s": NaN}')
    assert "own_s" not in watch_hang.fields(watch_hang.read_all(str(tmp_path), {}))
    path.write_text('{"step": 5, "saved": null, "durable": 2}'.ljust(512))
    assert watch_hang.fields(watch_hang.read_all(str(tmp_path), second))["durable"] == 2
    for junk in ("null", "[]", '"step"', '{"step": "5"}', "{}"):
        path.write_text(junk)
        assert watch_hang.read_all(str(tmp_path), {}) == {}


def test_ranks_that_hang_leave_their_stacks_and_end(rig: Rig) -> None:
    rig.start(STUCK.replace("LAST", "7"), hang_timeout_s=0.5, signals=PASS_ON)
    (rig.folder / "work" / "go").touch()
    status = rig.ended()
    assert (status["state"], status["reason"], status["processes"], status["left"]) == ("failed", "hang", [], [])
    hang = rig.events("hang")
    assert len(hang) == 1
    assert (hang[0]["ranks"], hang[0]["steps"], set(hang[0]["states"])) == ([1], {"0": 8, "1": 7}, {"0", "1"})
    assert hang[0]["stalled_s"] >= 0.5
    for rank in (0, 1):
        log = rig.log(rank).read_text()
        assert "nexa: hang: no step for" in log
        assert "Fatal Python error: Aborted" in log
        assert log.count("in wait_for_the_others") == 2  # of both threads
    assert {(e["rank"], e["signal"], e["step"]) for e in status["ranks"]} == {(0, 6, 8), (1, 6, 7)}
    assert not list(rig.folder.rglob("core*"))


@pytest.mark.parametrize("frozen", ["rank", "rank and its parent"])
def test_a_stopped_rank_is_named_and_its_stacks_are_had(rig: Rig, frozen: str) -> None:
    rig.start(STUCK.replace("LAST", "8"), hang_timeout_s=0.5, signals=PASS_ON)
    until(lambda: len(list((rig.folder / "work").iterdir())) == 4)
    pid = until(lambda: {e["rank"]: e["pid"] for e in rig.events("rank_start")}.get(1))
    parent = stat(pid)
    assert parent
    for one in (pid, parent[1])[: 1 if frozen == "rank" else 2]:
        freeze(one)
    (rig.folder / "work" / "go").touch()
    status = rig.ended()
    hang = rig.events("hang")[0]
    assert (hang["ranks"], hang["states"]["1"]) == ([1], "T")
    log = rig.log(1).read_text()
    assert "state T, waits in" in log
    assert "in wait_for_the_others" in log
    assert {e["rank"] for e in status["ranks"]} == {0, 1}
    assert status["processes"] == []


def test_ranks_that_move_do_not_hang(rig: Rig) -> None:
    code = REPORT + "for step in range(60):\n    report(step, of=60)\n    time.sleep(0.15)"
    began = time.monotonic()
    rig.start(code, hang_timeout_s=8.0, world=1)
    assert rig.ended()["state"] == "completed"
    told = [e["steps"]["0"] for e in rig.events("progress")]
    assert told == sorted(set(told))
    assert told[-1] == 59
    assert len(told) <= 2 + time.monotonic() - began  # at most one a second, and the last


def test_what_follows_the_last_step_is_no_hang() -> None:
    assert watch_hang.through({0: {"step": 9, "of": 9}, 1: {"step": 9}, 2: {"step": 8, "of": 5}}) == {0, 1}
    assert watch_hang.through({0: {"step": 9}}) == watch_hang.through({0: {"step": 9, "of": "9"}}) == set()
    hang = watch_hang.Stall(5.0)
    assert not any(hang.step(float(now), {0: 9, 1: 9}, {0, 1}) for now in range(100))
    assert any(hang.step(float(now), {0: 9, 1: 8}, {0}) for now in range(100, 200))
