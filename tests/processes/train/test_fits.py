"""What a preflight says of a rank's memory, against what torch really allocates (on the CPU, tensor by tensor)."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.plan.fit.families import FAMILIES
from nexa_dist.plan.fit.memory import memory
from nexa_dist.plan.fit.method import ALL_LINEAR, Adapter, Method, Work
from nexa_dist.plan.fit.model_shape import read
from nexa_dist.plan.fit.resident import NF4_TABLES, nf4_bytes, resident
from tests.unit.plan.fit.known_models import KNOWN

WIDTH, FFN, VOCABULARY, BATCH, SEQUENCE, LAYERS = 256, 704, 512, 8, 128, 4
TWO = ("q_proj", "v_proj")


def small(family: str) -> dict[str, Any]:
    """A config of two layers of a family."""
    if family == "gpt2":
        return {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 128}
    more: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    }
    whole = 8 if family in ("phi", "gpt_neox") else 2
    return {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "num_attention_heads": 8,
            "num_key_value_heads": whole, "intermediate_size": 96, "max_position_embeddings": 128,
            **more.get(family, {})}  # fmt: skip


def test_a_large_model_is_refused_at_once_with_what_would_fit(tmp_path: Path) -> None:
    tmp_path.joinpath("config.json").write_text(
        json.dumps({**KNOWN["Llama-3-70B"][0], "max_position_embeddings": 8192})
    )
    tmp_path.joinpath("t.yaml").write_text(
        f"backend: hf\nmodel: {{path: {tmp_path}}}\ndataset: {{sequence_length: 4096}}\n"
        "trainer: {steps: 1000, batch_size: 1, precision: bf16}\n"
    )
    tmp_path.joinpath("c.yaml").write_text(
        "name: c\nprovider: aws\nregion: us-east-1\nowner: me\nnodes: 2\ngpus_per_node: 1\nmax_hours: 1\n"
        "offers: [{type: g5.xlarge}]\n"
    )
    code = (
        "import sys; from nexa_dist.cli import main; code = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    words = ["preflight", "t.yaml", "--cluster", "c.yaml", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    said = json.loads(done.stdout)
    assert said["refused"].startswith("the model has 70.6 B parameters, backend hf takes at most 15 B")
    assert [fit["usd"] for fit in said["instead"]] == sorted(fit["usd"] for fit in said["instead"]) != []
    assert all(fit["fits"] and "LoRA" in fit["method"] for fit in said["instead"])
    assert "hint: the cheapest that fits, for the same tokens:" in done.stderr and " USD, backend ax" in done.stderr


@pytest.mark.long("17 families are imported and built")
def test_every_family_has_the_tensors_that_transformers_builds() -> None:
    import torch
    import transformers

    made: Any = transformers
    for family in FAMILIES:
        for tied in (True, False):
            config = small(family)
            if family in ("llama", "qwen3", "olmo2", "gemma"):
                config["attention_bias"] = tied
            if family == "falcon" and not tied:
                config.update(new_decoder_architecture=False, bias=True)
            settings = made.AutoConfig.for_model(family, **config, tie_word_embeddings=tied)
            with torch.device("meta"):
                model = made.AutoModelForCausalLM.from_config(settings)
            shape = read(settings.to_dict(), family)
            assert shape.parameters == model.num_parameters(), (family, tied)
            ours = sorted(tensor.shape for tensor in shape.tensors for _ in range(tensor.copies))
            assert ours == sorted(tuple(p.shape) for p in model.parameters()), (family, tied)
            linear = {tensor.name for tensor in shape.tensors if tensor.kind == "linear"}
            kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
            theirs = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, kinds)}
            assert linear == theirs - {"lm_head", "embed_out"}, (family, tied)


@pytest.mark.long("tensor by tensor, a step takes seconds")
@pytest.mark.parametrize(
    ("precision", "kv_heads", "weights", "targets", "checkpointing"),
    [
        ("fp32", 8, "fp32", None, False),
        ("bf16", 2, "fp32", None, False),
        ("bf16", 2, "bf16", None, False),
        ("fp32", 8, "fp32", None, True),
        ("bf16", 2, "fp32", None, True),
        ("bf16", 2, "bf16", None, True),
        ("fp32", 8, "fp32", ALL_LINEAR, False),
        ("fp32", 8, "fp32", TWO, False),
        ("bf16", 8, "fp32", ALL_LINEAR, False),
        ("bf16", 8, "bf16", TWO, False),
        ("bf16", 8, "bf16", ALL_LINEAR, True),
    ],
)
def test_a_step_takes_what_was_foretold(
    precision: Any, kv_heads: int, weights: Any, targets: tuple[str, ...] | None, checkpointing: bool
) -> None:
    import torch
    import transformers

    made: Any = transformers
    config = made.LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8,
                              num_key_value_heads=kv_heads, intermediate_size=FFN,
                              max_position_embeddings=SEQUENCE, tie_word_embeddings=True)  # fmt: skip
    model = made.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if weights == "bf16" else torch.float32)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if targets:
        import peft

        modules = "all-linear" if targets == ALL_LINEAR else list(targets)
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=modules))
        if checkpointing:
            model.enable_input_require_grads()
    method = Method(weights=weights, adapter=Adapter(8, targets) if targets else None, checkpointing=checkpointing)
    foretold = memory(read(config.to_dict(), ""), Work(precision, 1, BATCH, SEQUENCE, method))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    tokens = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE))
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with Allocations([*model.parameters(), *model.buffers()]) as made_here:
        with low:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
    assert sum(p.grad.nbytes for p in trained) == foretold.gradients
    optimizer.step()
    assert sum(p.nbytes for p in model.parameters()) == foretold.weights
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert sum(moment.nbytes for moment in moments) == foretold.optimizer
    steady = foretold.weights + foretold.optimizer
    assert foretold.peak - steady == pytest.approx(made_here.peak, rel=0.15)


@pytest.mark.long("tensor by tensor, a step takes seconds")
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 16 * VOCABULARY])
def test_a_step_with_a_teacher_takes_what_was_foretold(vocabulary: int) -> None:
    import torch
    import transformers

    from nexa_dist.config.trainer import TrainerConfig
    from nexa_dist.train.kd.teacher import Distilled

    made: Any = transformers
    shape = {"vocab_size": vocabulary, "hidden_size": WIDTH, "num_attention_heads": 8, "num_key_value_heads": 8,
             "intermediate_size": FFN, "max_position_embeddings": SEQUENCE, "tie_word_embeddings": True}  # fmt: skip
    configs = [made.LlamaConfig(**shape, num_hidden_layers=layers) for layers in (LAYERS, 2 * LAYERS)]
    student, teacher = (made.AutoModelForCausalLM.from_config(config, dtype=torch.float32) for config in configs)
    distilled = Distilled(TrainerConfig(steps=1, use_kd=True), torch.device("cpu"))
    distilled.model = teacher.eval().requires_grad_(False)
    one, two = (read(config.to_dict(), "") for config in configs)
    foretold = memory(one, Work("fp32", 1, BATCH, SEQUENCE, teacher=two))
    assert sum(p.nbytes for p in teacher.parameters()) == 4 * two.parameters
    tokens = torch.randint(0, vocabulary, (BATCH, SEQUENCE))
    known = [part for model in (student, teacher) for part in (*model.parameters(), *model.buffers())]
    with Allocations(known) as made_here:
        outputs = student(
            input_ids=distilled.look({"input_ids": tokens, "labels": tokens})["input_ids"], use_cache=False
        )
        loss = distilled(outputs, tokens)
        del outputs
        loss.backward()
    steady = foretold.weights + foretold.optimizer + 4 * two.parameters
    assert foretold.peak - steady == pytest.approx(made_here.peak, rel=0.15)


@pytest.mark.long("bitsandbytes is of the heavy environment")
def test_four_bits_take_what_was_foretold() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed here")
    for rows, columns in ((256, 704), (101, 60), (4096, 1024)):
        packed, state = functional.quantize_4bit(torch.randn(rows, columns), quant_type="nf4", compress_statistics=True)
        parts = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        assert sum(part.nbytes for part in parts) == nf4_bytes(rows * columns)
        assert state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes == NF4_TABLES


@pytest.mark.long("bitsandbytes is of the heavy environment")
def test_qlora_takes_what_was_foretold(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")
    import peft
    import transformers

    made: Any = transformers
    config = made.LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=8,
                              num_key_value_heads=2, intermediate_size=FFN, max_position_embeddings=SEQUENCE,
                              tie_word_embeddings=False)  # fmt: skip
    made.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    four = made.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    model = made.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, device_map="cpu")
    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear"))
    parts = list(model.parameters())
    for state in [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]:
        parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    held = resident(read(config.to_dict(), ""), Work("bf16", 1, 1, 8, Method("ax", weights="nf4", adapter=Adapter(8))))
    assert sum(part.nbytes for part in parts) == held.weights
    assert sum(p.nbytes for p in model.parameters() if p.requires_grad) == held.gradients


class Allocations:
    """Counts the bytes of all storages that torch makes within it, while they live. `known` were there before."""

    def __init__(self, known: list[Any]) -> None:
        from torch import Tensor
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        count = self
        before = {tensor.untyped_storage()._cdata for tensor in known}
        seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = call(*args, **(kwargs or {}))
                for tensor in tree_leaves(out):
                    storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
                    if storage is not None and storage not in seen and storage._cdata not in before:
                        seen[storage] = storage.nbytes()
                        count.add(storage.nbytes())
                        weakref.finalize(storage, count.add, -storage.nbytes())
                return out

        self.now = self.peak = 0
        self._mode = Mode()

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def __enter__(self) -> Any:
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
