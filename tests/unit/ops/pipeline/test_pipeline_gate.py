"""A pipeline that asks something of an evaluation ends there until it is so, and gives the model its name once.

The training is made up, as a run of the cluster brings it; the evaluation is the stage itself, asking a real server.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("pyarrow")

from nexa_dist.cli import main as nexa
from nexa_dist.config.pipeline import PipelineConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.pipeline import chain
from nexa_dist.ops.pipeline.chain import Step
from nexa_dist.ops.pipeline.lineage import lineage
from nexa_dist.ops.serving import aliases
from nexa_dist.ops.serving.aliases import Aliases
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.workspace import Workspace
from nexa_dist.secrets import redact_text
from nexa_dist.stages import entry
from nexa_dist.stages.output import Output
from nexa_dist.stages.references import resolve
from nexa_dist.stages.registry import Registry
from nexa_dist.stages.serve import answering
from nexa_dist.train import checkpoint
from tests.teacher import Server, completion, serving

ROWS = [{"id": number, "prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(3)]
STUDENT = {
    "backend": "hf", "model": {"path": "x"}, "dataset": {"source": "examples", "path": "$NEXA_DATA/rows"},
    "trainer": {"steps": 4}, "data": {"rows": "x"},
}  # fmt: skip


class Bench:
    """A pipeline of a student, its evaluation and a proof that it answers, and what was said and done."""

    def __init__(self, root: Path, judge: Server) -> None:
        self.root, self.judge = root, judge
        self.said: list[str] = []
        self.done: list[str] = []
        evaluation = {"endpoint": {"url": judge.url, "model": "m", "json_mode": "none"}, "swap": False}
        for name, told in {
            "student.yaml": STUDENT,
            "quality.yaml": {"stage": "eval", "inputs": {"rows": "rows.jsonl"}, "judge": evaluation},
            "served.yaml": {"stage": "serve", "prompts": ["What is 1?"]},
        }.items():
            (root / name).write_text(json.dumps(told))
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        model = {"model": "stage:student/checkpoint"}
        self.told: dict[str, Any] = {
            "pipeline": "toy",
            "stages": {
                "student": {"config": "student.yaml", "inputs": {"rows": "rows.jsonl"}, "where": "cluster"},
                "quality": {"config": "quality.yaml", "inputs": model},
                "served": {"config": "served.yaml", "inputs": {**model, "quality": "stage:quality"}},
            },
        }

    def run(self, **gate: Any) -> tuple[int, list[str]]:
        self.told["stages"]["quality"] |= gate
        ctx = Context(Workspace(self.root), FakeRunner(), self.said.append)
        code, steps = chain.run(ctx, PipelineConfig.model_validate(self.told), self.trained)
        return code, [step.state for step in steps]

    def here(self, _: Path, step: Step, folder: Path) -> int:
        self.done.append(step.name)
        return entry.main(step.stage, chain.argv_of(step, folder)[3:])

    def trained(self, step: Step, folder: Path) -> int:
        """What a run of the cluster leaves of a training."""

        def fill(place: Path) -> None:
            (place / "config.json").write_text("{}")
            (place / "weights").write_text(" ".join(step.overrides))

        self.done.append(step.name)
        assert step.told
        output = Output(folder, step.key)
        output.begin()
        made = checkpoint.write(folder / ".run", 4, fill, {"run_id": "r"})
        made.rename(folder / "checkpoint")
        output.note(counts={"step": 4}, run_id=f"run{self.done.count('student')}")
        output.seal(step.told, {name: resolve(of, self.root, name) for name, of in step.references.items()})
        return 0


@pytest.fixture
def scores() -> dict[str, float]:
    """What the judge answers."""
    return dict.fromkeys(("falsifiability", "grounding", "completeness", "safety", "novelty"), 0.5)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: dict[str, float]) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    answers = SimpleNamespace(api="chat", smoke=lambda prompt, _: {"prompt": prompt, "text": "One.", "seconds": 0.1})
    monkeypatch.setattr(answering, "serving", lambda *_, **__: contextlib.nullcontext(answers))
    monkeypatch.setattr(answering, "choose", lambda _: SimpleNamespace(name="stand-in", why="a stand-in"))
    with serving(lambda *_: completion(json.dumps({"reason": "so", **scores}))) as judge:
        made = Bench(tmp_path, judge)
        monkeypatch.setattr(chain, "_here", made.here)
        yield made


def test_it_ends_where_a_score_is_not_enough_and_goes_on_when_bound_or_model_changed(
    bench: Bench, scores: dict[str, float]
) -> None:
    assert bench.run(min={"DSS": 0.6}, max={"perplexity": 20}) == (1, ["done", "refused", "waits"])
    said = "\n".join(bench.said)
    assert "✗ quality@v1: dss: 0.5 is less than 0.6; nothing behind it is begun" in said
    assert "✗ quality@v1: perplexity: no score of it" in said, "which is missing, and not 0"
    assert "it follows from student@v1/checkpoint" in redact_text(said)
    tree = lineage(Workspace(bench.root), "quality")
    assert {one.label for one in tree.all()} == {"quality@v1", "student@v1", "rows.jsonl"}
    assert not any(one.faults for one in tree.all())

    assert bench.run(min={"DSS": 0.55}, max={})[0] == 1
    assert bench.run(min={"DSS": 0.5}) == (0, ["done", "done", "done"])
    assert bench.done == ["student", "quality", "served"]
    assert len(bench.judge.asked) == len(ROWS), "a bound costs no question"
    assert bench.run(min={"DSS": 0.7}) == (1, ["done", "refused", "waits"]), "what was served no longer counts"

    scores |= dict.fromkeys(scores, 0.9)
    bench.told["stages"]["student"]["set"] = ["trainer.seed=1"]
    assert bench.run() == (0, ["done", "done", "done"])
    assert bench.done[3:] == ["student", "quality", "served"] and len(bench.judge.asked) == 2 * len(ROWS)


def test_the_model_gets_its_name_once_and_not_again_when_it_was_taken_back(
    bench: Bench, scores: dict[str, float]
) -> None:
    bench.told["promote"] = {"to": "staging", "evaluation": "quality", "smoke": "served"}
    names = Aliases(bench.root)
    assert bench.run(min={"DSS": 0.6})[0] == 1 and names.get("staging") is None
    assert bench.run(min={"DSS": 0.4})[0] == 0
    first = names.get("staging")
    assert first and (first.run, first.step, first.wanted) == ("run1", 4, {"dss": 0.4})
    assert first.scores["dss"] == pytest.approx(0.5)
    assert first.smoke["text"] == "One." and first.smoke["version"] == "served@v1"
    registry = Registry(bench.root)
    assert first.sha256 == checkpoint.digest(registry.path(registry.find("student")) / "checkpoint")
    assert (bench.root / first.evaluation).is_file()

    bench.told["stages"]["student"]["set"] = ["trainer.seed=1"]
    assert bench.run()[0] == 0 and [one.run for one in names.history("staging")] == ["run1", "run2"]
    names.give(aliases.made("staging", "run1", 4, first.sha256, why="rollback"))
    assert bench.run()[0] == 0
    assert [one.run for one in names.history("staging")] == ["run1", "run2", "run1"]
    assert "given the name staging before, which run1, step 4, has now" in bench.said[-1]


def test_what_no_pipeline_can_ask_is_refused_before_anything_is_done(bench: Bench) -> None:
    bench.told["stages"]["student"]["max"] = {"loss": 1}
    with pytest.raises(UsageError, match="student: min and max are asked of scores, and the stage train has none"):
        bench.run()
    del bench.told["stages"]["student"]["max"]
    bench.told["promote"] = {"to": "staging", "evaluation": "quality", "smoke": "servd"}
    for change, said in (
        ({}, "there is no stage 'servd'.*served"),
        ({"smoke": "served"}, "quality has neither min nor max"),
    ):
        bench.told["promote"] |= change
        with pytest.raises(ValueError, match=said):
            bench.run()
    bench.told["stages"]["student"]["where"] = "here"
    with pytest.raises(ValueError, match="student is where: here, so it is no run"):
        bench.run(min={"DSS": 0.1})
    bench.told["stages"]["served"]["inputs"]["model"] = "stage:student"
    with pytest.raises(ValueError, match=r"need the same inputs\.model"):
        bench.run()
    assert bench.done == []


def test_a_cluster_is_asked_for_while_a_stage_on_it_is_not_done(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.root / "state"))
    (bench.root / "p.yaml").write_text(json.dumps(bench.told))
    assert nexa(["pipeline", "run", "p.yaml"]) == 2 and bench.done == []
    assert "nexa provision --cluster FILE makes one" in capsys.readouterr().err
    assert bench.run()[0] == 0
    assert nexa(["pipeline", "run", "p.yaml"]) == 0, "all of it is done, and the cluster may be gone by now"


def test_what_was_trained_here_is_no_run_and_gets_no_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Output.note
    monkeypatch.setattr(Output, "note", lambda self, **facts: note(self, **{**facts, "run_id": None}))
    bench.told["promote"] = {"to": "staging", "evaluation": "quality", "smoke": "served"}
    with pytest.raises(NexaError, match="student@v1 is not promoted to staging: it was trained on this machine"):
        bench.run(min={"DSS": 0.1})
