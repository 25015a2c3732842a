"""A pipeline of data stages: what is done is not done again, kills at any point converge, the lineage is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.late import needs

needs("polars", "datasketch")

from nexa_dist.config.pipeline import PipelineConfig  # noqa: E402
from nexa_dist.errors import ConfigError, NexaError  # noqa: E402
from nexa_dist.ops.context import Context  # noqa: E402
from nexa_dist.ops.pipeline import chain  # noqa: E402
from nexa_dist.ops.pipeline.chain import Step  # noqa: E402
from nexa_dist.ops.pipeline.lineage import lineage  # noqa: E402
from nexa_dist.run.fake import FakeRunner  # noqa: E402
from nexa_dist.run.workspace import Workspace  # noqa: E402
from nexa_dist.stages import entry  # noqa: E402
from nexa_dist.stages.contract import EXIT_STOPPED  # noqa: E402
from nexa_dist.stages.data import steps  # noqa: E402
from nexa_dist.stages.output import Output, Told  # noqa: E402
from nexa_dist.stages.query import DataQuery  # noqa: E402
from nexa_dist.stages.registry import Registry  # noqa: E402
from nexa_dist.stages.whole import hashes, tree_sha256  # noqa: E402
from nexa_dist.ui.lineage import svg  # noqa: E402

FILES = {
    "clean.yaml": "stage: data\ninputs: {rows: rows.jsonl}\nlength: {min_words: 3}\n",
    "part.yaml": "stage: data\nsplit: {parts: {train: 0.5, test: 0.5}}\nrows_per_file: 10\n",
    "few.yaml": "stage: data\nsample: {policy: random, rows: 20}\n",
    "p.yaml": "pipeline: toy\nstages:\n"
    "  few: {config: few.yaml, inputs: {rows: stage:parts/test}}\n"
    "  parts: {config: part.yaml, inputs: {rows: stage:clean/train}}\n"
    "  clean: {config: clean.yaml}\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    chance = random.Random(3)
    rows = (
        {"text": " ".join(chance.choices(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], k=12))}
        for _ in range(200)
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    return tmp_path


class Here:
    """The stages of a chain within this process, each stopped after so many looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.looks = 10**9
        small = steps.batches
        monkeypatch.setattr(steps, "batches", lambda path, name, columns: small(path, name, columns, 25))
        monkeypatch.setattr(entry, "_stop_wish", lambda: self.stop)
        monkeypatch.setattr(chain, "_here", self.run)

    def stop(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def run(self, _: Path, step: Step, folder: Path) -> int:
        self.done.append(step.name)
        return entry.main(step.stage, chain.argv_of(step, folder)[3:])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, place: Path) -> Here:
    return Here(monkeypatch)


def nobody(_: Step, __: Path) -> int:
    raise AssertionError("no stage is on a cluster")


def ran(place: Path) -> tuple[int, list[str]]:
    ctx = Context(Workspace(place), FakeRunner(), lambda _: None)
    code, found = chain.run(ctx, chain.load(Path("p.yaml")), nobody)
    return code, [step.version.label if step.version else step.state for step in found]


def contents(place: Path) -> dict[str, str]:
    return {one.label: one.sha256 for one in Registry(place).versions()}


def test_what_is_done_is_done_once_and_a_change_redoes_what_follows_from_it(place: Path, here: Here) -> None:
    config = chain.load(Path("p.yaml"))
    assert [(step.name, step.state) for step in chain.look(place, config)] == [
        ("clean", "to do"), ("parts", "waits"), ("few", "waits"),
    ]  # fmt: skip
    assert ran(place) == (0, ["clean@v1", "parts@v1", "few@v1"])
    assert ran(place)[0] == 0
    assert here.done == ["clean", "parts", "few"]
    (place / "part.yaml").write_text(FILES["part.yaml"].replace("10", "15"))
    assert ran(place) == (0, ["clean@v1", "parts@v2", "few@v1"])  # done again, from other files to the same rows
    (place / "few.yaml").write_text(FILES["few.yaml"] + "launch: {max_hours: 1.0}\n")
    assert ran(place) == (0, ["clean@v1", "parts@v2", "few@v1"])
    assert here.done[3:] == ["parts", "few"], "where it runs changes no byte"
    assert len(DataQuery().get_dataset("few", "v1")) == 20
    assert len(DataQuery(place).get_dataset("parts", part="test")) > 20


def test_stopped_at_every_look_it_comes_to_the_same_bytes(place: Path, here: Here) -> None:
    assert ran(place)[0] == 0
    want = contents(place)
    (place / "versions").rename(place / "before")
    stops = 0
    for looks in range(0, 60, 3):
        here.looks = looks
        code, _ = ran(place)
        if code == 0:
            break
        assert code == EXIT_STOPPED
        stops += 1
    assert contents(place) == want
    assert stops >= 4


