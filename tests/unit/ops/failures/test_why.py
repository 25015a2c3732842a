"""nexa why from the controller's files alone: what it reads, which attempt it takes, what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.model import End
from nexa_dist.ops.failures import why as asking
from nexa_dist.ops.runs.finish import close
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.plan.failures.log_tail import TAIL_BYTES
from nexa_dist.run.code import archive
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder
from nexa_dist.shape import of
from nexa_dist.verbs.run.why import why
from tests.unit import records

TRACE = b"""step 3 loss 2.5
Traceback (most recent call last):
  File "/mnt/scratch/r/work/train.py", line 45, in step
    loss = batch["labels"]
KeyError: 'labels'
"""


def line(event: str, at: float, **fields: Any) -> str:
    return json.dumps({"event": event, "at": at, **fields}) + "\n"


def attempt(number: int, state: str, cause: str = "") -> dict[str, Any]:
    shape = {"world_size": 2, "rdzv": "10.0.0.11:29500", "started_unix": 1.0, "ranks": {"n0": [0, 0], "n1": [1, 1]}}
    return {"attempt": number, "state": state, "cause": cause, **shape}


def put(run: RunFolder, node: str, events: str, **logs: bytes) -> None:
    """`logs` by rank and attempt: r1_2 is rank 1 in attempt 2."""
    folder = run.logs / node
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "agent.jsonl").open("a") as file:
        file.write(events)
    for name, data in logs.items():
        rank, number = name[1:].split("_")
        path = folder / f"rank_{rank}" / f"attempt_{number}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Attempt 1: rank 1 raised. Attempt 2: rank 0 was killed for memory. No node and no cluster is left."""
    made = RunFolder(tmp_path / "runs" / "sft_20261122_200000_demo")
    end = {"code": 0, "signal": 15, "step": 3, "oom": False}
    failed = {"state": "failed", "code": 1, "reason": "torchrun", "left": []}
    put(made, "n0", line("started", 10, attempt=1) + line("rank_exit", 15, rank=0, **end))
    put(made, "n0", line("ended", 16, attempt=1, **failed))
    put(made, "n1", line("started", 10, attempt=1) + line("progress", 13, steps={"1": 7}))
    put(made, "n1", line("rank_exit", 14, rank=1, code=1, signal=0, step=7) + line("ended", 16, attempt=1, **failed))
    put(made, "n1", "", r1_1=TRACE)
    for node in ("n0", "n1"):
        put(made, node, line("started", 20, attempt=2) + line("heartbeat", 21))
    put(made, "n0", line("rank_exit", 25, rank=0, code=0, signal=9, step=9, oom=True), r0_2=b"step 9\n")
    put(made, "n0", line("ended", 26, attempt=2, **failed))
    put(made, "n1", line("ended", 26, attempt=2, **failed))
    return made


def record(*attempts: dict[str, Any]) -> Run:
    return of(Run)(stored(*attempts))  # type: ignore[no-any-return]


def stored(*attempts: dict[str, Any]) -> dict[str, Any]:
    nodes = [{"name": name, "address": name, "gpus": 1} for name in ("n0", "n1")]
    layout = dict.fromkeys(("python", "scratch", "shared", "durable"), "/x")
    cluster = {"name": "c", "provider": "static", "nodes": nodes, "layout": layout}
    return {"cluster": cluster, "config": {}, "nodes": {}, "attempts": list(attempts)}


def test_the_newest_attempt_that_ended_badly_is_explained(run: RunFolder) -> None:
    done = record(attempt(1, "failed"), attempt(2, "failed"), attempt(3, "completed"))
    story, others = asking.why(run, done)
    assert (story.attempt, story.step, story.verdict.name, story.verdict.first) == (2, 9, "host_oom", ("n0", 0))
    assert [(s.attempt, s.step, s.line) for s in others] == [
        (1, 7, "rank 1 on n1: KeyError: 'labels', at train.py:45, in step"),
        (3, None, "it completed"),
    ]


def test_an_attempt_by_its_number_or_a_usage_error(run: RunFolder) -> None:
    story, _ = asking.why(run, record(attempt(1, "failed"), attempt(2, "failed")), 1)
    assert story.verdict.first == ("n1", 1)
    with pytest.raises(UsageError, match="no attempt 4"):
        asking.why(run, record(attempt(1, "failed")), 4)
    with pytest.raises(UsageError, match="never started"):
        asking.why(run, record())


