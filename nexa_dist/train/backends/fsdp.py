"""FSDP2 by torch's own `fully_shard`: a model spread over all ranks, and the proof that it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nexa_dist.config.backend_files.accelerate import FsdpConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import control
from nexa_dist.train.backends import hf_state


def spread(model: Any, asked: FsdpConfig, precision: str) -> None:
    """Make each parameter a DTensor of which a rank holds its part; `precision` is fp32 or bf16. The weights are those
    of rank 0, wherever the model of another rank is on the meta device.

    With bf16 the parameters are gathered and used in bfloat16, and the gradients summed in float32 into float32 parts:
    summed in bfloat16, as accelerate does it, they lose digits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda, half = device.type == "cuda", precision == "bf16"
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy(pin_memory=cuda) if asked.fsdp_offload_params else OffloadPolicy(),
    }
    weights, count = model.state_dict() if dist.get_rank() == 0 else {}, model.num_parameters()
    for unit in _units(model, asked):
        fully_shard(unit, reshard_after_forward=asked.fsdp_reshard_after_forward, **options)
    fully_shard(model, **options)  # what is left: embeddings, the last norm, the head
    if model.num_parameters() != count:
        raise NexaError(
            f"sharding the modules that fsdp_config names makes {model.num_parameters()} parameters of {count}",
            hint="a module by itself must not share a parameter with another, as a tied head does: name other classes",
        )
    if asked.fsdp_activation_checkpointing:
        model.activation_checkpointing_enable()
    if asked.fsdp_cpu_ram_efficient_loading:
        if any(part.is_meta for part in model.parameters()):
            model.to_empty(device="cpu" if asked.fsdp_offload_params else device)
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for buffer in model.buffers():  # which no state dict need have
            sent = buffer.to(device)
            dist.broadcast(sent, 0)
            buffer.copy_(sent)


def _units(model: nn.Module, asked: FsdpConfig) -> list[nn.Module]:
    """The modules that are gathered and given up again each by itself, the innermost first."""
    inside = [module for module in model.modules() if module is not model][::-1]
    if asked.fsdp_auto_wrap_policy == "SIZE_BASED_WRAP":
        return [
            module
            for module in inside
            if sum(part.numel() for part in module.parameters()) > asked.fsdp_min_num_params
            and type(module).forward is not nn.Module.forward  # a list of layers is never called
            and not _shares(module, model)
        ]
    if asked.fsdp_auto_wrap_policy == "NO_WRAP":
        return []
    named = [word.strip() for word in (asked.fsdp_transformer_layer_cls_to_wrap or "").split(",") if word.strip()]
    wanted: set[str] = {*named} or {*(getattr(model, "_no_split_modules", None) or ())}
    there = {type(module).__name__ for module in inside}
    if missing := sorted(wanted - there) or ([] if wanted else ["no class"]):
        raise NexaError(
            f"fsdp_transformer_layer_cls_to_wrap: {type(model).__name__} has no module of class {', '.join(missing)}",
            hint=f"it has {', '.join(sorted(name for name in there if name.endswith(('Layer', 'Block'))))}",
        )
    return [module for module in inside if type(module).__name__ in wanted]


def _shares(module: nn.Module, model: nn.Module) -> bool:
    """Whether it has a parameter together with a module outside of it, as a head that is tied to the embedding."""
    everywhere = Counter(id(part) for _, part in model.named_parameters(remove_duplicate=False))
    inside = Counter(id(part) for _, part in module.named_parameters(remove_duplicate=False))
    return any(everywhere[part] > count for part, count in inside.items())


def local_parameters(model: nn.Module) -> list[int]:
    """How many parameters each rank holds, in rank order. Raises NexaError on every rank unless together they hold
    each parameter once, in parts that differ by a row of each at most."""
    parts = list(model.parameters())
    whole = [name for name, part in model.named_parameters() if not isinstance(part, DTensor)]
    plain = "" if isinstance(model, FSDPModule) else f"a {type(model).__name__} without FSDP2"
    wrong = plain or (f"parameter {whole[0]} whole on each rank" if whole else "")
    mine = sum(part.to_local().numel() for part in parts if isinstance(part, DTensor))
    told = control.gather((wrong, mine))
    counts = [count for _, count in told]
    total, row = sum(part.numel() for part in parts), sum(part.numel() // max(len(part), 1) for part in parts)
    if not any(words for words, _ in told) and (
        sum(counts) != total or max(counts) > total / len(counts) + row * (len(counts) > 1)
    ):
        told = [(f"{counts} of {total} parameters", 0)]
    for words, _ in told:
        if words:
            raise NexaError(f"the model is not sharded over the {len(counts)} ranks: it became {words}")
    return counts


def give_up(model: nn.Module) -> None:
    """Shard again what an evaluation gathered and no backward pass gave up: the optimizer knows DTensors alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def learned(model: nn.Module) -> dict[str, Any]:
    """This rank's parts of the weights that are learned."""
    return hf_state.learned(model, get_model_state_dict(model))


def whole_model(model: nn.Module) -> dict[str, Any]:
    """Every weight, gathered one after the other into the CPU memory of rank 0; empty on the others."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
