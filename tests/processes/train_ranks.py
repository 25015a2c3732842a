"""Trainings of a few ranks, forked from an interpreter that has imported what they would, and stays for the next ones:
that is most of the time of a training as short as the tests' are."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.ops.providers.local import free_port
from tests import little_text

REPO = Path(__file__).resolve().parents[2]
MODEL = {"vocab_size": 512, "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64}
DATASET = {"source": "path", "path": "text", "sequence_length": 32, "min_mb": 0}
IMPORTED = ("torch", "transformers.models.llama.modeling_llama", "nexa_dist.train.backends.acc", "peft")
"""What ranks of hf and acc import before or while they train."""
ZERO = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
"""What DeepSpeed's ranks import, and any that Accelerate finds DeepSpeed beside: the compiler of torch among it."""
_STAGE = """
import gc, glob, importlib, json, os, signal, sys, time, traceback
gc.disable()
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # some packages print while they are imported
from nexa_dist.config.backends import hidden
from nexa_dist.node.oslib import die_with_parent
from nexa_dist.train import launcher, progress

imports, without, more = json.loads(sys.argv[1])
with hidden(without):
    for name in imports:
        importlib.import_module(name)
import torch, transformers
exec(more)
gc.freeze()
gc.enable()

def rank(number, asked):
    os.environ.update(asked["env"], RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(asked["ranks"]))
    told, stop_at = progress.report, asked["stop_at"]
    def report(step, *more, **named):
        time.sleep(asked["slow_s"] if number == asked["ranks"] - 1 else 0)
        told(step, *more, **named)
        if step == asked["kill_at"] and number == asked["ranks"] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == stop_at:
            open("%s/at_%d" % (asked["env"]["NEXA_RUN_DIR"], number), "w").close()
        while step == stop_at and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.01)
    progress.report = report
    exec(asked["first"], globals())
    code = launcher.main(["--backend", asked["backend"], "--config", asked["config"], *asked["words"]])
    assert not sys.modules.keys() & set(without), "Accelerate would have imported it before the first step"
    return code

def forked(folder, act):
    stage, pid = os.getpid(), os.fork()
    if pid == 0:
        code = 70
        try:
            die_with_parent(stage)
            os.chdir(folder)
            with open("said", "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            code = act()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid

def ended():
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)

for line in sys.stdin:
    folder, asked = json.loads(line)
    if isinstance(asked, str):  # a model that is loaded leaves threads, so not here
        pids = [forked(folder, lambda: exec(asked, globals()) or 0)]
        asked = {"stop_at": None}
    else:
        for left in glob.glob(asked["env"]["NEXA_RUN_DIR"] + "/at_*"):
            os.unlink(left)
        pids = [forked(folder, lambda: rank(number, asked)) for number in range(asked["ranks"])]
    # Axolotl's packages leave threads, which is why a warm interpreter has torch alone for it.
    assert not without or len(os.listdir("/proc/self/task")) == 1, "a warm interpreter would fork no rank"
    if asked["stop_at"]:
        until = time.monotonic() + 300
        while len(glob.glob(asked["env"]["NEXA_RUN_DIR"] + "/at_*")) < len(pids) and time.monotonic() < until:
            if ended():
                break
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL if asked["killed"] else signal.SIGTERM)
    codes = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] not in (0, 143):  # as torchrun does: the others go when one has failed
            for other in pids:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    print(json.dumps([codes[pid] for pid in pids]), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Start:
    """One start of a training. All ranks get a SIGTERM at step `stop_at`, or a SIGKILL where they are to be `killed`;
    the last one alone a SIGKILL at `kill_at`."""

    name: str
    config: Mapping[str, Any] | str
    """What train.yaml says, or the name of the file that says it."""
    ranks: int = 2
    stop_at: int | None = None
    kill_at: int | None = None
    killed: bool = False
    words: Sequence[str] = field(default=())
    """More arguments of the launcher."""
    slow_s: float = 0.0
    """Seconds that the last rank sleeps after every step."""
    first: str = ""
    """Python that each rank runs before it trains."""
    backend: str = ""
    """Where `config` does not say it."""


@dataclass(frozen=True)
class Ranks:
    """An interpreter that ranks are forked from: `python`, with these modules and variables."""

    python: str = sys.executable
    imports: tuple[str, ...] = IMPORTED
    without: tuple[str, ...] = BACKENDS["hf"].without
    env: tuple[tuple[str, str], ...] = ()
    more: str = ""
    """Python that it runs once when all is imported."""
    limit_s: float = 900.0
    """Seconds that a start may take."""

    def train(self, folder: Path, starts: Sequence[Start | str]) -> tuple[list[list[int]], str]:
        """The exit codes of every rank of each start, one start after the other, and all that they printed. A training
        of the same name goes on from its own checkpoints, below `folder`/NAME. A string among them is Python to run in
        a process where `torch` and `transformers` are imported already."""
        stage, codes = _begun(self), []
        said = folder / "said"
        before = said.stat().st_size if said.exists() else 0
        for number, start in enumerate(starts):
            asked = start if isinstance(start, str) else self._asked(folder, number, start)
            stage.ask([str(folder), asked])
            limit = threading.Timer(self.limit_s, stage.process.kill)
            limit.start()
            answer = stage.answer()
            limit.cancel()
            text = said.read_bytes()[before:].decode(errors="replace") if said.exists() else ""
            if not answer:
                _begun.cache_clear()
                raise AssertionError(f"the interpreter of the ranks has ended\n{text}")
            if isinstance(start, str):
                assert json.loads(answer) == [0], text
            else:
                codes.append(json.loads(answer))
        return codes, text

    @staticmethod
    def _asked(folder: Path, number: int, start: Start) -> dict[str, Any]:
        (folder / start.name).mkdir(exist_ok=True)
        config, backend = start.config, start.backend
        if not isinstance(config, str):
            backend = config["backend"]
            (folder / f"{number}.json").write_text(json.dumps({"name": start.name, **config}))
            config = f"{number}.json"
        env = {
            "NEXA_RUN_DIR": str(folder / start.name),
            "NEXA_SHARED": str(folder / "shared"),
            "NEXA_WORLD_SIZE": str(start.ranks),
            "MASTER_PORT": str(free_port("")),  # torch listens on every address
        }
        return {**vars(start), "env": env, "backend": backend, "config": config}


class _Stage:
    def __init__(self, ranks: Ranks) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
        address = f"127.{1 + os.getpid() // 250 % 250}.{1 + os.getpid() % 250}.9"
        env = {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": address, "GLOO_SOCKET_IFNAME": "lo", **dict(ranks.env)}
        words = json.dumps([ranks.imports, ranks.without, ranks.more])
        self.process = subprocess.Popen(
            [ranks.python, "-c", _STAGE, words], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.end)

    def ask(self, what: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


_begun = functools.cache(_Stage)


def train(folder: Path, starts: Sequence[Start | str], then: str = "") -> tuple[list[list[int]], str]:
    """`Ranks.train` of the backends hf and acc, on a little text, and `then` in the end."""
    little_text.write(folder / "text")
    return Ranks().train(folder, [*starts, then])


def result(folder: Path, name: str) -> dict[str, Any]:
    """result.json of a training."""
    told: dict[str, Any] = json.loads((folder / name / "result.json").read_text())
    return told


def losses(folder: Path, name: str, step: int) -> dict[int, float]:
    """What the log of a checkpoint says of the loss, by step."""
    told = json.loads((folder / name / "checkpoints" / f"step_{step:08d}" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in told["log_history"] if "loss" in entry}
