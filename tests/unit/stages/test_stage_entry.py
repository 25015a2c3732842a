"""A stage by hand: resolved, gone on with, sealed, found again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.load import resolved
from nexa_dist.errors import ConfigError, NexaError, UsageError
from nexa_dist.stages import contract, entry, table
from nexa_dist.stages.contract import StageConfig, StageEnv
from nexa_dist.stages.launch import load_as_training, registered
from nexa_dist.stages.load import load_stage
from nexa_dist.stages.references import model_in
from nexa_dist.stages.registry import Registry
from nexa_dist.stages.whole import hashes


class Upper(StageConfig):
    """A stage for these tests: a file a row."""

    stop_at: int = -1


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with one stage file, whose stage writes each line of its input in capitals."""
    asked: list[int] = []

    def run(config: Any, env: StageEnv) -> int:
        rows = env.inputs["rows"].read_text().splitlines()
        for at, row in enumerate(rows):
            out = env.output / f"row-{at}"
            if out.exists():
                continue
            if at == config.stop_at:
                return contract.EXIT_STOPPED
            asked.append(at)
            (env.output / ".part").write_text("torn")
            out.write_text(row.upper())
            env.report(at + 1, len(rows))
        env.note(counts={"rows": len(rows)}, usd=0.5)
        return 0

    def prepare(config: Any, env: StageEnv) -> None:
        if env.inputs["rows"].read_text() == "":
            raise NexaError("no rows", hint="give some")

    module = types.ModuleType("toy_stage")
    module.__dict__.update(Upper=Upper, run=run, prepare=prepare, asked=asked)
    monkeypatch.setitem(sys.modules, "toy_stage", module)
    monkeypatch.setitem(table.STAGES, "data", contract.Stage("toy_stage:Upper", "toy_stage"))
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("a\nb\nc\n")
    (tmp_path / "up.yaml").write_text("stage: data\nname: upper\ninputs: {rows: rows.txt}\n")
    return tmp_path


def asked() -> list[int]:
    found: list[int] = sys.modules["toy_stage"].asked
    return found


def by_hand(*more: str, out: str = "out") -> int:
    return entry.main("data", ["--config", "up.yaml", "--output", out, *more])


def test_stopped_it_goes_on_and_its_manifest_names_every_byte(toy: Path) -> None:
    assert by_hand("--set", "stop_at=-1") == 0
    assert asked() == [0, 1, 2]
    told = json.loads((toy / "out/manifest.json").read_text())
    assert set(told["outputs"]["files"]) == {"row-0", "row-1", "row-2"}
    assert (told["counts"], told["usd"], told["inputs"]["rows"]["reference"]) == ({"rows": 3}, 0.5, "rows.txt")
    assert [path.name for path in (toy / "out").iterdir() if path.name.startswith(".")] == []
    assert by_hand() == 0
    assert asked() == [0, 1, 2], "what is done is not done again"
    assert by_hand("--set", "stop_at=1", out="half") == contract.EXIT_STOPPED
    assert not (toy / "half/manifest.json").exists()
    assert asked()[3:] == [0]
    with pytest.raises(UsageError, match="half-done output of another config"):
        entry.Output(toy / "half", "other").is_done()


