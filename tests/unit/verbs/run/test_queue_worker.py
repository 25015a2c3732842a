"""What a queue does when one of its runs ended, in which order and how often runs begin: launches are made up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from nexa_dist.cli import main
from nexa_dist.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, NexaError
from nexa_dist.ops import next_run
from nexa_dist.ops.queue import Queue
from nexa_dist.plan.money.budget import OF_CLUSTER
from nexa_dist.run.ssh.connections import Unreachable
from nexa_dist.run.workspace import ClusterFolder, RunFolder, Workspace
from nexa_dist.verbs.run import queue_worker
from nexa_dist.verbs.run.begin import fresh
from tests import small_workspace
from tests.unit import records

TRAIN = "script: t.py\nargs: [--seed, '0']\n"
ENDS: dict[str, tuple[int, dict[str, Any]]] = {
    "completed": (EXIT_OK, {"kind": "completed"}),
    "failed": (EXIT_FAILED, {"kind": "rank", "words": "rank 0"}),
    "stopped": (EXIT_INTERRUPTED, {"kind": "stopped"}),
    "deadline": (3, {"kind": "deadline"}),
    "budget": (3, {"kind": "budget", "words": f"{OF_CLUSTER}: 5 of 5 USD are spent"}),
}


class Launches:
    """In the place of fresh.fresh. `ends` are how the next ones end: a word of ENDS, an error, or a function."""

    def __init__(self, root: Path) -> None:
        self.root, self.begun = root, list[str]()
        self.clusters = root / ".nexa" / "clusters" / "lab"
        self.ends: list[str | BaseException | Callable[[], str]] = []
        self.wait_ends: list[Callable[[], str] | None] = []
        """The same for what happens while a run goes on."""
        self.code = list[str]()
        """Of each run t.py as its code has it."""
        self.link, self.readied = Mock(), list[str]()
        self.prepared = Mock(links=(self.link,))

    def __call__(self, ctx: Any, ssh: Any, links: Any, config: Any, file: str, shown: Any, **more: Any) -> int:
        name = f"train_{len(self.begun):06d}"
        if more["folder"] is not None:
            assert more["folder"].path.is_dir()
            name = more["folder"].run_id
            self.readied.append(config.args[1])
        more["named"](name)
        self.begun.append(config.args[1])
        self.code.append({file.name: file.content.decode() for file in more["code"].project.files}["t.py"])
        more["began"](self.prepared)
        if self.wait_ends and (end := self.wait_ends.pop(0)):
            self.ends.insert(0, end())
        how = self.ends.pop(0) if self.ends else "completed"
        how = how() if callable(how) else how
        if isinstance(how, BaseException):
            raise how
        self.record(name, how)
        return ENDS[how][0]

    def record(self, name: str, how: str) -> None:
        state = {"deadline": "stopped", "budget": "stopped"}.get(how, how)
        end = {"words": "", **ENDS[how][1]} if how in ENDS else None
        attempt = {"attempt": 1, "state": state, "started_unix": 1.0, "world_size": 1, "rdzv": "h:1", "end": end,
                   "ended_unix": 61.0, "cause": end["words"] if end else ""}  # fmt: skip
        cluster = ClusterFolder(self.clusters).load().to_json()
        records.put(
            RunFolder(self.root / "runs" / name), {"cluster": cluster, "config": {}, "nodes": {}, "attempts": [attempt]}
        )

    def states(self) -> list[str]:
        return [row.state for row in Queue(Workspace(self.root).cluster("lab")).load().rows]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NEXA_WORKSPACE", raising=False)
    (tmp_path / "w").mkdir()
    root = small_workspace.make(tmp_path / "w")
    (root / "t.py").touch()
    (root / "t.yaml").write_text(TRAIN)
    monkeypatch.chdir(root)
    made = Launches(root)
    monkeypatch.setattr(fresh, "fresh", made)
    monkeypatch.setattr(queue_worker.lease, "renew", lambda *_, **__: None)
    monkeypatch.setattr(queue_worker.running, "refuse_busy", lambda *_: None)
    yield made


GRID = ("run", "t.yaml", "--grid", "args.1=0,1,2")


def test_they_run_in_order_and_the_table_tells(lab: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, "t.yaml"]) == EXIT_OK  # the file twice: a grid of each
    assert lab.begun == ["0", "1", "2"] * 2
    told = capsys.readouterr()
    assert told.out.splitlines()[3].split("\t")[:5] == ["q3", "done", "t.yaml args.1=2", "-", "1.0"]
    assert main(["queue", "run"]) == EXIT_OK
    assert "nothing waits" in capsys.readouterr().err


def test_a_queued_run_has_the_code_of_when_it_was_added(lab: Launches) -> None:
    def edit() -> str:
        (lab.root / "t.py").write_text("edited while the first ran")
        return "completed"

    (lab.root / "t.py").write_text("as added")
    assert main(["queue", "add", "t.yaml"]) == EXIT_OK
    kept = lab.clusters / "queue-code"
    first = {path.name for path in kept.iterdir()}
    (lab.root / "t.py").write_text("edited")
    assert main(["queue", "add", "t.yaml"]) == EXIT_OK
    assert len(first) == 1 and len(list(kept.iterdir())) == 2
    lab.ends = [edit]
    assert main([*GRID]) == EXIT_OK
    assert lab.code == ["as added", "edited", *["edited"] * 3] and not list(kept.iterdir())

    assert main(["queue", "add", "t.yaml"]) == EXIT_OK
    (path,) = kept.iterdir()
    path.write_bytes(path.read_bytes()[:60])
    assert main(["queue", "run"]) == EXIT_FAILED
    row = Queue(Workspace(lab.root).cluster("lab")).load().rows[-1]
    assert row.state == "failed" and "is damaged" in row.why
    (lab.root / ".nexaignore").write_text("t.py")
    assert main(["queue", "add", "t.yaml"]) == EXIT_FAILED, "told when it is added, not when it begins"


def test_a_failure_ends_no_other_run_unless_it_should(lab: Launches) -> None:
    lab.ends = ["failed"]
    assert main([*GRID]) == EXIT_FAILED
    assert lab.states() == ["failed", "done", "done"]
    lab.ends = ["failed"]
    assert main([*GRID, "--stop-on-failure"]) == EXIT_FAILED
    assert lab.states() == ["failed", "waiting", "waiting"]
    assert main(["queue", "run"]) == EXIT_OK
    assert lab.begun == ["0", "1", "2"] * 2


@pytest.mark.parametrize("how, code", [("stopped", EXIT_INTERRUPTED), ("budget", 3)])
def test_a_run_that_a_person_or_the_clusters_money_ends_lets_the_others_wait(
    lab: Launches, how: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.ends = [how]
    assert main([*GRID]) == code
    assert lab.states() == ["stopped", "waiting", "waiting"]
    assert "not over: q2, q3; nexa queue run goes on with them" in capsys.readouterr().err


def test_a_run_that_its_own_deadline_ends_is_followed_by_the_next(lab: Launches) -> None:
    lab.ends = ["deadline"]
    assert main([*GRID]) == EXIT_FAILED
    assert lab.states() == ["stopped", "done", "done"]


@pytest.mark.parametrize("error", [Unreachable("n0"), NexaError("no money", code=3), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_run_leaves_it_waiting(lab: Launches, error: BaseException) -> None:
    lab.ends = [error]
    assert main([*GRID]) != EXIT_OK
    assert lab.states() == ["waiting"] * 3
    assert main(["queue", "run"]) == EXIT_OK
    assert lab.begun == ["0", "0", "1", "2"]


def test_a_run_that_cannot_be_begun_fails_and_two_of_them_end_the_queue(lab: Launches) -> None:
    lab.ends = [NexaError("no such file")]
    assert main([*GRID]) == EXIT_FAILED
    assert lab.states() == ["failed", "done", "done"]
    lab.ends = [NexaError("the nodes are not ready"), NexaError("the nodes are not ready")]
    assert main([*GRID]) == EXIT_FAILED
    assert lab.states() == ["failed", "waiting", "waiting"]


def test_what_a_killed_controller_began_is_followed_and_what_it_did_not_is_begun(
    lab: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["queue", "add", "t.yaml", "--grid", "args.1=0,1,2,3"])
    queue = Queue(Workspace(lab.root).cluster("lab"))
    rows, followed = queue.load().rows, list[str]()
    lab.record("train_over", "completed")
    lab.record("train_on", "running")
    (lab.root / "runs" / "train_none").mkdir()
    for row, name in zip(rows, ("train_over", "train_on", "train_none"), strict=False):
        queue.update(row, state="running", run_id=name)

    def follow(ctx: Any, run: RunFolder, *_: Any) -> int:
        followed.append(run.run_id)
        lab.record(run.run_id, "completed")
        return EXIT_OK

    finished = Mock()
    monkeypatch.setattr(queue_worker, "taken_over", follow)
    monkeypatch.setattr(queue_worker, "connect", lambda *_: [])
    monkeypatch.setattr(queue_worker, "finish_again", finished)
    assert main(["queue", "run"]) == EXIT_OK
    assert (followed, lab.begun, lab.states()) == (["train_on"], ["2", "3"], ["done"] * 4)
    assert [call.args[1].run_id for call in finished.call_args_list] == ["train_over"], "its results come all the same"
    assert not (lab.root / "runs" / "train_none").exists()


def test_a_run_that_the_budget_may_not_pay_is_named_before_it_begins(
    lab: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Workspace(lab.root).cluster("lab")
    priced = folder.json.read_text().replace('"gpus": 1', '"gpus": 1, "price_usd_per_hour": 0.5')
    folder.json.write_text(priced)
    spent = 0.5 / 6  # the node was on for 600 s at 0.5 USD/h, and is off
    folder.ledger("budget", usd=spent + 0.5 / 20, by="file")  # 3 min, which a stop in order may take
    assert main([*GRID]) == EXIT_OK
    told = capsys.readouterr().err
    assert "q1 may not" not in told and "warning: q2 may not be paid to its end: 0.0" in told


def test_nodes_that_were_given_back_leave_no_folder_of_the_cluster(
    lab: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lab.root / ".nexa" / "clusters" / "lab"

    def out_of_money() -> str:
        folder.rename(lab.root / "history")
        lab.clusters = lab.root / "history"
        return "budget"

    lab.ends = [out_of_money]
    assert main([*GRID]) == 3
    assert not folder.exists()
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()[1:]] == ["stopped"] + ["waiting"] * 2


def test_what_is_for_several_runs_is_refused_for_one(lab: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--stop-on-failure", "--picture=x.svg"):
        assert main(["run", "t.yaml", option]) == 2
        assert "is for several runs" in capsys.readouterr().err
    assert main(["run", "t.yaml", "t.yaml", "--detach"]) == 2


def test_what_is_added_while_it_works_is_begun_too(lab: Launches) -> None:
    def adding() -> str:
        assert main(["run", "t.yaml", "--grid", "args.1=8,9"]) == EXIT_OK
        return "completed"

    lab.ends = [adding]
    assert main([*GRID]) == EXIT_OK
    assert lab.begun == ["0", "1", "2", "8", "9"]


def test_every_fault_is_told_before_anything_is_queued(lab: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.root / "bad.yaml").write_text("script: none.py\nmax_hours: -1\n")
    assert main(["run", "t.yaml", "bad.yaml", "--grid", "restarts_per_hou=1,2", "--grid", "nproc_per_node=0,1"]) == 2
    said = capsys.readouterr().err
    assert said.count("did you mean restarts_per_hour?") == 1
    assert "--grid nproc_per_node=0" in said and "bad.yaml:2" in said
    assert not (lab.root / ".nexa" / "clusters" / "lab" / "queue.json").exists()


def test_files_may_stand_behind_options(lab: Launches) -> None:
    (lab.root / "u.yaml").write_text(TRAIN)
    assert main(["queue", "add", "t.yaml", "--set", "args.1=7", "u.yaml", "--", "--more"]) == EXIT_OK
    rows = Queue(Workspace(lab.root).cluster("lab")).load().rows
    assert [(row.config_file, row.config["args"]) for row in rows] == [
        (name, ["--seed", "7", "--more"]) for name in ("t.yaml", "u.yaml")
    ]


@pytest.fixture
def loaded(lab: Launches, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of the runs whose interpreters were loaded, each while the run before went on."""
    made = list[str]()

    class AtOnce(threading.Thread):
        def start(self) -> None:
            super().start()
            self.join()

    monkeypatch.setattr(next_run, "READY_AFTER_S", 0)
    monkeypatch.setattr(next_run, "threading", SimpleNamespace(Thread=AtOnce, Event=threading.Event))
    monkeypatch.setattr(next_run, "load", lambda ready, config, before: made.append(config.args[1]))
    (lab.root / "t.yaml").write_text(f"{TRAIN}launcher: direct\n")
    return made


