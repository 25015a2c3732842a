"""Environments beside light, for tests: made as a node makes them, and kept where local nodes look for theirs."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.config.work import OwnEnvironment
from nexa_dist.ops import light
from nexa_dist.ops.providers.local import shared_folder
from nexa_dist.plan.environment import asked, ours

ROOT = Path(__file__).parents[1]
UV_ENV = ROOT / "ansible" / "roles" / "uv_env" / "files"


def interpreter(name: str = "heavy") -> Path:
    """Python of heavy (4.2 GB and minutes where it is not there yet), or of what `backend: ds` takes where train.yaml
    names no environment, under the name that a local cluster gives it."""
    lock, base, torch = ((ROOT / of).read_text() for of in ("docker/lock/heavy.txt", light.LOCK, light.TORCH))
    ask, below = ours("heavy", lock, ""), [torch]
    if name != "heavy":
        ask, below = asked(OwnEnvironment(packages=BACKENDS[name].packages), str), [base, torch]
    shared = Path(shared_folder())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    env = shared / "envs" / ask.key(light.BACKEND, light.env_hash(python), *below)
    message: dict[str, Any] = {
        "env": str(env),
        "tools": str(shared),
        "cache": os.environ.get("UV_CACHE_DIR") or str(shared / "uv-cache"),
        "find_links": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or "",
        "backend": light.BACKEND,
        "uv": (UV_ENV / "uv.txt").read_text(),
        "torch": torch,
        "base": base if ask.kind == "packages" else "",
        "kind": ask.kind,
        "what": ask.what,
        "files": ask.files,
        "top": next(iter(ask.files)),
        "extras": [],
        "freeze": [],
        "needs": BACKENDS[name].needs if name != "heavy" else [],
        "proof": ask.names,
        "index": {},
    }
    answer = runpy.run_path(str(UV_ENV / "make_env.py"))["main"](message, lambda **_: None)
    assert "refused" not in answer, answer
    return env / "bin" / "python"


def extensions(python: Path) -> Path:
    """Where ranks of a local cluster keep what DeepSpeed compiles for this environment."""
    return Path(shared_folder()) / "torch_extensions" / python.parents[1].name


def project(folder: Path) -> None:
    """What configs/train/axolotl.yaml trains: a tiny model with random weights, its tokenizer, rows of real text."""
    import pydoc_data.topics

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    for name in ("configs/axolotl/science_lora.yaml", "configs/train/axolotl.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    texts = {key: " ".join(text.split())[:300] for key, text in sorted(pydoc_data.topics.topics.items())[:60]}
    rows = [{"instruction": f"Explain {key} of Python.", "input": "", "output": text} for key, text in texts.items()]
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "science.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    words.train_from_iterator(texts.values(), trainer)
    named = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder / "model")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, **ids, max_position_embeddings=512)).save_pretrained(folder / "model")
