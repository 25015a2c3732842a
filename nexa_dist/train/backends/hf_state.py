"""What a checkpoint of backend hf holds: read off the trainer, written under transformers' names, taken up again.

With `copy`, the state goes to CPU memory by torch.distributed.checkpoint's own stager, and the files can be written
while training goes on. Its writer is not used: it makes one file a rank in a format that transformers cannot read.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

_RANKS = "nexa_ranks.json"


class Snapshot:
    """Takes the state of one trainer, on rank 0. At most one copy is held, so only one may be in use at a time."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._stager: DefaultStager | None = None

    def take(self, ranks: list[dict[str, Any]], *, copy: bool) -> Callable[[Path], None]:
        """What writes every file that a resume reads. `ranks` is `of_rank` of every rank, in rank order.

        Without `copy` it reads the live state, and training must wait for it.
        """
        trainer = self._trainer
        state = {
            "model": _weights(trainer.model),
            "optimizer.pt": trainer.optimizer.state_dict(),
            "scheduler.pt": trainer.lr_scheduler.state_dict(),
        }
        if (scaler := getattr(trainer.accelerator, "scaler", None)) is not None:
            state["scaler.pt"] = scaler.state_dict()
        if copy:
            state = self._copied(state)
        steps = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True) + "\n"

        def fill(path: Path) -> None:
            trainer.model.save_pretrained(path, state_dict=dict(state["model"]))
            trainer.processing_class.save_pretrained(path)
            for name in state.keys() - {"model"}:
                torch.save(state[name], path / name)
            (path / "trainer_state.json").write_text(steps, encoding="utf-8")
            for rank, entry in enumerate(ranks):
                name = "rng_state.pth" if len(ranks) == 1 else f"rng_state_{rank}.pth"
                (path / name).write_bytes(entry["rng"])
            (path / _RANKS).write_text(json.dumps([{**entry, "rng": None} for entry in ranks]))

        return fill

    def _copied(self, state: dict[str, Any]) -> dict[str, Any]:
        """In CPU memory; tied weights stay tied. The memory of the copy before is used again."""
        self._stager = self._stager or stager()
        copied: Any = self._stager.stage(state)
        return dict(copied)


def _weights(model: Any) -> Any:
    """What is learned: of a model with adapters, those alone."""
    if not hasattr(model, "peft_config"):
        return model.state_dict()
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in model.state_dict().items() if name in learned}


def stager() -> DefaultStager:
    """What copies a state to CPU memory, each time into the memory of the copy before."""
    cuda = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
        )
    )


def of_rank(trainer: Any) -> dict[str, Any]:
    """This rank's random state, and the loss that was added up since the last log line."""
    with tempfile.TemporaryDirectory() as folder:
        trainer._save_rng_state(folder)
        (file,) = Path(folder).iterdir()
        rng = file.read_bytes()
    return {
        "rng": rng,
        "loss_sum": trainer._tr_loss.item(),
        "loss_total": trainer._total_loss_scalar,
        "logged_step": trainer._globalstep_last_logged,
    }


def resume(trainer: Any, folder: Path) -> None:
    """Take up what transformers does not: this rank's running loss. Before the first step of this process."""
    ranks = json.loads((folder / _RANKS).read_text())
    if len(ranks) != trainer.env.world_size:
        if trainer.env.rank == 0:
            print(f"note: saved by {len(ranks)} ranks, so this is no bit-exact continuation", flush=True)
        return
    take_up(trainer, ranks[trainer.env.rank])


def take_up(trainer: Any, mine: dict[str, Any]) -> None:
    """The running loss of `of_rank`."""
    trainer._tr_loss += mine["loss_sum"]
    trainer._total_loss_scalar = mine["loss_total"]
    trainer._globalstep_last_logged = mine["logged_step"]
