"""A small training that fails as it is told: `train.py FAULT`. capture.py runs it on two nodes to get the logs.

The rank named by CULPRIT (default 1) does it at step 3; the others train on and see what follows from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

FAULT = sys.argv[1]
RANK = int(os.environ.get("RANK", "0"))
CULPRIT = int(os.environ.get("CULPRIT", "1"))
EARLY: dict[str, Callable[[], Any]] = {}
AT_STEP: dict[str, Callable[[], Any]] = {}


def early(fault: Callable[[], Any]) -> Callable[[], Any]:
    """Before the process group is there."""
    EARLY[fault.__name__] = fault
    return fault


def at_step(fault: Callable[[], Any]) -> Callable[[], Any]:
    AT_STEP[fault.__name__] = fault
    return fault


# -- the user's own mistakes -----------------------------------------------------------------------------------


@at_step
def key_error() -> None:
    batch = {"input_ids": [1, 2, 3]}
    print(batch["labels"])


@at_step
def chained() -> None:
    try:
        key_error()
    except KeyError as error:
        raise ValueError("the batch of step 3 has no labels") from error


@early
def module_not_found() -> None:
    import flash_attn  # type: ignore[import-not-found]

    print(flash_attn)


@early
def cannot_import() -> None:
    from transformers import AutoModelForCausalLLM  # type: ignore[attr-defined]

    print(AutoModelForCausalLLM)


@early
def usage() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--lr", type=float, required=True)
    parser.parse_args([])


@early
def file_not_found() -> bytes:
    return Path("data/shard_0003.bin").read_bytes()


@early
def permission() -> None:
    os.setresuid(65534, 65534, 65534)
    Path("/mnt/durable/checkpoints").mkdir()


@early
def too_many_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(open(__file__))


@early
def exit_three() -> None:
    print("checking the config: bad", flush=True)
    sys.exit(3)


@at_step
def leaves_early() -> None:
    sys.exit(0)


@early
def no_wandb_login() -> None:
    import wandb

    wandb.init(project="demo")


@early
def no_model() -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained("/srv/models/mine")


@early
def no_tokenizer() -> None:
    from transformers import AutoTokenizer

    folder = Path("/mnt/shared/models/mine")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    AutoTokenizer.from_pretrained(folder)


@early
def no_dataset() -> None:
    from nexa_dist.config.trainer import DatasetConfig
    from nexa_dist.errors import NexaError
    from nexa_dist.train.text import corpus

    try:
        corpus.sources(DatasetConfig.model_construct(source="path", path="/srv/data/books"))
    except NexaError as error:
        stop(error)


@early
def hub() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(os.environ["MODEL"])


@at_step
def data_differs() -> None:
    import torch.distributed as dist

    from nexa_dist.errors import NexaError
    from nexa_dist.train import agree, control

    mine = "0f3a9c" if dist.get_rank() == 0 else "b77e01"
    try:
        agree.check_same("the prepared data", control.gather(mine), "prepare the same files on every node")
    except NexaError as error:
        stop(error)


def stop(error: Any) -> None:
    """As the trainer's own door does it."""
    print(f"error: {error}", file=sys.stderr)
    print(f"hint: {error.hint}", file=sys.stderr)
    sys.exit(1)


# -- memory, disk, processes -----------------------------------------------------------------------------------


@at_step
def host_memory() -> None:
    held = []
    while True:
        held.append(bytearray(64 << 20))


@at_step
def memory_error() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    print(len(bytearray(64 << 30)))


@at_step
def torch_memory() -> None:
    import torch

    print(torch.empty(1 << 50, dtype=torch.uint8).sum())


@at_step
def disk_full() -> None:
    with open("/mnt/full/metrics.jsonl", "wb", buffering=0) as file:
        while True:
            file.write(b"0" * 65536)


@at_step
def disk_full_save() -> None:
    import torch

    torch.save({"weights": torch.zeros(4 << 20)}, "/mnt/full/step_3.pt")


