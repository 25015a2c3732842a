"""What DeepSpeed compiles on a node before it can train, once: nothing where ranks on CPUs offload to memory."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from nexa_dist.config.backend_files import deepspeed as deepspeed_json
from nexa_dist.config.backend_files.deepspeed import DeepSpeedConfig
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.train import data
from nexa_dist.train.env import RankEnv

LIBAIO = "it needs libaio and its headers, Debian's libaio-dev: apt: [libaio-dev]"


def prepare(config: TrainConfig, env: RankEnv) -> None:
    """Once a node: the data, and what DeepSpeed compiles for this JSON, which all ranks would do at the same time."""
    data.prepare(config, env)
    compile_all(deepspeed_json.read(config), env)


def choose_accelerator(env: RankEnv) -> None:
    """Before the first import of deepspeed: CUDA or CPU, and where compiled extensions lie (a home may be small, or
    somebody's own)."""
    import torch

    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    made_for = Path(sys.prefix).name  # of a node's environment the hash of all that is in it
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(env.shared / "torch_extensions" / made_for))
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of DeepSpeed's own calls, every step
    deepspeed = import_module("deepspeed")
    if not cuda:
        # It would be compiled for minutes when the ranks meet, and speeds up inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def needed(asked: DeepSpeedConfig, *, cuda: bool) -> list[str]:
    """DeepSpeed's names for the extensions that this file leads to."""
    offload = asked.zero_optimization.offload_optimizer
    names = ["AsyncIOBuilder"] if asked.nvme else []
    if asked.optimizer is not None and not asked.optimizer.params.get("torch_adam"):
        names.append("CPUAdamBuilder" if offload is not None and offload.device != "none" else "FusedAdamBuilder")
    elif cuda and offload is not None and offload.pin_memory:
        names.append("PinMemoryBuilder")
    return names


def link_libaio() -> None:
    """Load libaio where DeepSpeed's extension finds its names: built for a CPU it is linked without it."""
    try:
        ctypes.CDLL("libaio.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise NexaError(f"device: nvme needs libaio: {error}", hint=LIBAIO) from None


def compile_all(asked: DeepSpeedConfig, env: RankEnv) -> None:
    """Compile what is not there yet. Raises NexaError with what the node lacks."""
    if not needed(asked, cuda=True):  # and torch is not loaded to know it
        return
    choose_accelerator(env)
    names = needed(asked, cuda=os.environ["DS_ACCELERATOR"] == "cuda")
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".nexa-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):  # torch waits without end for one that a killed build left
            stale.unlink()
        for name in names:
            _compile(name)


def _compile(name: str) -> None:
    builder: Any = import_module("deepspeed.accelerator").get_accelerator().create_op_builder(name)
    print(f"DeepSpeed's {builder.name}: compiled once for this node, which takes some minutes", flush=True)
    disk = name == "AsyncIOBuilder"
    if disk:
        link_libaio()
    with contextlib.redirect_stdout(None):
        compatible = builder.is_compatible()
    if not compatible:
        words = f"DeepSpeed's {builder.name} cannot be compiled on this node"
        raise NexaError(words, hint=LIBAIO if disk else "it needs a compiler: apt: [g++]")
    try:
        builder.load(verbose=False)
    except (OSError, RuntimeError, ImportError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise NexaError(
            f"DeepSpeed's {builder.name} was not compiled: {said[-1][:300]}",
            hint="it needs g++ (apt: [g++]), and nvcc for what runs on GPUs",
        ) from None
