"""What the config files of other programs say of memory and time, and how a person reads it."""

from __future__ import annotations

from nexa_dist.plan.fit.method import (
    METHODS,
    Adapter,
    Buckets,
    Method,
    of_accelerate,
    of_axolotl,
    of_deepspeed,
    work_of_axolotl,
)
from nexa_dist.verbs import _arguments


def test_accelerate() -> None:
    asked = of_accelerate(
        {
            "distributed_type": "FSDP",
            "mixed_precision": "bf16",
            "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True, "fsdp_activation_checkpointing": True},
        }
    )
    assert asked == Method("acc", "fsdp2", checkpointing=True, optimizer_at="cpu", weights_at="cpu")
    assert of_accelerate({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}).checkpointing is False
    assert of_accelerate({"distributed_type": "MULTI_GPU"}).sharding == "ddp"
    whole = of_accelerate({"fsdp_config": {"fsdp_reshard_after_forward": False}})
    assert whole.keeps_gathered and not asked.keeps_gathered
    inner = {"zero_stage": 3, "offload_optimizer_device": "nvme", "offload_param_device": "none"}
    asked = of_accelerate({"distributed_type": "DEEPSPEED", "deepspeed_config": inner})
    assert (asked.backend, asked.sharding, asked.optimizer_at, asked.weights_at) == ("acc", "zero3", "nvme", "")


def test_deepspeed() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"},
            "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": 5e6}  # fmt: skip
    asked = of_deepspeed({"zero_optimization": zero, "bf16": {"enabled": True}})
    assert (asked.sharding, asked.weights, asked.optimizer_at, asked.weights_at) == ("zero3", "bf16", "cpu", "nvme")
    assert asked.buckets == Buckets(None, 5_000_000, 100_000)
    assert of_deepspeed({"zero_optimization": {"stage": 2, "overlap_comm": True}}).buckets.overlap
    strange = of_deepspeed(
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "reduce_bucket_size": -1}}
    )
    assert (strange.sharding, strange.weights, strange.weights_at) == ("zero2", "fp32", "")
    assert strange.buckets.reduce == 500_000_000
    assert of_deepspeed({}).sharding == "ddp"
    assert of_deepspeed({"zero_optimization": "no mapping"}).sharding == "ddp"


def test_axolotl() -> None:
    lora = {"adapter": "lora", "lora_r": 32, "lora_target_modules": ["q_proj", "v_proj"], "bf16": "auto"}
    assert of_axolotl(lora) == Method("ax", weights="bf16", adapter=Adapter(32, ("q_proj", "v_proj")))
    four = of_axolotl({**lora, "adapter": "qlora", "lora_target_linear": True, "gradient_checkpointing": True})
    assert four == Method("ax", weights="nf4", adapter=Adapter(32), checkpointing=True)
    assert of_axolotl({"bf16": False}) == Method("ax")
    sharded = of_axolotl(lora, {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})
    assert (sharded.sharding, sharded.optimizer_at, sharded.weights) == ("zero3", "cpu", "bf16")
    fsdp = of_axolotl({**lora, "fsdp_version": 2, "fsdp_config": {"offload_params": True}})
    assert (fsdp.sharding, fsdp.weights_at) == ("fsdp2", "cpu")
    work = work_of_axolotl({"micro_batch_size": 2, "sequence_len": 4096, "gradient_accumulation_steps": 8}, four)
    assert (work.precision, work.tokens, work.windows) == ("bf16", 8192, 8)


def test_every_method_has_a_name_for_the_command_line_and_words() -> None:
    assert tuple(METHODS) == _arguments.METHODS
    assert METHODS["hf"].title == "backend hf, DDP"
    assert METHODS["ds-cpu"].title == "backend ds, ZeRO-3, optimizer and parameters in CPU"
    assert METHODS["ax-qlora"].title == "backend ax, DDP, QLoRA of rank 16, checkpointing"
