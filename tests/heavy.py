"""The environment heavy for tests that train with Axolotl: made as a node makes it, and kept in the shared cache."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from nexa_dist.ops import light
from nexa_dist.ops.providers.local import shared_folder
from nexa_dist.plan.environment import ours

ROOT = Path(__file__).parents[1]
UV_ENV = ROOT / "ansible" / "roles" / "uv_env" / "files"


def interpreter() -> Path:
    """Python of heavy, under the name that a local cluster gives it. 4.2 GB and minutes where it is not there yet."""
    lock, torch = (ROOT / "docker" / "lock" / "heavy.txt").read_text(), (ROOT / light.TORCH).read_text()
    asked, shared = ours("heavy", lock, ""), Path(shared_folder())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    env = shared / "envs" / asked.key(light.BACKEND, light.env_hash(python), torch)
    message: dict[str, Any] = {
        "env": str(env),
        "tools": str(shared),
        "cache": os.environ.get("UV_CACHE_DIR") or str(shared / "uv-cache"),
        "find_links": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or "",
        "backend": light.BACKEND,
        "uv": (UV_ENV / "uv.txt").read_text(),
        "torch": torch,
        "base": "",
        "kind": asked.kind,
        "what": asked.what,
        "files": asked.files,
        "extras": [],
        "freeze": [],
        "needs": [],
        "proof": asked.names,
        "index": {},
    }
    found = importlib.util.spec_from_file_location("make_env", UV_ENV / "make_env.py")
    assert found and found.loader
    make_env = importlib.util.module_from_spec(found)
    found.loader.exec_module(make_env)
    answer = make_env.main(message, lambda **_: None)
    assert "refused" not in answer, answer
    return env / "bin" / "python"


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
