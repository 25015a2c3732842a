"""Backend hf, stopped and resumed: the bits of an unbroken training. Then adapters are trained beside its last
checkpoint, on examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.straggler import straggler
from tests.processes.train_ranks import DATASET, MODEL, Start, losses, result, train

STEPS, STOP_AT = 24, 13
TINY: dict[str, Any] = {
    "backend": "hf",
    "model": {**MODEL, "dropout": 0.1},
    "dataset": DATASET,
    "trainer": {"steps": STEPS, "batch_size": 2, "log_every": 5, "save_every": 8},
}
TUNED = {
    **TINY,
    "model": {"path": "model", "lora": {"rank": 4, "dropout": 0.1}},
    "dataset": {"source": "examples", "path": "rows.jsonl", "sequence_length": 32, "held_out": 0.2},
    "trainer": {**TINY["trainer"], "learning_rate": 0.01},
}
WITHOUT_DROPOUT = """
told = json.load(open("model/config.json"))
json.dump({**told, "attention_dropout": 0.0}, open("model/config.json", "w"))
"""


def plain(ranks: int) -> dict[str, Any]:
    """The same four examples a step on so many ranks, without a random number."""
    trainer = {**TUNED["trainer"], "steps": 3, "batch_size": 4 // ranks, "log_every": 1}
    profile = {"steps": "2-3", "ranks": [1]}
    return {**TUNED, "model": {"path": "model", "lora": {"rank": 4}}, "trainer": trainer, "profile": profile}


def checkpoint(folder: Path, name: str, step: int = STEPS) -> Path:
    return folder / name / "checkpoints" / f"step_{step:08d}"


def final_files(folder: Path, name: str) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, both ranks' random states."""
    told = json.loads((checkpoint(folder, name) / "manifest.json").read_text())
    assert {"optimizer.pt", "rng_state_1.pth"} <= set(told["files"])
    return {name: entry["sha256"] for name, entry in told["files"].items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all trainings of this file."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("trained")
    lines = [line for file in Path(json.__file__).parent.glob("*.py") for line in file.read_text().splitlines()]
    rows = [dict(zip(("prompt", "completion"), line.split("(", 1), strict=True)) for line in lines if "(" in line]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model").symlink_to(checkpoint(folder, "unbroken"))
    starts = [
        *(Start("unbroken", TINY), Start("broken", TINY, stop_at=STOP_AT), Start("broken", TINY)),
        *(Start("tuned", TUNED), Start("retuned", TUNED, stop_at=STOP_AT), Start("retuned", TUNED)),
        *(WITHOUT_DROPOUT, Start("plain1", plain(1), ranks=1), Start("plain2", plain(2))),
    ]
    codes, said = train(folder, starts)
    assert codes == [[0, 0], [143, 143], [0, 0]] * 2 + [[0], [0, 0]], said
    assert said.count(f"stopped by SIGTERM at step {STOP_AT}") == 2
    return folder


@pytest.mark.parametrize(("unbroken", "broken"), [("unbroken", "broken"), ("tuned", "retuned")])
def test_stopped_and_resumed_is_unbroken_bit_for_bit_and_learns(trained: Path, unbroken: str, broken: str) -> None:
    assert final_files(trained, broken) == final_files(trained, unbroken)
    first, second = result(trained, unbroken), result(trained, broken)
    assert first["eval_report"]["eval_loss_nats"] == second["eval_report"]["eval_loss_nats"]
    assert first["eval_report"]["train_loss_last"] < first["eval_report"]["train_loss_first"]


def test_of_adapters_nothing_else_is_trained_or_kept(trained: Path) -> None:
    told = result(trained, "tuned")["eval_report"]
    # rank 4 beside the seven linear layers of each of two blocks: 4 × (in + out)
    adapters = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert told["trainable_parameters"] == adapters
    assert told["parameters"] > 8 * adapters
    assert "model.safetensors" not in final_files(trained, "tuned")
    size = (checkpoint(trained, "tuned") / "adapter_model.safetensors").stat().st_size
    assert 4 * adapters < size < 4 * adapters + 8192  # float32, and nothing of the model itself


def test_two_ranks_learn_of_examples_what_one_does(trained: Path) -> None:
    one, two = losses(trained, "plain1", 3), losses(trained, "plain2", 3)
    assert sorted(one) == [1, 2, 3]
    assert two == pytest.approx(one, abs=1e-6)


def test_a_profile_is_of_all_ranks(trained: Path) -> None:
    files = trained / "plain2" / "profile"
    assert sorted(path.name for path in files.iterdir()) == ["rank_1.trace.json.gz", "summary.json"]
    summary = json.loads((files / "summary.json").read_text())
    assert (summary["first_step"], summary["last_step"], len(summary["ranks"])) == (2, 3, 2)
    assert all(spent[part] > 0 for spent in summary["ranks"] for part in ("forward", "backward", "communication"))


@pytest.mark.long("it compares times")
def test_the_rank_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {**TINY, "trainer": {**TINY["trainer"], "steps": 6}, "profile": {"steps": "2-5"}}
    codes, said = train(tmp_path, [Start("slow", config, slow_s=1.5)])
    assert codes == [[0, 0]], said
    assert "rank 1 is the slowest by" in said


SLOW_DATA = """
from nexa_dist.train.backends import trainer_setup
def item(windows, index, inner=trainer_setup.Windows.__getitem__):
    os.environ["NEXA_PROGRESS"] = "%s/progress_%s" % (os.environ["NEXA_RUN_DIR"], os.environ["RANK"])
    time.sleep(0.2 if os.environ["RANK"] == "1" else 0)
    return inner(windows, index)
trainer_setup.Windows.__getitem__ = item
"""


@pytest.mark.long("it compares times")
def test_each_rank_tells_its_own_time_though_all_end_a_step_together(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    few = {**TINY, "trainer": {**TINY["trainer"], "steps": 6}}
    codes, said = train(tmp_path, [Start("own", few, first=SLOW_DATA)])
    assert codes == [[0, 0]], said
    told = [json.loads((tmp_path / "own" / f"progress_{rank}").read_text()) for rank in (0, 1)]
    found = straggler({rank: report["own_s"] for rank, report in enumerate(told)})
    assert found is not None and found.rank == 1 and found.own_s >= 0.4  # two windows a batch
