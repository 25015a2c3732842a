"""A rank that does one step of a tiny model by each method and prints what lies in its memory then, in bytes.

torchrun --nproc-per-node 2 resident_rank.py SETTINGS METHOD…, where SETTINGS is JSON: the config of a Llama. All of the
methods are DeepSpeed's (zero…) or none is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
import transformers

_hf: Any = transformers


def held(tensors: Any) -> int:
    """Bytes of their storages, each once."""
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(stores.values())


def local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def moments(optimizer: Any) -> list[Any]:
    return [local(t) for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]


def by_torch(method: str, model: Any, tokens: Any) -> dict[str, int]:
    """DDP and FSDP2."""
    if method.endswith("fsdp2"):
        from torch.distributed.fsdp import fully_shard

        for layer in model.get_submodule("model.layers" if method == "fsdp2" else "base_model.model.model.layers"):
            fully_shard(layer)
        fully_shard(model)
        wrapped = model
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    wrapped(input_ids=tokens, labels=tokens).loss.backward()
    gradients = held(local(p.grad) for p in trained)
    optimizer.step()
    weights = held(local(p) for p in model.parameters())
    return {"weights": weights, "gradients": gradients, "optimizer": held(moments(optimizer))}


def by_deepspeed(stage: int, low: bool, model: Any, tokens: Any) -> dict[str, int]:
    import deepspeed  # type: ignore[import-not-found, unused-ignore]

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sizes = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 0}
    config = {
        "train_micro_batch_size_per_gpu": len(tokens),
        "zero_optimization": {"stage": stage, **sizes},
        "bf16": {"enabled": low},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-3), config=config)
    inner, whole = engine.optimizer, list[int]()
    if stage == 1:  # whole until they are reduced, all at once
        reduced = inner.reduce_gradients

        def reduce(**more: Any) -> Any:
            whole.append(held(p.grad for p in model.parameters()))
            return reduced(**more)

        inner.reduce_gradients = reduce
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    if stage == 3:
        weights = held(p.ds_tensor for p in model.parameters())
        gradients = held([inner.grad_partitions_flat_buffer])
        master = inner.fp32_partitioned_groups_flat
    else:
        weights = held(model.parameters())
        parts = [t for group in inner.averaged_gradients.values() for t in group if t is not None]
        # Not their storages: of a parameter that two ranks share each has the whole gradient, and uses its part.
        gradients = whole[0] if stage == 1 else sum(part.nbytes for part in parts)
        master = inner.single_partition_of_fp32_groups
    engine.step()
    return {"weights": weights, "gradients": gradients, "optimizer": held([*master, *moments(inner.optimizer)])}


def measured(method: str, settings: dict[str, Any]) -> dict[str, int]:
    torch.manual_seed(0)
    model = _hf.AutoModelForCausalLM.from_config(_hf.LlamaConfig(**settings), dtype=torch.float32)
    model.config.use_cache = False
    tokens = torch.randint(0, settings["vocab_size"], (2, 16))
    if method.startswith("zero"):
        return by_deepspeed(int(method[4]), method.endswith("-bf16"), model, tokens)
    if method.startswith("lora"):
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
    return by_torch(method, model, tokens)


def main() -> None:
    settings, methods = json.loads(sys.argv[1]), sys.argv[2:]
    if methods[0].startswith("zero"):
        import deepspeed  # type: ignore[import-not-found, unused-ignore]

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first, for minutes
        deepspeed.init_distributed("gloo")
    else:
        dist.init_process_group("gloo")
    for method in methods:
        print("HELD " + json.dumps({"method": method, **measured(method, settings)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
