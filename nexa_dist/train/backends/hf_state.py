"""What a checkpoint of backend hf holds: read off the trainer, written under transformers' names, taken up again.

With `copy`, the state goes to CPU memory by torch.distributed.checkpoint's own stager, and the files can be written
while training goes on. Its writer is not used: it makes one file a rank in a format that transformers cannot read.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from nexa_dist.train.env import RankEnv

RANKS = "nexa_ranks.json"


class Snapshot:
    """Takes the state of one trainer, on rank 0. At most one copy is held, so only one may be in use at a time."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._copies = trainer, Copies()

    def take(self, ranks: list[dict[str, Any]], *, copy: bool) -> Callable[[Path], None]:
        """What writes every file that a resume reads. `ranks` is `of_rank` of every rank, in rank order.

        Without `copy` it reads the live state, and training must wait for it.
        """
        trainer = self._trainer
        state = {
            "model": learned(trainer.model, trainer.model.state_dict()),
            "optimizer.pt": trainer.optimizer.state_dict(),
            "scheduler.pt": trainer.lr_scheduler.state_dict(),
        }
        if (scaler := getattr(trainer.accelerator, "scaler", None)) is not None:
            state["scaler.pt"] = scaler.state_dict()
        if copy:
            state = self._copies.of(state)
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
            (path / RANKS).write_text(json.dumps([{**entry, "rng": None} for entry in ranks]))

        return fill


class Copies:
    """Copies of a state in CPU memory; tied weights stay tied. Each uses the memory of the copy before again."""

    def __init__(self) -> None:
        self._stager: DefaultStager | None = None

    def of(self, state: dict[str, Any]) -> dict[str, Any]:
        if self._stager is None:
            cuda = torch.cuda.is_available()
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
                )
            )
        copied: Any = self._stager.stage(state)
        return dict(copied)


def learned(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """What is learned of the weights: of a model with adapters, those alone."""
    if not hasattr(model, "peft_config"):
        return weights
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in weights.items() if name in trained}


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


def resume(trainer: Any, ranks: Sequence[dict[str, Any]], env: RankEnv) -> bool:
    """Take up what transformers does not, this rank's running loss, before the first step of this process. `ranks` is
    what each rank saved; False where those were more or fewer ranks than now, and nothing was taken up."""
    if len(ranks) == env.world_size:
        take_up(trainer, ranks[env.rank])
    elif env.rank == 0:
        print(f"note: saved by {len(ranks)} ranks, so this is no bit-exact continuation", flush=True)
    return len(ranks) == env.world_size


def take_up(trainer: Any, mine: dict[str, Any]) -> None:
    """The running loss of `of_rank`."""
    trainer._tr_loss += mine["loss_sum"]
    trainer._total_loss_scalar = mine["loss_total"]
    trainer._globalstep_last_logged = mine["logged_step"]
