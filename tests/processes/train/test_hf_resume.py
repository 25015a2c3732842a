"""Backend hf, stopped and resumed: the bits of an unbroken training. Two ranks, forked from one interpreter that has
torch and transformers imported, which is most of the time of a training as short as these. Then adapters are trained
beside its last checkpoint, on examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.ops.providers.local import free_port

REPO = Path(__file__).resolve().parents[3]
STEPS, STOP_AT = 24, 13
TINY: dict[str, Any] = {
    "name": "tiny",
    "backend": "hf",
    "model": {
        "vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "dropout": 0.1,
    },
    "dataset": {"source": "path", "path": "text", "sequence_length": 32, "min_mb": 0},
    "trainer": {"steps": STEPS, "batch_size": 2, "log_every": 5, "save_every": 8},
}  # fmt: skip
TUNED = {
    "name": "tuned",
    "backend": "hf",
    "model": {"path": "model", "lora": {"rank": 4, "dropout": 0.1}},
    "dataset": {"source": "examples", "path": "rows.jsonl", "sequence_length": 32, "held_out": 0.2},
    "trainer": {**TINY["trainer"], "learning_rate": 0.01},
}
STAGE = """
import glob, json, os, signal, sys, time
import torch, transformers.trainer
from nexa_dist.train import launcher, progress
from nexa_dist.train.backends import hf

def rank(number, settings, stop_at, config):
    os.environ.update(settings, RANK=str(number), LOCAL_RANK=str(number))
    told, slow = progress.report, float(settings.get("SLOW_%d" % number, 0))
    def report(step, *more, **named):
        time.sleep(slow)
        told(step, *more, **named)
        if step == stop_at:
            open("%s/at_%d" % (settings["NEXA_RUN_DIR"], number), "w").close()
        while step == stop_at and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.01)
    progress.report = report
    return launcher.main(["--backend", "hf", "--config", config])

