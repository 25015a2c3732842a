"""The stage eval by real servers that misbehave; ended anywhere it asks nothing twice and comes to the same table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")
pq: Any = pytest.importorskip("pyarrow.parquet")

from nexa_dist.errors import NexaError, UsageError  # noqa: E402
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv  # noqa: E402
from nexa_dist.stages.data.config import Sample  # noqa: E402
from nexa_dist.stages.eval import work as stage  # noqa: E402
from nexa_dist.stages.load import load_stage  # noqa: E402
from tests.teacher import Answer, Server, completion, passing_hours, serving  # noqa: E402

ROWS = [{"id": n, "prompt": f"q{n}", "completion": f"answer {n}", "other": f"other {n}", "topic": "odd" if n % 2 else
         "even", "human": n / 10} for n in range(6)]  # fmt: skip
CRITERIA = ("falsifiability", "grounding", "completeness", "safety", "novelty")


def honest(body: dict[str, Any], _: int = 0) -> Answer:
    """A judge that gives n/10 for answer n, and likes answers more than others."""
    asked = body["messages"][-1]["content"]
    if "Answer A:" in asked:
        return completion(json.dumps({"winner": "A" if "Answer A:\nanswer" in asked else "B"}))
    number = int(re.findall(r"answer (\d+)", asked)[0])
    return completion(json.dumps({"reason": "so", **dict.fromkeys(CRITERIA, number / 10)}))


class Eval:
    def __init__(self, folder: Path, server: Server, rows: Any = ROWS, **config: Any) -> None:
        self.folder, self.output, self.stop_after = folder, folder / "out", 1 << 30
        self.notes: dict[str, Any] = {}
        self.server = server
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        endpoint = {"url": server.url, "model": "judge", "backoff_s": 0.001, "tries": 2, "concurrency": 1,
                    **config.pop("endpoint", {})}  # fmt: skip
        judge = {"endpoint": endpoint, **config.pop("judge", {})}
        values = {"stage": "eval", "judge": judge, "inputs": {"rows": str(folder / "rows.jsonl")}, **config}
        self.file = folder / "quality.json"
        self.file.write_text(json.dumps(values))

    def run(self) -> int:
        config = load_stage(self.file)
        self.output.mkdir(exist_ok=True)
        env = StageEnv({"rows": self.folder / "rows.jsonl"}, self.output, 0, 1,
                       lambda: len(self.server.asked) >= self.stop_after, lambda *_, **__: None,
                       lambda **facts: self.notes.update(facts))  # fmt: skip
        stage.prepare(config, env)
        return stage.run(config, env)

    def table(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.output / "evals" / "quality_answers.parquet").to_pylist()
        return found

    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "evals" / "quality_answers.json").read_text()))


def test_scores_wins_groups_and_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(honest) as server:
        made = Eval(
            tmp_path, server, judge={"against": "other", "labels": {"dss": "human"}}, groups=["topic"],
            next_sample={"by": "topic", "rows": 15},
        )  # fmt: skip
        assert made.run() == 0
        assert len(server.asked) == 6 * 4
    row = made.table()[3]
    assert row["dss"] == pytest.approx(0.3) and row["winner"] == "answer" and row["failed"] is None
    assert (row["id"], row["prompt"], row["answer"], row["topic"], row["label_dss"]) == (
        3,
        "q3",
        "answer 3",
        "odd",
        0.3,
    )
    told = made.summary()
    assert told["scores"]["dss"]["mean"] == pytest.approx(0.25) and told["scores"]["dss"]["missing"] == 0
    low, high = told["scores"]["dss"]["interval"]
    assert 0 < low < 0.25 < high < 0.5
    assert told["wins"]["mean"] == 1.0 and told["judge"]["first_wins"] == 0.5 and told["judge"]["orders_agree"] == 1.0
    assert told["judge"]["agreement"]["dss"]["spearman"] == pytest.approx(1.0) and "warning" not in told["judge"]
    assert {name: one["scores"]["dss"]["mean"] for name, one in told["groups"]["topic"].items()} == {
        "even": pytest.approx(0.2), "odd": pytest.approx(0.3)
    }  # fmt: skip
    sample = json.loads((made.output / "sample.json").read_text())
    assert sample == {"policy": "quota", "by": "topic", "quotas": {"even": 8, "odd": 7}}
    Sample.model_validate(sample)  # a stage data takes it as it is
    assert made.notes["judge"]["model"] == "judge" and len(made.notes["judge"]["sha256"]) == 64
    assert made.notes["replies"] == {"ok": 24} and made.notes["evaluated"] == "answers"
    assert "dss: 0.25 [" in capsys.readouterr().out


def test_a_judge_that_cannot_rank_is_said_to_be_one(tmp_path: Path) -> None:
    def flat(body: dict[str, Any], _: int = 0) -> Answer:
        return completion(json.dumps(dict.fromkeys(CRITERIA, 0.7)))

    with serving(flat) as server:
        made = Eval(tmp_path, server, judge={"labels": {"safety": "human"}})
        assert made.run() == 0
    assert made.summary()["judge"]["warning"].endswith("ranks no better than a coin: safety")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (completion("I would say 0.7"), "bad_json"),
        (completion(json.dumps({"safety": 1})), "bad_json"),
        (completion("no", finish="content_filter"), "refused"),
        (Answer(500, b"oh no"), "server"),
        (Answer(200, b"<html>"), "no_json"),
        (Answer(200, b"x" * 200_000), "too_large"),
        (Answer(body=b"x", hang=True), "timeout"),
        (completion('{"reason": "long', finish="length"), "truncated"),
    ],
)
def test_a_reply_that_is_none_is_counted_and_its_score_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, kind: str
) -> None:
    def judge(body: dict[str, Any], number: int) -> Answer:
        return answer if "answer 2" in body["messages"][-1]["content"] else honest(body)

    asking = {"reply_bytes": 100_000, "tries": 1, "concurrency": 1 if answer.hang else 4}
    with serving(passing_hours(monkeypatch, judge)) as server:
        made = Eval(tmp_path, server, endpoint=asking)
        assert made.run() == 0, "2 of 12 questions, which judge.failed_most allows"
    row = made.table()[2]
    assert row["dss"] is None and row["failed"] == kind and all(row[name] is None for name in CRITERIA)
    told = made.summary()
    assert told["scores"]["dss"]["count"] == 5 and told["scores"]["dss"]["missing"] == 1
    assert told["judge"]["failures"] == {kind: 2} and made.notes["replies"] == {kind: 2, "ok": 10}


def test_too_many_of_them_end_it_in_words_and_what_was_answered_stays(tmp_path: Path) -> None:
    broken = [True]

    def judge(body: dict[str, Any], number: int) -> Answer:
        return Answer(500, b"down") if broken[0] and number >= 4 else honest(body)

    with serving(judge) as server:
        made = Eval(tmp_path, server)
        with pytest.raises(NexaError, match=r"8 of 12 questions to the judge have no usable reply: server 8") as error:
            made.run()
        assert "asks again" in error.value.hint and not (made.output / "evals").exists()
        assert made.notes["replies"] == {"ok": 4, "server": 8}
        broken[0], asked = False, len(server.asked)
        assert made.run() == 0
        assert len(server.asked) - asked == 8, "nothing is asked twice"
    assert made.summary()["scores"]["dss"]["missing"] == 0


def test_stopped_and_torn_it_goes_on_and_the_table_is_the_same(tmp_path: Path) -> None:
    with serving(honest) as server:
        whole = Eval(tmp_path / "whole", server)
        assert whole.run() == 0
    with serving(honest) as server:
        made = Eval(tmp_path / "parts", server)
        for stop_after in (3, 5, 9):
            made.stop_after = stop_after
            assert made.run() == EXIT_STOPPED
            with (made.output / ".journal.jsonl").open("ab") as file:
                file.write(b'{"id": 5, "what": "grade0", "ki')
        made.stop_after = 1 << 30
        assert made.run() == 0
        prompts = server.prompts()
        assert len(prompts) == len(set(prompts)) == 12
    name = "evals/quality_answers.parquet"
    assert (made.output / name).read_bytes() == (whole.output / name).read_bytes()
    assert (made.output / "evals/quality_answers.json").read_bytes() == (
        whole.output / "evals/quality_answers.json"
    ).read_bytes()


def test_a_budget_ends_it_with_what_it_has(tmp_path: Path) -> None:
    with serving(honest) as server:
        made = Eval(tmp_path, server, endpoint={"budget_tokens": 1500, "max_tokens": 100})
        assert made.run() == 3
    assert 0 < made.notes["replies"]["ok"] < 12 and not (made.output / "evals").exists()


def test_rows_without_an_answer_are_not_asked_about(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {**ROWS[5], "completion": "  "}]
    with serving(honest) as server:
        made = Eval(tmp_path, server, rows)
        assert made.run() == 0 and len(server.asked) == 10
    assert made.table()[5]["failed"] == "no_answer" and made.table()[5]["dss"] is None


def test_some_rows_are_drawn_by_id_and_seed(tmp_path: Path) -> None:
    with serving(honest) as server:
        made = Eval(tmp_path / "a", server, most_rows=3)
        assert made.run() == 0
        other = Eval(tmp_path / "b", server, [*ROWS[::-1]], most_rows=3)
        assert other.run() == 0
    assert len(made.table()) == 3 and made.table() == other.table()


def test_the_example_is_valid() -> None:
    config = load_stage(Path(__file__).parents[3] / "configs" / "stages" / "eval.yaml")
    assert config.stage == "eval" and config.name == "quality"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prompt": "question"}, "prompt: question is no column"),
        ({"groups": ["area"]}, r"groups\[0\]: area is no column"),
        ({"judge": {"against": "baseline"}}, "judge.against: baseline is no column"),
        ({"judge": {"labels": {"dss": "score"}}}, "judge.labels.dss: score is no column"),
        ({"judge": {"prompt": "{{ answer"}}, "no template"),
        ({"endpoint": {"key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY"),
        ({"perplexity": {}}, "inputs: model is missing"),
        ({"tasks": {"names": ["arc_easy"]}}, "inputs: model is missing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with serving(honest) as server:
        with pytest.raises(UsageError, match=words):
            Eval(tmp_path, server, **config).run()
        assert not server.asked
