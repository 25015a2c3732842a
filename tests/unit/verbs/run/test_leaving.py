"""Leaving is not stopping: what Ctrl-C, SIGTERM and SIGHUP do to a command that shows a run, and not to the run."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist import cli
from nexa_dist.errors import EXIT_INTERRUPTED, EXIT_OK, Leave
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.node.protocol import VERSION, Reason
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import watch
from nexa_dist.ops.runs.watch import Choice
from nexa_dist.run.logs.items import AgentEvent
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.ui import terminal
from nexa_dist.ui.run_view.views import Silent
from nexa_dist.verbs._shared import Shown
from nexa_dist.verbs.run import attach as verb
from nexa_dist.verbs.run.presenter import RunPresenter
from tests.unit import records

CLUSTER = Cluster("c", "static", (Node("n0", "198.51.100.1", 1),), Layout("p", "s", "s", "d"))
STAYS = {"action": "restart", "nodes": ["n0"]}


def shower(root: Path, *, began: bool, state: str = "running", **row: Any) -> RunPresenter:
    folder = RunFolder(root / "runs" / "train_20261122_200000_x")
    folder.path.mkdir(parents=True)
    attempt = {"attempt": 1, "state": state, "started_unix": 1.0, "world_size": 1, "rdzv": "x:1", **row}
    nodes = {"n0": {"run_dir": "/s/x"}}
    data = {"cluster": CLUSTER.to_json(), "config": {}, "nodes": nodes, "attempts": [attempt]}
    record = records.put(folder, data)
    ctx = Context(Workspace(root), Runner(), lambda text: None)
    return RunPresenter(ctx, folder, record, Shown(None, as_json=True, detach=True), began=began)


@pytest.mark.parametrize(
    ("typed", "choice"),
    [("\n", "detach"), ("d\n", "detach"), ("", "detach"), ("stopp\n", "detach"), ("sdf\n", "detach"), ("x\n", "detach"),
     ("no\n", "detach"), ("s\n", "stop"), (" S \n", "stop")],
)  # fmt: skip
@pytest.mark.parametrize("began", [True, False])
def test_only_s_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, choice: Choice, began: bool) -> None:
    monkeypatch.setattr(terminal, "interactive", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert shower(tmp_path, began=began)._interrupted() == choice


def test_without_a_terminal_only_who_began_it_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "interactive", lambda: False)
    assert shower(tmp_path / "a", began=True)._interrupted() == "stop"
    assert shower(tmp_path / "b", began=False)._interrupted() == "detach"


def test_what_becomes_of_the_run_is_said_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def left(name: str, error: type[BaseException], **more: Any) -> tuple[int, str]:
        one = shower(tmp_path / name, began=True, **more)

        def work() -> None:
            raise error

        return one._told(work), capsys.readouterr().err

    code, said = left("a", Leave)
    assert code == EXIT_INTERRUPTED and said.startswith("the run goes on. Follow it: nexa attach train_")
    code, said = left("b", KeyboardInterrupt, state="failed", next=STAYS)
    assert code == EXIT_INTERRUPTED and said.startswith("between two attempts: nothing is started again until nexa att")
    assert left("c", Leave, state="completed", next={"action": "done"})[1].endswith("has ended: completed\n")
    one = shower(tmp_path / "d", began=True)
    one.record.config["on_disconnect"] = "kill"
    assert one._told(lambda: None) == EXIT_OK
    assert "the nodes end it soon: on_disconnect is kill" in capsys.readouterr().err


def test_who_goes_while_it_still_connects_is_told_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = shower(tmp_path, began=False)

    def session(*_: Any) -> None:
        raise Leave

    monkeypatch.setattr(verb, "session", session)
    assert verb.taken_over(one.ctx, one.folder, Shown(None, as_json=True)) == EXIT_INTERRUPTED
    assert capsys.readouterr().err.startswith("the run goes on. Follow it: nexa attach train_")


class Interrupted:
    """A stream of a run, at which somebody interrupts us wherever `items` has an error."""

    def __init__(self, *items: AgentEvent | BaseException) -> None:
        self.items, self.closed = list(items), False

    def next(self) -> AgentEvent:
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def speaking(self) -> set[str]:
        return set()

    def close(self) -> None:
        self.closed = True


def watched(
    monkeypatch: pytest.MonkeyPatch, stream: Interrupted, *answers: Choice, detach: bool = False
) -> tuple[Any, list[Any]]:
    """What `watch` answers or raises, and what the nodes are told."""
    told: list[Any] = []
    given = iter(answers)
    monkeypatch.setattr(watch, "follow", lambda *_, **__: stream)
    monkeypatch.setattr(watch._Stopper, "start", lambda self, *words: told.append(words))
    node = type("L", (), {"node": CLUSTER.nodes[0]})()
    record = Run(CLUSTER, {}, {"n0": {"run_dir": "/x"}}, [Attempt(1, "running", 1.0, 1, "x:1")])
    view = Silent.__new__(Silent)
    for name in ("note", "event"):
        monkeypatch.setattr(Silent, name, lambda self, *words: None)
    try:
        answer = watch.watch(
            None,
            RunFolder(Path("/x")),
            [node],
            record,
            view=view,
            on_interrupt=lambda: next(given),
            witnesses=None,
            detach=detach,
        )  # type: ignore[arg-type]
    except BaseException as error:
        answer = type(error)
    assert stream.closed
    return answer, told


def test_who_leaves_tells_the_nodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, Interrupted(KeyboardInterrupt()), "detach") == (None, [])
    assert watched(monkeypatch, Interrupted(Leave())) == (Leave, [])


def test_a_second_interrupt_hurries_only_who_said_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Interrupted(KeyboardInterrupt(), KeyboardInterrupt(), Leave())
    assert watched(monkeypatch, stream, "stop") == (
        Leave, [("stopped by the user", watch.GRACE_S), ("stopped by the user", 0)]
    )  # fmt: skip


def test_who_detaches_stays_with_a_run_that_failed_before_every_node_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes that are stopped for it would tell nobody why."""
    started, runs, failed = (
        AgentEvent("n0", {"event": name, "at": 2.0, **fields})
        for name, fields in (
            ("started", {"attempt": 1, "version": VERSION}),
            ("torchrun", {"pid": 1}),
            ("rank_exit", {"rank": 0, "code": 3, "signal": 0}),
        )
    )
    assert watched(monkeypatch, Interrupted(started, runs, failed), detach=True) == (None, [])
    assert watched(monkeypatch, Interrupted(started, failed, runs, Leave()), detach=True) == (
        Leave, [(Reason.FAILURE, watch.FAILED_GRACE_S, 0)]
    )  # fmt: skip


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_signals_leave_and_what_nohup_ignores_stays_ignored() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    cli.hear("provision")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    cli.hear("attach")
    for number in (signal.SIGTERM,):
        with pytest.raises(Leave):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGHUP) is cli.leave
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.hear("run")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
