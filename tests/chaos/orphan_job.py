"""The job of scripts/bench_orphans: one rank. `orphan_job.py FOLDER KIND` under any launcher, or `rank(FOLDER, KIND)`.

KIND: quiet (sleeps without a process group, as a rank stuck in an NCCL kernel looks to its launcher: peers notice
nothing) | comm (an all-reduce every 50 ms) | chatty (quiet, and prints 10 lines a second) | deaf (quiet, and ignores
SIGTERM).
FOLDER/ready_<rank> tells the pid; a file FOLDER/raise_<rank> makes that rank raise.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def rank(folder: str, kind: str) -> None:
    import torch
    import torch.distributed as dist

    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number, total = int(os.environ["RANK"]), torch.ones(1)
    if kind == "comm":
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        dist.all_reduce(total)
    path = os.path.join(folder, f"ready_{number}")
    with open(f"{path}.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.replace(f"{path}.tmp", path)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if os.path.exists(os.path.join(folder, f"raise_{number}")):
            raise RuntimeError(f"rank {number} was told to raise")
        if kind == "comm":
            dist.all_reduce(total)
            time.sleep(0.05)
        else:
            time.sleep(0.1)
        if kind == "chatty":
            print(f"a line of rank {number} at {time.time():.1f}", flush=True)


if __name__ == "__main__":
    rank(sys.argv[1], sys.argv[2])
