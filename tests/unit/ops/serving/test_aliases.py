"""Names of models: who gave them when, what was asked for them, and how they are given back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.serving import aliases
from nexa_dist.ops.serving.aliases import Aliases, made, missed, scores_in, thresholds
from nexa_dist.run import files


def test_a_name_is_given_and_given_back(tmp_path: Path) -> None:
    names = Aliases(tmp_path)
    assert names.get("production") is None
    for run, step in (("a", 10), ("b", 20), ("c", 30)):
        names.give(made("production", run, step, "0" * 64, why="promote", wanted={"dss": 0.6}, scores={"dss": 0.7}))
    names.give(made("staging", "d", 1, "0" * 64, why="promote"))
    assert [(one.run, one.step) for one in names.history("production")] == [("a", 10), ("b", 20), ("c", 30)]
    for back in ("b", "a"):
        one = names.before("production")
        assert one.run == back
        names.give(made("production", one.run, one.step, one.sha256, why="rollback"))
    with pytest.raises(UsageError, match="nothing had the name production before"):
        names.before("production")
    told = files.read_json(names.file)
    assert {alias: told[alias]["run"] for alias in told} == {"production": "a", "staging": "d"}
    assert "@" in told["production"]["by"]
    assert names.journal.stat().st_mode & 0o077 == 0


def test_two_rollbacks_at_once_go_back_once(tmp_path: Path) -> None:
    names = Aliases(tmp_path)
    for run in ("a", "b", "c"):
        names.give(made("production", run, 1, "0" * 64, why="promote"))
    both = [made("production", names.before("production").run, 1, "0" * 64, why="rollback") for _ in range(2)]
    names.give(both[0])
    with pytest.raises(UsageError, match="production was given to another meanwhile"):
        names.give(both[1])
    assert names.before("production").run == "a"


def test_a_user_without_a_name_can_promote(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_001)
    assert made("staging", "a", 1, "0" * 64).by.startswith("4000001@")


def test_a_torn_journal_keeps_the_names(tmp_path: Path) -> None:
    names = Aliases(tmp_path)
    names.give(made("staging", "a", 1, "0" * 64, why="promote"))
    with names.journal.open("a") as file:
        file.write('{"alias": "staging", "run": 3}\n{"alias": "stag')
    found = names.get("staging")
    assert found
    assert found.run == "a"


@pytest.mark.parametrize(
    ("told", "scores"),
    [
        ({"scores": {"DSS": 0.71, "safety": None}}, {"dss": 0.71}),
        ({"metrics": {"loss": {"mean": 2.5, "low": 2.0}, "n": {"value": 3}}}, {"loss": 2.5, "n": 3.0}),
        ({"notes": {"scores": {"dss": 1}}, "scores": "x"}, {"dss": 1.0}),
        (
            {"perplexity": {"value": 12.5}, "scores": {"dss": {"mean": None}}},
            {"perplexity": 12.5},
        ),
        ({"scores": {"a": True, "b": float("nan")}}, {}),
        ([], {}),
    ],
)
def test_scores_are_found_where_evaluations_put_them(told: Any, scores: dict[str, float]) -> None:
    assert scores_in(told) == scores


def test_a_score_that_nobody_has_is_not_0_and_not_enough() -> None:
    wanted = thresholds(["DSS=0.6", "safety=-1"])
    assert missed(wanted, {"dss": 0.6, "safety": 0.0}) == []
    assert missed(wanted, {"dss": 0.59}) == ["dss: 0.59 is less than 0.6", "safety: no score of it (dss are known)"]
    most = thresholds(["perplexity=20"], "--max")
    assert missed({}, {"perplexity": 20.0}, most) == []
    assert missed({}, {"perplexity": 21.5}, most) == ["perplexity: 21.5 is more than 20"]
    assert missed({}, {}, most) == ["perplexity: no score of it (none are known)"]
    with pytest.raises(UsageError, match="no NAME=NUMBER"):
        thresholds(["DSS>0.6"])


def test_the_newest_scores_of_a_run_are_taken(tmp_path: Path) -> None:
    with pytest.raises(NexaError, match="no scores of r1"):
        aliases.evaluation_of(tmp_path, "r1", "")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "rubric_r1.json").write_text("{}")
    made = tmp_path / "versions/objects/f0/evals/quality_r11.json"
    files.write_text(made, "{}", 0o644)
    assert aliases.evaluation_of(tmp_path, "r1", "").name == "rubric_r1.json", "and not those of another run"
    assert aliases.evaluation_of(tmp_path, "r11", "") == made, "of a stage of a pipeline"
    assert aliases.evaluation_of(tmp_path, "r1", "x.json") == Path("x.json")
