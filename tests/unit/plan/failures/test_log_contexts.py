"""The same words mean something else in another place; and words that were handled end nothing."""

from __future__ import annotations

import pytest

from nexa_dist.plan.failures import log_tail
from nexa_dist.plan.failures.known.signature import Exit, Tier
from nexa_dist.plan.failures.log_reading import read
from nexa_dist.plan.failures.table import BY_NAME

FAILED = Exit(10.0, 1, 0, 3)
HEAD = "step 3 loss 2.5\nTraceback (most recent call last):\n"
OWN = '  File "/mnt/scratch/r/work/train.py", line 45, in step\n    go()\n'
LIBRARY = '  File "/opt/venv/lib/python3.11/{}", line 88, in go\n    run()\n'
HUB = LIBRARY.format("site-packages/huggingface_hub/utils/_http.py")


def named(text: str, end: Exit | None = FAILED) -> str:
    found = read(text.encode(), end)
    return found.signature.name if found else ""


def raised(words: str, *frames: str) -> str:
    return HEAD + OWN + "".join(frames) + words + "\n"


SPAWN = LIBRARY.format("multiprocessing/spawn.py")
PIPE = LIBRARY.format("multiprocessing/connection.py")
GUARD = "An attempt has been made to start a new process before the\n        current process has finished its"
GUARD += " bootstrapping phase."
C10D = "The server socket has failed to listen on any local network address. port: 29500, code: -98, name: EADDRINUSE"
GAI = "The IPv4 network addresses of (head, 29500) cannot be retrieved (gai error: -2 - Name or service not known)."
CONTEXTS = {
    # the script's own port is not the rendezvous
    "port_taken": [
        raised("torch.distributed.DistNetworkError: " + C10D),
        raised("OSError: [Errno 98] Address already in use", LIBRARY.format("torch/distributed/elastic/a.py")),
    ],
    "port_of_program": [
        raised("OSError: [Errno 98] Address already in use"),
        raised("OSError: [Errno 98] error while attempting to bind on ('0.0.0.0', 8000): address already in use"),
        "INFO starting metrics\nERROR metrics: listen tcp :9090: bind: address already in use\n",
    ],
    # a missing guard is not memory
    "no_main_guard": [
        raised("RuntimeError: \n        " + GUARD, SPAWN),
        "Traceback (most recent call last):\n" + SPAWN + "RuntimeError: \n        " + GUARD + "\n"
        + raised("RuntimeError: DataLoader worker (pid(s) 4242) exited unexpectedly"),
    ],
    "dataloader_worker": [raised("RuntimeError: DataLoader worker (pid(s) 4242) exited unexpectedly")],
    # a download without DNS is not the nodes' names
    "name_not_resolvable": ["[W socket.cpp:755] [c10d] " + GAI + "\n" + raised(
        "DistNetworkError: The client socket has timed out after 8000ms while trying to connect to (h, 1)."
    )],
    "no_dns": [
        raised("urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"),
        raised("requests.exceptions.ConnectionError: NameResolutionError(\"Failed to resolve 'data.example.org'\")"),
        "wget: unable to resolve host address 'data.example.org'\n",
        "+ curl -O http://data.example.org/a.tar\ncurl: (6) Could not resolve host: data.example.org\n",
    ],
    # a pointer of git-lfs, an empty pipe and another setting of torch are no damage
    "lfs_pointer": [
        raised("_pickle.UnpicklingError: invalid load key, 'v'."),
        raised("_pickle.UnpicklingError: Weights only load failed. Please file an issue\n\nUnsupported operand 118\n"),
        raised("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
        raised("OSError: You seem to have cloned a repository without having git-lfs installed."),
    ],
    "checkpoint_damaged": [
        raised("_pickle.UnpicklingError: pickle data was truncated"),
        raised("EOFError: Ran out of input", LIBRARY.format("site-packages/torch/serialization.py")),
        raised("RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ],
    "child_lost": [
        raised("EOFError: Ran out of input", SPAWN),
        raised("EOFError", PIPE),
        raised("_pickle.UnpicklingError: pickle data was truncated", SPAWN),
    ],
    "peer_lost": [raised("EOFError")],
    "weights_only": [raised("_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, …")],
    # a hub that is busy is neither gone nor angry, and another service is no hub
    "hub_busy": [
        raised("huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: x", HUB),
        raised("huggingface_hub.errors.HfHubHTTPError: 503 Server Error: Service Unavailable for url: x", HUB),
    ],
    "hub_unauthorized": [raised("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: x", HUB)],
    "python_exception": [
        raised("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://tracker.example.org"),
        raised("requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://tracker.example.org"),
        raised("EOFError: EOF when reading a line"),
        raised("EOFError: Compressed file ended before the end-of-stream marker was reached"),
        raised("ValueError: the config wants a peer that is gone from the list"),
    ],
    # faults of the node
    "nccl_without_gpu": [
        raised("ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
        raised("RuntimeError: Distributed package doesn't have NCCL built in"),
    ],
    "fabric_manager": [raised("RuntimeError: cudaGetDeviceCount(). Error 802: system not yet initialized")],
    "driver_mismatch": ["Failed to initialize NVML: Driver/library version mismatch\n"],
    "no_compiler": [
        raised("RuntimeError: Failed to find C compiler. Please specify via CC environment variable."),
        raised("torch._inductor.exc.InductorError: FileNotFoundError: [Errno 2] No such file or directory: 'gcc'"),
        raised("OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root."),
        raised("RuntimeError: x\n/usr/bin/ld: cannot find -lcuda: No such file or directory"),
        "main.c:5:10: fatal error: Python.h: No such file or directory\ncompilation terminated.\n",
    ],
    "file_missing": [raised("FileNotFoundError: [Errno 2] No such file or directory: '/srv/data/gcc'")],
    "storage_failed": [
        raised("OSError: [Errno 5] Input/output error: '/srv/data/a.bin'"),
        raised("OSError: [Errno 116] Stale file handle"),
        raised("OSError: [Errno 107] Transport endpoint is not connected: '/mnt/shared'"),
    ],
    "disk_quota": [raised("OSError: [Errno 122] Disk quota exceeded: '/srv/x'")],
    "rendezvous_timeout": [
        raised("DistBackendError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d"
               " key-value store by key '0', but store->get('0') got error: Socket Timeout"),
        raised("torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cuda//0"),
    ],
    "rendezvous_lost": [raised("DistBackendError: store->get('0') got error: Connection reset by peer")],
    "wrong_interface": [raised("RuntimeError: Gloo connectFullMesh failed with [/srv/pair.cc:144] no error")],
    "library_missing": [raised("OSError: libcudart.so.11.0: cannot open shared object file: No such file")],
    "built_for_another": [raised("ImportError: /opt/x.so: undefined symbol: _ZN3c105Error")],
    "too_many_files": [raised("RuntimeError: received 0 items of ancdata")],
    "nccl_remote": [
        raised("DistBackendError: NCCL error in: a.cpp:9, unhandled system error\nncclSystemError: x\n"
               "Last error:\nCall to recv from 10.0.0.12<41357> failed : Connection reset by peer"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in CONTEXTS.items() for text in texts])
def test_words_are_read_in_their_context(name: str, text: str) -> None:
    assert named(text) == name


@pytest.mark.parametrize("number", [4, 7, 11])
def test_a_crash_of_native_code_is_named_by_its_signal(number: int) -> None:
    name = {4: "illegal_instruction", 7: "bus_error", 11: "segfault"}[number]
    assert named(raised("RuntimeError: CUDA out of memory. Tried to allocate 2 GiB."), Exit(10.0, 0, number)) == name


# -- handled -------------------------------------------------------------------------------------------------------

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
QUIETLY = Exit(10.0, 3, 0, 9)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory, halving the batch to 4\n",
        "WARNING: CUDA out of memory. Reducing the batch size from 32 to 16\n",
        "caught: CUDA out of memory\n",
        raised(OOM) + "{'loss': 2.1, 'epoch': 0.5}\n",
        raised(OOM) + "Epoch [2/3]\nglobal_step=8\n",
        raised(OOM) + "1%| | 3/9\n2%| | 4/9\n3%| | 5/9\n",
        "warning: CUDA out of memory\nstep 4 loss 2.4\nstep 5 loss 2.3\n",
        raised(OOM) + "halving the batch to 4\nstep 4 loss 2.4\n",
        raised(OOM) + "step 4 loss 2.4\n",
        "429 Client Error: Too Many Requests (huggingface), retrying in 2 s\n",
        "No space left on device: '/tmp/cache', using the default folder\n",
        "[c10d] Connection reset by peer, trying again\nepoch 2\n",
    ],
)
@pytest.mark.parametrize(("end", "name"), [(QUIETLY, "unknown"), (FAILED, "unknown"), (Exit(10.0, 0, 9), "killed")])
def test_what_was_handled_is_not_the_end(text: str, end: Exit, name: str) -> None:
    assert named(text, end) == name


def test_a_failure_after_one_that_was_handled_is_the_end() -> None:
    handled = raised(OOM) + "halving the batch to 4\nstep 4 loss 2.4\n"
    assert named(handled + raised("OSError: [Errno 28] No space left on device")) == "disk_full"
    assert named(handled + raised("KeyError: 'labels'")) == "python_exception"


@pytest.mark.parametrize(
    "last", ["", "wandb: loss 2.5\nwandb: epoch 3\n", "\x1b[0m\n", "epoch 1:  1%|  | 3/300 [00:01<01:40]\n"]
)
def test_what_is_said_after_the_end_changes_nothing(last: str) -> None:
    assert named(raised(OOM) + last) == "cuda_oom"
    assert named(raised("KeyError: 'labels'") + last) == "python_exception"


def test_a_code_of_its_own_right_after_an_exception_is_its_end_and_later_is_not() -> None:
    assert named(raised("KeyError: 'labels'"), QUIETLY) == "python_exception"
    assert named(raised("KeyError: 'labels'") + "cleaning up\n", QUIETLY) == "unknown"


def test_an_exception_within_the_handling_of_another_is_the_end_when_it_is_a_mistake() -> None:
    chained = raised(OOM) + "\nDuring handling of the above exception, another exception occurred:\n\n"
    assert named(chained + raised("KeyError: 'batch_size'")) == "python_exception"
    assert named(chained + raised("RuntimeError: step failed")) == "cuda_oom"
    caused = raised("OSError: [Errno 5] Input/output error") + (
        "\nThe above exception was the direct cause of the following exception:\n\n"
    )
    assert named(caused + raised("KeyError: 'shard_3'")) == "storage_failed"


def test_what_an_exception_was_chained_to_is_seen_also_without_frames() -> None:
    cause = "huggingface_hub.errors.HfHubHTTPError: 429 Too Many Requests for url: x\n"
    link = "\nThe above exception was the direct cause of the following exception:\n\n"
    assert named(
        "step 2\n" * 400 + cause + link + raised("OSError: We couldn't connect to 'x' to load the files", HUB)
    ) == ("hub_busy")


def test_a_destructor_or_another_thread_that_fails_in_passing_is_not_the_end() -> None:
    passing = "Exception ignored in: <function Engine.__del__ at 0x7f00>\nTraceback (most recent call last):\n" + OWN
    text = raised(OOM) + passing + "AttributeError: 'Engine' object has no attribute 'handle'\n"
    assert named(text) == "cuda_oom"
    assert b"AttributeError" not in log_tail.last_traceback(log_tail.clean(text.encode()))
    assert named(passing + "AttributeError: 'Engine' object has no attribute 'handle'\n") == "python_exception"


def test_the_traceback_of_another_rank_within_an_exception_is_not_taken_for_its_own() -> None:
    found = read(
        raised("torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys([1])\n"
               "Traceback (most recent call last): (RANK 1)\n  …\nRuntimeError: no buffers").encode(), FAILED,
    )  # fmt: skip
    assert found is not None
    assert (found.signature.name, found.detail) == (
        "distributed_checkpoint",
        "ranks:dict_keys([1]): RuntimeError: no buffers",
    )


def test_of_a_checkpoint_the_cause_and_the_place_are_those_of_the_rank_that_failed() -> None:
    told = (
        "torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys([1, 3])\n"
        "Traceback (most recent call last): (RANK 1)\n" + OWN + "OSError: [Errno 28] No space left on device\n"
        "Traceback (most recent call last): (RANK 3)\n" + OWN + "KeyError: 'later'"
    )  # fmt: skip
    found = read(raised(told).encode(), FAILED)
    assert found is not None
    assert found.words.endswith(
        "ranks:dict_keys([1, 3]): OSError: [Errno 28] No space left on device, at train.py:45, in step"
    )
    assert "nexa logs --rank N" in found.fix and BY_NAME["disk_full"].fix in found.fix
    assert named(raised(told) + "step 4 loss 2.4\n") == "unknown"


@pytest.mark.parametrize("code", [1, 3])
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Fatal Python error: Illegal instruction", "illegal_instruction"),
        ("a.sh: line 3: 412 Segmentation fault      (core dumped) python a.py", "segfault"),
        ("Illegal instruction (core dumped)", "illegal_instruction"),
        ("Killed", "killed"),
        ("Killed 3 workers, started 3", "unknown"),
        ("the child was Killed", "unknown"),
    ],
)
def test_words_about_a_signal_count_where_nothing_else_is_known(line: str, name: str, code: int) -> None:
    assert named(f"step 3\n{line}\n", Exit(10.0, code, 0)) == name
    assert named(f"step 3\n{line}\n" + raised("KeyError: 'x'"), FAILED) == "python_exception"


def test_the_code_of_a_shell_is_the_signal_of_its_child() -> None:
    assert [named("", Exit(1.0, 128 + n, 0)) for n in (4, 7, 9, 11)] == [
        "illegal_instruction", "bus_error", "killed", "segfault"
    ]  # fmt: skip
    assert named("", Exit(1.0, 137, 0, oom=True)) == "host_oom"


SAID = "step 3 loss 2.5\n"
LAUNCHED = "subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1."
PARENT = raised(LAUNCHED, LIBRARY.format("a.py")).removeprefix(SAID)


def test_of_a_parent_that_tells_of_its_child_the_cause_is_the_childs() -> None:
    assert named(raised(OOM) + PARENT) == "cuda_oom"
    assert named(raised(OOM) + "halving the batch to 4\nstep 4 loss 2.4\n" + PARENT) == "child_ended"
    assert named(raised(OOM) + PARENT + raised("KeyError: 'x'")) == "python_exception"
    assert named(raised("KeyError: 'x'") + PARENT) == "child_ended"
    killed = raised("RuntimeError: DataLoader worker (pid 42) is killed by signal: Killed.").removeprefix(SAID)
    assert named(raised(OOM) + killed) == "dataloader_worker"


def test_source_in_a_frame_only_quotes_words() -> None:
    quoted = '  File "/srv/a.py", line 9, in go\n    raise E("CUDA out of memory") or (\n    ^^^^^^^\n'
    assert named(raised("KeyError: 'x'", quoted)) == "python_exception"
    assert named(raised(OOM, quoted)) == "cuda_oom"


def test_an_exception_that_a_node_can_cause_is_not_called_an_error_of_the_program() -> None:
    mine, perhaps = (
        read(raised("KeyError: 'x'").encode(), FAILED),
        read(raised("RuntimeError: kaboom").encode(), FAILED),
    )
    assert mine is not None and perhaps is not None
    assert mine.fix.startswith("an error of the program")
    assert "program" not in perhaps.fix and "nexa diag" in perhaps.fix
    assert (mine.tier, perhaps.tier) == (Tier.OWN, Tier.OWN)


@pytest.mark.parametrize(("end", "words"), [
    (Exit(1.0, 0, 15), "asked to end (SIGTERM)"), (Exit(1.0, 130, 0), "asked to end (SIGINT)"),
    (Exit(1.0, 0, 1), "asked to end (SIGHUP)"), (Exit(1.0, 0, 8), "signal 8 (SIGFPE)"), (Exit(1.0, 0, 99), "signal 99"),
])  # fmt: skip
def test_signals_are_named(end: Exit, words: str) -> None:
    found = read(b"", end)
    assert found is not None and words in found.words
