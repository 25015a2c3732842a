"""The user's own DeepSpeed JSON, as backend ds reads it: keys that DeepSpeed has, and nothing against train.yaml.

DeepSpeed takes an unknown key at the top of the file without a word, and ends on one in `zero_optimization` when the
ranks are up. Here both are refused on the controller, with the nearest key. The keys are a written list, since
DeepSpeed is not installed there; a test compares it with the installed one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from nexa_dist.config.load import load_other, of_project
from nexa_dist.config.problems import problem_at, value_at
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import Section
from nexa_dist.config.yaml.tree import Document, PathKey
from nexa_dist.errors import ConfigError, Problem

Auto = Literal["auto"]
Number = int | float
CLIPPING = 1.0
"""`gradient_clipping` where the file says auto or nothing: the norm at which backend hf clips."""
_OUT = 'write "auto", or leave it out'
_TRACKED = "tracking is wandb: of train.yaml"
_SPREAD = "backend: ds shards by ZeRO alone"
REFUSED = {
    "scheduler": "the learning rate is of train.yaml: a warm-up and a cosine to zero",
    "elasticity": "world size and restarts are nexa's (min_nodes, restarts_per_hour)",
    "autotuning": "it starts trainings of its own; nexa starts the ranks",
    "amp": "Apex is not run here: precision of train.yaml is fp32 or bf16",
    "torch_autocast": "precision of train.yaml says it: leave it out",
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _TRACKED),
    **dict.fromkeys(("pipeline", "tensor_parallel", "expert_parallel", "hybrid_engine"), _SPREAD),
    **dict.fromkeys(("data_efficiency", "curriculum_learning"), "the data is dataset: of train.yaml"),
    **dict.fromkeys(("sparse_attention", "compression_training", "weight_quantization"), "not run by backend: ds"),
    **dict.fromkeys(("checkpoint", "nebula", "datastates_ckpt"), "checkpoints are nexa's"),
}
"""Keys that DeepSpeed has and that something else decides here."""


Place = Annotated[str, StringConstraints(pattern=r"^(/.*|auto)$")]


class _Offload(Section):
    device: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: Place | None = None
    """auto: below the run's folder on the node, which is on its scratch disk."""
    buffer_count: int | None = None
    pin_memory: bool | None = None

    @model_validator(mode="after")
    def _has_path(self) -> _Offload:
        if (self.device == "nvme") != (self.nvme_path is not None):
            raise ValueError(
                'device: nvme and nvme_path go together; "auto" is a folder of the run on the scratch disk'
            )
        return self


class OffloadParam(_Offload):
    buffer_size: Number | None = None
    max_in_cpu: Number | None = None


class OffloadOptimizer(_Offload):
    pipeline_read: bool | None = None
    pipeline_write: bool | None = None
    fast_init: bool | None = None
    ratio: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    super_offload: bool | None = None
    cpuadam_cores_perc: float | None = None


