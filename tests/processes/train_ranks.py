"""Trainings of a few ranks, forked from one interpreter that has imported what the launcher of hf does: that is most of
the time of a training as short as the tests' are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.ops.providers.local import free_port

REPO = Path(__file__).resolve().parents[2]
MODEL = {"vocab_size": 512, "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64}
DATASET = {"source": "path", "path": "text", "sequence_length": 32, "min_mb": 0}
_STAGE = """
import glob, json, os, signal, sys, time
from nexa_dist.config.backends import BACKENDS, resolve
from nexa_dist.train import launcher, progress

resolve(BACKENDS["hf"].train, BACKENDS["hf"].without)
import torch, transformers

def rank(number, asked):
    os.environ.update(asked["env"], RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(asked["ranks"]))
    told, stop_at = progress.report, asked["stop_at"]
    def report(step, *more, **named):
        time.sleep(asked["slow_s"] if number == asked["ranks"] - 1 else 0)
        told(step, *more, **named)
        if step == asked["kill_at"] and number == asked["ranks"] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == stop_at:
            open("%s/at_%d" % (os.environ["NEXA_RUN_DIR"], number), "w").close()
        while step == stop_at and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.01)
    progress.report = report
    exec(asked["first"], globals())
    return launcher.main(["--backend", asked["backend"], "--config", asked["config"], *asked["words"]])

def forked(act):
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = act()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, str):  # a model that is loaded leaves threads, so not here
        pid = forked(lambda: exec(asked, globals()) or 0)
        assert os.wait() == (pid, 0)
        continue
    pids = []
    for left in glob.glob(asked["env"]["NEXA_RUN_DIR"] + "/at_*"):
        os.unlink(left)
    for number in range(asked["ranks"]):
        pids.append(forked(lambda: rank(number, asked)))
    assert len(os.listdir("/proc/self/task")) == 1, "a warm interpreter would fork no rank"
    if asked["stop_at"]:
        until = time.monotonic() + 300
        while len(glob.glob(asked["env"]["NEXA_RUN_DIR"] + "/at_*")) < len(pids) and time.monotonic() < until:
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    codes, left = {}, len(pids)
    while left:
        pid, status = os.wait()
        left -= 1
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] not in (0, 143):  # as torchrun does: the others go when one has failed
            for other in pids:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    print(json.dumps([codes[pid] for pid in pids]), flush=True)
"""


@dataclass(frozen=True)
class Start:
    """One start of a training. All ranks get a SIGTERM at step `stop_at`, the last one a SIGKILL at `kill_at`."""

    name: str
    config: Mapping[str, Any]
    ranks: int = 2
    stop_at: int | None = None
    kill_at: int | None = None
    words: Sequence[str] = field(default=())
    """More arguments of the launcher."""
    slow_s: float = 0.0
    """Seconds that the last rank sleeps after every step."""
    first: str = ""
    """Python that each rank runs before it trains."""


def train(folder: Path, starts: Sequence[Start | str], then: str = "") -> tuple[list[list[int]], str]:
    """The exit codes of every rank of each start, one start after the other, and all that they printed. A training of
    the same name goes on from its own checkpoints, below `folder`/NAME. A string among them, and `then` in the end, is
    Python to run in a process where `torch` and `transformers` are imported already."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for source in Path(json.__file__).parent.glob("*.py"):
        (text / source.name).write_text(source.read_text())
    address = f"127.{1 + os.getpid() // 250 % 250}.{1 + os.getpid() % 250}.9"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
    env = {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MASTER_ADDR": address}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "NEXA_SHARED": str(folder / "shared")}
    lines = []
    for number, start in enumerate(starts):
        if isinstance(start, str):
            lines.append(json.dumps(start) + "\n")
            continue
        (folder / start.name).mkdir(exist_ok=True)
        (folder / f"{number}.json").write_text(json.dumps({"name": start.name, **start.config}))
        more = {
            "NEXA_RUN_DIR": str(folder / start.name),
            "MASTER_PORT": str(free_port("")),
        }  # torch listens on every address
        asked = {"env": more, "ranks": start.ranks, "stop_at": start.stop_at, "kill_at": start.kill_at}
        asked |= {"slow_s": start.slow_s, "first": start.first}
        asked |= {"backend": start.config["backend"], "config": f"{number}.json", "words": list(start.words)}
        lines.append(json.dumps(asked) + "\n")
    stage = subprocess.run(
        [sys.executable, "-c", _STAGE],
        cwd=folder, env=env, input="".join([*lines, json.dumps(then)]), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    codes = [json.loads(line) for line in stage.stdout.splitlines() if line.startswith("[")]
    return codes, stage.stdout + stage.stderr


def result(folder: Path, name: str) -> dict[str, Any]:
    """result.json of a training."""
    told: dict[str, Any] = json.loads((folder / name / "result.json").read_text())
    return told


def losses(folder: Path, name: str, step: int) -> dict[int, float]:
    """What the log of a checkpoint says of the loss, by step."""
    told = json.loads((folder / name / "checkpoints" / f"step_{step:08d}" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in told["log_history"] if "loss" in entry}
