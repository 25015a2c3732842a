"""nexa pipeline, data and lineage as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.late import needs

needs("polars", "datasketch")

from nexa_dist.cli import main  # noqa: E402
from nexa_dist.stages import entry  # noqa: E402
from nexa_dist.stages.registry import Registry  # noqa: E402


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two versions of one dataset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(entry, "_stop_wish", lambda: lambda: False)
    for number, words in enumerate(("one two three", "one two three four five six"), 1):
        rows = [{"text": f"{words} {n}", "n": n * number} for n in range(40)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "toy.yaml").write_text(f"stage: data\ninputs: {{rows: rows.jsonl}}\nseed: {number}\n")
        assert entry.main("data", ["--config", "toy.yaml", "--output", "out"]) == 0
        Registry(tmp_path).add(tmp_path / "out")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(words) == code
    out, err = capsys.readouterr()
    return out, err


def test_versions_are_listed_shown_and_compared(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["version"] for row in json.loads(said(capsys, "data", "list", "toy", "--json")[0])] == ["v1", "v2"]
    out = said(capsys, "data", "show", "toy@v1")[0]
    assert "from rows: rows.jsonl (" in out
    assert "counts.rows: 40" in out
    told = json.loads(said(capsys, "data", "diff", "toy@v1", "toy@v2", "--json")[0])
    assert told["config"] == {"seed": [1, 2]}
    assert (told["drift"]["n"]["of"], told["drift"]["text"]["ks"]) == ("numbers", 1.0)
    said(capsys, "data", "diff", "toy@v1", "toy@v2", "--picture", "d.svg")
    assert "PSI" in (lab / "d.svg").read_text()


def test_a_flipped_byte_is_found_and_named(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "every byte is as it was registered" in said(capsys, "data", "verify")[1]
    registry = Registry(lab)
    file = registry.path(registry.find("toy@v1")) / "report.json"
    file.write_bytes(b" " + file.read_bytes()[1:])
    told = said(capsys, "data", "verify", code=1)[1]
    assert "toy@v1: report.json has other bytes than were registered" in told
    assert f"hint: rm -r {file.parent}, then nexa pipeline run FILE makes it again" in told
    assert "✗ report.json has other bytes" in said(capsys, "lineage", "toy@v1", code=1)[0]
    said(capsys, "data", "verify", "toy@v2")
    said(capsys, "lineage", "toy@v2", "--picture", "l.svg")
    assert (lab / "l.svg").read_text().startswith("<svg")


def test_what_is_wrong_is_one_sentence(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no version 'toys' is in" in said(capsys, "data", "show", "toys", code=2)[1]
    assert "toy@v1, toy@v2" in said(capsys, "data", "show", "toy@v7", code=2)[1]
    assert "takes 2 versions" in said(capsys, "data", "diff", "toy", code=2)[1]
    assert "neither a version nor a run" in said(capsys, "lineage", "nothing", code=2)[1]
    (lab / "p.yaml").write_text("pipeline: p\nstages:\n  a: {config: toy.yaml, input: {}}\n")
    err = said(capsys, "pipeline", "run", "p.yaml", code=2)[1]
    assert "p.yaml:3: stages.a.input: unknown key (hint: did you mean inputs?)" in err
    assert said(capsys, "config", "p.yaml", code=2)[1] == err
    (lab / "p.yaml").write_text("pipeline: p\nstages:\n  a: {config: toy.yaml, inputs: {rows: data:toy@v1/train}}\n")
    assert json.loads(said(capsys, "config", "p.yaml", "--json")[0])["stages"]["a"]["inputs"] == {
        "rows": "data:toy@v1/train"
    }
    assert "p.yaml is a pipeline" in said(capsys, "config", "p.yaml", "--plan", "v1", code=2)[1]
    assert said(capsys, "config", "toy.yaml")[0].startswith("stage: data")
