"""DeepSpeed and FSDP under Axolotl: every rank saves its part, by the Trainer's own saving. Never run on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_dist.train.backends.parallel import InShards


class Parted(InShards):
    """Into a folder `checkpoint-STEP` of a checkpoint that all nodes seal together."""

    def save(self, made: Any, *, last: bool) -> None:
        def fill(folder: Path) -> None:
            output, made.args.output_dir = made.args.output_dir, str(folder)
            try:
                type(made)._save_checkpoint(made, made.model, None)
            finally:
                made.args.output_dir = output

        with self.saving(last=last):
            self._keeper.save(made.state.global_step, fill)

    def resume(self, made: Any, folder: Path) -> None:
        """The Trainer has loaded all that it saved."""
