"""What Axolotl gets on a node: the user's file, what the run owns of it, and what a CPU cannot do."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.train.env import RankEnv, placed

# Fused LoRA kernels are CUDA's alone. Half precision is not "auto" here: that means fp16, which a CPU trains badly.
FOR_CPU = {
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
    "bf16": False,
    "fp16": False,
    "tf32": False,
}
_WITH_PATHS = ("base_model", "tokenizer_config", "datasets", "test_datasets")
"""Keys whose texts may begin with $NEXA_DATA/."""
FILES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".arrow")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Data:
    """`sha256` is of every local file of the data sets and of the tokenizer; names on a hub count as names."""

    path: str
    sha256: str
    bytes: int


def data(config: TrainConfig) -> Data:
    """What the user's file trains on. Read from the working folder, where its paths begin."""
    settings = _settings(config)
    sets = [row for key in ("datasets", "test_datasets") for row in settings.get(key) or () if isinstance(row, dict)]
    places = [str(place) for row in sets for place in _listed(row.get("data_files") or row.get("path"))]
    tokenizer = settings.get("tokenizer_config") or settings.get("base_model") or ""
    digest, size = hashlib.sha256(), 0
    for place in places:
        if place.endswith(FILES) and "://" not in place and not Path(place).exists():
            raise UsageError(
                f"{config.config}: {place} is not there, in {Path.cwd()}",
                hint="files: sends what git leaves out; paths begin in the project's folder",
            )
        for file in _files(Path(place)):
            with open(file, "rb") as content:
                size += file.stat().st_size
                digest.update(f"{file}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
        digest.update(place.encode() + b"\0")
    for file in _files(Path(tokenizer)) if tokenizer and Path(tokenizer).is_dir() else ():
        if not file.name.endswith(WEIGHTS):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return Data(", ".join(places), digest.hexdigest(), size)


def axolotl(module: str) -> Any:
    """A module of Axolotl's, which is in the environment heavy alone."""
    gc.disable()  # as in launcher.py: two of ten seconds
    found = import_module(f"axolotl.{module}")
    gc.freeze()
    gc.enable()
    return found


def load(config: TrainConfig, env: RankEnv, *, prepares: bool = False) -> Any:
    """Axolotl's own config object. Raises UsageError where Axolotl refuses the file."""
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # it would report runs to its makers, and wait 10 s to say so
    cpu = not torch.cuda.is_available()
    if cpu:
        # Without the second torch saves for cpu:0 and cannot load it again.
        os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
        _spread_on_cpu()
    if prepares:
        os.environ["AXOLOTL_IS_PREPROCESS"] = "1"
    given = _settings(config)
    if cpu and parts(config) == "FSDP" and given.get("fsdp_version") != 2:
        raise UsageError(f"{config.config}: without a GPU there is no FSDP1", hint="write fsdp_version: 2")
    owned = {
        **{name: value for name, value in given.items() if name in _WITH_PATHS},
        "strict": False,  # or it would not take the rest
        "output_dir": str(env.run_dir / "model"),
        "dataset_prepared_path": str(env.shared / "data" / data(config).sha256[:16]),
        "resume_from_checkpoint": None,
        "auto_resume_from_checkpoints": False,
        "use_wandb": False,  # the run's own tracker does that, under the run's name
        "is_preprocess": prepares,
        **(FOR_CPU if cpu else {}),
    }
    try:
        cfg = axolotl("cli.config").load_cfg(config.config, **owned)
    except ValidationError as error:
        faults = [": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors(include_input=False)]
        raise UsageError(f"{config.config}: Axolotl refuses it: {'; '.join(faults)}") from None
    except ValueError as error:
        raise UsageError(f"{config.config}: Axolotl refuses it: {error}") from None
    if cpu:
        cfg.device_map = None  # else it names the CPU by the number of the rank, as if it were a GPU
    return cfg


def parts(config: TrainConfig) -> str:
    """By what the user's file spreads a model: ZeRO or FSDP; empty: by nothing, each rank has all of it."""
    given = _settings(config)
    return "ZeRO" if given.get("deepspeed") else "FSDP" if given.get("fsdp_config") or given.get("fsdp") else ""


def _spread_on_cpu() -> None:
    """Let Accelerate spread a model over ranks on CPUs as over those on GPUs. It makes DDP of FSDP2 and of DeepSpeed
    there, and says nothing, though either library does it."""
    states: Any = import_module("accelerate.state")
    begin, shared = states.AcceleratorState.__init__, states.PartialState._shared_state
    if begin.__module__ == __name__:
        return

    def as_on_gpus(self: Any, *args: Any, **named: Any) -> None:
        spreads = named.get("deepspeed_plugin") or named.get("fsdp_plugin")
        if spreads and not shared:
            states.PartialState(cpu=True)
        if not spreads or shared["distributed_type"] != states.DistributedType.MULTI_CPU:
            begin(self, *args, **named)
            return
        shared["distributed_type"] = states.DistributedType.MULTI_GPU  # from which it goes on to FSDP or DEEPSPEED
        told = os.environ.pop("ACCELERATE_USE_CPU")
        try:
            begin(self, *args, **named)
        finally:
            os.environ["ACCELERATE_USE_CPU"] = told

    states.AcceleratorState.__init__ = as_on_gpus
    meshes = import_module("accelerate.parallelism_config").ParallelismConfig
    build = meshes.build_device_mesh
    meshes.build_device_mesh = lambda self, _cuda: build(self, "cpu")  # Axolotl names CUDA whatever is there


def _settings(config: TrainConfig) -> dict[str, Any]:
    try:
        with open(str(config.config), encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{config.config}: {error}", hint="config: is a path in the project") from None
    return placed(found, os.environ) if isinstance(found, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(path for path in place.rglob("*") if path.is_file())
    elif place.is_file():
        yield place
