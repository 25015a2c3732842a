"""DeepSpeed and FSDP2 under Axolotl: every rank saves its part, by the Trainer's own saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.train.backends import hf_state
from nexa_dist.train.backends.parallel import InShards
from nexa_dist.train.env import RankEnv


class Parted(InShards):
    """Into a folder `checkpoint-STEP` of a checkpoint that all nodes seal together."""

    def __init__(self, env: RankEnv, kind: str) -> None:
        super().__init__(env)
        self._kind = kind

    def start(self, env: RankEnv) -> tuple[int, Path] | None:
        point = super().start(env)
        ranks = len(list(point[1].glob("checkpoint-*/rng_state*.pth"))) if point else 0
        if point and ranks != env.world_size and self._kind == "ZeRO":
            raise NexaError(
                f"step {point[0]} is of {ranks} ranks with DeepSpeed under Axolotl, and {env.world_size} are to go on",
                hint=f"resume with {ranks} ranks; under fsdp_config, and with backend: ds, any number goes on",
            )
        return point

    def save(self, made: Any, *, last: bool) -> None:
        with self.saving(last=last):
            self.keeper.save(made.state.global_step, lambda folder: self._fill(made, folder))

    def _fill(self, made: Any, folder: Path) -> None:
        """What fails in DeepSpeed's part, a collective, is raised behind it."""
        output, made.args.output_dir = made.args.output_dir, str(folder)
        errors = made.model_wrapped.checkpoint_engine.nexa_errors if self._kind == "ZeRO" else []
        errors.clear()
        try:
            type(made)._save_checkpoint(made, made.model, None)
        finally:
            made.args.output_dir = output
        if errors:
            raise errors[0]
        entry = {**hf_state.of_rank(made), "rng": None}  # which the Trainer saved
        (_own(folder, made.state.global_step) / f"nexa_rank_{self._env.rank:05d}.json").write_text(json.dumps(entry))

    def resume(self, made: Any, folder: Path) -> None:
        """The running loss: the Trainer has loaded the rest."""
        ranks = sorted(_own(folder, made.state.global_step).glob("nexa_rank_*.json"))
        hf_state.resume(made, [json.loads(path.read_text()) for path in ranks], self._env)


def _own(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"
