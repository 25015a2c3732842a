"""A compute plan over a train.yaml: what wins, where each value came from, and what is wrong with a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.cli import main
from nexa_dist.config.load import read_train
from nexa_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]
PLANS = sorted((ROOT / "configs" / "plans").glob("*.yaml"))
TRAIN = """\
backend: hf
env: {A: "1"}
tags: [mine]
model: {vocab_size: 512, hidden_size: 64, layers: 2, heads: 4, intermediate_size: 128}
dataset: {}
trainer:
  steps: 10
  save_every: 5
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    tmp_path.joinpath("t.yaml").write_text(TRAIN)
    return tmp_path / "t.yaml"


def plan(folder: Path, text: str) -> Path:
    folder.joinpath("own.yaml").write_text(text)
    return folder / "own.yaml"


def test_the_plan_goes_over_the_file_and_under_set(train: Path) -> None:
    over = plan(train.parent, "env: {B: '2'}\ntrainer:\n  save_every: 50\n  log_every: 3\n")
    found = read_train(train, ["trainer.log_every=7"], plan=over)
    config, trainer = found.config, found.config.trainer
    assert trainer and (trainer.steps, trainer.save_every, trainer.log_every) == (10, 50, 7)
    assert config.env == {"A": "1", "B": "2"} and config.tags == ("mine", "plan:own")
    places = {".".join(map(str, path)): place.rpartition("/")[2] for path, place in found.places.items()}
    assert places["trainer"] == "t.yaml:6" and places["trainer.steps"] == "t.yaml:7"
    assert places["trainer.save_every"] == "own.yaml:3" and places["env.B"] == "own.yaml:1"
    assert places["trainer.log_every"] == "--set trainer.log_every=7"
    assert places["tags.0"] == "t.yaml:3" and places["tags.1"] == "plan own" and "trainer.seed" not in places


def test_a_list_that_is_replaced_leaves_no_line_of_the_old_one(train: Path) -> None:
    over = plan(train.parent, "\n\ntags: [theirs]\n")
    found = read_train(train, plan=over)
    assert found.config.tags == ("theirs", "plan:own")
    assert found.places["tags", 0].endswith("own.yaml:3")
    again = read_train(train, ["tags=[a, b]"], plan=over)
    assert again.places["tags",] == "--set tags=[a, b]" and ("tags", 0) not in again.places


def test_what_is_wrong_with_a_plan_has_its_line(train: Path) -> None:
    over = plan(train.parent, "max_hour: 1\ntrainer:\n  save_evry: 5\n  steps: many\nenv: {B: yes}\n")
    with pytest.raises(ConfigError) as caught:
        read_train(train, plan=over)
    said = [str(problem).replace(f"{train.parent}/", "") for problem in caught.value.problems]
    assert "own.yaml:1: max_hour: unknown key (hint: did you mean max_hours?)" in said
    assert "own.yaml:3: trainer.save_evry: unknown key (hint: did you mean save_every?)" in said
    assert any(line.startswith("own.yaml:4: trainer.steps: expected a whole number, found") for line in said)
    assert any(line.startswith("own.yaml:5: env.B: ") for line in said) and len(said) == 4


def test_a_section_that_the_training_has_not_is_left_out_but_not_unread(train: Path) -> None:
    train.write_text("script: train.py\n")
    over = plan(train.parent, "max_hours: 2\ntrainer: {save_every: 50}\n")
    found = read_train(train, plan=over)
    assert found.left_out == ("trainer",) and found.config.max_hours == 2.0 and found.config.trainer is None
    with pytest.raises(ConfigError, match=r"own.yaml:2: trainer.save_evry: unknown key"):
        read_train(train, plan=plan(train.parent, "max_hours: 2\ntrainer: {save_evry: 50}\n"))
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read"):
        read_train(train, plan=train.with_name("gone.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_that_comes_with_nexa_says_why_each_key_is_there(train: Path, path: Path) -> None:
    found = read_train(train, plan=path)
    assert found.left_out == () and f"plan:{path.stem}" in found.config.tags
    keys = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(keys) > 5 and all("# " in line for line in keys if not line.endswith(":"))
    train.write_text("script: train.py\n")
    assert read_train(train, plan=path).left_out == ("trainer",)


def test_the_verbs_take_a_plan(
    train: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(train.parent)
    assert [path.stem for path in PLANS] == ["v1", "v2", "v3", "v4"]
    assert main(["config", "t.yaml", "--plan", "v2"]) == 0
    out = capsys.readouterr().out
    assert "configs/plans/v2.yaml:" in out and "# default" in out and "# t.yaml:7" in out
    assert main(["config", "t.yaml", "--plan", "v9"]) == 2
    assert "known are v1, v2, v3, v4; or the path of a file" in capsys.readouterr().err
    assert main(["preflight", "t.yaml", "--plan", "v2", "--json"]) == 0
    assert ", bf16;" in capsys.readouterr().err
