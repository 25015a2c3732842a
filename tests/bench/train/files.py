"""What each way of scripts/bench_train is given: train.yaml and another program's own file, or the job by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ZERO2 = Path(__file__).resolve().parents[3] / "configs" / "deepspeed" / "zero2.json"
SEED = 3
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


@dataclass(frozen=True)
class Size:
    """The model and the batch; the shape is a Llama's, steps are optimizer steps."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    tokens: int
    batch: int
    text_mb: float
    warm: int
    until_save: int

    @property
    def steps(self) -> int:
        """With two more after the first save: the last save also writes the whole model, and is not the one that
        is measured."""
        return self.until_save + 2


CPU = Size(256, 4, 4, 704, 2048, 128, 4, text_mb=0.6, warm=3, until_save=15)
GPU = Size(1024, 16, 16, 2816, 4096, 1024, 8, text_mb=4.0, warm=5, until_save=30)


@dataclass(frozen=True)
class Files:
    """Written into `folder`, each time for so many steps."""

    folder: Path
    size: Size
    precision: str
    """fp32 or bf16."""

    def arguments(self, name: str, steps: int) -> list[str]:
        """Of nexa's launcher; writes the files that they name."""
        files = {"acc": "acc.yaml", "ds": "ds.json", "ax": "ax.yaml"}
        asked: dict[str, Any] = {"name": name, "backend": name}
        if name in files:
            asked["config"] = files[name]
            (self.folder / files[name]).write_text(json.dumps(self.config_of(name, steps)))
        if name != "ax":
            asked["model"] = {"path": str(self.folder / "model")}
            asked["dataset"] = {
                "source": "path",
                "path": str(self.folder / "text"),
                "sequence_length": self.size.tokens,
                "held_out": 0.1,
            }
            asked["trainer"] = {
                "steps": steps,
                "batch_size": self.size.batch,
                "learning_rate": LEARNING_RATE,
                "weight_decay": WEIGHT_DECAY,
                "precision": self.precision,
                "seed": SEED,
                "log_every": self.size.until_save,
                "save_every": self.size.until_save,
            }
        path = self.folder / f"{name}-train.yaml"
        path.write_text(json.dumps(asked))
        return ["--backend", name, "--config", str(path)]

    def config_of(self, name: str, steps: int) -> dict[str, Any]:
        """The other program's own file."""
        if name == "acc":
            sharded = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
            mixed = "bf16" if self.precision == "bf16" else "no"
            return {"distributed_type": "FSDP", "mixed_precision": mixed, "fsdp_config": sharded}
        if name == "ds":
            zero2: dict[str, Any] = json.loads(ZERO2.read_text())
            return zero2
        return {
            "base_model": "model",
            "datasets": [{"path": "windows.jsonl", "ds_type": "json", "type": None}],
            "val_set_size": 0,
            "sequence_len": self.size.tokens,
            "sample_packing": False,
            "dataset_num_proc": 1,
            "micro_batch_size": self.size.batch,
            "gradient_accumulation_steps": 1,
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "cosine",
            "optimizer": "adamw_torch_fused",
            "warmup_steps": 0,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": False,
            "bf16": "auto",
            "attn_implementation": "sdpa",
            "seed": SEED,
            "logging_steps": self.size.until_save,
            "save_steps": self.size.until_save,
        }

    def job(self, run: Path, steps: int) -> Path:
        """Of by_hand.py."""
        size = self.size
        asked = {
            "model": str(self.folder / "model"),
            "windows": str(self.folder / "windows.npy"),
            "folder": str(run),
            "steps": steps,
            "save_every": size.until_save,
            "batch_size": size.batch,
            "seed": SEED,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "precision": self.precision,
        }
        path = run / "job.json"
        path.write_text(json.dumps(asked))
        return path
