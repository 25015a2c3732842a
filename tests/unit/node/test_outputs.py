"""What a run has left on a node, and the way of its files from there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nexa_dist import wire
from nexa_dist.node import outputs
from nexa_dist.node.code import taking, tree, work
from nexa_dist.train import checkpoint
from nexa_dist.train.shards import cover
from tests import shards

NAMED = {
    "*.csv": (["a.csv", ".csv"], ["d/a.csv", "a.csv.gz"]),
    "**/*.csv": (["a.csv", "d/a.csv", "d/e/a.csv"], ["a.csvx"]),
    "figures/**": (["figures/a", "figures/d/e/a"], ["figures2/a", "x/figures/a"]),
    "figures": (["figures", "figures/d/a"], ["figures2", "x/figures"]),
    "figures/": (["figures/d/a"], ["figures.txt"]),
    "a**b": (["ab", "a/x/b"], ["ax"]),
    "?[0-9].p[!yz]": (["x1.pt", "é9.pa"], ["x1.py", "/1.pt", "xx.pt", "x1.p/"]),
    "a.b+(c)": (["a.b+(c)"], ["aXb+(c)", "a.bb(c)"]),
    "x[]": (["x[]"], ["x"]),
    "[z-a][^-]": ([], ["z-", "a-", "bb"]),
    "[]x]": (["[]x]"], ["]", "x"]),
    "[a-]": (["a", "-"], ["b"]),
    "[a": (["[a"], ["a"]),
}


@pytest.mark.parametrize("pattern", NAMED)
def test_a_pattern_means_these_names(pattern: str) -> None:
    taken, left = NAMED[pattern]
    match = outputs.matcher(["nothing", pattern]).fullmatch
    assert [name for name in (*taken, *left) if match(name)] == taken


def test_no_pattern_means_nothing() -> None:
    assert not outputs.matcher([]).fullmatch("")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, with two files of code and what its scripts wrote."""
    code = tmp_path / "code" / "x"
    (code / "pkg").mkdir(parents=True)
    (code / "t.py").write_text("1")
    (code / "pkg" / "data.txt").write_text("as put")
    named = code.rename(code.with_name(tree.digest(tree.read(str(code)))))
    folder = tmp_path / "run"
    (folder / "work").mkdir(parents=True)
    work.lay_out(str(named), str(folder / "work"), str(folder), 1)
    for name in (
        "work/a.csv", "work/out/model.pt", "work/tb/events.out.tfevents.1", "work/wandb/offline-run-1/x/run.wandb",
        "wandb/run-2/run.wandb", "rank_0/attempt_1.log", "rank_0/events.out.tfevents.2", "aside/attempt_2/old.txt",
        "work/pkg/__pycache__/t.pyc", "work/two\nlines", "checkpoints/step_00000002/x", "agent.jsonl",
        "work/wandb/notes.txt",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    os.symlink("a.csv", folder / "work" / "link.csv")
    os.mkfifo(folder / "work" / "pipe.csv")
    return folder


def left(run: Path, *named: str, **more: Any) -> dict[str, Any]:
    asked = {"dir": str(run), "durable": str(run / "durable"), "outputs": list(named), "skip": 0, **more}
    answer = json.dumps(outputs.wrote({"runs": [asked], "look_s": 60})).encode()
    return dict(wire.answer("n0", "wrote", answer, failed=False)["runs"][0])


def names(found: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["kind"] for row in found["files"]}


def test_what_is_not_code_was_written_by_the_run(run: Path) -> None:
    assert names(left(run, "*.csv")) == {
        "a.csv": "outputs",
        "tb/events.out.tfevents.1": "tracking",
        "wandb/offline-run-1/x/run.wandb": "tracking",
        "wandb/run-2/run.wandb": "tracking",
        "rank_0/events.out.tfevents.2": "tracking",
        "out/model.pt": "other",
        "wandb/notes.txt": "other",
        "aside/attempt_2/old.txt": "other",
    }
    rows = {row["name"]: row for row in left(run)["files"]}
    assert rows["a.csv"] == {
        "name": "a.csv", "path": "work/a.csv", "bytes": 10, "kind": "other",
        "mtime_ns": (run / "work" / "a.csv").stat().st_mtime_ns,
    }  # fmt: skip


def test_what_its_setup_made_is_no_work_of_the_run(run: Path) -> None:
    made = {name: taking.mark(str(run / "work" / name)) for name in ("a.csv", "out/model.pt")}
    (run / "setup.json").write_text(json.dumps({"key": "k", "files": made}))
    (run / "work" / "out" / "model.pt").write_text("trained")
    found = names(left(run))
    assert "a.csv" not in found and found["out/model.pt"] == "other"
    assert names(left(run, "a.csv"))["a.csv"] == "outputs", "unless it is asked for"


def test_code_that_the_run_rewrote_is_its_own(run: Path) -> None:
    file, laid = run / "work" / "pkg" / "data.txt", (run / "code.json").stat().st_mtime_ns
    os.utime(file, ns=(laid + 10**9, laid + 10**9))
    assert "pkg/data.txt" not in names(left(run)), "touched, and the same"
    file.write_text("rewritten")
    os.utime(file, ns=(laid + 10**9, laid + 10**9))
    assert names(left(run, "pkg"))["pkg/data.txt"] == "outputs"
    code = next((run.parent / "code").iterdir())
    work.lay_out(str(code), str(run / "work"), str(run), 2)
    assert names(left(run, "pkg"))["pkg/data.txt"] == "outputs", "also in the next attempt"


def test_many_files_come_in_parts_and_too_many_are_cut_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = left(run)
    monkeypatch.setattr(outputs, "ROWS_BYTES", 400)
    rows: list[Any] = []
    for _ in whole["files"]:
        part = left(run, skip=len(rows))
        rows += part["files"]
        if not part["more"]:
            break
    assert rows == whole["files"] and 0 < len(part["files"]) < len(rows)
    monkeypatch.setattr(outputs, "MOST_SEEN", 2)
    assert left(run)["cut"] and not whole["cut"]
    assert left(run / "nowhere") == {"there": False, "files": [], "more": False, "cut": False, "checkpoints": []}


def test_of_a_sharded_checkpoint_it_is_told_which_files_are_here(run: Path) -> None:
    made = shards.write(run / "checkpoints", shards.NAMES[1:3], 4)
    (row,) = left(run)["checkpoints"]
    part = cover.part_of(checkpoint.manifest(made))
    assert part is not None and row["shards"] == part.row() and row["bytes"] == 8
    assert (row["shards"]["has"], row["shards"]["of"], row["shards"]["bytes"]) == ([1, 2], 4, 16)


def test_checkpoints_are_those_with_a_manifest_and_all_files(run: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "w").write_text("weights")

    made = [checkpoint.write(run / "checkpoints", step, fill, {}) for step in (4, 6)]
    kept = checkpoint.write(run / "durable", 6, fill, {})
    (made[0] / "sub" / "w").write_text("cut")
    row = {"step": 6, "sha256": checkpoint.digest(made[1]), "bytes": 7}
    assert left(run)["checkpoints"] == [
        {**row, "path": str(made[1]), "durable": False},
        {**row, "path": str(kept), "durable": True},
    ]


def sent(folder: Path, *asked: dict[str, Any]) -> list[Any]:
    """Headers, those with data as (at, off, data)."""
    reading, writing = os.pipe()
    os.write(writing, json.dumps({"files": [{"off": 0, **one} for one in asked]}).encode() + b"\n")
    out = io.BytesIO()
    outputs.send(str(folder), reading, out)
    os.close(reading)
    os.close(writing)
    out.seek(0)
    found: list[Any] = []
    while line := out.readline():
        header = wire.sent(line)
        found.append((header["at"], header["off"], out.read(header["len"])) if "len" in header else header)
    return found


def test_files_are_sent_from_where_the_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "CHUNK_BYTES", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    os.symlink("a", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    whole = hashlib.sha256(b"0123456789").hexdigest()
    end = {"bytes": 10, "sha256": whole}
    assert sent(tmp_path, {"name": "a", "off": 5}, {"name": "a", "off": 11}) == [
        (0, 5, b"5678"), (0, 9, b"9"), {"at": 0, **end},
        (1, 0, b"0123"), (1, 4, b"4567"), (1, 8, b"89"), {"at": 1, **end}, {"through": True},
    ]  # fmt: skip
    said = sent(tmp_path, {"name": "a", "unless": whole}, {"name": "empty", "unless": whole},
                *({"name": name} for name in ("link", "pipe", "gone", ".")))  # fmt: skip
    assert said[0] == {"at": 0, "same": True}
    assert said[1] == {"at": 1, "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    assert [row["at"] for row in said[2:-1] if row["error"]] == [2, 3, 4, 5]
