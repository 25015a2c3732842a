"""A rank of the standard library alone, for tests of what is around a training: it starts in a tenth of a second.

It takes part as configs/train/own_script.py does, by nexa_dist.train: it reports each step, rank 0 saves every
`--save-every` steps, goes on from the newest checkpoint, writes result.json, and SIGTERM ends it with a checkpoint
and 143. Without `--save-every` it knows of no checkpoint. What it "learns" is a chain of hashes, the same however
often it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nexa_dist.train import agree, progress
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper

EXIT_STOPPED = 128 + signal.SIGTERM


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--together", type=Path, help="folder that all ranks see: no rank is a step ahead of another")
    parser.add_argument("--fail-at", type=int, default=0, help="step after which rank 1 raises")
    parser.add_argument("--fail-until", type=int, default=1, help="the last attempt in which it does")
    parser.add_argument("--hold", type=Path, help="file for which every rank waits in step 10")
    parser.add_argument("--until", type=Path, help="file with which the training ends, at whatever step")
    return parser.parse_args(argv)


class Rank:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.env = args, RankEnv.read("plain", os.environ)
        self.signal_at: float | None = None
        self.state = b""
        self.keeper = Keeper(self.env) if args.save_every and self.env.rank == 0 else None
        if args.save_every:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.signal_at = self.signal_at or time.monotonic()

    def first(self) -> int:
        """The step that was done already."""
        point = agree.start(self.env, [agree.local_step(replace(self.env, local_rank=0))])
        if point is None or not self.args.save_every:
            return 0
        self.state = (point[1] / "state").read_bytes()
        return point[0]

    def wait(self, holds: Callable[[], bool]) -> None:
        """Until then, or until the rank is to stop."""
        while self.signal_at is None and not holds():
            time.sleep(0.02)

    def together(self, step: int) -> None:
        folder = self.args.together / f"attempt_{self.env.attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step}_{self.env.rank}").touch()
        self.wait(lambda: len(list(folder.glob(f"{step}_*"))) == self.env.world_size)

    def save(self, step: int) -> None:
        def fill(folder: Path) -> None:
            (folder / "state").write_bytes(self.state)

        assert self.keeper
        self.keeper.save(step, fill)

    def step(self, step: int) -> None:
        args, env = self.args, self.env
        time.sleep(args.step_seconds)
        if args.hold and step == 10:
            self.wait(args.hold.exists)
        if args.together:
            self.together(step)
        self.state = hashlib.sha256(self.state + b"%d" % step).digest()
        progress.report(step, args.steps)
        if step == args.fail_at and env.attempt <= args.fail_until:
            if env.rank == 1:
                raise RuntimeError("fell over")
            time.sleep(600)  # the others know nothing of it, as in a collective
        if env.rank == 0:
            print(f"step {step}/{args.steps}", flush=True)
            if self.keeper and step % args.save_every == 0:
                self.save(step)

    def run(self) -> int:
        env, steps = self.env, self.args.steps
        first = self.first()
        if self.keeper:
            self.keeper.begin(first)
        print(f"attempt {env.attempt} rank {env.rank} on {os.environ.get('NEXA_NODE')} from step {first}", flush=True)
        progress.report(first, steps)
        for step in range(first + 1, steps + 1):
            self.step(step)
            if self.signal_at is not None:
                if self.keeper:
                    self.save(step)
                    print(self.keeper.stopped(step, self.signal_at), flush=True)
                return EXIT_STOPPED
            if self.args.until and self.args.until.exists():
                steps = step
                break
        if self.keeper:
            self.save(steps)
            print(self.keeper.finish(), flush=True)
            self.keeper.write_result({"checkpoint": self.keeper.describe(steps)})
        print(f"state {self.state.hex()}", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(Rank(parse(sys.argv[1:])).run())