def test_killed_between_a_stage_and_its_line_nothing_is_done_twice(
    place: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Registry.add

    def killed(self: Registry, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        ran(place)
    monkeypatch.setattr(Registry, "add", add)
    assert ran(place)[0] == 0
    assert here.done == ["clean", "parts", "few"]


def test_the_lineage_goes_down_to_the_rows_and_names_what_was_changed(place: Path, here: Here) -> None:
    assert ran(place)[0] == 0
    tree = lineage(Workspace(place), "few")
    assert [one.label for one in tree.all()] == ["few@v1", "parts@v1", "clean@v1", "rows.jsonl"]
    assert [fault for one in tree.all() for fault in one.faults] == []
    assert list(tree.lines())[1].startswith("└─ rows: parts@v1 (data: sha256 ")
    file = next(Registry(place).path(Registry(place).find("clean")).glob("train/*.parquet"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    (place / "rows.jsonl").write_text("{}\n")
    faults = {one.label: one.faults for one in lineage(Workspace(place), "few@v1").all() if one.faults}
    assert faults == {
        "clean@v1": ("train/00000.parquet has other bytes than were registered",),
        "rows.jsonl": ("has other bytes now than were read",),
    }
    picture = svg(lineage(Workspace(place), "few").to_json())
    assert picture.count("<rect") == 4 and "clean@v1" in picture


def test_a_damaged_input_is_not_read_and_a_spent_budget_begins_nothing(
    place: Path, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(place)[0] == 0
    file = next(Registry(place).path(Registry(place).find("clean")).glob("train/*.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (place / "part.yaml").write_text(FILES["part.yaml"].replace("10", "15"))
    assert ran(place)[0] == 1
    assert "clean@v1 is damaged: train/00000.parquet has other bytes" in capsys.readouterr().err
    (place / "p.yaml").write_text(FILES["p.yaml"] + "budget_usd: 0.0\n")
    assert ran(place) == (3, ["clean@v1", "to do", "waits"])


def test_a_part_of_a_version_has_the_hash_that_its_reader_finds(place: Path) -> None:
    told, folder = Told("train", "student", {}, {}, {}, 1), place / "made"
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("manifest.json", "model.bin", "more/x.bin"):
        (folder / "checkpoint" / name).parent.mkdir(exist_ok=True)
        (folder / "checkpoint" / name).write_text(name)
    output = Output(folder, told.key({}))
    output.begin()
    output.seal(told, {})
    registry = Registry(place)
    made = registry.path(registry.add(folder))
    for within in ("checkpoint", "checkpoint/more", "checkpoint/model.bin"):
        found = chain._sha256(registry, place, f"data:student@v1/{within}", "inputs.model")
        assert found == tree_sha256(hashes(made / within)), within
    with pytest.raises(NexaError, match="student@v1 has no nothing"):
        chain._sha256(registry, place, "data:student/nothing", "inputs.model")


def test_faults_of_all_files_come_at_once_and_a_circle_is_refused(place: Path) -> None:
    (place / "clean.yaml").write_text("stage: data\nlenght: {}\n")
    (place / "few.yaml").write_text("stage: daat\n")
    with pytest.raises(ConfigError) as caught:
        chain.look(place, chain.load(Path("p.yaml")))
    said = str(caught.value)
    assert "clean.yaml:2: lenght: unknown key (hint: did you mean length?)" in said
    assert "few.yaml:1: stage: there is no stage 'daat' (hint: did you mean data?)" in said
    (place / "p.yaml").write_text("pipeline: x\nstages:\n  a: {config: a.yaml, inputs: {rows: stage:b}}\n")
    with pytest.raises(ConfigError, match=r"p.yaml:2: stages?.*there is no stage 'b'|there is no stage 'b'"):
        chain.load(Path("p.yaml"))
    a, b = ({"config": "x.yaml", "inputs": {"rows": f"stage:{of}"}} for of in "ba")
    with pytest.raises(ValueError, match="a, b wait for one another"):
        PipelineConfig.model_validate({"pipeline": "x", "stages": {"a": a, "b": b}})


def test_an_input_that_is_not_there_is_named(place: Path) -> None:
    (place / "rows.jsonl").unlink()
    with pytest.raises(NexaError, match=r"clean.inputs.rows: rows.jsonl is not there"):
        chain.look(place, chain.load(Path("p.yaml")))


@pytest.mark.long("twenty kills of real processes; the short tier stops the same stages at every look")
def test_killed_at_random_moments_the_bytes_are_the_same(place: Path) -> None:
    def nexa() -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "nexa_dist", "pipeline", "run", "p.yaml"]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "XDG_STATE_HOME": str(place / "state")}
        return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert nexa().wait(300) == 0
    whole_s = time.monotonic() - began
    want = contents(place)
    (place / "versions").rename(place / "before")
    chance, kills = random.Random(11), 0
    while kills < 20:
        child = nexa()
        try:
            assert child.wait(chance.uniform(0.02, 1.0) * whole_s) == 0
        except subprocess.TimeoutExpired:
            child.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            child.wait(120)
            kills += 1
        else:
            assert contents(place) == want
            (place / "versions").rename(place / f"round-{time.monotonic_ns()}")
    assert nexa().wait(300) == 0
    assert contents(place) == want
    assert list((place / "versions/work").iterdir()) == []
