"""What lies where by which method: the formulas, by hand. tests/processes/train/test_fits*.py measure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.plan.aws import prices
from nexa_dist.plan.fit.disk import checkpoint_bytes, on_a_node
from nexa_dist.plan.fit.judge import GIB, instead, on, room, smallest
from nexa_dist.plan.fit.memory import memory
from nexa_dist.plan.fit.method import METHODS, Adapter, Method, Sharding, Work
from nexa_dist.plan.fit.model_shape import read
from nexa_dist.plan.fit.resident import nf4_bytes, resident
from nexa_dist.plan.fit.speed import flops_a_token
from nexa_dist.plan.fit.tiers import refusal, tier_of
from tests.unit.plan.fit.known_models import KNOWN

SEVEN = read(KNOWN["Llama-2-7B"][0], "")
SEVENTY = read({**KNOWN["Llama-3-70B"][0], "max_position_embeddings": 8192}, "")
COUNT = 6_738_415_616


def work(method: Method, ranks: int = 8) -> Work:
    return Work("bf16", ranks, 1, 2048, method)


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "optimizer"),
    [("ddp", 4, 4, 8), ("fsdp2", 4 / 8, 4 / 8, 8 / 8), ("zero1", 2, 2, 12 / 8), ("zero2", 2, 2 / 8, 12 / 8),
     ("zero3", 2 / 8, 2 / 8, 12 / 8)],
)  # fmt: skip
def test_bytes_a_parameter_are_those_of_the_papers(
    sharding: Sharding, weights: float, gradients: float, optimizer: float
) -> None:
    method = Method("x", sharding, "bf16" if sharding.startswith("zero") else "fp32")
    held = resident(SEVEN, work(method))
    assert held.weights == pytest.approx(weights * COUNT, rel=1e-4)
    assert held.gradients == pytest.approx(gradients * COUNT, rel=1e-4)
    assert held.optimizer == pytest.approx(optimizer * COUNT, rel=1e-4)


def test_lora_trains_a_few_and_four_bits_keep_the_rest() -> None:
    layer = 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    held = resident(SEVEN, work(METHODS["ax"]))
    assert held.trained == 32 * layer == 39_976_960
    assert held.weights == 2 * COUNT + 4 * held.trained
    assert (held.gradients, held.optimizer) == (4 * held.trained, 8 * held.trained)
    inside = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    packed = resident(SEVEN, work(METHODS["ax-qlora"])).weights - 4 * held.trained - 4 * (COUNT - inside)
    # QLoRA's section 3: 4 bits, and 0.127 of constants, a parameter; bitsandbytes' tables are 1092 bytes a matrix
    assert packed == pytest.approx(inside * 4.127 / 8, rel=1e-4) and nf4_bytes(64) == 32 + 1 + 4 + 1092
    with pytest.raises(UsageError, match="c_attn is none of a llama"):
        resident(SEVEN, work(Method(adapter=Adapter(8, ("c_attn",)))))


def test_what_is_offloaded_leaves_the_gpu_and_needs_a_host_or_a_disk() -> None:
    inside = memory(SEVEN, work(replace(METHODS["ds-cpu"], optimizer_at="", weights_at="")))
    cpu, nvme = (
        memory(SEVEN, work(METHODS["ds-cpu"])),
        memory(SEVEN, work(replace(METHODS["ds-cpu"], optimizer_at="nvme"))),
    )
    assert (cpu.weights, cpu.optimizer, cpu.gradients) == (0, 0, 0) and cpu.kv_cache == 0
    assert cpu.host == pytest.approx(COUNT / 8 * (2 + 12 + 4), rel=1e-4)
    assert inside.needed - cpu.needed > 0.9 * (inside.weights + inside.optimizer)
    assert (nvme.nvme, nvme.host) == (pytest.approx(COUNT / 8 * 16, rel=1e-4), pytest.approx(COUNT / 8 * 2, rel=1e-4))
    small = prices.book().types["g5.xlarge"]
    assert "GiB of a node's memory, and g5.xlarge has 16 GiB, of which 80% may be taken" in room(small, cpu)
    many = replace(small, gpus=4, memory_gib=2.0 * cpu.host / GIB)  # enough for each rank by itself
    assert "of a node's memory" in room(many, cpu) and room(replace(many, gpus=1), cpu) == ""


def test_the_peak_has_all_that_is_there_at_once() -> None:
    made = memory(SEVEN, work(METHODS["acc"]))
    steady = made.weights + made.optimizer + made.gathered
    assert made.gathered > 0 and made.peak >= steady + max(made.activations + made.logits, made.gradients)
    assert memory(SEVEN, work(replace(METHODS["acc"], keeps_gathered=True))).gathered > 5 * made.gathered
    assert memory(SEVEN, work(METHODS["ds"])).peak > memory(SEVEN, work(METHODS["ds"])).buckets > 0


def test_checkpointing_spares_memory_for_one_more_forward() -> None:
    whole, again = (work(replace(METHODS["hf"], checkpointing=on)) for on in (False, True))
    assert memory(SEVEN, again).activations < memory(SEVEN, whole).activations / 10
    assert flops_a_token(SEVEN, again) == pytest.approx(flops_a_token(SEVEN, whole) * 4 / 3, rel=0.02)
    adapter = work(Method(adapter=Adapter()))
    assert flops_a_token(SEVEN, adapter) == pytest.approx(flops_a_token(SEVEN, whole) * 2 / 3, rel=0.05)


def test_the_matrix_of_sizes_is_enforced() -> None:
    names = {name: tier_of(read(KNOWN[name][0], "")).methods[0] for name in KNOWN}
    assert (names["Llama-2-13B"], names["Qwen2.5-32B"], names["Falcon-40B"], names["Llama-2-70B"]) == (
        "hf", "ax", "acc", "ax-qlora",
    )  # fmt: skip
    assert "backend hf takes at most 15 B" in refusal(read(KNOWN["Yi-34B"][0], ""), Method(adapter=Adapter()))
    assert "DDP, which holds all of it" in refusal(read(KNOWN["Yi-34B"][0], ""), Method("ax"))
    assert "beyond 60 B only adapters" in refusal(SEVENTY, METHODS["ds"])
    assert [refusal(SEVENTY, METHODS[name]) for name in ("ax", "ax-fsdp", "ax-qlora")] == ["", "", ""]
    assert refusal(SEVEN, METHODS["hf"]) == ""


def test_the_smallest_clusters_are_sorted_by_what_they_cost() -> None:
    found = smallest(SEVENTY, work(METHODS["ax-fsdp"]), 1e6, "us-east-1")
    assert found and [fit.usd for fit in found] == sorted(fit.usd or 0 for fit in found)
    for fit in found:
        assert fit.fits and fit.memory.needed <= fit.type.gpu_memory_gib * 2**30
        fewer = on(fit.type, fit.nodes - 1, SEVENTY, work(METHODS["ax-fsdp"]), 1e6, 1.0) if fit.nodes > 1 else None
        assert fewer is None or not fewer.fits, "one node less would do"
    assert smallest(SEVENTY, work(METHODS["hf"]), 1e6, "us-east-1") == []
    others = instead(SEVENTY, work(METHODS["hf"]), 1e6, "us-east-1")
    assert {fit.work.method for fit in others} <= {METHODS["ax"], METHODS["ax-fsdp"], METHODS["ax-qlora"]} and others


def test_a_checkpoint_has_the_weights_and_the_moments() -> None:
    assert checkpoint_bytes(SEVEN, work(METHODS["hf"])) == 12 * COUNT
    assert checkpoint_bytes(SEVEN, work(METHODS["ds"])) == 14 * COUNT
    assert checkpoint_bytes(SEVEN, work(METHODS["ax"])) == 12 * 39_976_960
    assert on_a_node(SEVEN, work(METHODS["hf"]), 4, 2) == 3 * 12 * COUNT
    assert on_a_node(SEVEN, work(METHODS["ds"]), 4, 2) == 3 * 14 * COUNT // 2
