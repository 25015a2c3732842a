"""DeepSpeed's engine, asked: what it made of the model, and its checkpoints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from nexa_dist.errors import NexaError
from nexa_dist.train import control

WORKERS = 2


def describe(engine: Any, asked: Mapping[str, Any], whole: int) -> dict[str, Any]:
    """Stage, where each part lies, and how much of it each rank has, in elements: `local_parameters` as the forward
    pass finds them before it gathers others, `local_optimizer` float32 weights that this rank updates, with two moments
    each. `whole` is the size of the model. Raises NexaError where it is not what was asked for."""
    if not isinstance(engine, import_module("deepspeed").DeepSpeedEngine):
        raise NexaError(f"DeepSpeed was asked for, but the model is a bare {type(engine).__name__}")
    stage = engine.zero_optimization_stage()
    found = {"stage": stage}
    wanted: dict[str, Any] = {"stage": asked["stage"]}
    for name, part in (
        ("offload_param", engine.zero_offload_param()),
        ("offload_optimizer", engine.zero_offload_optimizer()),
    ):
        found[name] = str(getattr(part.device, "value", part.device)) if part is not None else "none"
        wanted[name] = asked.get(name, {}).get("device", "none")
    if found != wanted:
        raise NexaError(f"DeepSpeed made {found} of {wanted}", hint="its version may not know a key of the file")
    counts = {"local_parameters": _parameters(engine, stage), "local_optimizer": _optimizer(engine, stage)}
    each = control.gather(counts)
    held = {name: [row[name] for row in each] for name in counts}
    spread = held["local_parameters" if stage == 3 else "local_optimizer"]
    if len(spread) > 1 and max(spread) >= whole:
        raise NexaError(f"ZeRO-{stage} was asked for, and a rank holds all {whole} elements: {spread}")
    return {**found, **held}


def _parameters(engine: Any, stage: int) -> int:
    parts = list(engine.module.parameters())
    return sum(part.ds_tensor.ds_numel if stage == 3 else part.numel() for part in parts)


def _optimizer(engine: Any, stage: int) -> int:
    if stage == 3:
        return int(sum(engine.optimizer.fp16_partitioned_groups_flat_numel))
    return sum(part.numel() for part in engine.optimizer.single_partition_of_fp32_groups)


def keep_errors(engine: Any) -> None:
    """Let a file that cannot be written be raised by `save`: the other ranks wait in DeepSpeed's own barriers."""
    writer, errors = engine.checkpoint_engine, list[Exception]()
    write = writer.save

    def save(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as err:
            errors.append(err)

    writer.save, writer.nexa_errors = save, errors


def save(engine: Any, folder: Path, step: int) -> None:
    """DeepSpeed's checkpoint. Raises OSError or RuntimeError on the rank that could not write."""
    errors, on_disk = engine.checkpoint_engine.nexa_errors, engine.zero_nvme_offload_optimizer()
    errors.clear()
    engine.zero_nvme_offload_optimizer = lambda: False  # it would copy in front of a barrier, and a disk may be full
    try:
        adapters = hasattr(engine.module, "peft_config")
        engine.save_checkpoint(str(folder), tag=f"global_step{step}", exclude_frozen_parameters=adapters)
    finally:
        del engine.zero_nvme_offload_optimizer
    if errors:
        raise errors[0]
    if on_disk:
        skip = shutil.ignore_patterns("*_gradient_*")
        shutil.copytree(
            engine.optimizer.optimizer_swapper.swap_folder, _swapped(engine, folder / f"global_step{step}"), ignore=skip
        )


def _swapped(engine: Any, saved: Path) -> Path:
    """Where DeepSpeed looks for the files of a rank whose optimizer lies on a disk."""
    return saved / "offloaded_tensors" / f"rank{engine.global_rank:0>2d}"


def take_up_disk(engine: Any, folder: Path) -> None:
    """After DeepSpeed took up an optimizer whose place is a disk: what it leaves out.

    DeepSpeed 0.19.8 copies the files and reads the float32 weights of them. It does not read the moments, which no
    optimizer has before its first step; nor, in the rank's own file, the step counters, the rates, and all of a group
    of less than 1 MiB, which never leaves the memory. Raises NexaError where the files are not those of this model.
    """
    zero, (saved,) = engine.optimizer, folder.glob("global_step*")
    told = torch.load(engine._get_zero_ckpt_name(str(folder), saved.name), weights_only=False)["optimizer_state_dict"]
    of_group, ours = told["optimizer_state_dict"], zero.optimizer
    zero.checkpoint_event_prologue()
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        if whole := told["fp32_flat_groups"][number].numel():
            flat.data.copy_(told["fp32_flat_groups"][number])
        size = zero.fp16_partitioned_groups_flat_numel[number]
        ours.state[flat] = {
            name: torch.empty(int(size)) if not whole and isinstance(part, torch.Tensor) and not part.numel() else part
            for name, part in of_group["state"][number].items()
        }  # an empty one gets a file, by its name
    for group, entry in zip(ours.param_groups, of_group["param_groups"], strict=True):
        group |= {name: value for name, value in entry.items() if name != "params"}
    zero.reset_swap_buffers()
    zero.checkpoint_event_epilogue()
    swapper = zero.optimizer_swapper
    asked = {Path(path).name for info in swapper.swap_params_info.values() for path in info.get_swap_paths()}
    if asked != (found := {path.name for path in _swapped(engine, saved).iterdir()}):
        raise NexaError(f"{saved}: its files of the optimizer are {sorted(found)}, of this model {sorted(asked)}")


def mend(engine: Any, weight_decay: Sequence[float]) -> None:
    """After a universal checkpoint of ZeRO-3 was loaded: DeepSpeed 0.19.8 gives all groups of parameters the weight
    decay of the first, and one step counter, which each of them then moves on."""
    for group, decay in zip(engine.optimizer.param_groups, weight_decay, strict=True):
        group["weight_decay"] = decay
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def universal(folder: Path, into: Path) -> None:
    """A checkpoint of any number of ranks as one that any other number loads, with the Trainer's files beside it.
    Raises NexaError with DeepSpeed's words."""
    (source,) = folder.glob("global_step*")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    argv = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    argv += ["--input_folder", str(source), "--output_folder", str(into / source.name)]
    argv += ["--num_extract_workers", str(WORKERS), "--num_merge_workers", str(WORKERS)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NexaError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300])
    (into / "latest_universal").write_text(source.name)
    for name in ("trainer_state.json", "scheduler.pt", "nexa_rank_0.json"):
        shutil.copyfile(folder / name, into / name)
