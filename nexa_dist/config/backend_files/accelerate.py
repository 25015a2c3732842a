"""The YAML that `accelerate config` writes, as backend acc reads it: FSDP2, and nothing that it would pass over.

Accelerate takes an unknown key of `fsdp_config` without a word, and version 1 where none is named. Here every key is
one that accelerate knows (a test compares them with the installed one), and each is done, said to be of no effect
here, or refused with what to write instead.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from nexa_dist.config.load import load_other, of_project
from nexa_dist.config.problems import problem_at
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import Section
from nexa_dist.config.yaml.tree import Document
from nexa_dist.errors import ConfigError, Problem

_NOTHING: tuple[Any, ...] = (None, False, "", "no", "NO", [], {})
_WRAPPED = "fsdp_transformer_layer_cls_to_wrap"


def _no_effect(why: str) -> Any:
    return Field(None, description=f"No effect: {why}")


def _nothing(value: Any) -> Any:
    if value not in _NOTHING:
        raise ValueError("backend: acc runs FSDP2 alone: leave it out (DeepSpeed is backend: ds)")
    return value


Nothing = Annotated[Any, AfterValidator(_nothing)]
"""A key that would make something else of the training; `accelerate config` writes some as empty."""


class FsdpConfig(Section):
    """`fsdp_config`. What is not given is as accelerate has it."""

    fsdp_version: Literal[2]
    fsdp_reshard_after_forward: bool = True
    fsdp_offload_params: bool = False
    fsdp_auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] = "NO_WRAP"
    fsdp_transformer_layer_cls_to_wrap: str | None = None
    """Names of classes, with commas between; without it those that the model itself says are not to be split."""
    fsdp_min_num_params: int = Field(100_000_000, ge=1)
    """Of SIZE_BASED_WRAP: the least parameters of a module that is sharded by itself."""
    fsdp_state_dict_type: Literal["SHARDED_STATE_DICT", "FULL_STATE_DICT"] = "SHARDED_STATE_DICT"
    """No effect: a checkpoint is always shards, and the end of a training has the whole model beside them."""
    fsdp_cpu_ram_efficient_loading: bool = True
    fsdp_activation_checkpointing: bool = False
    fsdp_activation_checkpointing_offload: Literal[False] = False
    fsdp_ignored_modules: Literal[""] | None = None
    fsdp_sharding_strategy: None = None
    fsdp_backward_prefetch: Any = _no_effect("FSDP2 always prefetches")
    fsdp_forward_prefetch: Any = _no_effect("FSDP2 always prefetches")
    fsdp_use_orig_params: Any = _no_effect("FSDP2 has no flat parameters")
    fsdp_sync_module_states: Any = _no_effect("all ranks begin with the weights of rank 0")

    @field_validator(
        "fsdp_version", "fsdp_reshard_after_forward", "fsdp_sharding_strategy", "fsdp_ignored_modules", mode="before"
    )
    @classmethod
    def _of_version_2(cls, value: Any, info: ValidationInfo) -> Any:
        cures = {
            "fsdp_version": (value == 1, "FSDP1 is not run here: write fsdp_version: 2, and true or false as reshard"),
            "fsdp_reshard_after_forward": (
                isinstance(value, str),
                "a word of FSDP1: write true for FULL_SHARD, false for SHARD_GRAD_OP; NO_SHARD is backend: hf",
            ),
            "fsdp_sharding_strategy": (
                value is not None,
                "a key of FSDP1: write fsdp_reshard_after_forward: true for FULL_SHARD, false for SHARD_GRAD_OP",
            ),
            "fsdp_ignored_modules": (bool(value), "every module is sharded here: leave it out"),
        }
        wrong, cure = cures[str(info.field_name)]
        if wrong:
            raise ValueError(cure)
        return value

    @model_validator(mode="after")
    def _classes_are_wrapped(self) -> FsdpConfig:
        if self.fsdp_transformer_layer_cls_to_wrap and self.fsdp_auto_wrap_policy != "TRANSFORMER_BASED_WRAP":
            raise ValueError(f"{_WRAPPED} needs fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP")
        return self


class AccelerateConfig(Section):
    """The whole file."""

    distributed_type: Literal["FSDP"]
    fsdp_config: FsdpConfig
    mixed_precision: Literal["no", "bf16"] | None = None
    """bf16: FSDP2 gathers and computes in bfloat16; weights, gradients and optimizer stay float32. None: as
    trainer.precision says."""
    compute_environment: Literal["LOCAL_MACHINE"] = "LOCAL_MACHINE"
    debug: bool = False
    num_processes: Any = _no_effect("set by the launcher")
    num_machines: Any = _no_effect("set by the launcher")
    machine_rank: Any = _no_effect("set by the launcher")
    main_process_ip: Any = _no_effect("set by the launcher")
    main_process_port: Any = _no_effect("set by the launcher")
    main_training_function: Any = _no_effect("set by the launcher")
    rdzv_backend: Any = _no_effect("set by the launcher")
    same_network: Any = _no_effect("set by the launcher")
    gpu_ids: Any = _no_effect("set by the launcher")
    use_cpu: Any = _no_effect("the node's GPUs are used where it has some")
    enable_cpu_affinity: Any = _no_effect("set by the launcher")
    deepspeed_config: Nothing = None
    megatron_lm_config: Nothing = None
    parallelism_config: Nothing = None
    fp8_config: Nothing = None
    mpirun_config: Nothing = None
    dynamo_config: Nothing = None
    dynamo_backend: Nothing = None
    downcast_bf16: Nothing = None
    fp16: Nothing = None
    tpu_name: Nothing = None
    tpu_zone: Nothing = None
    tpu_use_cluster: Nothing = None
    tpu_use_sudo: Nothing = None
    command_file: Nothing = None
    commands: Nothing = None
    tpu_vm: Nothing = None
    tpu_env: Nothing = None

    @property
    def unused(self) -> list[str]:
        """The keys that were given and have no effect here, each with why."""
        fields = {**AccelerateConfig.model_fields, **FsdpConfig.model_fields}
        given = [*self.model_fields_set, *self.fsdp_config.model_fields_set]
        told = {name: fields[name].description or "" for name in given}
        return sorted(
            f"{name} ({why.removeprefix('No effect: ')})" for name, why in told.items() if why.startswith("No")
        )


def read(config: TrainConfig) -> AccelerateConfig:
    """The file that `config` of train.yaml names, from the folder of the project. Raises ConfigError with every fault
    of it, and where it contradicts train.yaml."""
    name = str(config.config)
    asked = load_other(of_project(name), AccelerateConfig, _with_prefix)
    if asked.mixed_precision == "no" and config.trainer is not None and config.trainer.precision == "bf16":
        words = "mixed_precision is no, and trainer.precision of train.yaml is bf16"
        raise ConfigError([Problem(name, 0, "mixed_precision", words, "write bf16, or leave one of them out")])
    return asked


def _with_prefix(document: Document) -> list[Problem]:
    """Accelerate takes `offload_params` for `fsdp_offload_params`."""
    section, problems = document.data.get("fsdp_config"), []
    if not isinstance(section, dict):
        return []
    for key in [key for key in section if "fsdp" not in key]:
        whole, at = f"fsdp_{key}", ("fsdp_config", key)
        if whole in section:
            words = f"{key} and {whole} are one key to accelerate"
            problems.append(problem_at(at, words, "keep one of them", document))
        else:
            section[whole], document.lines["fsdp_config", whole] = section[key], document.lines[at]
        del section[key]
    return problems
