"""The stage teach, by its command, against real servers that misbehave; killed anywhere it comes to the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")
pq: Any = pytest.importorskip("pyarrow.parquet")

from nexa_dist.errors import NexaError, UsageError  # noqa: E402
from nexa_dist.stages.contract import StageEnv  # noqa: E402
from nexa_dist.stages.load import load_stage  # noqa: E402
from nexa_dist.stages.teach import asking as teach  # noqa: E402
from nexa_dist.stages.teach import keeping  # noqa: E402
from nexa_dist.stages.teach.journal import Journal  # noqa: E402
from nexa_dist.train import checkpoint  # noqa: E402
from nexa_dist.train.fence import Superseded  # noqa: E402
from nexa_dist.train.text import examples  # noqa: E402
from tests.teacher import Answer, Server, completion, passing_hours, serving  # noqa: E402


def echo(body: dict[str, Any], _: int = 0) -> Answer:
    """A server that gives the same answer to the same question."""
    asked = body["messages"][-1]["content"]
    return completion(f"answer to {asked}", prompt=len(asked), made=7)


class Stage:
    """A teach stage in a folder, with rows and a server."""

    def __init__(self, folder: Path, server: Server, rows: list[Any] | None = None, **config: Any) -> None:
        self.folder, self.output, self.stopped = folder, folder / "out", False
        self.notes: dict[str, Any] = {}
        folder.mkdir(exist_ok=True)
        rows = [{"term": f"t{n}", "n": n} for n in range(20)] if rows is None else rows
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        endpoint = {"url": server.url, "model": "m", "backoff_s": 0.001, **config.pop("endpoint", {})}
        values = {"stage": "teach", "prompt": "Define {{ term }}.", "id": "term", "endpoint": endpoint, **config}
        values["inputs"] = {"rows": str(folder / "rows.jsonl")}
        self.file = folder / "teach.json"
        self.file.write_text(json.dumps(values))

    def run(self) -> int:
        config = load_stage(self.file)
        self.output.mkdir(exist_ok=True)
        env = StageEnv({"rows": self.folder / "rows.jsonl"}, self.output, 0, 1, lambda: self.stopped,
                       lambda *_, **__: None, lambda **facts: self.notes.update(facts))  # fmt: skip
        teach.prepare(config, env)
        return teach.run(config, env)

    def table(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.output / "rows.parquet").to_pylist()
        return found

    def failed(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "failed" / f"{kind}.jsonl").read_text().splitlines()]


def test_every_row_gets_its_completion_in_the_order_of_the_ids(tmp_path: Path) -> None:
    with serving(echo) as server:
        stage = Stage(
            tmp_path, server, keep=["n"], system="You know {{ n }}.",
            endpoint={"usd_per_million_prompt": 1.0, "usd_per_million_completion": 2.0},
        )  # fmt: skip
        assert stage.run() == 0
    table = stage.table()
    assert [row["id"] for row in table] == sorted(f"t{n}" for n in range(20))
    assert table[0] == {
        "id": "t0",
        "messages": [
            {"role": "system", "content": "You know 0."},
            {"role": "user", "content": "Define t0."},
            {"role": "assistant", "content": "answer to Define t0."},
        ],
        "prompt": "Define t0.",
        "completion": "answer to Define t0.",
        "finish": "stop",
        "teacher": "m",
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "usd": pytest.approx(24e-6),
        "n": 0,
    }
    assert stage.notes["counts"] == {"rows_in": 20, "rows": 20, "unanswered": 0, "ok": 20}
    assert len(stage.notes["prompt_sha256"]) == 64
    assert stage.notes["usd"] == pytest.approx(sum(row["usd"] for row in table))
    files = list(examples.rows([tmp_path / "out" / "rows.parquet"]))
    assert examples.check(*files[0]) == ("messages",)


def misbehaves(body: dict[str, Any], _: int) -> Answer:
    """What each of the rows t0 to t5 brings about, always."""
    term = body["messages"][-1]["content"][len("Define ") : -1]
    bad = {
        "t0": Answer(500, b"\xff\x00oh"),
        "t1": Answer(200, b"x" * 50_000),
        "t2": Answer(200, b"{", hang=True),
        "t3": completion("I think so"),
        "t4": completion('{"score": 1', finish="length"),
        "t5": completion(None, finish="content_filter"),
    }
    return bad.get(term) or completion('{"score": 0.5}')


def test_what_is_no_answer_is_counted_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*({"term": f"t{n}"} for n in range(9)), {"term": "bad", "other": 1}, {"other": 2, "term": "x" * (1 << 21)}]
    with serving(passing_hours(monkeypatch, misbehaves)) as server:
        stage = Stage(
            tmp_path, server, rows, failed_most=0.2, passes=2,
            json_schema={"type": "object", "required": ["score"]},
            prompt="Define {{ term if term != 'bad' else nothing }}.",
            endpoint={"reply_bytes": 20_000, "concurrency": 1, "tries": 2},
        )  # fmt: skip
        assert stage.run() == 0
    assert [(row["id"], row["json"]) for row in stage.table()] == [(f"t{n}", '{"score": 0.5}') for n in (6, 7, 8)]
    kinds = {"server": "t0", "too_large": "t1", "timeout": "t2", "bad_json": "t3", "truncated": "t4", "refused": "t5"}
    assert {kind: stage.failed(kind)[0]["id"] for kind in kinds} == kinds
    assert [row["detail"][:30] for row in stage.failed("row")] == [
        "prompt: 'nothing' is undefined", "user text of 2097160 character"]  # fmt: skip
    assert stage.failed("bad_json")[0]["completion"] == "I think so"
    assert stage.notes["counts"]["rows"] == 3
    asked = server.prompts()
    assert asked.count("Define t0.") == 4  # two tries in each of two passes
    assert asked.count("Define t3.") == asked.count("Define t1.") == 1


def test_rows_that_the_server_failed_on_end_it_and_are_asked_again(tmp_path: Path) -> None:
    broken = True

    def answer(body: dict[str, Any], number: int) -> Answer:
        return Answer(503) if broken and body["messages"][-1]["content"] == "Define t7." else echo(body)

    with serving(answer) as server:
        stage = Stage(tmp_path, server, endpoint={"tries": 1})
        with pytest.raises(NexaError, match=r"the server failed on 1 of 20 rows \(server 1\)"):
            stage.run()
        assert not (stage.output / "rows.parquet").exists()
        broken, before = False, len(server.asked)
        assert stage.run() == 0
        assert server.prompts()[before:] == ["Define t7."]
    assert len(stage.table()) == 20


def test_a_server_that_is_not_there_is_not_asked_for_every_row(tmp_path: Path) -> None:
    with serving(lambda *_: Answer(500)) as server:
        stage = Stage(tmp_path, server, [{"term": str(n)} for n in range(500)], endpoint={"tries": 1, "concurrency": 2})
        with pytest.raises(NexaError, match="answers nobody"):
            stage.run()
    assert len(server.asked) < 40
    with serving(lambda *_: Answer(401, b'{"error": {"message": "wrong key"}}')) as server:
        stage = Stage(tmp_path / "b", server, endpoint={"concurrency": 2})
        with pytest.raises(NexaError, match="wrong key"):
            stage.run()
    assert len(server.asked) <= 2


def test_a_budget_ends_it_with_3_and_more_of_it_goes_on(tmp_path: Path) -> None:
    with serving(echo) as server:
        stage = Stage(tmp_path, server, endpoint={"budget_tokens": 400, "max_tokens": 20, "concurrency": 1})
        assert stage.run() == 3
        first = stage.notes["counts"]["rows"]
        assert 0 < first < 20
        assert stage.notes["tokens"]["prompt"] + stage.notes["tokens"]["completion"] <= 400
        assert not (stage.output / "rows.parquet").exists()
        again = Stage(tmp_path, server, endpoint={"budget_tokens": 40_000, "max_tokens": 20, "concurrency": 1})
        assert again.run() == 0
    assert len(server.asked) == 20
    assert len(again.table()) == 20


def test_a_stop_keeps_what_was_answered(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        stage.stopped = number >= 5
        return echo(body)

    with serving(answer) as server:
        stage = Stage(tmp_path, server, endpoint={"concurrency": 1})
        assert stage.run() == 143
        stopped_after = len(server.asked)
        server.answer, stage.stopped = echo, False
        assert stage.run() == 0
    assert stopped_after < 20
    assert sorted(server.prompts()) == sorted(set(server.prompts()))


def test_probabilities_are_stored_as_kd_reads_them(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _: int) -> Answer:
        top = [{"token": f"token_id:{n}", "logprob": -float(n)} for n in (1, 2)]
        told = {"content": [{"token": "token_id:1", "logprob": -1.0, "top_logprobs": top}] * 3}
        return completion("abc", logprobs=told if body["messages"][-1]["content"] != "Define t1." else None)

    with serving(answer) as server:
        stage = Stage(tmp_path, server, [{"term": "t0"}, {"term": "t1"}], top_logprobs=2)
        assert stage.run() == 0
    with_, without = stage.table()
    assert server.asked[0]["return_tokens_as_token_ids"] is True
    assert with_["teacher_tokens"] == [1, 1, 1]
    assert with_["teacher_top_ids"] == [[1, 2]] * 3
    assert with_["teacher_top_logprobs"] == [[-1.0, -2.0]] * 3
    assert [without[name] for name in ("teacher_tokens", "teacher_top_ids", "teacher_top_logprobs")] == [None] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": "{{ term "}, "prompt, line 1: no template"),
        ({"prompt": "{{ trem }}"}, "'trem' is undefined"),
        ({"prompt": "{{ ''.__class__.__mro__ }}"}, "unsafe"),
        ({"keep": ["m"]}, "keep: m is no column"),
        ({"keep": ["prompt"]}, "is a column of the answer"),
        ({"endpoint": {"key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set"),
        ({"id": "n", "rows": [{"term": "a", "n": 1}, {"term": "b", "n": 1}]}, "the id 1 is there twice"),
        ({"rows": []}, "has no rows"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path: Path, change: Any, says: str) -> None:
    rows = change.pop("rows", [{"term": "a", "n": 1, "prompt": ""}])
    with serving(echo) as server, pytest.raises(UsageError) as error:
        Stage(tmp_path, server, rows, **change).run()
    assert says in str(error.value)
    assert server.asked == []


def test_a_torn_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        at = [journal.append(n, {"kind": "ok", "text": "x" * 100_000}) for n in range(3)]
    whole = (tmp_path / "j").read_bytes()
    for cut in (len(whole) - 1, at[2] + 1, at[2]):
        (tmp_path / "j").write_bytes(whole[:cut])
        with Journal(tmp_path / "j") as journal:
            assert [line["id"] for _, line in journal.lines()] == [0, 1]
            assert journal.append(9, {"kind": "ok"}) == at[2]
            assert journal.at(at[1])["text"] == "x" * 100_000
            assert journal.at(at[2]) == {"id": 9, "kind": "ok"}


def killed(stage: Stage, server: Server, after: int) -> None:
    """Start the stage's command and kill it when the server was asked so often."""
    words = ["-m", "nexa_dist.stages.teach", "--config", str(stage.file), "--output", str(stage.output)]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until = time.monotonic() + 120
        while len(server.asked) < after and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()


