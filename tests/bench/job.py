"""The smallest training: meet, add once, leave. `job.py FOLDER [fault]` writes when the sum was there.

With `fault` the last rank of attempt 1 fails as soon as every node holds an interpreter for the next attempt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def rank(folder: str, mode: str = "") -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():  # torchrunx has made the group already
        dist.init_process_group("gloo")
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == dist.get_world_size()
    attempt = os.environ.get("NEXA_ATTEMPT", "1")
    Path(folder, f"sum.{attempt}.{dist.get_rank()}").write_text(repr(time.time()))
    if mode == "fault" and attempt == "1":
        fail_when_warm(Path(folder), dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def fail_when_warm(folder: Path, number: int, world: int) -> None:
    """Rank 1 has a step to show, since restarts that make no progress are limited."""
    Path(os.environ["NEXA_PROGRESS"]).write_bytes(json.dumps({"step": 1, "of": None}).encode().ljust(512))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        warm = Path(os.environ["NEXA_RUN_DIR"], "warm.json")
        if warm.exists() and json.loads(warm.read_text()).get("ready_s") is not None:
            (folder / f"warm.{number}").touch()
        if number == world - 1 and len(list(folder.glob("warm.*"))) == world:
            (folder / "fault").write_text(repr(time.time()))
            sys.exit("the fault of this bench")
        time.sleep(0.02)
    sys.exit("no warm interpreter within a minute")


if __name__ == "__main__":
    rank(*sys.argv[1:])
