"""Backend ax for real, in the environment heavy: two ranks, forked from one interpreter that has Axolotl imported,
which is most of the time of a training as short as these."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.backend_files.axolotl import known
from tests import heavy
from tests.processes.train_ranks import ZERO, Ranks, Start

REPO = Path(__file__).resolve().parents[3]
STEPS, STOP_AT, SAVED, NEVER = 24, 13, 8, -1
ON_TWO_NODES = [[0] * 4, [-9] * 4, [0] * 4]
LORA, TRAIN = "configs/axolotl/science_lora.yaml", "configs/train/axolotl.yaml"
WHY = "builds the environment heavy (4.2 GB, minutes), then trains; cached after the first time"
IMPORTED = ("cli.preprocess", "cli.train", "train", "core.builders", "core.builders.causal", "loaders")
"""Of Axolotl, what its ranks import."""
ALONE = """
torch.default_generator.seed()  # as an interpreter of its own, and one that the agent forked, begins
os.environ["LOCAL_RANK"] = str(int(os.environ["RANK"]) % 2)
if int(os.environ["RANK"]) >= 2:
    os.environ["NEXA_RUN_DIR"] += ".n1"
"""
SENT = """
import shutil
shutil.rmtree("{name}.n1", ignore_errors=True)
os.makedirs("{name}.n1")
if os.path.isdir("{name}/checkpoints"):
    shutil.copytree("{name}/checkpoints", "{name}.n1/checkpoints")
"""
"""Of the second of two nodes nothing is left, and the one in its place was sent what the first has."""


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
    return {**kept, "PYTHONPATH": str(REPO), "AXOLOTL_DO_NOT_TRACK": "1", "NEXA_SHARED": str(folder / "shared")}


def stage(folder: Path, jobs: list[tuple[str, int, int, list[str]]]) -> tuple[list[list[int]], str]:
    """(run folder, step to stop at, ranks, more arguments) of one launch after the other; their exit codes, and what
    they said."""
    starts: list[Start | str] = []
    for name, stop_at, ranks, words in jobs:
        if ranks > 2:
            starts.append(SENT.format(name=name))
        ends = {"stop_at": max(stop_at, 0) or None, "killed": name.endswith(("lost", "killed"))}
        starts.append(Start(name, TRAIN, ranks, words=words, first=ALONE, backend="ax", **ends))
    imports = (*(f"axolotl.{name}" for name in IMPORTED), *ZERO, "nexa_dist.train.backends.ax")
    env = (("AXOLOTL_DO_NOT_TRACK", "1"), ("DS_ACCELERATOR", "cpu"))
    return Ranks(str(heavy.interpreter()), imports, (), env).train(folder, starts)


def apart(whole: dict[str, Any], resumed: dict[str, Any]) -> float:
    return max(float((whole[key] - resumed[key]).abs().max()) for key in whole)


@pytest.mark.long(WHY)
def test_lora_and_qlora_learn_and_a_stopped_one_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file  # the short tier collects this file without torch

    heavy.project(tmp_path)
    lora = (tmp_path / LORA).read_text()
    four = lora.replace("adapter: lora ", "adapter: qlora\nload_in_4bit: true ")
    (tmp_path / "four.yaml").write_text(four.replace("max_steps: 24", "max_steps: 6"))
    (tmp_path / "wrong.yaml").write_text(lora.replace("adapter: lora ", "adapter: qlora "))
    codes, said = stage(
        tmp_path,
        [
            ("prepared", NEVER, 1, ["--prepare"]),
            ("unbroken", NEVER, 2, []),
            ("unbroken", NEVER, 2, []),  # nothing is left to train
            ("broken", STOP_AT, 2, []),
            ("broken", NEVER, 2, []),
            ("four", NEVER, 2, ["--set", "config=four.yaml"]),
            ("two_nodes", NEVER, 4, []),
            ("lost", STOP_AT, 4, []),
            ("lost", NEVER, 4, []),
            ("wrong", NEVER, 1, ["--set", "config=wrong.yaml", "--prepare"]),
        ],
    )
    assert codes == [[0], [0, 0], [0, 0], [143, 143], [0, 0], [0, 0], *ON_TWO_NODES, [2]], said
    assert said.count("Loading raw datasets") == 1, said  # by the node, and by no rank
    assert f"stopped by SIGTERM at step {STOP_AT}" in said and "Require cfg.load_in_4bit" in said
    names = ("unbroken", "broken", "four", "two_nodes", "lost")
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in names}
    report = results["unbroken"]["eval_report"]
    assert report["train_loss_last"] < report["train_loss_first"] - 0.05
    assert (results["unbroken"]["parallel"], report["adapter"], report["steps"]) == ("DDP", "lora", STEPS)
    assert report["local_parameters"] == [report["parameters"]] * 2 > [report["trainable_parameters"]] * 2
    assert results["four"]["eval_report"]["adapter"] == "qlora"
    assert results["four"]["eval_report"]["train_loss_last"] < results["four"]["eval_report"]["train_loss_first"]
    whole = load_file(tmp_path / "unbroken" / "checkpoints" / f"step_{STEPS:08d}" / "adapter_model.safetensors")
    inside = f"broken/checkpoints/step_{STEPS:08d}/adapter_model.safetensors"
    assert apart(whole, load_file(tmp_path / inside)) == 0
    assert abs(report["train_loss_last"] - results["broken"]["eval_report"]["train_loss_last"]) <= 1e-5
    inside = f"checkpoints/step_{STEPS:08d}/adapter_model.safetensors"
    assert f"resuming from step {SAVED} of" in said
    assert apart(*(load_file(tmp_path / name / inside) for name in ("two_nodes", "lost"))) == 0
    for name in ("train_loss_last", "eval_loss_nats"):
        assert abs(results["lost"]["eval_report"][name] - results["two_nodes"]["eval_report"][name]) <= 1e-5
    assert (tmp_path / "broken" / "model" / "adapter_model.safetensors").exists()


FSDP = """
fsdp_version: 2
fsdp_config:
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: LlamaDecoderLayer
  state_dict_type: SHARDED_STATE_DICT
  reshard_after_forward: true
