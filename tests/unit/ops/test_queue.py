"""queue.json: what is added, removed and moved, and what a row is by the record of its run."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops import queue
from nexa_dist.ops.queue import Kept, Queue, Row, settled
from nexa_dist.run.workspace import RunFolder, Workspace
from tests.unit import records

ATTEMPT: dict[str, Any] = {"attempt": 1, "state": "running", "started_unix": 1.0, "world_size": 1, "rdzv": "h:1"}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Queue(Workspace(tmp_path).cluster("lab"))


def row(root: Path, **more: Any) -> Row:
    return Row(**{"id": "", "root": str(root), "config": {"name": "t"}, "config_file": "t.yaml", **more})


def filled(found: Queue, tmp_path: Path, count: int = 3) -> list[Row]:
    with found.changing() as kept:
        return queue.add(kept, [row(tmp_path, point={"a": str(n)}) for n in range(count)])


def names(kept: Kept, state: str = "waiting") -> list[str]:
    return [one.id for one in kept.rows if one.state == state]


def test_rows_are_read_as_they_were_written(found: Queue, tmp_path: Path) -> None:
    assert found.load() == Kept()
    rows = filled(found, tmp_path)
    assert found.load().rows == rows and [one.id for one in rows] == ["q1", "q2", "q3"]
    assert found.path.stat().st_mode & 0o077 == 0


def test_waiting_rows_are_moved_and_removed_and_no_others(found: Queue, tmp_path: Path) -> None:
    rows = filled(found, tmp_path, 4)
    found.update(rows[0], state="running", run_id="train_x")
    with found.changing() as kept:
        queue.move(kept, "q4", 1)
        queue.remove(kept, ["q2"])
    assert names(found.load()) == ["q4", "q3"]
    for wrong in (["q1"], ["q3", "q9"], ["q2"]):
        with pytest.raises(UsageError), found.changing() as kept:
            queue.remove(kept, wrong)
    for name, place in (("q1", 1), ("q3", 0), ("q3", 3)):
        with pytest.raises(UsageError), found.changing() as kept:
            queue.move(kept, name, place)
    assert names(found.load()) == ["q4", "q3"]


def test_what_is_over_goes_when_more_is_added_to_a_queue_that_has_ended(found: Queue, tmp_path: Path) -> None:
    for one in filled(found, tmp_path, 2):
        found.update(one, state="done")
    assert [one.id for one in filled(found, tmp_path, 1)] == ["q3"]
    assert [one.id for one in found.load().rows] == ["q3"]
    with pytest.raises(UsageError, match="at most"):
        filled(found, tmp_path, queue.MOST_ROWS)


def test_two_that_change_it_at_once_lose_nothing(found: Queue, tmp_path: Path) -> None:
    threads = [threading.Thread(target=filled, args=(found, tmp_path, 2)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(found.load())) == sorted(f"q{n}" for n in range(1, 11))


def test_one_command_works_on_it(found: Queue, tmp_path: Path) -> None:
    filled(found, tmp_path)
    assert not found.at_work
    with found.worked():
        assert found.at_work
        with pytest.raises(NexaError, match="in use"), found.worked():
            pass
    assert not found.at_work


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{"id": 1}]}', '{"rows": 7}', '{"other": 1}'])
def test_a_damaged_file_is_said_and_keeps_no_node(found: Queue, text: str) -> None:
    found.folder.path.mkdir(parents=True)
    found.path.write_text(text)
    with pytest.raises(NexaError, match=r"damaged|cannot read"):
        found.load()
    assert not found.wants_nodes()


def test_a_queue_that_is_worked_on_other_nodes_is_in_nobodys_way(found: Queue, tmp_path: Path) -> None:
    with found.changing() as kept:
        queue.add(kept, [row(tmp_path, config={"nodes": ["n1"]})])
    assert not found.at_work_on({"n1"})
    with found.worked():
        assert found.at_work_on({"n0", "n1"}) and not found.at_work_on({"n0"})
        filled(found, tmp_path, 1)  # which takes them all
        assert found.at_work_on({"n0"})


def test_nodes_are_wanted_while_something_waits(found: Queue, tmp_path: Path) -> None:
    rows = filled(found, tmp_path, 2)
    found.update(rows[0], state="running")
    assert found.wants_nodes()
    with found.changing() as kept:
        kept.stop_on_failure = True
    assert not found.wants_nodes()


@pytest.mark.parametrize(
    "attempt, state",
    [
        (None, "waiting"),
        ({}, "running"),
        ({"state": "starting"}, "running"),
        ({"state": "failed", "next": {"action": "restart"}}, "running"),
        ({"state": "failed", "cause": "rank 0"}, "failed"),
        ({"state": "completed"}, "done"),
        ({"state": "stopped", "cause": "stopped by the user"}, "stopped"),
    ],
)
def test_a_row_that_was_begun_is_what_its_run_tells(tmp_path: Path, attempt: dict[str, Any] | None, state: str) -> None:
    begun = row(tmp_path, state="running", run_id="train_x")
    if attempt is not None:
        cluster = dataclasses.asdict(records.CLUSTER)
        data = {"cluster": cluster, "config": {}, "nodes": {}, "attempts": [{**ATTEMPT, **attempt}]}
        records.put(RunFolder(tmp_path / "runs" / "train_x"), data)
    told = settled(begun)
    assert (told.state, told.run_id) == (state, "" if state == "waiting" else "train_x")
    assert told.why == (attempt or {}).get("cause", "")
