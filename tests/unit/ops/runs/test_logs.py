"""What `nexa logs` and `nexa status` make of the mirror and of the agents' answers: no node, no ssh."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.model import Action, Decision
from nexa_dist.ops.runs import logs
from nexa_dist.ops.runs.logs import Wanted, check, find
from nexa_dist.ops.runs.status import progress_of
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.verbs.run import logs as verb
from tests.unit import records

NODES = [{"name": name, "address": "127.0.0.1", "gpus": 2} for name in ("n0", "n1")]
LAYOUT = {"python": "python3", "shared": "~/s", "scratch": "~/h", "durable": "~/d"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two attempts, the second with fewer ranks."""
    made = Workspace(tmp_path).new_run("train", "x")
    rows = [
        {"attempt": number, "state": "completed", "started_unix": 1.0, "world_size": world, "rdzv": ""}
        for number, world in ((1, 12), (2, 4))
    ]
    cluster = {"name": "c", "provider": "static", "nodes": NODES, "layout": LAYOUT}
    record = {"cluster": cluster, "config": {}, "nodes": {"n0": {"run_dir": "/r"}, "n1": {"run_dir": "/r"}}}
    records.put(made, {**record, "attempts": rows})
    for source in (
        "n1/rank_2/attempt_1.log",
        "n0/rank_10/attempt_1.log",
        "n0/rank_9/attempt_1.log",
        "n0/rank_0/attempt_2.log",
        "n0/torchrun.attempt_1.log",
        "n0/prepare.attempt_1.log",
        "n0/setup.attempt_1.log",
        "n0/agent.err",
        "n0/agent.jsonl",
        "n0/rank_9/attempt_1.log.times",
    ):
        path = made.logs / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1.0 5\n" if source.endswith("times") else f"{source}\nlast\n".encode())
    return made


@pytest.mark.parametrize(("action", "more"), [(None, True), ("restart", True), ("done", False)])
def test_between_the_end_of_an_attempt_and_the_decision_more_may_come(
    run: RunFolder, action: Action | None, more: bool
) -> None:
    """A supervisor that asks which nodes are lost may take a minute; `nexa logs --follow` waits for its word."""
    record = run.load()
    assert not record.active
    if action:
        record.decide(Decision(action, ""))
    with run.locked("run"):
        assert logs._undecided(run) is more
    assert not logs._undecided(run)


def test_attempts_nodes_and_ranks_are_shown_in_their_order(run: RunFolder) -> None:
    assert [f"{log.node}/{log.source}" for log in find(run, Wanted())] == [
        "n0/prepare.attempt_1.log",
        "n0/setup.attempt_1.log",
        "n0/torchrun.attempt_1.log",
        "n0/rank_9/attempt_1.log",
        "n0/rank_10/attempt_1.log",
        "n1/rank_2/attempt_1.log",
        "n0/rank_0/attempt_2.log",
        "n0/agent.err",
    ]
    assert [(log.rank, log.attempt) for log in find(run, Wanted(ranks={10, 0}))] == [(10, 1), (0, 2)]
    assert [log.source for log in find(run, Wanted(ranks=set(), setup=True))] == ["setup.attempt_1.log"]
    assert [log.rank for log in find(run, Wanted(ranks={9}, setup=True))] == [None, 9]
    assert [log.source for log in find(run, Wanted(attempt=2))] == ["rank_0/attempt_2.log"]
    assert [log.source for log in find(run, Wanted(node="n1"))] == ["rank_2/attempt_1.log"]


@pytest.mark.parametrize(
    ("wanted", "said", "hint"),
    [
        (Wanted(ranks={0, 12, 99}), "has no rank 12, 99", "ranks: 0 to 11"),
        (Wanted(ranks={11}, attempt=2), r"attempt 2 of train_.*_x has no rank 11", "ranks: 0 to 3"),
        (Wanted(attempt=3), "has no attempt 3", "attempts: 1, 2"),
        (Wanted(node="n7"), "has no node 'n7'", "nodes: n0, n1"),
    ],
)
def test_what_the_run_never_had_is_an_error_that_names_what_it_has(
    run: RunFolder, wanted: Wanted, said: str, hint: str
) -> None:
    check(run, Wanted(ranks={11}, node="n1", attempt=1))
    with pytest.raises(NexaError, match=said) as caught:
        check(run, wanted)
    assert (caught.value.code, caught.value.hint) == (2, hint)