def test_the_headline_of_a_run_names_who_failed_first_and_not_who_lost_it(run: RunFolder) -> None:
    closed = b"RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.11]:4711\n"
    put(run, "n0", line("started", 30, attempt=3) + line("rank_exit", 40.0, rank=0, code=1, signal=0), r0_3=closed)
    put(run, "n1", line("started", 30, attempt=3) + line("rank_exit", 40.2, rank=1, code=1, signal=0), r1_3=TRACE)
    for node in ("n0", "n1"):
        put(run, node, line("ended", 41, state="failed", code=1, reason="torchrun", left=[], attempt=3))
    told = End("rank", "rank 0 on n0: exit code 1", "n0", 0, last_step=7)
    kept = records.put(run, stored(attempt(3, "running")))
    outcome = Outcome("failed", told.words, {}, told, ("n0", "rank_0/attempt_3.log"))
    closed_with = close(run, kept, outcome)
    row = run.load().last
    assert closed_with.cause == closed_with.end.words == row.cause == "rank 1 on n1: exit code 1"
    assert closed_with.failed_source == ("n1", "rank_1/attempt_3.log")
    assert row.why and row.why.startswith("rank 1 on n1: KeyError")
    assert row.end and (row.end.node, row.end.rank, row.end.last_step) == ("n1", 1, 7)
    hang = End("hang", "node n0: rank 1 did no step for 30 s", "n0")
    assert close(run, kept, Outcome("failed", hang.words, {}, hang)).end == hang


def test_nobody_failed_first_when_somebody_stopped_it(run: RunFolder) -> None:
    told = {"reason": "stopped by the user", "code": 143, "state": "stopped"}
    put(run, "n0", line("started", 30, attempt=3) + line("stopping", 39, **told) + line("ended", 41, **told))
    story, _ = asking.why(run, record(attempt(3, "stopped", "stopped by the user")))
    assert story.line == "somebody stopped it (nexa stop, Ctrl-C)"


def test_a_run_that_goes_on(run: RunFolder) -> None:
    story, others = asking.why(run, record(attempt(3, "running")))
    assert (story.verdict.name, story.line, others) == ("running", "nothing has failed so far", [])
    put(run, "n0", line("started", 30, attempt=3) + line("rank_exit", 31, rank=0, code=1, signal=0), r0_3=TRACE)
    assert asking.why(run, record(attempt(3, "running")))[0].verdict.first == ("n0", 0)


def test_a_node_that_never_told_its_end_is_gone(run: RunFolder) -> None:
    put(run, "n0", line("started", 30, attempt=3) + line("ended", 50, attempt=3, state="stopped", reason="x", code=143))
    put(run, "n1", line("started", 30, attempt=3) + line("heartbeat", 40))
    story, _ = asking.why(run, record(attempt(3, "failed", "node n1: no word for 60 s")))
    assert (story.verdict.name, story.verdict.first) == ("node_gone", ("n1", None))
    assert "00:00:40 UTC" in story.verdict.words


def test_without_any_log_the_words_of_the_supervisor_are_left(tmp_path: Path) -> None:
    bare = RunFolder(tmp_path / "runs" / "r")
    cause = "an agent could not be started: n1: no space"
    assert asking.why(bare, record(attempt(1, "failed", cause)))[0].line == cause


def test_a_measured_skew_orders_the_nodes(run: RunFolder) -> None:
    put(run, "n0", line("started", 30, attempt=3) + line("rank_exit", 40, rank=0, code=1, signal=0), r0_3=TRACE)
    put(run, "n1", line("started", 30, attempt=3) + line("rank_exit", 41, rank=1, code=1, signal=0), r1_3=TRACE)
    told = attempt(3, "failed")
    assert asking.why(run, record(told))[0].verdict.first == ("n0", 0)
    assert asking.why(run, record({**told, "skew_s": {"n1": 5.0}}))[0].verdict.first == ("n1", 1)


