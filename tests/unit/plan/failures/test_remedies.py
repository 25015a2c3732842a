"""Every remedy that nexa why names can be done: each command, key, value, file and variable in it is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from nexa_dist import cli
from nexa_dist.config.cluster import ClusterConfig, Host
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import DatasetConfig, ModelConfig, TrainerConfig
from nexa_dist.ops.runs.agent_spec import SECRETS
from nexa_dist.plan.failures.known.program import NOT_KNOWN
from nexa_dist.plan.failures.table import TABLE

ROOT = Path(__file__).parents[4]
REMEDIES = {signature.name: signature.fix for signature in TABLE} | {"not known": NOT_KNOWN}
PARSER = cli.parser()
VERBS = set(PARSER._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]
SAID_OF_NEXA = {"replaces", "passes", "chooses", "sends", "logs"}
"""What follows `nexa` in a sentence about it."""
PLACES = {"NODE": "n1", "RUN": "r1", "USD": "5", "N": "0", "FILE": "f", "FOLDER": "d", "NAME": "h", "PACKAGE": "p"}
ON_NODE = {
    "df", "du", "head", "lscpu", "dmesg", "mount", "reboot", "systemctl", "ss", "getent", "apt-get", "nvidia-smi",
    "nvcc", "ls", "ps", "sysctl", "timedatectl"
}  # fmt: skip
"""Programs of a Debian system, of the driver and of the CUDA toolkit."""
PACKAGES = {"build-essential", "python3-dev", "ninja-build", "ca-certificates", "patchelf", "chrony", "p"}
SECTIONS = {"trainer": TrainerConfig, "dataset": DatasetConfig, "model": ModelConfig}
FIELDS = {**ClusterConfig.model_fields, **Host.model_fields, **TrainConfig.model_fields}
OF_LIBRARIES = {
    "num_workers", "prefetch_factor", "drop_last", "max_steps", "find_unused_parameters", "weights_only",
    "torch_extensions", "init_process_group", "set_sharing_strategy", "file_system", "set_device",
    "adapter_config", "chat_template", "stage3_prefetch_bucket_size",
    "add_safe_globals", "cuda_torch", "_orig_mod", "__name__", "__main__",
    "target_modules", "named_modules", "offload_folder",
    "attn_implementation", "device_map", "download_mode", "enable_input_require_grads", "eos_token", "eval_strategy",
    "evaluation_strategy", "exist_ok", "force_redownload", "gguf_file", "gpu_memory_utilization", "init_timeout",
    "load_dataset", "low_cpu_mem_usage", "max_model_len", "max_shard_size", "max_user_watches",
    "multiprocessing_context", "no_checks", "no_grad", "num_stages", "pad_token", "pad_token_id", "processing_class",
    "resize_token_embeddings", "set_detect_anomaly", "set_start_method", "state_dict", "static_graph",
    "sync_module_states", "tensor_parallel_size", "to_empty", "trust_remote_code", "use_orig_params", "use_reentrant",
    "verification_mode",
}  # fmt: skip
VARIABLES = {
    "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME",
    "NCCL_DEBUG", "HF_HOME", "HF_HUB_OFFLINE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "TORCHDYNAMO_DISABLE",
    "TORCH_CUDA_ARCH_LIST",
    "AWS_RETRY_MODE", "BNB_CUDA_VERSION", "HDF5_USE_FILE_LOCKING", "HF_HUB_DISABLE_XET", "HF_HUB_ENABLE_HF_TRANSFER",
    "HTTPS_PROXY", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "NCCL_IB_DISABLE", "NCCL_NET", "NLTK_DATA", "NO_PROXY",
    "OMP_NUM_THREADS", "QT_QPA_PLATFORM", "WANDB_ENTITY", "WANDB_PROJECT",
}  # fmt: skip
"""Of other programs; they go to the ranks by `env:`."""
GIVEN = {"LOCAL_RANK", "MASTER_ADDR", "WORLD_SIZE"}
"""By the launcher."""


COMMAND = re.compile(
    r"\bnexa (?P<verb>[a-z]+)(?P<words>(?: (?:--?[a-z][a-z-]*(?![a-z=])|[A-Z]+\b|extend\b))*)"
    r"(?: -- (?P<run>[^;,.:()]+))?"
)


def commands(fix: str) -> list[list[str]]:
    """`nexa VERB …` as far as it is a command: flags, places, and what comes behind `--`."""
    found = []
    for match in COMMAND.finditer(fix):
        run = ["--", *match["run"].split()] if match["run"] else []
        found.append([match["verb"], *match["words"].split(), *run])
    return found


def check_its_commands_are_taken_by_the_command_line(fix: str) -> None:
    for verb, *words in commands(fix):
        if verb not in VERBS or f"nexa {verb} in " in fix:
            assert verb in SAID_OF_NEXA, f"nexa {verb}"
        else:
            assert verb == "ssh" or "--" not in words
            PARSER.parse_args([verb, *(PLACES.get(word, word) for word in words)])


def check_what_it_runs_on_a_node_is_there_or_named_with_its_package(fix: str) -> None:
    for verb, *words in commands(fix):
        if verb == "ssh" and "--" in words:
            run = [PLACES.get(word, word) for word in words[words.index("--") + 1 :] if word != "sudo"]
            assert run[0] in ON_NODE
            if run[:2] == ["apt-get", "install"]:
                assert set(run[2:]) & PACKAGES, run


def check_its_keys_are_those_of_the_schemas(fix: str) -> None:
    for section, key in re.findall(r"\b(trainer|dataset|model)\.([a-z_]+)", fix):
        assert key in SECTIONS[section].model_fields
    for word in re.findall(r"\b_{0,2}[a-z][a-z0-9]*(?:_[a-z0-9]+)+_{0,2}(?![\w])", fix):
        keys = {key for section in SECTIONS.values() for key in section.model_fields}
        assert word in keys or word in FIELDS or word in OF_LIBRARIES or word in VALUES, word


def check_its_values_are_allowed(fix: str) -> None:
    for key, value in re.findall(r"\b([a-z_]+): ([a-z_]+)\b", fix):
        allowed = values_of(key)
        assert not allowed or value in allowed, f"{key}: {value}"
    assert "trainer.precision to" not in fix or "trainer.precision to bf16" in fix


def values_of(key: str) -> set[str]:
    """Of a key that takes one of a few words."""
    annotation = FIELDS[key].annotation if key in FIELDS else None
    if annotation is bool:
        return {"true", "false"}
    return {value for value in get_args(annotation) if isinstance(value, str)}


VALUES = {value for key in FIELDS for value in values_of(key)}


def check_its_variables_reach_a_rank(fix: str) -> None:
    for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", fix):
        if name.startswith("NEXA_"):
            assert f'"{name}"' in "".join(
                path.read_text() for path in (ROOT / "nexa_dist" / "plan").rglob("torchrun.py")
            )
        elif name in VARIABLES:
            TrainConfig.model_validate({"name": "x", "script": "a.py", "env": {name: "1"}}, context={})
        else:
            assert name in SECRETS or name in GIVEN, name


def check_its_files_are_there(fix: str) -> None:
    for path in re.findall(r"(?<![\w/.~])(?:docker|scripts|configs|docs)/[\w./-]*\w|\bpyproject\.toml", fix):
        assert (ROOT / path).exists(), path
    if "extra of pyproject.toml" in fix:
        assert re.search(r"^train = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


CHECKS = (
    check_its_commands_are_taken_by_the_command_line,
    check_what_it_runs_on_a_node_is_there_or_named_with_its_package,
    check_its_keys_are_those_of_the_schemas,
    check_its_values_are_allowed,
    check_its_variables_reach_a_rank,
    check_its_files_are_there,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
def test_every_remedy_names_only_what_is_there(check: Callable[[str], None]) -> None:
    for fix in REMEDIES.values():
        check(fix)


@pytest.mark.long("imports torch")
def test_what_it_names_of_torch_is_there() -> None:
    import torch
    import torch.distributed
    import torch.multiprocessing
    from torch.utils.data import DataLoader

    for name in sorted({name for fix in REMEDIES.values() for name in re.findall(r"\btorch(?:\.[a-z_]+)+", fix)}):
        made: Any = torch
        for part in name.split(".")[1:]:
            made = getattr(made, part)
    words = (*DataLoader.__init__.__code__.co_varnames, *torch.load.__code__.co_varnames)
    words += torch.nn.parallel.DistributedDataParallel.__init__.__code__.co_varnames
    assert {"num_workers", "prefetch_factor", "drop_last", "find_unused_parameters", "weights_only"} <= set(words)
    assert callable(torch.distributed.init_process_group)


@pytest.mark.parametrize(
    "bad",
    ["nexa mend NODE", "nexa run --again RUN", "nexa ssh NODE -- repair it", "nexa ssh NODE -- apt-get install magic",
     "set batch_seize", "trainer.batchsize", "market: cheap", "set NEXA_NOWHERE", "MY_KEY in env:", "docker/none.txt"],
)  # fmt: skip
def test_the_guard_refuses_what_is_not_there(bad: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        for check in CHECKS:
            check(bad)