@at_step
def shared_memory() -> None:
    import torch
    from torch.utils.data import DataLoader

    data: Any = [torch.zeros(4 << 20) for _ in range(4)]
    for batch in DataLoader(data, batch_size=2, num_workers=1):
        print(batch.shape)


@at_step
def worker_killed() -> None:
    from torch.utils.data import DataLoader

    data: Any = Suicidal()
    for batch in DataLoader(data, num_workers=1):
        print(batch)


@at_step
def worker_raises() -> None:
    from torch.utils.data import DataLoader

    data: Any = Torn()
    for batch in DataLoader(data, num_workers=1):
        print(batch)


class Suicidal:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


class Torn(Suicidal):
    def __getitem__(self, index: int) -> int:
        return {"input_ids": index}["labels"]


@at_step
def segfault() -> None:
    ctypes.string_at(0)


@at_step
def bus_error() -> None:
    import mmap

    with open("/tmp/cache.bin", "wb+") as file:
        file.truncate(4096)
        view = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        print(view[0])


@at_step
def aborted() -> None:
    os.abort()


@at_step
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@at_step
def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


# -- torch -----------------------------------------------------------------------------------------------------


@at_step
def unused_parameters() -> None:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.used(x)

    model = DistributedDataParallel(Two())
    for _ in range(2):
        model(torch.zeros(2, 4)).sum().backward()


@early
def state_dict() -> None:
    import torch

    torch.nn.Linear(8, 8).load_state_dict(torch.nn.Linear(4, 8).state_dict())


@early
def torn_checkpoint() -> None:
    import torch

    path = Path("/tmp/step_20.pt")
    torch.save(torch.nn.Linear(64, 64).state_dict(), path)
    os.truncate(path, path.stat().st_size // 2)
    torch.load(path)


@early
def torn_safetensors() -> None:
    from safetensors.torch import load_file, save_file
    from torch import zeros

    save_file({"weight": zeros(64, 64)}, "/tmp/model.safetensors")
    os.truncate("/tmp/model.safetensors", 4096)
    load_file("/tmp/model.safetensors")


@early
def torn_own_checkpoint() -> None:
    from nexa_dist.errors import NexaError
    from nexa_dist.train import checkpoint

    folder = Path("/mnt/scratch/run/checkpoints/step_00000020")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"0")
    try:
        checkpoint.copy(folder, Path("/tmp/elsewhere"))
    except NexaError as error:
        stop(error)


@early
def no_cuda() -> None:
    import torch

    torch.zeros(1, device="cuda")


@at_step
def sizes_differ() -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(1000 + 500 * dist.get_rank()))


@at_step
def collectives_differ() -> None:
    import torch
    import torch.distributed as dist

    if dist.get_rank() == CULPRIT:
        dist.broadcast(torch.zeros(4), 0)
    else:
        dist.all_reduce(torch.zeros(4))


@at_step
def stuck() -> None:
    wait_for_batch()


def wait_for_batch() -> None:
    with socket.socket() as queue:
        queue.bind(("127.0.0.1", 0))
        queue.listen()
        queue.accept()


@at_step
def store_only() -> None:
    import torch.distributed as dist

    dist.distributed_c10d._get_default_store().get("never")


@at_step
def frozen() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@at_step
def waits_with_timeout() -> None:
    time.sleep(40)


BOTH = ("sharded_save", "data_differs", "store_only", "unused_parameters", "sizes_differ", "collectives_differ")
"""Faults in which every rank takes part."""


# -- the node and what the program starts --------------------------------------------------------------------------


@early
def own_port() -> None:
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    with socket.create_server(("127.0.0.1", 8000)):
        HTTPServer(("127.0.0.1", 8000), SimpleHTTPRequestHandler)


@early
def no_dns() -> None:
    import urllib.request

    urllib.request.urlretrieve("http://data.example.org/shard_0003.bin", "/tmp/shard_0003.bin")


