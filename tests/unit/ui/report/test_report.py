"""nexa report: one page, all of it data of strangers, without a script and without the network."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import nexa_dist.ui.report
from nexa_dist.cli import main
from tests import small_workspace
from tests.small_workspace import BEGAN, CLUSTER, RUN

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(small_workspace.make(tmp_path))
    return tmp_path


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def record(root: Path, **changes: Any) -> None:
    """run.json with other fields; those of `last` are of its newest attempt."""
    path = root / "runs" / RUN / "run.json"
    data = json.loads(path.read_text())
    data["attempts"][-1] |= changes.pop("last", {})
    path.write_text(json.dumps(data | changes))


def page(capsys: pytest.CaptureFixture[str], *words: str) -> Page:
    assert main(["report", *words]) == 0, capsys.readouterr().err
    return Page(Path(words[words.index("-o") + 1] if "-o" in words else f"{RUN}.html").read_text())


def test_a_failed_run_with_all_that_is_known_of_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = workspace / "runs" / RUN / "logs" / "n0"
    with (logs / "agent.jsonl").open("a") as file:
        for event in (
            {"event": "notice", "at": BEGAN + 81, "at_unix": BEGAN + 200},
            {"event": "progress", "at": BEGAN + 82, "steps": {"0": 9}, "loss": 1.25, "held_out": 2.5},
            {"event": "started", "attempt": 2, "at": BEGAN + 100},
            {"event": "progress", "at": BEGAN + 110, "steps": {"0": 8}, "of": 40, "loss": 1.3, "learning_rate": 0.125},
        ):
            file.write(json.dumps(event) + "\n")
    first = json.loads((workspace / "runs" / RUN / "run.json").read_text())["attempts"][0]
    second = {**first, "attempt": 2, "resume_step": 7, "started_unix": BEGAN + 99, "ended_unix": BEGAN + 120}
    record(workspace, attempts=[{**first, "next": {"action": "restart"}}, second])
    matrix = [[None, 12.5], [3.5, None]]
    diagnosis = {"at_unix": BEGAN + 10, "nodes": {"n0": "a", "n1": "b"}, "findings": [], "test": {"matrix": matrix}}
    (workspace / ".nexa" / "clusters" / CLUSTER / "diag.json").write_text(json.dumps(diagnosis))
    made = page(capsys, RUN, "-o", "out.html")
    assert [attrs["aria-label"] for tag, attrs in made.elements if tag == "svg"] == [
        "loss over steps", "learning rate over steps", "time line", "time line",
    ]  # fmt: skip
    for words in ("failed", "8 of 40", "attempt 2", "7–8", "spot notice for n0", "step 7", "12.5", "script: train.py"):
        assert words in made.text, words
    assert "paler: done again" in made.text and "saves most" in made.text
    capsys.readouterr()
    assert main(["report", RUN, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["points"]["loss"] for row in told["attempts"]] == [[[7, 1.5], [9, 1.25]], [[8, 1.3]]]
    assert [row["source"] for row in told["attempts"]] == ["reported", "reported"]
    assert told["bandwidth"]["gbps"] == matrix and told["cost"]["usd"] > 0
    assert {piece["phase"] for piece in told["timeline"]["phases"]} == {"idle", "lost", "recovering"}
    assert not Path(f"{RUN}.html").exists()


def test_nothing_of_a_stranger_runs_and_nothing_is_fetched(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = {"name": EVIL, "args": [EVIL, "{{ 7 * 7 }}", "--token", "sk-" + "a" * 40], "script": f'"><img src=x>{EVIL}'}
    record(workspace, config=evil, git_commit=EVIL, environment={"freeze": [f"{EVIL}==1"]}, last={"why": EVIL})
    folder = workspace / ".nexa" / "clusters" / CLUSTER
    for name, line in {
        "journal.jsonl": {"at": BEGAN + 9, "step": f"x{EVIL}", "state": "intent", "run": EVIL},
        "ledger.jsonl": {"at": BEGAN + 9, "event": "node_start", "node": f"$a_b${EVIL}", "id": EVIL, "offer": EVIL,
                         "usd_per_hour": 1.0},
    }.items():  # fmt: skip
        with (folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
    (folder / "diag.json").write_text(
        json.dumps({"at_unix": BEGAN, "nodes": {EVIL: "", "b": ""}, "test": {"matrix": [[None, 1.0], [1.0, None]]}})
    )
    manifests = workspace / "runs" / "manifests"
    manifests.mkdir()
    (manifests / f"{RUN}.json").write_text(json.dumps({"model": EVIL, "eval_report": {"eval_loss_nats": EVIL}}))
    log = workspace / "runs" / RUN / "logs" / "n0" / "rank_0" / "attempt_1.log"
    log.write_text(f"step 1 loss 2.0 {EVIL}\n")
    made = page(capsys, RUN)
    assert made.text.count(EVIL) >= 8
    assert "sk-aaa" not in made.text and "{{ 7 * 7 }}" in made.text
    assert {tag for tag, _ in made.elements} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "a",
        "base",
        "form",
    } == set()
    named = [(name, value) for _, attrs in made.elements for name, value in attrs.items()]
    assert not [name for name, _ in named if name.startswith("on") or name in ("src", "href", "action")]
    assert {value for name, value in named if name == "xlink:href"} <= {
        f"#{attrs['id']}" for _, attrs in made.elements if attrs.get("id")
    }
    raw = Path(f"{RUN}.html").read_text()
    assert set(re.findall(r"(?:https?:|ftp:)?//[\w.]+", raw)) <= {"http://www.w3.org"}  # namespaces of SVG
    assert not re.search(r"@import|url\((?!#)", raw)
    [policy] = [attrs["content"] for _, attrs in made.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_script_that_reported_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workspace / "runs" / RUN
    log = run / "logs" / "n0" / "rank_0" / "attempt_1.log"
    (run / "logs" / "n0" / "agent.jsonl").write_text(json.dumps({"event": "started", "attempt": 1, "at": BEGAN}) + "\n")
    log.write_text("hello\n")
    made = page(capsys)
    assert "no step is reported" in made.text and "loss over steps" not in str(made.elements)
    log.write_text("iter 10: loss 2.5, time 80ms\niter 20: loss 2.25\nstep 20: val loss 2.75\n")
    made = page(capsys)
    assert "read from the lines" in made.text and "loss over steps" in str(made.elements)
    assert "2.75" in made.text


@pytest.mark.parametrize("state", ["running", "not started", "damaged"])
def test_it_works_whatever_there_is(workspace: Path, capsys: pytest.CaptureFixture[str], state: str) -> None:
    if state == "running":
        record(workspace, last={"state": "running", "ended_unix": None, "end": None, "next": None})
    elif state == "not started":
        record(workspace, attempts=[])
    else:
        folder, run = workspace / ".nexa" / "clusters" / CLUSTER, workspace / "runs" / RUN
        for path in (
            folder / "journal.jsonl",
            folder / "ledger.jsonl",
            folder / "diag.json",
            run / "logs" / "n0" / "agent.jsonl",
        ):
            path.write_bytes(b'{"event": "progress", "at": 1e400, "steps": {"0": -1}}\n[]\n\xff\x00{"at')
        (run.parent / "manifests").mkdir()
        (run.parent / "manifests" / f"{RUN}.json").write_text('{"eval_report": []}')
    made = page(capsys)
    assert {"running": "running", "not started": "It has not begun", "damaged": "ValueError"}[state] in made.text or (
        state == "damaged" and "exit code 1" in made.text
    )


def test_without_the_library_it_says_what_installs_it(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"nexa_dist.ui.report.{name}", raising=False)
        monkeypatch.delattr(nexa_dist.ui.report, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", RUN]) == 1
    said = capsys.readouterr().err
    assert "matplotlib" in said and "pip install --python" in said and "--json does without" in said
    assert main(["report", RUN, "--json"]) == 0
