"""What a user writes for torchrun, a loop of torch's own: `torchrun -m tests.bench.train.by_hand JOB.json`.

The model is transformers' Llama, from the folder that all the others load; nothing else is of transformers. DDP, AdamW,
and the clipping, schedule and decay of the Trainer. A checkpoint is one torch.save of rank 0, neither hashed nor
fsynced.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from transformers import LlamaForCausalLM

from tests.bench.train.marks import Marks


def build(job: dict[str, Any], device: str) -> tuple[Any, Any, Any]:
    """The model, its optimizer and the schedule."""
    auto: Any = LlamaForCausalLM
    model = auto.from_pretrained(job["model"], dtype=torch.float32).to(device)
    model.config.use_cache = False
    decays = {True: list[Any](), False: list[Any]()}
    for part in model.parameters():
        decays[part.dim() > 1].append(part)
    groups = [
        {"params": decays[True], "weight_decay": job["weight_decay"]},
        {"params": decays[False], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=job["learning_rate"], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: 0.5 + 0.5 * math.cos(math.pi * at / job["steps"])
    )
    return model, optimizer, schedule


def batches(job: dict[str, Any], rank: int, world: int, from_step: int) -> Any:
    """Pairs of (step, input ids of shape (batch, tokens)), from the step after `from_step`."""
    rows: Any = torch.from_numpy(np.load(job["windows"]))
    sampler: Any = DistributedSampler(rows, world, rank, seed=job["seed"], drop_last=True)
    loader = DataLoader(rows, job["batch_size"], sampler=sampler, drop_last=True)
    step = 0
    for epoch in range(job["steps"]):
        sampler.set_epoch(epoch)
        for batch in loader:
            step += 1
            if step > from_step:
                yield step, batch


def main(job: dict[str, Any]) -> None:
    marks, rank, world = Marks(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    torch.manual_seed(job["seed"])
    model, optimizer, schedule = build(job, device)
    saved, begun = Path(job["folder"], "checkpoint.pt"), 0
    if saved.exists():
        state = torch.load(saved, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begun = state["step"]
    ddp = DistributedDataParallel(model, device_ids=[device] if gpu else None) if world > 1 else model
    ddp.train()
    total = torch.zeros((), device=device)
    for step, batch in batches(job, rank, world, begun):
        marks.begin()
        ids, labels = batch.to(device), batch.clone().to(device)
        labels[:, 0] = -100
        with torch.autocast("cuda", torch.bfloat16, enabled=job["precision"] == "bf16"):
            loss = ddp(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach()
        marks.stepped()
        if step in (1, job["save_every"]):
            dist.all_reduce(total)
            marks.loss(float(total) / world / (step - 1 or 1))
            total.zero_()
        if step % job["save_every"] == 0 or step == job["steps"]:
            marks.before_save()
            if rank == 0:
                parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
                torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, saved)
            dist.barrier()
            marks.after_save()
        if step == job["steps"]:
            break
    marks.write()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