def test_killed_at_any_row_it_comes_to_the_same_bytes_and_asks_nothing_twice(tmp_path: Path) -> None:
    with serving(echo) as server:
        straight = Stage(tmp_path / "a", server)
        assert straight.run() == 0
    with serving(lambda body, _: time.sleep(0.01) or echo(body)) as server:
        stage = Stage(tmp_path / "b", server, endpoint={"concurrency": 2})
        for after in (5, 12):
            killed(stage, server, after)
        (stage.output / "rows.parquet").unlink(missing_ok=True)
        journal = (stage.output / ".journal.jsonl").read_bytes().splitlines()
        answered = {json.loads(line)["id"] for line in journal if line.endswith(b"}")}
        before = len(server.asked)
        assert stage.run() == 0
        again = {prompt[len("Define ") : -1] for prompt in server.prompts()[before:]}
    assert answered
    assert not answered & again
    assert (stage.output / "rows.parquet").read_bytes() == (straight.output / "rows.parquet").read_bytes()


class Node:
    """A node of a run: its folder, and what outlives it. What it finds is what the supervisor brings a new node."""

    def __init__(self, root: Path, attempt: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = root / "durable/r1/checkpoints"
        found = checkpoint.newest_whole(self.store)
        env = {
            "NEXA_RUN_ID": "r1", "NEXA_RUN_DIR": str(root / f"node{attempt}"), "NEXA_ATTEMPT": str(attempt),
            "NEXA_DURABLE": str(root / "durable"), **({"NEXA_RESUME_FROM": str(found[1])} if found else {}),
        }  # fmt: skip
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    def kept(self) -> set[str]:
        found = checkpoint.newest_whole(self.store)
        assert found
        return {json.loads(line)["id"] for line in (found[1] / keeping.FILE).read_text().splitlines()}


@pytest.mark.parametrize("warned", [True, False], ids=["stopped", "lost without a word"])
def test_with_its_node_lost_nothing_that_was_kept_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: bool
) -> None:
    with serving(echo) as server:
        straight = Stage(tmp_path / "a", server)
        assert straight.run() == 0

    def answer(body: dict[str, Any], number: int) -> Answer:
        stage.stopped = stage.stopped or number == 8
        return echo(body)

    node = Node(tmp_path, 1, monkeypatch)
    if not warned:
        monkeypatch.setattr(keeping, "EVERY_S", 0.0)
        monkeypatch.setattr(keeping.KeptJournal, "finish", lambda *_: None)
    with serving(answer) as server:
        stage = Stage(tmp_path / "b", server, endpoint={"concurrency": 1})
        of_key(stage, "of this prompt")
        assert stage.run() == 143
        join_copies()
        kept = node.kept()
        assert len(kept) >= (8 if warned else 5)
        shutil.rmtree(tmp_path / "node1", ignore_errors=True)
        of_key(stage, "of this prompt")
        Node(tmp_path, 2, monkeypatch)
        stage.stopped, before = False, len(server.asked)
        assert stage.run() == 0
        again = {prompt[len("Define ") : -1] for prompt in server.prompts()[before:]}
        table = (stage.output / "rows.parquet").read_bytes()
        of_key(stage, "of another prompt")
        join_copies()
        Node(tmp_path, 3, monkeypatch)
        before = len(server.asked)
        assert stage.run() == 0 and len(server.asked) == before + 20, "answers to other questions are no answers"
        join_copies()
        newest = checkpoint.newest_whole(node.store)
        assert newest and "of another prompt" in (newest[1] / keeping.OF).read_text()
    assert kept and not kept & again
    assert table == (straight.output / "rows.parquet").read_bytes()
    monkeypatch.setenv("NEXA_ATTEMPT", "1")
    with serving(echo) as server, pytest.raises(Superseded):
        Stage(tmp_path / "c", server).run()