def test_the_next_is_made_ready_while_the_one_before_goes_on(lab: Launches, loaded: list[str]) -> None:
    assert main([*GRID]) == EXIT_OK
    assert (loaded, lab.begun, lab.readied) == (["1", "2"], ["0", "1", "2"], ["1", "2"])
    lab.link.call.assert_not_called()
    rows = Queue(Workspace(lab.root).cluster("lab")).load().rows
    assert {path.name for path in (lab.root / "runs").glob("train*_t")} == {row.run_id for row in rows[1:]}


@pytest.mark.parametrize("what", ["launcher: torchrun", "launcher: direct\nenvironment: none"])
def test_what_may_be_otherwise_at_its_launch_is_not_loaded_before(lab: Launches, loaded: list[str], what: str) -> None:
    (lab.root / "t.yaml").write_text(f"{TRAIN}{what}\n")
    assert main([*GRID]) == EXIT_OK
    assert (loaded, lab.begun) == ([], ["0", "1", "2"])


def test_another_that_goes_first_and_a_queue_that_ends_leave_nothing_ready(lab: Launches, loaded: list[str]) -> None:
    """The interpreters that were loaded end, the folders go, and the rows wait as they were."""

    def moved() -> str:
        assert main(["queue", "move", "q3", "1"]) == EXIT_OK
        return "completed"

    lab.wait_ends = [moved, None, None]
    assert main([*GRID]) == EXIT_OK
    assert (lab.begun, loaded, lab.readied) == (["0", "2", "1"], ["1", "1"], ["1"])
    assert [call.args[0] for call in lab.link.call.call_args_list] == ["forget"]
    lab.wait_ends = [lambda: "stopped"]
    assert main([*GRID]) == EXIT_INTERRUPTED
    rows = Queue(Workspace(lab.root).cluster("lab")).load().rows
    assert [(row.state, bool(row.run_id)) for row in rows] == [
        ("stopped", True),
        ("waiting", False),
        ("waiting", False),
    ]
    assert [call.args[0] for call in lab.link.call.call_args_list] == ["forget"] * 2
    assert all((path / "run.json").exists() for path in (lab.root / "runs").glob("train*"))


def test_what_a_killed_controller_made_ready_is_begun_as_that(lab: Launches, loaded: list[str]) -> None:
    main(["queue", "add", "t.yaml", "--grid", "args.1=0,1"])
    queue = Queue(Workspace(lab.root).cluster("lab"))
    rows = queue.load().rows
    lab.record("train_over", "completed")
    (lab.root / "runs" / "train_ready").mkdir()
    queue.update(rows[0], state="running", run_id="train_over")
    queue.update(rows[1], run_id="train_ready")
    assert [row.run for row in queue.load().rows][1] is None  # nothing takes it for a run
    assert main(["queue", "run"]) == EXIT_OK
    assert (lab.begun, lab.states()) == (["1"], ["done"] * 2)
    assert (lab.root / "runs" / "train_ready" / "run.json").exists()
