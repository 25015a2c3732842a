"""The launcher's door: what it refuses, how it says so, and that it imports nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.train import launcher
from nexa_dist.train.env import RankEnv, placed

CONFIG = """
name: tiny
backend: hf
model: {vocab_size: 300, hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32}
dataset: {source: path, path: "TEXTS"}
trainer: {steps: 4}
"""


@pytest.fixture(autouse=True)
def _clean_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NEXA_WORLD_SIZE", "NEXA_RUN_DIR", "NEXA_SHARED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def config(folder: Path) -> str:
    path = folder / "train.yaml"
    path.write_text(CONFIG.replace("TEXTS", str(folder / "texts")))
    return str(path)


def test_a_silent_world_of_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("NEXA_WORLD_SIZE", "4")
    assert launcher.main(["--backend", "hf", "--config", config(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: WORLD_SIZE is 1, the plan says 4")
    assert "\nhint: " in err


def test_prepare_needs_no_world(tmp_path: Path) -> None:
    env = RankEnv.read("t", {"NEXA_WORLD_SIZE": "4", "NEXA_RUN_DIR": str(tmp_path)})
    assert (env.rank, env.world_size) == (0, 1)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "NEXA_ATTEMPT", "NEXA_RESUME_STEP"])
@pytest.mark.parametrize("text", ["", "-1", "one", "1.5"])
def test_numbers_in_the_environment_are_numbers(name: str, text: str) -> None:
    with pytest.raises(NexaError, match=f"{name} must be a whole number"):
        RankEnv.read("t", {name: text})


def test_alone_it_uses_runs_name(tmp_path: Path) -> None:
    env = RankEnv.read("tiny", {})
    assert env.run_dir == tmp_path / "runs" / "tiny"
    assert (env.durable, env.resume_from) == (None, None)


def test_the_durable_copies_lie_under_the_run_id(tmp_path: Path) -> None:
    env = RankEnv.read("tiny", {"NEXA_DURABLE": str(tmp_path), "NEXA_RUN_ID": "train_1"})
    assert env.durable == tmp_path / "train_1" / "checkpoints"


def test_a_missing_text_is_an_error_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(["--backend", "hf", "--config", config(tmp_path), "--prepare"]) == 2
    assert "no such file or directory on this node" in capsys.readouterr().err


def test_the_backend_must_be_the_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("name: x\nscript: train.py\n")
    assert launcher.main(["--backend", "hf", "--config", str(path)]) == 2
    assert "backend is none" in capsys.readouterr().err


def test_a_bad_config_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--backend", "hf", "--config", config(tmp_path), "--set", "trainer.stepz=3"]
    assert launcher.main(argv) == 2
    assert "stepz" in capsys.readouterr().err


def test_every_backend_row_names_an_existing_file() -> None:
    for backend in launcher.BACKENDS.values():
        for name in (backend.prepare, backend.train):
            module, _, function = name.partition(":")
            source = Path(launcher.__file__).parents[2] / (module.replace(".", "/") + ".py")
            assert f"\ndef {function}(" in source.read_text()


def looks(*_: object) -> int:
    return 7 if importlib.util.find_spec("wave") is None else 0


def test_what_a_backend_does_without_is_not_there_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(launcher.BACKENDS["hf"], train=f"{__name__}:looks", without=("wave",))
    monkeypatch.setitem(launcher.BACKENDS, "hf", row)
    assert launcher.main(["--backend", "hf", "--config", config(tmp_path)]) == 7
    assert importlib.util.find_spec("wave")


def test_nothing_heavy_is_imported_early() -> None:
    program = (
        "import sys, nexa_dist.train.launcher, nexa_dist.train.data, nexa_dist.train.agree, nexa_dist.train.keeper\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'tokenizers', 'wandb') if name in sys.modules])"
    )
    env = {"PYTHONPATH": str(Path(launcher.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[]", done.stderr


def test_data_of_the_run_is_where_this_node_has_it() -> None:
    value = {"path": "${NEXA_DATA}/llama/7b", "datasets": [{"path": "$NEXA_DATA/rows"}, "NEXA_DATA", 3]}
    assert placed(value, {"NEXA_DATA": "/run/data"}) == {
        "path": "/run/data/llama/7b", "datasets": [{"path": "/run/data/rows"}, "NEXA_DATA", 3],
    }  # fmt: skip
    with pytest.raises(NexaError, match=r"\$NEXA_DATA/rows: no data was brought"):
        placed("$NEXA_DATA/rows", {})