def arguments(run: RunFolder, **more: Any) -> argparse.Namespace:
    given = {"rank": "", "node": None, "attempt": None, "grep": None, "since": None, "tail": None}
    return argparse.Namespace(**{**given, "run": run.run_id, "follow": False, "json": False, **more})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"rank": "9"}, b"[n0:9] n0/rank_9/attempt_1.log\n[n0:9] last\n"),
        ({"rank": "9", "tail": 1}, b"[n0:9] last\n"),
        ({"rank": "9", "grep": "^n0.*\\xff?g$"}, b"[n0:9] n0/rank_9/attempt_1.log\n"),
        ({"attempt": 1, "node": "n0", "grep": "prepare"}, b"[n0:prepare] n0/prepare.attempt_1.log\n"),
        ({"tail": 1, "grep": "agent"}, b"[n0:agent] n0/agent.err\n"),
        ({"rank": "9", "tail": 0}, b""),
        ({"rank": "10", "since": "1970-01-01T00:00:00+00:00", "tail": 1}, b"[n0:10] last\n"),
        ({"rank": "10", "since": "9999-01-01"}, b""),
    ],
)
def test_the_verb_logs_shows_what_is_asked_for(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    more: dict[str, Any],
    expected: bytes,
) -> None:
    monkeypatch.setenv("NEXA_WORKSPACE", str(run.path.parents[1]))
    assert verb.logs(arguments(run, **more)) == 0
    assert capfdbinary.readouterr().out == expected


def test_json_names_where_and_when(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("NEXA_WORKSPACE", str(run.path.parents[1]))
    log = run.logs / "n0" / "rank_9" / "attempt_1.log"
    log.write_bytes(b"\xff\x1b[31m\n" + b"y" * 700_000)
    log.with_name(f"{log.name}.times").write_bytes(b"5.5 7\n9.0 700007\n")
    assert verb.logs(arguments(run, rank="9", json=True)) == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    where = {"node": "n0", "rank": 9, "attempt": 1, "source": "rank_9/attempt_1.log"}
    assert rows[0] == {**where, "unix": 5.5, "line": "\ufffd\x1b[31m"}
    assert "".join(row["line"] for row in rows[1:]) == "y" * 700_000
    assert [len(row["line"]) for row in rows[1:]] == [65536] * 10 + [700_000 % 65536]
    assert {row["unix"] for row in rows[1:]} == {9.0}


def test_since_is_a_span_or_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "UTC+2")
    time.tzset()
    try:
        texts = ("30s", "5m", "2h", "1.5d", "1970-01-01T00:10:00Z", "1970-01-01T00:10:00+01:00", "1970-01-01T00:10")
        found = [verb.since(text, 1_000_000.0) for text in texts]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == [999_970.0, 999_700.0, 992_800.0, 870_400.0, 600.0, -3000.0, 7800.0]
    for wrong in ("", "5", "m", "-5m", "5 m", "yesterday", "1e5s", "2026-13-01"):
        with pytest.raises(NexaError, match="neither a span nor a time"):
            verb.since(wrong, 0.0)


def test_progress_is_the_step_that_all_ranks_did_and_what_rank_0_tells() -> None:
    zero = {"steps": {"0": 41, "1": 40}, "of": 240, "loss": 4.2, "saved": 40, "durable": 20, "own_s": {"0": 0.2}}
    answers: dict[str, dict[str, Any]] = {
        "n1": {
            "state": "running",
            "progress": {"steps": {"2": 39, "3": None}, "of": 240, "loss": 9.0, "own_s": {"2": 0.5}},
        },
        "n0": {"state": "running", "progress": zero},
        "n2": {"state": "unreachable"},
        "n3": {"state": "preparing", "progress": None},
    }
    said = progress_of(answers)
    slow = said.pop("straggler")
    assert (slow["rank"], slow["node"], slow["own_s"], slow["median_s"]) == (2, "n1", 0.5, 0.2)
    figures = {"step": 39, "of": 240, "loss": 4.2, "saved": 40, "durable": 20, "lag_steps": 20}
    assert said == {**figures, "own_s": {"0": 0.2, "2": 0.5}}
    nothing = dict.fromkeys((*said, "straggler"))
    assert progress_of({"n2": {"state": "unreachable"}}) == progress_of({}) == nothing