def test_reads_are_bounded_and_torn_records_passed_over(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = asking.log_tail

    def counted(path: Path, size: int) -> bytes:
        taken.append(len(data := real(path, size)))
        return data

    monkeypatch.setattr(asking, "log_tail", counted)
    monkeypatch.setattr(asking, "EVENTS_BYTES", 4000)
    old = line("started", 1, attempt=2) + line("imds", 2, state="on") * 4000
    junk = '{"event": "rank_exit", "at": 60, "rank": "x"}\n{"event"\n[]\n7\n{"event": "x", "at": 1e999}\n'
    for steps in (None, 3, [1], {"x": 1}, {"0": "far"}):
        junk += line("hang", 60, ranks=[], stalled_s=9.0, steps=steps)
    junk += line("hang", 60, ranks=None, stalled_s="long") + line("notice", 60, at_unix=1e300)
    junk += line("flight", 60, rank="x", groups=3)
    end = line("rank_exit", 61, rank=1, code=1, signal=0) + '{"event": "ended", "at": 6'
    put(run, "n1", old + junk + end, r1_2=b"x" * 2_000_000 + b"\n" + TRACE)
    assert asking.why(run, record(attempt(2, "failed")))[0].verdict.others == ("rank 1: KeyError: 'labels'",)
    assert max(taken) == TAIL_BYTES


def test_a_folder_that_is_no_node_of_the_run_is_left_alone(run: RunFolder) -> None:
    put(run, "stranger", line("started", 1, attempt=1) + line("rank_exit", 2, rank=0, code=1, signal=0), r0_1=TRACE)
    assert {node.node for node in asking.collect(run, of(Attempt)(attempt(1, "failed"))).nodes} == {"n0", "n1"}


def ask(run: RunFolder, monkeypatch: pytest.MonkeyPatch, **more: Any) -> int:
    monkeypatch.setenv("NEXA_WORKSPACE", str(run.path.parent.parent))
    return why(argparse.Namespace(**{"run": "", "attempt": None, "json": False, **more}))


def test_why_shows_the_rank_the_cause_and_the_cure(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records.put(run, stored(attempt(1, "failed"), attempt(2, "failed"), attempt(3, "completed")))
    put(run, "n1", "", r1_1=TRACE.replace(b"'labels'", b"'\x1b]0;owned\x07labels'"))
    assert ask(run, monkeypatch, attempt=1) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        "sft_20261122_200000_demo: attempt 1 of 3 failed at step 7",
        "rank 1 on n1 failed first (exit code 1): KeyError: 'labels', at train.py:45, in step",
    ]
    assert "  | KeyError: 'labels'" in out
    assert "\ndo: an error of the program" in out
    assert out.splitlines()[-1] == "attempt 3 completed: it completed"
    assert "\x1b" not in out
    assert "owned" not in out


def test_json_of_why_names_the_rank_its_exit_and_the_cause(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records.put(run, stored(attempt(1, "failed"), attempt(2, "failed")))
    assert ask(run, monkeypatch, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["attempt"], told["name"], told["node"], told["rank"]) == (
        run.run_id, 2, "host_oom", "n0", 0,
    )  # fmt: skip
    assert told["exit"] == {"code": 0, "signal": 9, "oom": True}
    assert [other["attempt"] for other in told["others"]] == [1]


@pytest.mark.parametrize(
    ("opened", "says"),
    [
        ("data/vocab.json", "files: in train.yaml: files: [data/vocab.json]"),
        ("/r/n1/work/data/vocab.json", "files: in train.yaml: files: [data/vocab.json]"),
        ("./data", "files: in train.yaml: files: [data]"),
        ("sent.txt", "what git ignores is not sent"),
        ("../outside", "what git ignores is not sent"),
        ("nowhere.txt", "what git ignores is not sent"),
    ],
)
def test_a_file_that_is_here_and_was_not_sent_is_named_with_the_line_that_sends_it(
    run: RunFolder, tmp_path: Path, opened: str, says: str
) -> None:
    for name in ("data/vocab.json", "sent.txt", "../outside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    code = archive.build(tmp_path, ["sent.txt"])
    archive.keep(run.code, code)
    missing = f"FileNotFoundError: [Errno 2] No such file or directory: '{opened}'"
    put(run, "n1", "", r1_1=TRACE.replace(b"KeyError: 'labels'", missing.encode()))
    done = record(attempt(1, "failed"))
    done.code_hash = code.hash
    done.nodes["n1"] = {"run_dir": "/r/n1"}
    story, _ = asking.why(run, done)
    assert story.verdict.name == "file_missing"
    assert says in story.verdict.fix
