"""nexa leaderboard: evaluations of a workspace, compared only where they can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main
from tests import small_workspace

HOSTILE = '<script>alert("x")</script>'


class Lab:
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self, place: str, run: str, dss: float | None, at: float = 1.0, config: str = "c" * 64, judge: str = "j",
        usd: float | None = 0.5, **told: Any,
    ) -> Path:  # fmt: skip
        folder = self.root / place
        (folder / "evals").mkdir(parents=True)
        judged = {"model": judge, "sha256": judge * 64}
        manifest = {"stage": "eval", "name": "quality", "key": "k", "config_sha256": config, "ended_unix": at,
                    "inputs": {"rows": {"sha256": "r" * 64}}, "usd": usd, "run_id": "eval_1",
                    "notes": {"judge": judged, "speed": {"tokens_per_s": 12.5}}}  # fmt: skip
        scores = {"dss": {"mean": dss, "interval": [0.1, 0.9], "missing": 2, "count": 8}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "evals" / "quality_x.json").write_text(json.dumps({"run": run, "rows": 10, "scores": scores, **told}))
        return folder

    def cost(self, run: str, usd: float) -> None:
        path = self.root / "runs" / "manifests" / f"{run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cost_usd": usd}))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NEXA_WORKSPACE", raising=False)
    (tmp_path / "w").mkdir()
    root = small_workspace.make(tmp_path / "w")
    monkeypatch.chdir(root)
    return Lab(root)


Said = pytest.CaptureFixture[str]


def boards(capsys: Said, *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["leaderboard", *words, "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_the_best_is_first_and_its_cost_beside_it(lab: Lab, capsys: Said) -> None:
    lab.put("runs/eval_1/outputs/stage_output", "train_a", 0.4)
    lab.put("evals/b", "train_b", 0.7)
    lab.put("versions/objects/x", "train_c", None)
    lab.cost("train_b", 12.5)
    lab.cost("eval_1", 0.25)
    (board,) = boards(capsys)
    assert [row["run"] for row in board["rows"]] == ["train_b", "train_a", "train_c"] and board["by"] == "dss"
    best = board["rows"][0]
    assert (best["run_usd"], best["eval_usd"], best["tokens_per_s"]) == (12.5, 0.75, 12.5)
    assert best["figures"]["dss"] == {"value": 0.7, "interval": [0.1, 0.9], "missing": 2}
    assert board["rows"][1]["run_usd"] is None
    assert main(["leaderboard"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[:2] == ["train_b", "0.700 [0.100, 0.900], 2 missing"] and "12.50" in lines[1]
    assert boards(capsys, "other") == []


def test_only_what_was_asked_the_same_way_is_compared(lab: Lab, capsys: Said) -> None:
    lab.put("evals/a", "train_a", 0.4, at=5)
    lab.put("evals/again", "train_a", 0.5, at=6)
    lab.put("evals/other", "train_b", 0.9, at=7, config="d" * 64, judge="k")
    found = boards(capsys)
    assert [[(row["run"], row["figures"]["dss"]["value"]) for row in board["rows"]] for board in found] == [
        [("train_b", 0.9)], [("train_a", 0.5)]
    ], "the newest counts, and another judge is another board"  # fmt: skip


def test_less_perplexity_is_better_and_tasks_have_their_own_figures(lab: Lab, capsys: Said) -> None:
    tasks = {"arc_easy": {"acc": {"value": 0.5, "stderr": 0.1}}}
    for name, value in (("a", 30.0), ("b", 20.0)):
        path = lab.put(f"evals/{name}", f"train_{name}", None, perplexity={"value": value, "interval": [19, 31]},
                       tasks=tasks) / "evals" / "quality_x.json"  # fmt: skip
        told = json.loads(path.read_text())
        del told["scores"]
        path.write_text(json.dumps(told))
    (board,) = boards(capsys)
    assert board["by"] == "perplexity" and [row["run"] for row in board["rows"]] == ["train_b", "train_a"]
    assert board["rows"][0]["figures"]["arc_easy/acc"]["interval"] == pytest.approx([0.304, 0.696])


def test_damage_is_said_and_the_others_are_shown(lab: Lab, capsys: Said) -> None:
    lab.put("evals/a", "train_a", 0.4)
    (lab.put("evals/torn", "train_b", 0.4) / "evals" / "quality_x.json").write_text('{"run": ')
    (lab.put("evals/odd", "train_c", 0.4) / "manifest.json").write_text('{"stage": "eval", "name": 3}')
    other = lab.put("versions/objects/data", "x", 0.4)
    (other / "manifest.json").write_text('{"stage": "data"}')
    assert main(["leaderboard", "--json"]) == 0
    said = capsys.readouterr()
    assert [row["run"] for row in json.loads(said.out)[0]["rows"]] == ["train_a"]
    assert said.err.count("warning: passed over") == 2


def test_the_page_is_one_file_that_escapes_what_strangers_wrote(lab: Lab, capsys: Said) -> None:
    path = lab.put("evals/a", HOSTILE, 0.4, judge=HOSTILE) / "evals" / "quality_x.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "judge": {"warning": HOSTILE}}))
    assert main(["leaderboard", "--html", "board.html"]) == 0
    page = (lab.root / "board.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert page.count("<tr>") == 2 and "http" not in page.replace("http-equiv", "")


def test_nothing_evaluated_is_said(lab: Lab, capsys: Said) -> None:
    assert main(["leaderboard"]) == 0
    assert "nothing was evaluated yet" in capsys.readouterr().err
