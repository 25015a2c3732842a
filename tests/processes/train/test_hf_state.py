"""A checkpoint written while training goes on holds the same bytes as one that training waited for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nexa_dist.errors import NexaError

if TYPE_CHECKING:
    import torch
    import transformers

    from nexa_dist.train.backends.hf_state import Snapshot
    from nexa_dist.train.backends.trainer_setup import steps_within

RANKS = [{"rng": b"0", "loss_sum": 0.5}, {"rng": b"1", "loss_sum": 0.25}]


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Seconds of imports for the worker that runs these tests, and not for every one that collects them."""
    import torch
    import transformers

    from nexa_dist.train.backends import hf_state, trainer_setup

    globals().update(
        torch=torch, transformers=transformers, steps_within=trainer_setup.steps_within, Snapshot=hf_state.Snapshot
    )


@pytest.fixture
def trainer() -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, tie_word_embeddings=True, **shape))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    made = SimpleNamespace(model=model, optimizer=optimizer, lr_scheduler=schedule, accelerator=SimpleNamespace())
    made.state = transformers.TrainerState(global_step=1)
    made.processing_class = SimpleNamespace(save_pretrained=lambda path: None)
    step(made)
    return made


def step(trainer: Any) -> None:
    tokens = torch.arange(32).reshape(2, 16)
    trainer.model(input_ids=tokens, labels=tokens).loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.lr_scheduler.step()
    trainer.state.global_step += 1


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_is_of_its_moment(trainer: Any, tmp_path: Path) -> None:
    for name in ("waited", "later", "again"):
        (tmp_path / name).mkdir()
    snapshot = Snapshot(trainer)
    snapshot.take(RANKS, copy=False)(tmp_path / "waited")
    write = snapshot.take(RANKS, copy=True)
    step(trainer)
    write(tmp_path / "later")
    waited = files(tmp_path / "waited")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state_1.pth"} <= set(waited)
    assert files(tmp_path / "later") == waited
    snapshot.take(RANKS, copy=True)(tmp_path / "again")  # in the same memory
    again = files(tmp_path / "again")
    assert {name for name in waited if again[name] != waited[name]} == {
        *("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
    }


@pytest.mark.parametrize(("max_tokens", "steps"), [(10_000, 60), (640, 10), (703, 10), (64, 1)])
def test_as_many_steps_as_fit_into_max_tokens(max_tokens: int, steps: int) -> None:
    made = SimpleNamespace(max_tokens=max_tokens, trainer=SimpleNamespace(steps=60))
    assert steps_within(made, 64) == steps  # type: ignore[arg-type]


def test_less_than_a_step_is_refused() -> None:
    with pytest.raises(NexaError, match="max_tokens 63 is less than the 64 tokens of one step"):
        steps_within(SimpleNamespace(max_tokens=63, trainer=SimpleNamespace(steps=60)), 64)  # type: ignore[arg-type]
