"""What a preflight says of a rank's memory, against what torch really allocates (on the CPU, tensor by tensor)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from nexa_dist.plan.fit.memory import Precision, Work, memory
from nexa_dist.plan.fit.model_shape import FAMILIES, read

WIDTH, FFN, VOCABULARY, BATCH, SEQUENCE = 256, 704, 512, 8, 128


@pytest.mark.long("16 families are imported and built")
def test_every_family_is_what_transformers_builds() -> None:
    import torch
    import transformers

    made: Any = transformers
    experts: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    }
    for family in FAMILIES:
        for tied in (True, False):
            whole = 8 if family in ("phi", "gpt_neox") else 2
            small: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0,
                                     "num_attention_heads": 8, "num_key_value_heads": whole, "intermediate_size": 96,
                                     "max_position_embeddings": 128}  # fmt: skip
            if family == "gpt2":
                small = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 128}
            if family in ("llama", "qwen3", "olmo2", "gemma"):
                small["attention_bias"] = tied
            settings = made.AutoConfig.for_model(family, **small, **experts.get(family, {}), tie_word_embeddings=tied)
            with torch.device("meta"):
                model = made.AutoModelForCausalLM.from_config(settings)
            assert read(settings.to_dict(), family).parameters == model.num_parameters(), (family, tied)


@pytest.mark.long("tensor by tensor, a step takes seconds")
@pytest.mark.parametrize(("precision", "kv_heads"), [("fp32", 8), ("bf16", 2)])
def test_a_step_takes_what_was_foretold(precision: Precision, kv_heads: int) -> None:
    import torch
    import transformers
    from torch.distributed._tools.mem_tracker import MemTracker

    made: Any = transformers
    config = made.LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=8,
                              num_key_value_heads=kv_heads, intermediate_size=FFN,
                              max_position_embeddings=SEQUENCE, tie_word_embeddings=True)  # fmt: skip
    model = made.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE))
    foretold = memory(read(config.to_dict(), ""), Work(precision, 1, BATCH, SEQUENCE))
    tracker: Any = MemTracker()
    tracker.track_external(model, optimizer)
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with tracker:
        with low:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        of_step = _parts(tracker, "peak")
        assert sum(p.grad.nbytes for p in model.parameters()) == foretold.gradients
        optimizer.step()
    assert of_step["Parameter"] == foretold.weights
    activations = of_step["Activation"] + of_step["Temp"]
    assert activations == pytest.approx(foretold.activations + foretold.logits, rel=0.15)
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert sum(moment.nbytes for moment in moments) == foretold.optimizer


def _parts(tracker: Any, which: str) -> dict[str, int]:
    """Bytes by kind on the CPU."""
    found = next(parts for device, parts in tracker.get_tracker_snapshot(which).items() if device.type == "cpu")
    return {str(getattr(kind, "value", kind)): size for kind, size in found.items()}
