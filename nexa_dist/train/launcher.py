"""One rank: `python -m nexa_dist.train.launcher --backend hf --config X [--set a.b=c] [--prepare]`.

torchrun starts it once a rank; `--prepare` runs once a node before that, and readies the data. It works alone
too: without `NEXA_*` the run folder is `./runs/<name>`, and a second time it goes on from the newest checkpoint.
Exit codes: 0 done, 1 failed, 2 bad usage or config, 143 stopped by SIGTERM after a checkpoint.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.backends import BACKENDS, hidden, resolve
from nexa_dist.config.load import load_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.train.env import RankEnv, placed


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except NexaError as err:
        print(f"error: {err}", file=sys.stderr)
        if err.hint:
            print(f"hint: {err.hint}", file=sys.stderr)
        return err.code


def _run(options: argparse.Namespace) -> int:
    config = load_train(options.config, options.overrides)
    if config.backend != options.backend:
        raise UsageError(
            f"{options.config}: backend is {config.backend or 'none'}, not {options.backend} as on the command line"
        )
    env = RankEnv.read(config.name, os.environ)
    config = _on_this_node(config)
    backend = BACKENDS[options.backend]
    if options.prepare:
        resolve(backend.prepare)(config, env)
        return 0
    with hidden(backend.without):
        gc.disable()  # next to nothing of what is imported is garbage, and looking for it takes a fifth of that time
        train = resolve(backend.train)
        gc.freeze()  # nor is it looked at again, as Accelerate does before it trains
        gc.enable()
        return int(train(config, env))


def _on_this_node(config: TrainConfig) -> TrainConfig:
    """The config with `$NEXA_DATA` of this node in the paths of its models and its text."""
    made: dict[str, Any] = {}
    for section, key in (("model", "path"), ("model", "tokenizer"), ("dataset", "path"), ("trainer", "kd_teacher")):
        if (one := made.get(section, getattr(config, section))) is not None:
            made[section] = one.model_copy(update={key: placed(getattr(one, key), os.environ)})
    return config.model_copy(update=made)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nexa_dist.train.launcher", description="One rank of a training.")
    parser.add_argument("--backend", required=True, choices=sorted(BACKENDS))
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="train.yaml")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override, a.b=c"
    )
    parser.add_argument("--prepare", action="store_true", help="ready the data on this node, then exit")
    return parser


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # torch's threads can abort an ordinary exit, and 143 would become 134