def test_another_config_does_not_go_on_with_what_is_there(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert by_hand() == 0
    assert by_hand("--set", "seed=3") == 2
    assert "holds the output of another config or other inputs" in capsys.readouterr().err
    (toy / "rows.txt").write_text("a\nb\nd\n")
    assert by_hand() == 2


def test_what_is_wrong_is_said_without_a_traceback(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "rows.txt").write_text("")
    assert by_hand() == 2
    assert capsys.readouterr().err == "error: no rows\nhint: give some\n"
    assert by_hand("--input", "rows=gone.txt") == 2
    assert "inputs.rows: gone.txt is not there" in capsys.readouterr().err
    (toy / "up.yaml").write_text("stage: dataa\n")
    assert by_hand() == 2
    assert "up.yaml:1: stage: there is no stage 'dataa' (hint: did you mean data?)" in capsys.readouterr().err
    (toy / "up.yaml").write_text("stage: data\nstop_att: 3\n")
    assert by_hand() == 2
    assert "up.yaml:2: stop_att: unknown key (hint: did you mean stop_at?)" in capsys.readouterr().err


def test_only_rank_zero_works(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert by_hand() == 0
    assert asked() == []
    assert not (toy / "out").exists()


def test_a_stage_becomes_a_run_with_its_inputs_as_data(toy: Path) -> None:
    (toy / "up.yaml").write_text(
        "stage: data\ninputs: {rows: rows.txt}\nlaunch: {budget_usd: 2.0, secrets: [API_KEY], nproc_per_node: 2}\n"
    )
    made = load_as_training(Path("up.yaml"), ["seed=4"])
    assert (made.stage, made.name, made.module, made.nproc_per_node) == ("data", "up", "nexa_dist.stages.data", 2)
    assert made.args == (
        "--config",
        "up.yaml",
        "--output",
        "stage_output",
        "--set",
        "inputs.rows=rows.txt",
        "--set",
        "seed=4",
    )
    assert dict(made.data) == {"rows": str(toy / "rows.txt")}
    assert (made.outputs, made.budget_usd, made.secrets) == (("stage_output",), 2.0, ("API_KEY",))
    assert resolved(load_stage(Path("up.yaml")))["launch"]["secrets"] == ["API_KEY"], "which is a name"
    with pytest.raises(ConfigError, match=r"launch\.secrets: item 0 is no name") as caught:
        load_stage(Path("up.yaml"), ["launch.secrets=[hunter2-value]"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"launch\.nproc_per_nod: unknown key"):
        load_as_training(Path("up.yaml"), ["launch.nproc_per_nod=4"])


def test_versions_follow_content_and_a_flipped_byte_is_named(toy: Path) -> None:
    registry = Registry(toy)
    for seed, version in ((0, 1), (0, 1), (1, 1)):  # the seed changes no byte here
        assert by_hand("--set", f"seed={seed}") == 0
        assert registry.add(toy / "out").version == version
    (toy / "rows.txt").write_text("z\n")
    assert by_hand() == 0
    second = registry.add(toy / "out")
    assert second.label == "upper@v2"
    assert [one.version for one in registry.versions("upper")] == [1, 1, 2]
    assert registry.find("upper@v1").sha256 != registry.find("upper").sha256 == second.sha256
    assert registry.by_key("upper", second.key) == second
    assert registry.verified("upper@v2") == registry.path(second)
    file = registry.path(second) / "row-0"
    file.write_bytes(b"Y")
    assert list(registry.faults(second)) == ["row-0 has other bytes than were registered"]
    with pytest.raises(NexaError, match="upper@v2 is damaged: row-0 has other bytes") as refused:
        registry.verified("upper")
    assert (refused.value.hint or "").startswith(f"rm -r {registry.path(second)}, then nexa pipeline run")
    assert by_hand("--set", "seed=2") == 0
    assert registry.add(toy / "out").sha256 == second.sha256 and not (toy / "out").exists()
    assert registry.verified("upper@v2") == registry.path(second), "the same bytes, made again, take the place"
    shutil.rmtree(registry.path(second))
    assert registry.by_key("upper", second.key) is None, "so it is made again"
    assert by_hand("--input", "data:upper@v9") == 2


def test_what_a_run_brought_becomes_a_version_with_what_its_nodes_cost(toy: Path) -> None:
    outputs = toy / "runs" / "data_1_upper" / "outputs"
    assert registered(toy, outputs, 0.25) is None
    assert by_hand(out=str(outputs / "stage_output")) == 0
    version = registered(toy, outputs, 0.25)
    assert version is not None
    assert (version.label, version.provenance["usd"], list(Registry(toy).faults(version))) == ("upper@v1", 0.75, [])
    assert registered(toy, outputs, 0.25) == version
    assert len(Registry(toy).versions()) == 1
    manifest = outputs / "stage_output" / "manifest.json"
    told = json.loads(manifest.read_text())
    (outputs / "evil").write_text("of the node's")
    row = {"bytes": 13, "sha256": "0" * 64}
    for bad in (
        {"key": "../../" + told["key"]},
        {"outputs": {**told["outputs"], "files": {**told["outputs"]["files"], "../evil": row}}},
        {"outputs": 3},
        {"usd": "much"},
        {"counts": ["x"]},
    ):  # no node names a place of this machine, and no odd word of its is a traceback
        manifest.write_text(json.dumps({**told, **bad}))
        with pytest.raises(NexaError, match="is damaged"):
            registered(toy, outputs, 0.25)
    manifest.write_text(
        json.dumps({**told, "outputs": {**told["outputs"], "files": {**told["outputs"]["files"], "evil": row}}})
    )
    with pytest.raises(NexaError, match="has other bytes than its manifest says"):
        registered(toy, outputs, 0.25)
    manifest.write_text(json.dumps(told))
    (outputs / "stage_output" / "row-0").write_text("X")
    with pytest.raises(NexaError, match="has other bytes than its manifest says"):
        registered(toy, outputs, 0.25)


def test_a_folder_is_hashed_in_bounded_time_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x").write_text("x")
    (tmp_path / "in" / "again").symlink_to("a")
    assert list(hashes(tmp_path / "in")) == ["a/x", "again/x"], "a link to another folder is followed"
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    with pytest.raises(NexaError, match="loop leads to a folder that it lies in"):
        hashes(tmp_path / "in")
    (tmp_path / "in" / "a" / "loop").unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("nowhere")):
        make(tmp_path / "in" / "odd")
        with pytest.raises(NexaError, match="odd is no plain file"):
            hashes(tmp_path / "in")
        (tmp_path / "in" / "odd").unlink()


def test_a_model_is_found_in_a_checkpoint_of_shards_and_in_a_trainings_output(tmp_path: Path) -> None:
    for name in ("plain", "shards/model", "trained/checkpoint", "both/checkpoint/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        assert model_in(tmp_path / name.split("/")[0], "inputs.model") == tmp_path / name
    (tmp_path / "adapter/checkpoint").mkdir(parents=True)
    (tmp_path / "adapter/checkpoint/adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"inputs\.judge: .*adapter has no config\.json") as caught:
        model_in(tmp_path / "adapter", "inputs.judge")
    assert "merge the adapter" in str(caught.value.hint)