class ZeroOptimization(Section):
    """`zero_optimization`: what is spread, and where it lies."""

    stage: Literal[1, 2, 3]
    offload_param: OffloadParam | None = None
    offload_optimizer: OffloadOptimizer | None = None
    stage3_gather_16bit_weights_on_model_save: bool | None = None
    reduce_bucket_size: Number | Auto | None = None
    stage3_prefetch_bucket_size: Number | Auto | None = None
    stage3_param_persistence_threshold: Number | Auto | None = None
    allgather_bucket_size: Number | None = None
    sub_group_size: Number | None = None
    stage3_max_live_parameters: Number | None = None
    stage3_max_reuse_distance: Number | None = None
    stage3_module_granularity_threshold: Number | None = None
    stage3_model_persistence_threshold: Number | None = None
    zero_hpz_partition_size: int | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    use_multi_rank_bucket_allreduce: bool | None = None
    allgather_partitions: bool | None = None
    overlap_comm: bool | None = None
    compute_grad_norm: bool | None = None
    load_from_fp32_weights: bool | None = None
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    stage3_allgather_sequential: bool | None = None
    ignore_unused_parameters: bool | None = None
    round_robin_gradients: bool | None = None
    parameter_alignment: bool | None = None
    zero_quantized_weights: bool | None = None
    zero_quantized_nontrainable_weights: bool | None = None
    zero_quantized_gradients: bool | None = None
    memory_efficient_linear: bool | None = None
    pipeline_loading_checkpoint: bool | None = None
    override_module_apply: bool | None = None
    log_trace_cache_warnings: bool | None = None
    enable_sanity_checks: bool | None = None
    save_muon_momentum_buffer_in_memory: bool | None = None
    leaf_module: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _of_the_stage(self) -> ZeroOptimization:
        param, optimizer = self.offload_param, self.offload_optimizer
        if param is not None and param.device != "none" and self.stage < 3:
            raise ValueError(f"offload_param needs stage 3: at stage {self.stage} each rank holds all parameters")
        if optimizer is not None and optimizer.device == "nvme" and self.stage < 3:
            raise ValueError("offload_optimizer to nvme needs stage 3")
        if self.stage == 3 and self.stage3_gather_16bit_weights_on_model_save is False:
            raise ValueError(
                "stage3_gather_16bit_weights_on_model_save is false, and the end of a training is a model that"
                " transformers loads: leave it out"
            )
        return self


class Enabled(Section, extra="allow"):
    enabled: bool | Auto = False


class Optimizer(Section):
    type: Literal["Adam", "AdamW"]
    params: dict[str, Any] = Field(default_factory=dict)
    legacy_fusion: bool | None = None


class DeepSpeedConfig(Section):
    """The whole file."""

    zero_optimization: ZeroOptimization
    train_batch_size: int | Auto | None = None
    train_micro_batch_size_per_gpu: int | Auto | None = None
    gradient_accumulation_steps: int | Auto | None = None
    gradient_clipping: Annotated[float, Field(ge=0.0)] | Auto | None = None
    bf16: Enabled | None = None
    fp16: Enabled | None = None
    optimizer: Optimizer | None = None
    zero_allow_untested_optimizer: bool | None = None
    zero_force_ds_cpu_optimizer: bool | None = None
    aio: dict[str, Any] | None = None
    activation_checkpointing: dict[str, Any] | None = None
    comms_logger: dict[str, Any] | None = None
    flops_profiler: dict[str, Any] | None = None
    compile: dict[str, Any] | None = None
    timers: dict[str, Any] | None = None
    data_types: dict[str, Any] | None = None
    communication_data_type: str | None = None
    seq_parallel_communication_data_type: str | None = None
    gradient_predivide_factor: float | None = None
    gradient_allreduce_op: str | None = None
    log_level: str | None = None
    steps_per_print: int | None = None
    prescale_gradients: bool | None = None
    disable_allgather: bool | None = None
    disable_python_gc: bool | None = None
    dataloader_drop_last: bool | None = None
    dump_state: bool | None = None
    memory_breakdown: bool | None = None
    wall_clock_breakdown: bool | None = None

    @property
    def nvme(self) -> bool:
        """Whether anything lies on a disk."""
        zero = self.zero_optimization
        return any(part is not None and part.device == "nvme" for part in (zero.offload_param, zero.offload_optimizer))


def read(config: TrainConfig) -> DeepSpeedConfig:
    """The file that `config` of train.yaml names, from the folder of the project. Raises ConfigError with every fault
    of it, and where it contradicts train.yaml."""

    def prepare(document: Document) -> list[Problem]:
        return [*_refused(document), *_against(document, config)]

    return load_other(of_project(str(config.config)), DeepSpeedConfig, prepare)


def _refused(document: Document) -> Iterator[Problem]:
    for name in [name for name in REFUSED if name in document.data]:
        del document.data[name]
        yield problem_at((name,), f"not for this file: {REFUSED[name]}", "leave it out", document)


