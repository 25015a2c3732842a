"""What trainer.async_save saves in step time: `python -m tests.bench.async_save [--rounds N]`.

One rank on CPU trains a small Llama and saves it, once waiting for the write and once not, in turns. Blocked is the
time that the save call took from the training loop; after is what the steps that followed took longer than usual
(the writer thread uses the same cores). The sum is what one checkpoint costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from nexa_dist.train.backends.hf_state import Snapshot
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper

_hf: Any = transformers


def trainer(layers: int) -> tuple[Any, Callable[[], None]]:
    """What a Snapshot reads of a trainer, and one optimizer step of it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = _hf.LlamaForCausalLM(_hf.LlamaConfig(vocab_size=2048, num_hidden_layers=layers, use_cache=False, **shape))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(2048, (2, 64))

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    made = SimpleNamespace(model=model, optimizer=optimizer, accelerator=None, state=transformers.TrainerState())
    made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    made.processing_class = SimpleNamespace(save_pretrained=lambda path: None)
    return made, step


def timed(action: Callable[[], object], times: int = 1) -> float:
    """Seconds that `times` calls took."""
    began = time.monotonic()
    for _ in range(times):
        action()
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.async_save")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8, help="0.8 M parameters each, with two moments of AdamW")
    parser.add_argument("--steps", type=int, default=20, help="between two saves")
    asked = parser.parse_args()
    _hf.logging.disable_progress_bar()
    what, step = trainer(asked.layers)
    timed(step, 3)
    ranks = [{"rng": b""}]
    with tempfile.TemporaryDirectory() as folder:
        keeper, snapshot = Keeper(RankEnv.read("bench", {"NEXA_RUN_DIR": folder})), Snapshot(what)
        size = sum(value.numel() for value in what.model.parameters()) * 12

        def waiting(number: int) -> None:
            keeper.save(number, snapshot.take(ranks, copy=False))

        def meanwhile(number: int) -> None:
            keeper.save_later(number, snapshot.take(ranks, copy=True))

        rows: dict[str, list[tuple[float, float]]] = {"save": [], "async_save": []}
        for number in range(2 * asked.rounds + 2):  # the first of each kind warms up: memory, page cache
            name, save = (("save", waiting), ("async_save", meanwhile))[number % 2]
            usual = timed(step, asked.steps)
            blocked = timed(lambda: save(number))  # noqa: B023 called at once
            after = timed(step, asked.steps) - usual
            keeper.finish()
            if number > 1:
                rows[name].append((blocked, after))
        whole = len(list(Path(folder).glob("checkpoints/step_*/manifest.json")))
    print(f"state {size / 1e6:.0f} MB, {asked.rounds} saves each, medians; {whole} whole checkpoints left")
    print(f"{'':12}{'blocked s':>10}{'after s':>10}{'sum s':>10}{'worst blocked s':>18}")
    for name, seconds in rows.items():
        blocked, after = (statistics.median(column) for column in zip(*seconds, strict=True))
        total, worst = statistics.median(map(sum, seconds)), max(row[0] for row in seconds)
        print(f"{name:12}{blocked:10.3f}{after:10.3f}{total:10.3f}{worst:18.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
