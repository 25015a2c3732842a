"""run.json: a file of version 1 opens; what is written of it, in which order; and what is said of a damaged one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.model import Decision, End
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder
from tests.unit import records

CAPTURED = Path(__file__).parents[2] / "cases" / "run_version_1.json"
"""Of a run on an emulated region: a spot notice, a node made anew, another one lost, and its end."""


def captured() -> dict[str, Any]:
    return dict(json.loads(CAPTURED.read_text()))


def stored(run: RunFolder) -> dict[str, Any]:
    return dict(json.loads(run.json.read_text()))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "train_1")


def test_a_file_of_version_1_opens_and_is_written_as_it_was(run: RunFolder) -> None:
    record = records.put(run, captured())
    assert [end.kind for end in record.ends] == ["notice", "node", "completed"]
    assert [row.next and row.next.action for row in record.attempts] == ["restart", "restart", "done"]
    assert record.run_dir("n0") == "/opt/nexa/scratch/train_20261128_211629_own"
    assert (record.active, record.pending, record.last.replaced) == (False, False, ["n0"])
    since = {"by_hand": 1, "cluster": captured()["cluster"] | {"ends_with": ""}}  # fields that it did not have yet
    assert json.loads(json.dumps(record.to_json())) == captured() | since


def test_what_another_version_wrote_stays(run: RunFolder) -> None:
    data = captured() | {"of_run": {"a": [1]}}
    data["attempts"][1]["of_attempt"] = "b"
    records.put(run, data).decide(Decision("stop", "x"))
    assert (stored(run)["of_run"], stored(run)["attempts"][1]["of_attempt"]) == ({"a": [1]}, "b")


def test_an_attempt_is_started_closed_and_decided_about_each_on_the_disk(run: RunFolder) -> None:
    record = records.put(run, captured() | {"attempts": []})
    record.start(Attempt(1, "starting", 5.0, 2, "x:1", ranks={"n0": (0, 1)}), {"n9": "/s/r"}, "c", "p")
    row = stored(run)["attempts"][0]
    assert (row["state"], row["ranks"], row["resume_step"], "end" in row) == ("starting", {"n0": [0, 1]}, None, False)
    assert (stored(run)["nodes"]["n9"], stored(run)["code_hash"]) == ({"run_dir": "/s/r"}, "c")
    record.started(replaced=["n0"])
    assert run.load() == record and record.active and record.last.replaced == ["n0"]
    record.close(
        "failed", "token=hunter22 is gone", End("node", "token=hunter22 is gone", started_unix=5.0, ended_unix=9.0)
    )
    assert "hunter22" not in run.json.read_text() and run.load().last.end
    assert (record.active, record.pending, record.last.ended_unix) == (False, False, 9.0)
    record.decide(Decision("replace", "n0 made anew", ("n0",)))
    assert run.load().pending and stored(run)["attempts"][0]["next"]["nodes"] == ["n0"]
    record.close(
        "failed", "no room", End("start", "no room", ended_unix=11.0), unwritten=Attempt(2, "failed", 10.0, 2, "")
    )
    assert [end.kind for end in run.load().ends] == ["node", "start"]
    again = record.changed(by_hand=3)
    again.start(Attempt(3, "starting", 12.0, 2, "x:1"), {}, "c", "p")
    assert run.load().ends == [] and [row.attempt for row in run.load().attempts] == [1, 2, 3]


def test_an_attempt_that_was_closed_keeps_the_time_of_its_end(run: RunFolder) -> None:
    record = records.put(run, captured())
    before = record.last.ended_unix
    record.close("stopped", "teardown")
    assert (run.load().last.ended_unix, run.load().last.state) == (before, "stopped")


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no cluster": (lambda d: d.pop("cluster"), "cluster is missing"),
    "attempts": (lambda d: d.update(attempts={}), "attempts: a dict is no list"),
    "a state": (lambda d: d["attempts"][0].update(state=5), "attempts: 0: state: 5 is not a text"),
    "a time": (lambda d: d["attempts"][1].update(started_unix=1e30), "attempts: 1: started_unix: 1e+30 is no number"),
    "an end": (lambda d: d["attempts"][0]["end"].update(kind="tired"), "attempts: 0: end: kind: 'tired' is none of"),
    "an unknown end": (lambda d: d["attempts"][0]["end"].update(x=1), "attempts: 0: end: 'x' is not known here"),
    "ranks": (lambda d: d["attempts"][0].update(ranks={"n0": [0]}), "attempts: 0: ranks: n0: a list is no list of"),
    "a decision": (lambda d: d["attempts"][0]["next"].update(action="pray"), "next: action: 'pray' is none of done"),
    "a node": (lambda d: d["cluster"]["nodes"][0].pop("gpus"), "cluster: nodes: 0: gpus is missing"),
    "by hand": (lambda d: d.update(by_hand=-1), "by_hand: -1 is no whole number"),
    "a file of another program": (lambda d: d.clear(), "cluster is missing"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_damaged_is_named_by_its_place(run: RunFolder, damage: str) -> None:
    data, (harm, words) = captured(), DAMAGED[damage]
    harm(data)
    with pytest.raises(NexaError) as caught:
        records.put(run, data)
    assert f"{run.json} is damaged" in str(caught.value) and words in str(caught.value)
    assert caught.value.hint == f"nexa goes on once {run.path} is moved away"


def test_what_is_no_record_at_all_is_said(run: RunFolder) -> None:
    for text in ("", "[]", "null", '{"attempts": ['):
        run.path.mkdir(parents=True, exist_ok=True)
        run.json.write_text(text)
        with pytest.raises(NexaError, match=r"run\.json"):
            run.load()


def test_a_record_is_read_without_pydantic() -> None:
    code = "import sys; from nexa_dist.ops.runs import summary; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_that_never_began_has_no_attempt_to_speak_of() -> None:
    record = Run(records.CLUSTER, {}, {}, [])
    assert not record.active and not record.pending and not record.going_on and record.ends == []
