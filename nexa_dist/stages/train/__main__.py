"""A training by hand: `python -m nexa_dist.stages.train --config train.yaml [--input NAME=A] --output B`."""

from __future__ import annotations

from nexa_dist.stages.entry import run_main

if __name__ == "__main__":
    run_main("train")
