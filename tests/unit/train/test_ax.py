"""Backend ax without Axolotl: what the run takes over of the user's file, what it trains on, what it calls itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import ConfigError, NexaError, UsageError
from nexa_dist.plan.runs.torchrun import Place, program
from nexa_dist.train.env import RankEnv
from tests.late import Late, needs

needs("transformers")
torch: Any = Late("torch")
control: Any = Late("nexa_dist.train.control")
ax: Any = Late("nexa_dist.train.backends.ax")
ax_setup: Any = Late("nexa_dist.train.backends.ax_setup")

FILE = "base_model: model\ndatasets:\n  - path: rows.jsonl\n    ds_type: json\n    type: alpaca\noutput_dir: mine\n"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.chdir(tmp_path)
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "AXOLOTL_IS_PREPROCESS", "AXOLOTL_DO_NOT_TRACK"):
        monkeypatch.setenv(name, "")
    Path("ax.yaml").write_text(FILE)
    Path("rows.jsonl").write_text("{}\n")
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("{}")
    Path("model/model.safetensors").write_text("weights")
    return TrainConfig(name="t", backend="ax", config="ax.yaml")


def rank_env(**more: str) -> RankEnv:
    return RankEnv.read("t", {"NEXA_RUN_DIR": "run", "NEXA_SHARED": "shared", **more})


def written(folder: Path, text: str) -> TrainConfig:
    (folder / "t.yaml").write_text(text)
    return load_train(folder / "t.yaml")


def test_it_needs_its_own_file_and_takes_nothing_of_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(FILE)
    made = written(tmp_path, "backend: ax\nconfig: a.yaml\n")
    assert (made.environment, made.name) == ("heavy", "t")
    assert written(tmp_path, "backend: ax\nconfig: a.yaml\nenvironment: none\n").environment == "none"
    for text, words in (
        ("backend: ax\n", "backend: ax needs config"),
        ("backend: ax\nconfig: a.yaml\ntrainer: {steps: 1}\n", "backend: ax takes no trainer"),
        ("backend: ax\nconfig: a.yaml\nmax_tokens: 5\n", "max_tokens is not for backend: ax"),
    ):
        with pytest.raises(ConfigError, match=words):
            written(tmp_path, text)


def test_every_node_prepares_once_and_every_rank_starts_the_one_launcher(lab: TrainConfig) -> None:
    place = Place("py", "agent", "s", "sh", "d", "/run", "pkg", "code")
    what = program(lab, place)
    line = ("-u", "-m", "nexa_dist.train.launcher", "--backend", "ax", "--config", "/run/train.json")
    assert what.argv == line and what.prepare == ("py", *line, "--prepare")


def test_what_the_run_owns_and_what_a_cpu_cannot_do(lab: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_cfg(file: str, **more: Any) -> SimpleNamespace:
        asked.update(more, file=file)
        return SimpleNamespace(device_map={"": 0})

    module = ModuleType("axolotl.cli.config")
    module.load_cfg = load_cfg  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.cli"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.cli.config", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mended: list[str] = []
    monkeypatch.setattr(
        "nexa_dist.train.backends.ax_setup._spread_on_cpu", lambda: mended.append("accelerate")
    )  # of all that runs here
    env = rank_env()
    cfg = ax_setup.load(lab, env)
    assert mended == ["accelerate"]
    assert asked["output_dir"] == str(env.run_dir / "model") and asked["file"] == "ax.yaml"
    assert asked["dataset_prepared_path"].startswith(str(env.shared / "data"))
    assert (asked["resume_from_checkpoint"], asked["auto_resume_from_checkpoints"]) == (None, False)
    assert asked["use_wandb"] is False and "seed" not in asked
    assert asked["lora_mlp_kernel"] is False and asked["bf16"] is False and cfg.device_map is None
    assert os.environ["ACCELERATE_USE_CPU"] == "true" and os.environ["AXOLOTL_DO_NOT_TRACK"] == "1"
    Path("ax.yaml").write_text(FILE + "fsdp_version: 1\nfsdp_config: {offload_params: true}\n")
    with pytest.raises(UsageError, match=r"ax\.yaml: without a GPU there is no FSDP1"):
        ax_setup.load(lab, env)
    assert ax_setup.parts(lab) == "FSDP"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked.clear()
    mended.clear()
    assert ax_setup.load(lab, env, prepares=True).device_map == {"": 0} and not mended
    assert "bf16" not in asked and asked["is_preprocess"] and os.environ["AXOLOTL_IS_PREPROCESS"] == "1"

    class Strict(BaseModel):
        micro_batch_size: int

    def refuses(*_: object, **__: object) -> None:
        try:
            Strict.model_validate({"micro_batch_size": "s3cret"})
        except ValidationError as error:
            raise error

    module.load_cfg = refuses  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"ax\.yaml: Axolotl refuses it: micro_batch_size: Input should be") as caught:
        ax_setup.load(lab, env)
    assert "s3cret" not in str(caught.value)


def test_the_data_is_named_by_what_is_in_it(lab: TrainConfig) -> None:
    first = ax_setup.data(lab)
    assert (first.path, first.bytes) == ("rows.jsonl", 3)
    Path("model/model.safetensors").write_text("other weights")
    assert ax_setup.data(lab) == first
    Path("model/tokenizer.json").write_text("{ }")
    second = ax_setup.data(lab)
    Path("rows.jsonl").write_text("[]\n")
    assert len({first.sha256, second.sha256, ax_setup.data(lab).sha256}) == 3
    Path("rows.jsonl").unlink()
    with pytest.raises(UsageError, match=r"ax\.yaml: rows\.jsonl is not there"):
        ax_setup.data(lab)


def test_what_the_model_became_is_held_against_what_was_asked_for() -> None:
    model = torch.nn.Linear(4, 2)
    model.bias.requires_grad = False
    trainer = SimpleNamespace(model=model, model_wrapped=model)
    plain = SimpleNamespace(deepspeed=None, fsdp=None, fsdp_config=None, adapter=None)
    assert ax.spread(plain, trainer, rank_env()) == {
        "parallel": "none",
        "adapter": "none",
        "parameters": 10,
        "trainable_parameters": 8,
        "local_parameters": [10],
    }
    with pytest.raises(NexaError, match="DDP over 2 ranks was asked for, and the model is a Linear"):
        ax.spread(plain, trainer, rank_env(WORLD_SIZE="2"))
    for asked in ({"deepspeed": "z.json"}, {"fsdp_config": {"offload_params": True}}):
        with pytest.raises(NexaError, match="was asked for, and the model is a Linear"):
            ax.spread(SimpleNamespace(**{**vars(plain), **asked}), trainer, rank_env())


def test_a_rank_that_holds_all_is_no_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = type("DeepSpeedEngine", (), {"zero_optimization_stage": lambda self: 3})()
    trainer = SimpleNamespace(model=torch.nn.Linear(4, 2), model_wrapped=engine)
    monkeypatch.setattr("nexa_dist.train.control.gather", lambda mine: [mine, 0])
    asked = SimpleNamespace(deepspeed="z.json", fsdp=None, fsdp_config=None, adapter=None)
    with pytest.raises(NexaError, match=r"ZeRO-3 was asked for, and a rank holds all 10 parameters: \[10, 0\]"):
        ax.spread(asked, trainer, rank_env(WORLD_SIZE="2"))


def test_adapters_begin_with_what_the_seed_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axolotl makes them before its Trainer seeds anything, and each process begins with a seed of its own."""
    drawn = []

    def model_and_trainer(cfg: Any, meta: Any) -> tuple[Any, ...]:
        drawn.append(float(torch.rand(())))
        return SimpleNamespace(remove_callback=print, add_callback=print, evaluate=torch.rand), None, None

    fake = SimpleNamespace(
        load_datasets=lambda cfg: SimpleNamespace(train_dataset=None),
        setup_model_and_trainer=model_and_trainer,
        handle_untrained_tokens_fix=lambda *args: None,
    )
    monkeypatch.setattr("nexa_dist.train.backends.ax.axolotl", lambda name: fake)
    state = torch.get_rng_state()
    nothing: Any = None
    for seed in (None, 42, 7, 7):
        torch.default_generator.seed()
        made = ax.Run(SimpleNamespace(rl=None, seed=seed), rank_env(), nothing, nothing, nothing, nothing)
    before = torch.get_rng_state()
    made.trainer.evaluate(())  # which draws one
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_buckets_are_settled_at_the_cost_of_no_random_number_and_where_tokens_reach_all_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    before = torch.get_rng_state()
    control.settle_buckets(model, lambda: model(torch.ones(2, 4)).sum())
    assert torch.equal(before, torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())

    dense, mixed = (SimpleNamespace(config=SimpleNamespace(**more)) for more in ({}, {"num_local_experts": 8}))
    dense.config._experts_implementation_internal = "grouped_mm"
    file = SimpleNamespace(context_parallel_size=1, get={"is_multimodal": False}.get)
    assert ax.tokens_reach_all(file, dense) and not ax.tokens_reach_all(file, mixed)
    for more in ({"get": {"rl": "dpo"}.get}, {"context_parallel_size": 2}):
        assert not ax.tokens_reach_all(SimpleNamespace(**{**vars(file), **more}), dense)