for line in sys.stdin:
    settings, stop_at, config = json.loads(line)
    pids = []
    for number in range(int(settings["WORLD_SIZE"])):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = rank(number, settings, stop_at, config)
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    if stop_at:
        until = time.monotonic() + 300
        while len(glob.glob(settings["NEXA_RUN_DIR"] + "/at_*")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


class Stage:
    """One interpreter that forks two ranks for each training that it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        address = f"127.0.{1 + os.getpid() % 200}.9"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
        self._env = {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._env |= {"MASTER_ADDR": address, "GLOO_SOCKET_IFNAME": "lo", "NEXA_SHARED": str(folder / "shared")}
        self._address = address
        self._said = (folder / "said.txt").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", STAGE], cwd=folder, env=self._env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip

    def train(self, run: str, config: str, stop_at: int | None = None, ranks: int = 2, **more: str) -> str:
        """One attempt; returns what its ranks printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        (self.folder / run).mkdir(exist_ok=True)
        settings = {"NEXA_RUN_DIR": str(self.folder / run), "MASTER_PORT": str(free_port(self._address))}
        settings |= {"WORLD_SIZE": str(ranks), **more}
        self._process.stdin.write(json.dumps([settings, stop_at, config]) + "\n")
        self._process.stdin.flush()
        said = []
        for line in self._process.stdout:
            if line.startswith("["):
                break
            said.append(line)
        assert json.loads(line) == [143 if stop_at else 0] * ranks, "".join(said) + self.told()
        return "".join(said)

    def told(self) -> str:
        return Path(self._said.name).read_text()

    def end(self) -> None:
        self._process.communicate()
        self._said.close()

    def broken_and_unbroken(self, name: str) -> dict[str, Any]:
        """result.json of a training that one was equal to which was stopped and resumed, file by file."""
        env = {**self._env, "NEXA_RUN_DIR": str(self.folder / name)}
        prepare = [sys.executable, "-m", "nexa_dist.train.launcher", "--backend", "hf", "--config", f"{name}.json"]
        subprocess.run([*prepare, "--prepare"], cwd=self.folder, env=env, check=True, capture_output=True, timeout=600)
        self.train(f"{name}-unbroken", f"{name}.json")
        assert f"stopped by SIGTERM at step {STOP_AT}" in self.train(f"{name}-broken", f"{name}.json", STOP_AT)
        self.train(f"{name}-broken", f"{name}.json")
        assert self.final_files(f"{name}-broken") == self.final_files(f"{name}-unbroken")
        results = [self.folder / f"{name}-{how}" / "result.json" for how in ("unbroken", "broken")]
        first, second = (json.loads(path.read_text()) for path in results)
        assert first["eval_report"]["eval_loss_nats"] == second["eval_report"]["eval_loss_nats"]
        assert first["eval_report"]["train_loss_last"] < first["eval_report"]["train_loss_first"]
        return first

    def final_files(self, run: str) -> dict[str, str]:
        """SHA-256 of every file of the last checkpoint: weights, optimizer, scheduler, both ranks' random states."""
        told = json.loads((self.checkpoint(run) / "manifest.json").read_text())
        assert {"optimizer.pt", "rng_state_1.pth"} <= set(told["files"])
        return {name: entry["sha256"] for name, entry in told["files"].items()}

    def checkpoint(self, run: str) -> Path:
        return self.folder / run / "checkpoints" / f"step_{STEPS:08d}"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.end()


def test_stopped_and_resumed_is_unbroken_bit_for_bit_and_learns(stage: Stage) -> None:
    pytest.importorskip("transformers")
    folder = stage.folder
    (folder / "text").mkdir()
    for source in Path(json.__file__).parent.glob("*.py"):
        (folder / "text" / source.name).write_text(source.read_text())
    (folder / "tiny.json").write_text(json.dumps(TINY))
    stage.broken_and_unbroken("tiny")
    assert "model.safetensors" in stage.final_files("tiny-unbroken")

    (folder / "model").symlink_to(stage.checkpoint("tiny-unbroken"))
    lines = [line for file in (folder / "text").iterdir() for line in file.read_text().splitlines() if "(" in line]
    rows = [dict(zip(("prompt", "completion"), line.split("(", 1), strict=True)) for line in lines]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tuned.json").write_text(json.dumps(TUNED))
    result = stage.broken_and_unbroken("tuned")
    # rank 4 beside the seven linear layers of the one block: 4 × (in + out) each
    adapters = 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert result["eval_report"]["trainable_parameters"] == adapters
    assert result["eval_report"]["parameters"] > 10 * adapters
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(stage.final_files("tuned-unbroken"))
    size = (stage.checkpoint("tuned-unbroken") / "adapter_model.safetensors").stat().st_size
    assert 4 * adapters < size < 4 * adapters + 8192  # float32, and nothing of the model itself

    # Examples differ in length: two ranks with two each learn what one learns of the four.
    settings = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.0}))
    said = []
    for ranks in (1, 2):
        trainer = {**TUNED["trainer"], "steps": 3, "batch_size": 4 // ranks, "log_every": 1}
        plain = {**TUNED, "model": {"path": "model", "lora": {"rank": 4}}, "trainer": trainer}
        plain |= {"profile": {"steps": "2-3", "ranks": [1]}}
        (folder / f"plain{ranks}.json").write_text(json.dumps(plain))
        told = stage.train(f"plain{ranks}", f"plain{ranks}.json", ranks=ranks)
        said.append(re.findall(r"^step ./3 loss \S+|^held-out loss \S+", told, re.MULTILINE))
    assert said[0] == said[1]
    assert len(said[0]) == 4
    files = folder / "plain2" / "profile"
    assert sorted(path.name for path in files.iterdir()) == ["rank_1.trace.json.gz", "summary.json"]
    summary = json.loads((files / "summary.json").read_text())
    assert (summary["first_step"], summary["last_step"], len(summary["ranks"])) == (2, 3, 2)
    assert all(spent[part] > 0 for spent in summary["ranks"] for part in ("forward", "backward", "communication"))


@pytest.mark.long("it compares times")
def test_the_rank_that_the_others_wait_for_is_named(stage: Stage) -> None:
    folder = stage.folder
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("".join(f"line {number} of the text\n" for number in range(9000)))
    (folder / "text" / "b.txt").write_text("".join(f"{number} more lines\n" for number in range(9000)))
    trainer = {**TINY["trainer"], "steps": 6, "save_every": 6}
    dataset = {**TINY["dataset"], "held_out": 0.5}
    (folder / "t.json").write_text(
        json.dumps({**TINY, "dataset": dataset, "trainer": trainer, "profile": {"steps": "2-5"}})
    )
    told = stage.train("slow", "t.json", SLOW_1="1.5")
    assert re.search(r"rank 1 is the slowest by \S+ × the median; the others wait for it", told), told