def _against(document: Document, config: TrainConfig) -> Iterator[Problem]:
    """What train.yaml says otherwise."""
    cfg = config.trainer
    assert cfg is not None
    same: tuple[tuple[PathKey, Any, str], ...] = (
        (("train_micro_batch_size_per_gpu",), cfg.batch_size, "trainer.batch_size"),
        (("gradient_accumulation_steps",), 1, "a step of train.yaml"),
        (("bf16", "enabled"), cfg.precision == "bf16", f"trainer.precision: {cfg.precision}"),
        (("fp16", "enabled"), False, f"trainer.precision: {cfg.precision}"),
        (("optimizer", "params", "lr"), cfg.learning_rate, "trainer.learning_rate"),
        (("optimizer", "params", "weight_decay"), cfg.weight_decay, "trainer.weight_decay"),
    )
    for path, want, whose in same:
        found = value_at(document.data, path, "auto")
        if found not in ("auto", None) and not _equal(found, want):
            words = f"{json.dumps(found)}, and {whose} makes it {json.dumps(want)}"
            yield problem_at(path, words, _OUT, document)
    whole = value_at(document.data, ("train_batch_size",))
    if isinstance(whole, int) and whole % cfg.batch_size:
        words = f"{whole} is no multiple of trainer.batch_size {cfg.batch_size}"
        yield problem_at(("train_batch_size",), words, _OUT, document)
    offload = value_at(document.data, ("zero_optimization", "offload_optimizer", "device"), "none")
    if document.data.get("zero_force_ds_cpu_optimizer") and offload != "none" and "optimizer" not in document.data:
        words = "true, and without optimizer the one of train.yaml is torch's AdamW"
        cure = 'give "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, or write false'
        yield problem_at(("zero_force_ds_cpu_optimizer",), words, cure, document)
    if cfg.async_save:
        words = "trainer.async_save is true, and DeepSpeed's checkpoints are written while training waits"
        yield Problem(document.file, 0, "", words, "leave trainer.async_save out")


def _equal(found: Any, want: Any) -> bool:
    if isinstance(found, bool) or isinstance(want, bool) or not isinstance(found, Number):
        return found is want or (found == want and type(found) is type(want))
    return math.isclose(found, want, rel_tol=1e-12)


def settings(config: TrainConfig, world_size: int, run_dir: Path) -> dict[str, Any]:
    """What DeepSpeed gets: the file, with train.yaml's values and the run's folders for auto."""
    asked = read(config)
    cfg = config.trainer
    assert cfg is not None
    made = asked.model_dump(mode="json", exclude_unset=True)
    if asked.train_batch_size not in (None, "auto", cfg.batch_size * world_size):
        words = f"{asked.train_batch_size}, and {world_size} ranks × trainer.batch_size {cfg.batch_size}"
        words += f" make it {cfg.batch_size * world_size}"
        raise ConfigError([Problem(str(config.config), 0, "train_batch_size", words, _OUT)])
    zero = made["zero_optimization"]
    made |= {
        "train_batch_size": cfg.batch_size * world_size,
        "train_micro_batch_size_per_gpu": cfg.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": CLIPPING if asked.gradient_clipping in (None, "auto") else asked.gradient_clipping,
        "bf16": {**made.get("bf16", {}), "enabled": cfg.precision == "bf16"},
        "fp16": {"enabled": False},
    }
    made.setdefault("steps_per_print", 1_000_000_000)  # the log lines are the trainer's
    if asked.optimizer is None:  # transformers makes torch's AdamW from train.yaml
        made |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if zero["stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    for part in (zero.get("offload_param"), zero.get("offload_optimizer")):
        if part and part.get("nvme_path"):
            room = Path(part["nvme_path"]) / run_dir.name if part["nvme_path"] != "auto" else run_dir
            part["nvme_path"] = str(room / "nvme")
    return made
