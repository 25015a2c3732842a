"""The ways of scripts/bench_train: one model, one text, and what each way is given to train on them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.ops.providers.local import shared_folder
from tests.bench.train import marks
from tests.bench.train.files import SEED, Files, Size

REPO = Path(__file__).resolve().parents[3]
HAND = "hand"
WAYS = (HAND, *BACKENDS)
LIMIT_S = 540.0


class Failed(Exception):
    """Ranks that did not end well, and what they said."""


def interpreter(name: str) -> str:
    """A Python with all that the backend needs, or an empty string: this one, the one that NEXA_TEST_DEEPSPEED names
    (ds), or one of the environments that nodes of the local provider made."""
    if name == HAND or all(importlib.util.find_spec(part) for part in BACKENDS[name].needs if part != "pyyaml"):
        return sys.executable
    if name == "ds" and (given := os.environ.get("NEXA_TEST_DEEPSPEED")):
        return given
    wanted = {"ds": BACKENDS["ds"].packages[0].replace("==", "-"), "ax": "axolotl-*"}.get(name)
    envs = Path(shared_folder(), "envs").glob(f"*/lib/python*/site-packages/{wanted}.dist-info")
    return next((str(path.parents[3] / "bin" / "python") for path in sorted(envs)), "") if wanted else ""


class Place:
    """A folder with the model, the text, and the files of every way."""

    def __init__(self, folder: Path, size: Size, pythons: dict[str, str], nproc: int, *, gpu: bool, end: float) -> None:
        self.folder, self.size, self.pythons, self.nproc = folder, size, pythons, nproc
        self.end = end
        """time.monotonic() at which ranks are ended."""
        self.files = Files(folder, size, "bf16" if gpu else "fp32")
        threads = str(max(1, (os.cpu_count() or 1) // nproc))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NEXA_")},
            "NEXA_SHARED": str(folder / "shared"),
            "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            marks.WARM: str(size.warm),
            **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        }

    def make(self) -> int:
        """The model with random weights, its tokenizer, the text and its windows. Returns the number of parameters."""
        texts = self._copy_text()
        parameters = self._make_model(texts)
        self.prepare("hf", sys.executable)
        import numpy as np

        made = json.loads((self.folder / "prepared-hf" / "dataset.json").read_text())
        tokens = np.load(Path(made["path"], "train.npy")).astype(np.int64)
        windows = tokens[: len(tokens) // self.size.tokens * self.size.tokens].reshape(-1, self.size.tokens)
        np.save(self.folder / "windows.npy", windows)
        with open(self.folder / "windows.jsonl", "w") as out:
            for ids in windows.tolist():
                row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]}
                out.write(json.dumps(row) + "\n")
        return parameters

    def _copy_text(self) -> list[str]:
        """Sources of the standard library, as much as the size asks, in files of 8 kB: some have to be held out."""
        (self.folder / "text").mkdir()
        whole, most = "", int(self.size.text_mb * 1e6)
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            if len(whole) < most:
                whole += path.read_text()
        texts = [whole[start : start + 8000] for start in range(0, most, 8000)]
        for number, text in enumerate(texts):
            (self.folder / "text" / f"{number:04d}.py").write_text(text)
        return texts

    def _make_model(self, texts: list[str]) -> int:
        import torch
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>", "<pad>"]
        trainer: Any = trainers.BpeTrainer
        words.train_from_iterator(
            texts,
            trainer(vocab_size=self.size.vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
        )
        hf: Any = transformers
        hf.logging.disable_progress_bar()
        named = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
        hf.PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(self.folder / "model")
        size = self.size
        torch.manual_seed(SEED)
        shape = hf.LlamaConfig(
            vocab_size=size.vocab, hidden_size=size.hidden, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.heads, intermediate_size=size.intermediate,
            max_position_embeddings=size.tokens, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        model = hf.LlamaForCausalLM(shape)
        model.save_pretrained(self.folder / "model")
        return int(model.num_parameters())

    def prepare(self, name: str, python: str) -> None:
        """Once a way, as a node does it: its data, and what it compiles. Raises Failed."""
        words = ["-m", "nexa_dist.train.launcher", *self.files.arguments(name, self.size.steps), "--prepare"]
        self._run([python, *words], self.folder / f"prepared-{name}")

    def train(self, name: str, run: Path, steps: int) -> tuple[float, list[dict[str, Any]]]:
        """All ranks, from the newest checkpoint of `run` to `steps`. Unix seconds of the start, and the marks of every
        rank. Raises Failed."""
        if name == HAND:
            words = ["-m", "tests.bench.train.by_hand", str(self.files.job(run, steps))]
        else:
            words = ["-m", "tests.bench.train.rank", *self.files.arguments(name, steps)]
            prepared = self.folder / f"prepared-{name}" / "dataset.json"
            if prepared.exists() and not (run / prepared.name).exists():
                shutil.copy(prepared, run)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.nproc)]
        for path in run.glob("marks.*.json"):
            path.unlink()
        began = self._run([self.pythons[name], *torchrun, *words], run)
        return began, [json.loads((run / f"marks.{rank}.json").read_text()) for rank in range(self.nproc)]

    def _run(self, argv: list[str], run: Path) -> float:
        """To its end. Returns the Unix seconds at which it began."""
        run.mkdir(exist_ok=True)
        env = {**self._environment, "NEXA_RUN_DIR": str(run), marks.FOLDER: str(run), "PYTHONPATH": str(REPO)}
        began = time.time()
        with open(run / "log", "w+") as log:
            child = subprocess.Popen(
                argv, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            limit_s = max(0.0, min(LIMIT_S, self.end - time.monotonic()))
            try:
                code = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise Failed(f"not over within {limit_s:.0f} s") from None
            finally:
                if child.poll() is None:
                    child.terminate()  # torchrun ends its ranks
                    child.wait()
            log.seek(0)
            if code:
                raise Failed(f"exit {code}: {log.read()[-3000:]}")
        return began