def of_key(stage: Stage, key: str) -> None:
    """An empty folder of a new node, which entry.py has begun."""
    shutil.rmtree(stage.output, ignore_errors=True)
    stage.output.mkdir()
    (stage.output / ".state.json").write_text(json.dumps({"key": key}))


def join_copies() -> None:
    """Wait for the copies that were under way: what is lost with a node is what they had not brought. A save begins the
    copy of what it has saved as its last act."""
    for name in ("save", "durable"):
        for thread in [one for one in threading.enumerate() if one.name == name]:
            thread.join(60)


@pytest.mark.long("21 processes of the stage")
def test_killed_20_times_it_comes_to_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"term": f"t{n}"} for n in range(200)]
    with serving(echo) as server:
        straight = Stage(tmp_path / "a", server, rows)
        assert straight.run() == 0
    with serving(lambda body, _: time.sleep(0.01) or echo(body)) as server:
        stage = Stage(tmp_path / "b", server, rows, endpoint={"concurrency": 2})
        for kill in range(20):
            killed(stage, server, (kill + 1) * 9)
        assert not (stage.output / "rows.parquet").exists()
        assert stage.run() == 0
        twice = len(server.asked) - len({*server.prompts()})
    assert twice <= 20 * 2, "only what was being asked at a kill may be asked again"
    assert (stage.output / "rows.parquet").read_bytes() == (straight.output / "rows.parquet").read_bytes()


def test_what_was_stopped_while_it_was_asked_is_counted_as_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        stage.stopped = True
        return Answer(200, b"{", hang=True)

    with serving(passing_hours(monkeypatch, answer)) as server:
        stage = Stage(tmp_path, server, endpoint={"concurrency": 1, "max_tokens": 9})
        assert stage.run() == 143
    assert stage.notes["tokens"]["completion"] == 9
    assert stage.notes["counts"]["unanswered"] == 20
