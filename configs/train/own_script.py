"""A training of your own under DDP: what to add to a script so that it survives a lost node. CPU or GPU, seconds a run.

    torchrun --nproc-per-node 2 configs/train/own_script.py --steps 60

A byte of text is told from the sixteen before it. On CPU a stopped and resumed run ends with the bits of an unbroken
one (same number of ranks), since step and rank alone decide what is read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import textwrap
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nexa_dist.errors import NexaError
from nexa_dist.train import agree, control, progress
from nexa_dist.train.control import StopSignal
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper

CONTEXT, BATCH = 16, 64


def build() -> nn.Module:
    torch.manual_seed(0)  # the same first weights on every rank
    return nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(CONTEXT * 16, 64), nn.Tanh(), nn.Linear(64, 256)
    )


def batch(text: torch.Tensor, step: int, env: RankEnv) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts (BATCH, CONTEXT) and the bytes that follow (BATCH,), int64."""
    chance = torch.Generator().manual_seed(step * env.world_size + env.rank)
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=chance)
    return text[starts + torch.arange(CONTEXT)], text[starts[:, 0] + CONTEXT]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--step-seconds", type=float, default=0.0, help="sleep after every step, for tests")
    args = parser.parse_args()

    env, stop = RankEnv.read("own", os.environ), StopSignal()
    control.join(env)
    source = Path(textwrap.__file__).read_bytes()
    agree.check_same("the text", control.gather(hashlib.sha256(source).hexdigest()), "the nodes' Pythons differ")
    device = torch.device("cuda", env.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    text = torch.tensor(list(source), device=device)
    model = build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    wrapped = DistributedDataParallel(model) if env.world_size > 1 else model

    def loss_of(step: int) -> torch.Tensor:
        context, after = batch(text, step, env)
        return nn.functional.cross_entropy(wrapped(context), after)

    control.settle_buckets(model, lambda: loss_of(0))
    point = agree.start(env, control.gather(agree.local_step(env)))  # the same step on every rank, or an error
    first = point[0] if point else 0
    if point:
        saved = torch.load(point[1] / "state.pt", map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    keeper = Keeper(env)  # rank 0 alone saves
    control.on_zero(lambda: keeper.begin(first))  # locks older attempts out
    if env.rank == 0:
        print(f"resuming from step {first}" if point else "starting fresh", flush=True)
    progress.report(first, args.steps)

    def fill(folder: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "state.pt")

    for step in range(first + 1, args.steps + 1):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        time.sleep(args.step_seconds)
        progress.report(step, args.steps, loss=loss.item(), learning_rate=optimizer.param_groups[0]["lr"])
        stopping = stop.agree() and step < args.steps
        if env.rank == 0:
            print(f"step {step}/{args.steps} loss {loss.item():.4f}", flush=True)
            if stopping or step == args.steps or step % args.save_every == 0:
                keeper.save(step, fill)
        if stopping:
            if env.rank == 0:
                print(keeper.stopped(step, stop.at or 0.0), flush=True)
            control.leave()  # together, after rank 0 has saved
            return control.EXIT_STOPPED
    if env.rank == 0:
        weights = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values()))
        if first >= args.steps and point:
            keeper.adopt(point[1])  # nothing was left to train, so nothing was saved here
        print(keeper.finish(), flush=True)
        keeper.write_result({"weights_sha256": weights.hexdigest(), "checkpoint": keeper.describe(args.steps)})
        print(f"weights {weights.hexdigest()}", flush=True)
    control.leave()
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except NexaError as err:
        print(f"error: {err}\nhint: {err.hint}", file=sys.stderr, flush=True)
        status = err.code
    sys.stdout.flush()
    os._exit(status)  # torch's threads can abort an ordinary exit, and 143 would become 134
