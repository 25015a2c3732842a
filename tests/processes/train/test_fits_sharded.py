"""What lies in the memory of each of two ranks, by every kind of sharding, is what a preflight says: to the byte."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.plan.fit.method import Adapter, Method, Work
from nexa_dist.plan.fit.model_shape import read
from nexa_dist.plan.fit.resident import resident
from tests import heavy

PROGRAM = Path(__file__).with_name("resident_rank.py")
SHAPE: dict[str, Any] = {"vocab_size": 323, "hidden_size": 60, "num_hidden_layers": 3, "num_attention_heads": 6,
                         "num_key_value_heads": 2, "intermediate_size": 101, "max_position_embeddings": 64,
                         "tie_word_embeddings": False}  # fmt: skip
"""With an odd vocabulary and width, so that parts are padded."""
LORA = Adapter(3, ("q_proj", "down_proj"))
BY_TORCH = {
    "ddp": Method(),
    "fsdp2": Method("acc", "fsdp2"),
    "lora": Method(adapter=LORA),
    "lora-fsdp2": Method("acc", "fsdp2", adapter=LORA),
}
BY_DEEPSPEED = {
    "zero1": Method("ds", "zero1"),
    "zero1-bf16": Method("ds", "zero1", "bf16"),
    "zero2": Method("ds", "zero2"),
    "zero2-bf16": Method("ds", "zero2", "bf16"),
    "zero3": Method("ds", "zero3"),
    "zero3-bf16": Method("ds", "zero3", "bf16"),
}


Held = dict[str, list[dict[str, int]]]
"""Bytes that each of two ranks held, by method."""


def measured(python: str, methods: Iterable[str]) -> Held:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM), json.dumps(SHAPE)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([python, *words, *methods], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: Held = {}
    for told in re.findall(r"HELD (\{[^}]*\})", done.stdout):  # lines of two may be one
        rank = json.loads(told)
        found.setdefault(rank.pop("method"), []).append(rank)
    return found


@pytest.fixture(scope="module")
def by_torch() -> Held:
    return measured(sys.executable, BY_TORCH)


@pytest.fixture(scope="module")
def by_deepspeed() -> Held:
    return measured(str(heavy.interpreter("ds")), BY_DEEPSPEED)


@pytest.mark.long("two ranks import transformers")
@pytest.mark.parametrize("name", BY_TORCH)
def test_torch_allocates_what_was_foretold(by_torch: Held, name: str) -> None:
    held_to(by_torch[name], BY_TORCH[name])


@pytest.mark.long("DeepSpeed is in no light environment")
@pytest.mark.parametrize("name", BY_DEEPSPEED)
def test_deepspeed_allocates_what_was_foretold(by_deepspeed: Held, name: str) -> None:
    held_to(by_deepspeed[name], BY_DEEPSPEED[name])


def held_to(ranks: list[dict[str, int]], method: Method) -> None:
    assert len(ranks) == 2
    foretold = resident(read({"model_type": "llama", **SHAPE}, ""), Work("fp32", 2, 2, 16, method))
    for part in ("weights", "gradients", "optimizer"):
        assert max(rank[part] for rank in ranks) == getattr(foretold, part), (part, ranks)
