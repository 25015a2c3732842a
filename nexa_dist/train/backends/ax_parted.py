"""DeepSpeed and FSDP under Axolotl: every rank saves its part, by the Trainer's own saving. Never run on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.train.backends.parallel import Parallel
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded
from nexa_dist.train.shard_keeper import ShardKeeper


class Parted(Parallel):
    """Into a folder `checkpoint-STEP` of a checkpoint that all nodes seal together."""

    def __init__(self, env: RankEnv) -> None:
        self._keeper = ShardKeeper(env)

    def start(self, env: RankEnv) -> tuple[int, Path] | None:
        return self._keeper.start()

    def begin(self, step: int) -> None:
        self._keeper.begin(step)

    def save(self, made: Any, *, last: bool) -> None:
        def fill(folder: Path) -> None:
            output, made.args.output_dir = made.args.output_dir, str(folder)
            try:
                type(made)._save_checkpoint(made, made.model, None)
            finally:
                made.args.output_dir = output

        try:
            self._keeper.save(made.state.global_step, fill)
        except Superseded:
            raise
        except NexaError as error:
            if last:
                raise
            print(f"warning: {error}; training goes on", flush=True)

    def resume(self, made: Any, folder: Path) -> None:
        """The Trainer has loaded all that it saved."""

    def stopped(self, step: int, signal_at: float) -> None:
        self._keeper.stopped(step, signal_at)

    def finish(self, made: Any, resumed_from: Path | None) -> dict[str, Any]:
        return self._keeper.finish(made.state.global_step, resumed_from)

    def write_result(self, result: dict[str, Any]) -> None:
        self._keeper.write_result(result)
