"""Backend ds for real: DeepSpeed in the environment of a local cluster, ranks forked from one interpreter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.backend_files import deepspeed as ours
from tests import heavy, little_text
from tests import libaio as found_libaio
from tests.late import Late
from tests.processes.train_ranks import IMPORTED, ZERO, Ranks, Start

pytestmark = pytest.mark.long("needs an environment with DeepSpeed, which is built first; trainings of four kinds")

torch: Any = Late("torch")
REPO = Path(__file__).resolve().parents[3]
STEPS, STOP_AT = 12, 7
KINDS = ("zero2", "zero3", "zero3_cpu_offload", "zero3_nvme_offload")
TINY = {
    "name": "tiny",
    "model": {
        "vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "dropout": 0.1,
    },
    "dataset": {"source": "path", "path": "text", "sequence_length": 32, "min_mb": 0},
    "trainer": {"steps": STEPS, "batch_size": 2, "learning_rate": 3e-3, "log_every": 1, "save_every": 4},
}  # fmt: skip
IN_PARTS = "from nexa_dist.train.backends import ds; ds.WHOLE_AT_MOST = 0"
"""The model is built as a large one is."""
ONCE = "import cpuinfo, functools; cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info); cpuinfo.get_cpu_info()"
"""It starts processes for two seconds to find out what the CPU is, on each rank that loads an extension."""


@pytest.fixture(scope="module")
def python() -> Path:
    """Interpreter of the environment that train.yaml with backend: ds asks for."""
    return heavy.interpreter("ds")


@pytest.fixture(scope="module")
def libaio() -> dict[str, str] | None:
    return found_libaio.variables()


@dataclass
class Stage:
    """Starts the ranks of one training after the other."""

    folder: Path
    ranks: Ranks

    def run(self, name: str, kind: str, *sets: str, **how: Any) -> list[int]:
        """Exit codes of the ranks; `how` is of `Start`."""
        backend = "hf" if kind == "hf" else "ds"
        values = [f"backend={backend}", *([f"config={kind}.json"] if backend == "ds" else []), *sets]
        words = [word for value in values for word in ("--set", value)]
        starts = [Start(name, "tiny.json", backend=backend, words=words, **how)]
        if not (self.folder / name / "dataset.json").exists():
            starts.insert(0, Start(name, "tiny.json", 1, backend=backend, words=[*words, "--prepare"]))
        codes, said = self.ranks.train(self.folder, starts)
        assert codes[:-1] in ([], [[0]]), said
        return codes[-1]

    def log(self) -> str:
        return (self.folder / "said").read_text()

    def result(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name / "result.json").read_text()))

    def final_files(self, name: str) -> dict[str, str]:
        """SHA-256 of every file of the last checkpoint, of all ranks."""
        told = json.loads((self.folder / name / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text())
        assert {"model/model.safetensors", "rng_state_1.pth", "nexa_rank_1.json"} <= set(told["files"])
        assert any(re.fullmatch(r"global_step\d+/\w*rank_1_mp_rank_00_optim_states.pt", each) for each in told["files"])
        return {each: entry["sha256"] for each, entry in told["files"].items()}


@pytest.fixture(scope="module")
def stage(python: Path, libaio: dict[str, str] | None, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    little_text.write(folder / "text")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    for kind in KINDS:
        asked = json.loads((REPO / "configs" / "deepspeed" / f"{kind}.json").read_text())
        for part in ("offload_param", "offload_optimizer"):
            if asked["zero_optimization"].get(part, {}).get("buffer_size"):
                asked["zero_optimization"][part]["buffer_size"] = 1_000_000  # five of them in memory, on each rank
        (folder / f"{kind}.json").write_text(json.dumps(asked))
    env = {"TORCH_EXTENSIONS_DIR": str(heavy.extensions(python)), "DS_ACCELERATOR": "cpu", **(libaio or {})}
    env["PATH"] = f"{python.parent}:{os.environ['PATH']}"
    return Stage(
        folder,
        Ranks(
            str(python),
            (*IMPORTED, *ZERO, "nexa_dist.train.backends.ds"),
            env=tuple(env.items()),
            more=ONCE,
            limit_s=3600.0,  # one may compile async_io: 340 CPU s, more than 15 minutes beside six others
        ),
    )


@pytest.fixture(scope="module")
def ddp(stage: Stage) -> dict[str, Any]:
    """The report of backend hf on the same data, which this is measured against."""
    assert stage.run("ddp", "hf") == [0, 0], stage.log()
    return dict(stage.result("ddp")["eval_report"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_as_ddp_does_and_stopped_and_resumed_is_unbroken(
    kind: str, stage: Stage, ddp: dict[str, Any], libaio: dict[str, str] | None
) -> None:
    if "nvme" in kind and libaio is None:
        pytest.skip(found_libaio.NONE)
    assert stage.run(kind, kind) == [0, 0], stage.log()
    assert stage.run(f"{kind}-broken", kind, stop_at=STOP_AT) == [143, 143], stage.log()
    assert f"stopped by SIGTERM at step {STOP_AT}" in stage.log()
    assert stage.run(f"{kind}-broken", kind) == [0, 0], stage.log()
    unbroken, broken = stage.result(kind), stage.result(f"{kind}-broken")
    report = unbroken["eval_report"]
    for name in ("eval_loss_nats", "train_loss_last", "train_loss_first"):
        assert abs(report[name] - ddp[name]) < 1e-3, (name, report, ddp)
    assert report["train_loss_last"] < report["train_loss_first"] - 0.05
    assert broken["eval_report"]["eval_loss_nats"] == report["eval_loss_nats"]
    files = [stage.final_files(name) for name in (f"{kind}-broken", kind)]
    if "nvme" in kind:  # DeepSpeed writes the folder on the disk, which is the run's own, into its files
        files = [{name: of[name] for name in of if not name.startswith("global_step")} for of in files]
    assert files[0] == files[1] and "model/model.safetensors" in files[0]

    third, whole = "zero3" in kind, report["parameters"]
    place = next((word for word in ("cpu", "nvme") if word in kind), "none")
    sharding = unbroken["sharding"]
    assert unbroken["parallel"] == f"ZeRO-{3 if third else 2}" and sharding["stage"] == (3 if third else 2)
    assert sharding["offload_param"] == place
    assert sharding["offload_optimizer"] == ("cpu" if place == "nvme" else place)  # where a resume loads all of it
    assert sharding["local_parameters"] == [-(-whole // 2)] * 2 if third else [whole] * 2
    assert all(whole / 2 <= part < whole / 2 + 64 for part in sharding["local_optimizer"])  # padded to whole parts
    assert not (stage.folder / kind / "nvme").exists()

    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(Path(unbroken["checkpoint"]["path"]) / "model")
    assert model.num_parameters() == whole
    assert stage.run(kind, kind) == [0, 0], stage.log()  # nothing is left to train
    assert abs(stage.result(kind)["eval_report"]["eval_loss_nats"] - report["eval_loss_nats"]) < 1e-5


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_optimizer_on_a_disk_is_taken_up_whole(pipelined: bool, stage: Stage, libaio: dict[str, str] | None) -> None:
    if libaio is None:
        pytest.skip(found_libaio.NONE)
    asked = json.loads((stage.folder / "zero3_nvme_offload.json").read_text())
    asked["zero_optimization"]["sub_group_size"] = 300_000  # two groups that go to the disk, and two that stay
    asked["zero_optimization"]["offload_optimizer"] = {
        "device": "nvme", "nvme_path": "auto", "pin_memory": True, "pipeline_read": pipelined,
        "pipeline_write": pipelined, "buffer_count": 8,
    }  # fmt: skip
    kind = f"disk-{pipelined}"
    (stage.folder / f"{kind}.json").write_text(json.dumps(asked))
    words = ("model.hidden_size=256", "model.intermediate_size=512", "model.layers=2")
    assert stage.run(kind, kind, *words) == [0, 0], stage.log()
    broken = f"{kind}-broken"
    assert stage.run(broken, kind, *words, stop_at=STOP_AT) == [143, 143], stage.log()
    assert stage.run(broken, kind, *words) == [0, 0], stage.log()
    unbroken, report = stage.result(kind), stage.result(broken)["eval_report"]
    assert unbroken["sharding"]["offload_optimizer"] == unbroken["sharding"]["offload_param"] == "nvme"
    for name in ("eval_loss_nats", "train_loss_last"):
        assert report[name] == unbroken["eval_report"][name]
    assert report["train_loss_last"] < report["train_loss_first"] - 0.05
    files = [stage.final_files(name) for name in (kind, broken)]
    on_disk = [{name: of[name] for name in of if name.endswith((".swp", "model.safetensors"))} for of in files]
    assert on_disk[0] == on_disk[1] and len(on_disk[0]) == 2 * 2 * 3 + 1  # weights and two moments of two groups

    shutil.rmtree(stage.folder / broken / "checkpoints" / f"step_{STEPS:08d}")
    before = len(stage.log())
    assert 0 not in stage.run(broken, kind, *words, "trainer.batch_size=1", ranks=4)
    assert "is of 2 ranks with the optimizer on nvme, and asked for are 4 ranks" in stage.log()[before:]


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_adapters_alone_are_trained_and_kept(kind: str, stage: Stage, ddp: dict[str, Any]) -> None:
    whole = f"ddp/checkpoints/step_{STEPS:08d}"
    words = (f"model={{path: {whole}, lora: {{rank: 4}}}}", "trainer.learning_rate=0.02")
    names = ("lora-hf", f"lora-{kind}", f"lora-{kind}-broken")
    assert stage.run(names[0], "hf", *words) == [0, 0], stage.log()
    assert stage.run(names[1], kind, *words) == [0, 0], stage.log()
    assert stage.run(names[2], kind, *words, stop_at=STOP_AT) == [143, 143], stage.log()
    assert stage.run(names[2], kind, *words) == [0, 0], stage.log()
    by_ddp, unbroken, broken = (stage.result(name)["eval_report"] for name in names)
    assert broken["eval_loss_nats"] == unbroken["eval_loss_nats"] < ddp["eval_loss_nats"]
    assert unbroken["trainable_parameters"] == by_ddp["trainable_parameters"] < unbroken["parameters"] / 4
    for name in ("eval_loss_nats", "train_loss_last"):
        assert abs(unbroken[name] - by_ddp[name]) < 1e-4
    folders = [stage.folder / name / "checkpoints" / f"step_{STEPS:08d}" for name in names]
    adapters = [folder / "model" / "adapter_model.safetensors" for folder in folders[1:]]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    states = [torch.load(path, "cpu", weights_only=False) for path in folders[1].rglob("*model_states.pt")]
    kept = {name for state in states for name in state["module"]}
    # DeepSpeed leaves frozen parameters out, and does not see that a head tied to the embedding is one.
    assert kept and all("lora_" in name or name.endswith("lm_head.weight") for name in kept)
    assert stage.run(names[1], kind, *words) == [0, 0], stage.log()  # nothing is left to train
    assert abs(stage.result(names[1])["eval_report"]["eval_loss_nats"] - unbroken["eval_loss_nats"]) < 1e-5


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_adapters_go_on_where_another_number_of_ranks_left_them(kind: str, stage: Stage, ddp: dict[str, Any]) -> None:
    steady = stage.folder / "steady"  # what `ddp` made, without its dropout: random numbers are a rank's own
    if not steady.exists():
        shutil.copytree(stage.folder / "ddp" / "checkpoints" / f"step_{STEPS:08d}", steady)
        told = json.loads((steady / "config.json").read_text())
        (steady / "config.json").write_text(json.dumps({**told, "attention_dropout": 0.0}))
    words = ("model={path: steady, lora: {rank: 4, dropout: 0.0}}", "trainer.learning_rate=0.02")
    two, one = f"steady-{kind}", f"steady-{kind}-1"
    assert stage.run(two, kind, *words) == [0, 0], stage.log()
    assert stage.run(one, kind, *words, stop_at=4) == [143, 143], stage.log()
    before = len(stage.log())
    assert stage.run(one, kind, *words, "trainer.batch_size=4", ranks=1, stop_at=8) == [143], stage.log()[before:]
    assert "checkpoint of 2 ranks" in stage.log()[before:]
    assert stage.run(one, kind, *words) == [0, 0], stage.log()[before:]
    assert "checkpoint of 1 ranks" in stage.log()[before:]
    unbroken, resumed = (stage.result(name)["eval_report"] for name in (two, one))
    assert unbroken["eval_loss_nats"] < ddp["eval_loss_nats"]
    for name in ("eval_loss_nats", "train_loss_last"):
        assert abs(unbroken[name] - resumed[name]) < 1e-5


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(stage: Stage) -> None:
    assert stage.run("whole", "zero3", "model.dropout=0") == [0, 0], stage.log()
    assert stage.run("killed", "zero3", "model.dropout=0", stop_at=STOP_AT, killed=True) == [-9, -9]
    before = len(stage.log())
    assert stage.run("killed", "zero3", "model.dropout=0") == [0, 0], stage.log()
    assert "resuming from step 4 of" in stage.log()[before:]
    assert stage.final_files("killed") == stage.final_files("whole")


def test_a_large_model_is_built_in_parts(stage: Stage) -> None:
    assert stage.run("parts", "zero3", first=IN_PARTS) == [0, 0], stage.log()
    told = stage.result("parts")
    report, held = told["eval_report"], told["sharding"]["local_parameters"]
    assert sum(held) >= report["parameters"] > max(held)
    assert report["train_loss_last"] < report["train_loss_first"] - 0.05
    shutil.rmtree(stage.folder / "parts" / "checkpoints" / f"step_{STEPS:08d}")
    assert stage.run("parts", "zero3", first=IN_PARTS) == [0, 0], stage.log()
    assert stage.result("parts")["eval_report"]["eval_loss_nats"] == report["eval_loss_nats"]


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_four_ranks_go_on_where_two_were_and_two_where_four_were(kind: str, stage: Stage) -> None:
    unbroken = f"{kind}-2"
    assert stage.run(unbroken, kind, "model.dropout=0") == [0, 0], stage.log()
    shutil.copytree(stage.folder / unbroken, stage.folder / f"{kind}-4")
    shutil.rmtree(stage.folder / f"{kind}-4" / "checkpoints" / f"step_{STEPS:08d}")
    words = ("model.dropout=0", "trainer.batch_size=1")
    assert stage.run(f"{kind}-4", kind, *words, ranks=4, stop_at=STEPS - 2) == [143] * 4, stage.log()
    assert "checkpoint of 2 ranks" in stage.log()
    assert stage.run(f"{kind}-4", kind, "model.dropout=0") == [0, 0], stage.log()
    assert "checkpoint of 4 ranks" in stage.log()
    first, second = (stage.result(name)["eval_report"] for name in (unbroken, f"{kind}-4"))
    assert abs(first["eval_loss_nats"] - second["eval_loss_nats"]) < 1e-5
    assert abs(first["train_loss_last"] - second["train_loss_last"]) < 1e-5
    assert not (stage.folder / f"{kind}-4" / "universal").exists()


def test_the_written_list_of_keys_is_deepspeeds(python: Path) -> None:
    program = """