@early
def nccl() -> None:
    import torch.distributed as dist

    dist.init_process_group("nccl")


@early
def more_than_weights() -> None:
    import torch

    torch.save({"settings": Suicidal()}, "/tmp/step_20.pt")
    torch.load("/tmp/step_20.pt")


@early
def pointer() -> None:
    import torch

    path = Path("/tmp/model.pt")
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1048576\n")
    torch.load(path)


@early
def no_compiler() -> None:
    from torch.utils.cpp_extension import load_inline

    os.environ["PATH"] = "/opt/venv/bin"
    load_inline("twice", "int twice(int x) { return 2 * x; }", functions=["twice"])


@early
def no_library() -> None:
    ctypes.CDLL("libcudart.so.11.0")


@early
def no_credentials() -> None:
    import boto3

    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client("s3").list_objects_v2(Bucket="data")


@at_step
def child_killed() -> None:
    import torch.multiprocessing

    torch.multiprocessing.spawn(killed_child, nprocs=1)


def killed_child(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@at_step
def child_lost() -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=sys.exit)
    child.start()
    theirs.close()
    print(mine.recv())


@at_step
def sharded_save() -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    class Torn(dcp.FileSystemWriter):
        def write_data(self, *_: Any) -> Any:
            raise RuntimeError("the writer has no more buffers")

    class Writer(dcp.FileSystemWriter):
        pass

    kind = Torn if RANK == CULPRIT else Writer
    dcp.save({"weight": torch.zeros(4)}, storage_writer=kind("/tmp/step_3"))


@at_step
def illegal_instruction() -> None:
    os.kill(os.getpid(), signal.SIGILL)


@at_step
def quota() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/mnt/durable/checkpoints/step_3")


@at_step
def stale() -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/mnt/shared/data/shard_0003.bin")


@at_step
def ring_broken() -> None:
    raise RuntimeError("ring-allreduce: the stream to worker 0 was dropped")


@at_step
def ring_late() -> None:
    raise RuntimeError("ring-allreduce: worker 0 did not answer within 30 s")


# -- what needs a GPU: torch's text, raised here ---------------------------------------------------------------


@at_step
def gpu() -> None:
    """Raises the class that torch raises, with the text in the file that TEXT names (see SOURCES.md)."""
    import torch

    kind, _, message = Path(os.environ["TEXT"]).read_text().partition("\n")
    printed, _, rest = message.partition("---\n")
    if rest or kind == "abort":
        print(printed, end="", file=sys.stderr, flush=True)
    if kind == "abort":
        os.abort()
    classes: dict[str, type[Exception]] = {
        "OutOfMemoryError": torch.OutOfMemoryError,
        "AcceleratorError": torch.AcceleratorError,
        "DistBackendError": torch.distributed.DistBackendError,
        "RuntimeError": RuntimeError,
        "ImportError": ImportError,
        "URLError": URLError,
    }
    raise classes[kind](rest or message)


# -- the training ----------------------------------------------------------------------------------------------


def main() -> None:
    if FAULT in EARLY and CULPRIT in (RANK, -1):
        EARLY[FAULT]()
    import torch
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=float(os.environ.get("GROUP_TIMEOUT_S", "60")))
    dist.init_process_group("gloo", timeout=timeout)
    for step in range(1, 7):
        loss = torch.ones(1) * 4 / step
        dist.all_reduce(loss)
        print(f"step {step} loss {'nan' if FAULT == 'nan_loss' else round(float(loss), 4)}", flush=True)
        report(step)
        if step == 3 and FAULT in AT_STEP and (RANK == CULPRIT or FAULT in BOTH or CULPRIT == -1):
            AT_STEP[FAULT]()
        time.sleep(float(os.environ.get("STEP_S", "0.05")))
    dist.destroy_process_group()


def report(step: int) -> None:
    with contextlib.suppress(ImportError):
        from nexa_dist.train import progress

        progress.report(step, 6)


if __name__ == "__main__":
    main()