"""
SPREADS = {
    "zero2": ("ZeRO-2", "lora", "deepspeed: zero2.json"),
    "zero3": ("ZeRO-3", "none", "deepspeed: zero3.json"),
    "fsdp": ("FSDP2", "none", FSDP),
    "fsdp_lora": ("FSDP2", "lora", FSDP),
}
"""By the name of a run: what it is, its adapter, and what its file asks for."""
ONE_RANK = {"zero2": 1, "fsdp_lora": 0}
"""How one rank ends that is to go on where two were."""


def shorter(lora: str) -> str:
    """A quarter of the steps."""
    for line in ("max_steps: 24", "save_steps: 8", "eval_steps: 12"):
        name, number = line.split(": ")
        lora = lora.replace(line, f"{name}: {int(number) // 4}")
    return lora


def saved(run: Path, step: int) -> dict[str, str]:
    """SHA-256 of what the ranks wrote of a step, but for what has the run's folder or a clock in it."""
    told = json.loads((run / "checkpoints" / f"step_{step:08d}" / "manifest.json").read_text())
    own = ("training_args.bin", "trainer_state.json", ".metadata")
    return {name: entry["sha256"] for name, entry in told["files"].items() if not name.endswith(own)}


@pytest.mark.long(WHY)
def test_deepspeed_and_fsdp_are_real_learn_as_ddp_does_and_go_on_where_they_were_ended(tmp_path: Path) -> None:
    heavy.project(tmp_path)
    for name in ("zero2.json", "zero3.json"):
        (tmp_path / name).write_bytes((REPO / "configs" / "deepspeed" / name).read_bytes())
    lora = shorter((tmp_path / LORA).read_text())
    whole = lora.replace("adapter: lora ", "").replace("learning_rate: 0.01", "learning_rate: 0.003")
    asked = {"ddp_lora": ("DDP", "lora", ""), "ddp_none": ("DDP", "none", ""), **SPREADS}
    words = {name: ["--set", f"config={name}.yaml"] for name in asked}
    jobs = [("prepared", NEVER, 1, [*words["ddp_lora"], "--prepare"])]
    for name, (_, adapter, more) in asked.items():
        (tmp_path / f"{name}.yaml").write_text(f"{lora if adapter == 'lora' else whole}\n{more}\n")
        jobs.append((name, NEVER, 2, words[name]))
    ended = {name: f"{name}_{'killed' if name.startswith('zero') else 'stopped'}" for name in SPREADS}
    expected = [[0]] + [[0, 0]] * len(asked)
    for name, how in ended.items():  # between two saves; then one rank goes on alone, or may not
        jobs.append((how, 3, 2, words[name]))
        expected.append([-9, -9] if how.endswith("killed") else [143, 143])
        if name in ONE_RANK:
            jobs.append((how, NEVER, 1, words[name]))
            expected.append([ONE_RANK[name]])
        if ONE_RANK.get(name) != 0:
            jobs.append((how, NEVER, 2, words[name]))
            expected.append([0, 0])
    codes, said = stage(tmp_path, jobs)
    assert codes == expected, said
    assert "step 2 is of 2 ranks with DeepSpeed under Axolotl, and 1 are to go on" in said

    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in [*asked, *ended.values()]}
    for name, (parallel, adapter, _) in SPREADS.items():
        made, resumed, ddp = (results[which] for which in (name, ended[name], f"ddp_{adapter}"))
        report, count = made["eval_report"], made["eval_report"]["parameters"]
        assert (made["parallel"], report["adapter"], report["steps"]) == (parallel, adapter, STEPS // 4)
        held = made["sharding"]["local_optimizer"] if name == "zero2" else report["local_parameters"]
        spread = report["trainable_parameters"] if name == "zero2" else count
        assert len(held) == 2 and sum(held) >= spread > max(held)
        for key in ("train_loss_first", "train_loss_last", "eval_loss_nats"):
            assert abs(report[key] - ddp["eval_report"][key]) <= 1e-3, (name, key)
        if ONE_RANK.get(name) == 0:  # which sees other rows from there on
            assert resumed["eval_report"]["steps"] == report["steps"] and resumed["parallel"] == parallel
            continue
        assert resumed["eval_report"]["eval_loss_nats"] == report["eval_loss_nats"]
        bits = [saved(tmp_path / run, STEPS // 4) for run in (name, ended[name])]
        assert bits[0] == bits[1], name
        assert any(f"rng_state_{rank}.pth" in file for file in bits[0] for rank in (0, 1))
    for name, files in (("zero3", "model.safetensors"), ("fsdp", "model.safetensors"), ("zero2", "adapter_model.s")):
        assert [path.stat().st_size > 10_000 for path in (tmp_path / name / "model").glob(f"{files}*")] == [True], name


@pytest.mark.long(WHY)
def test_the_list_of_keys_is_what_this_axolotl_knows(tmp_path: Path) -> None:
    argv = [heavy.interpreter(), "-m", "tests.axolotl_keys"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == known()