import json, pathlib, re, deepspeed
from deepspeed.runtime.zero import config, offload_config
names = lambda model: [field.alias or name for name, field in model.model_fields.items()]
text = "".join(path.read_text() for path in pathlib.Path(deepspeed.__file__).parent.rglob("*.py"))
print(json.dumps({"words": sorted(set(re.findall("[\\"']([a-z0-9_]+)[\\"']", text))),
    "zero": names(config.DeepSpeedZeroConfig), "param": names(offload_config.DeepSpeedZeroOffloadParamConfig),
    "optimizer": names(offload_config.DeepSpeedZeroOffloadOptimizerConfig)}))
"""
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    said = subprocess.run([python, "-c", program], capture_output=True, text=True, env=env, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    left_out = set(found["zero"]) - set(ours.ZeroOptimization.model_fields)
    assert left_out == {
        "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "elastic_checkpoint", "legacy_stage1",
        "stage3_gather_fp16_weights_on_model_save", "zenflow",
    }  # fmt: skip
    assert set(ours.ZeroOptimization.model_fields) <= set(found["zero"])
    assert set(ours.OffloadParam.model_fields) == set(found["param"])
    assert set(ours.OffloadOptimizer.model_fields) == set(found["optimizer"])
    assert {*ours.DeepSpeedConfig.model_fields, *ours.REFUSED} <= set(found["words"])
