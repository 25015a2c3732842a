"""How a model is trained: where its parts lie, what of it is trained, and in what numbers. Pure.

A `Method` comes from what a person wrote: an accelerate config, a DeepSpeed config, an Axolotl file. Of each only the
few keys are read that memory and time follow from, and what is absent or strange is taken as that tool's default: the
tool itself, or its backend, refuses what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nexa_dist.plan.fit.model_shape import ModelShape

Precision = Literal["fp32", "bf16"]
Sharding = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
Place = Literal["", "cpu", "nvme"]
"""Where something lies instead of the GPU; empty: on the GPU."""
ALL_LINEAR = ("all-linear",)
_TITLES = {"ddp": "DDP", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}


@dataclass(frozen=True)
class Adapter:
    """LoRA: two matrices of `rank` beside each of the named modules. `targets` as peft takes them."""

    rank: int = 16
    targets: tuple[str, ...] = ALL_LINEAR


@dataclass(frozen=True)
class Buckets:
    """DeepSpeed's buffers, in elements; None: "auto", which the Trainer makes of the model's width."""

    reduce: int | None = 500_000_000
    prefetch: int | None = 50_000_000
    keep_whole_below: int | None = 100_000
    """Parameters up to so many elements are on every rank."""
    overlap: bool = False
    """Two buffers for gradients: one is filled while the other is sent."""


@dataclass(frozen=True)
class Method:
    """`weights`: what the model is kept in; `nf4` is that of QLoRA, for frozen matrices."""

    backend: str = "hf"
    sharding: Sharding = "ddp"
    weights: Literal["fp32", "bf16", "nf4"] = "fp32"
    adapter: Adapter | None = None
    checkpointing: bool = False
    optimizer_at: Place = ""
    weights_at: Place = ""
    keeps_gathered: bool = False
    """FSDP2 without reshard_after_forward: all weights stay whole from the forward pass to the backward pass."""
    buckets: Buckets = field(default_factory=Buckets)

    @property
    def title(self) -> str:
        """In a few words, for a person."""
        words = [f"backend {self.backend}", _TITLES[self.sharding]]
        if self.adapter:
            words.append(f"{'QLoRA' if self.weights == 'nf4' else 'LoRA'} of rank {self.adapter.rank}")
        moved = {self.optimizer_at: ["optimizer"]} if self.optimizer_at else {}
        if self.weights_at:
            moved.setdefault(self.weights_at, []).append("parameters")
        words += [f"{' and '.join(what)} in {place.upper()}" for place, what in moved.items()]
        return ", ".join([*words, *(["checkpointing"] if self.checkpointing else [])])


@dataclass(frozen=True)
class Work:
    """What the ranks do in a step: `batch` windows of `sequence` tokens on each of `world_size` ranks."""

    precision: Precision
    world_size: int
    batch: int
    sequence: int
    method: Method = field(default_factory=Method)
    windows: int = 1
    """Batches that are added up to one step of the optimizer."""
    teacher: ModelShape | None = None
    """A second, frozen model, whole on every rank, from which the first one learns."""

    @property
    def tokens(self) -> int:
        """Tokens in flight on one rank: those whose activations are kept at once."""
        return self.batch * self.sequence


METHODS: dict[str, Method] = {
    "hf": Method(),
    "acc": Method("acc", "fsdp2", checkpointing=True),
    "ds": Method("ds", "zero3", "bf16"),
    "ds-cpu": Method("ds", "zero3", "bf16", optimizer_at="cpu", weights_at="cpu"),
    "ax": Method("ax", weights="bf16", adapter=Adapter(), checkpointing=True),
    "ax-fsdp": Method("ax", "fsdp2", "bf16", Adapter(), checkpointing=True),
    "ax-qlora": Method("ax", weights="nf4", adapter=Adapter(), checkpointing=True),
}
"""What each backend does where nobody says more, by the name under which `nexa preflight --backend` asks for it."""


def as_if(work: Work, method: Method) -> Work:
    """The same work by another method, in the numbers which that one takes."""
    return replace(work, method=method, precision=work.precision if method.weights == "fp32" else "bf16")


def of_accelerate(config: Mapping[str, Any]) -> Method:
    """From an accelerate config (YAML). A DeepSpeed one within it is read as such."""
    base = METHODS["acc"]
    if str(config.get("distributed_type", "")).upper() == "DEEPSPEED":
        inner = _mapping(config.get("deepspeed_config"))
        return replace(of_deepspeed(_flat_deepspeed(inner)), backend="acc")
    if str(config.get("distributed_type", "")).upper() in ("MULTI_GPU", "MULTI_CPU", "NO"):
        return replace(base, sharding="ddp", checkpointing=False)
    return _fsdp(base, _mapping(config.get("fsdp_config")))


def of_deepspeed(config: Mapping[str, Any]) -> Method:
    """From a DeepSpeed config (JSON)."""
    zero, low = _mapping(config.get("zero_optimization")), _mapping(config.get("bf16"))
    stage = zero.get("stage", 0)
    sharding: dict[Any, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}
    made = Buckets()
    return Method(
        backend="ds",
        sharding=sharding.get(stage, "ddp"),
        weights="bf16" if low.get("enabled") in (True, "auto") else "fp32",
        optimizer_at=_place(zero.get("offload_optimizer")),
        weights_at=_place(zero.get("offload_param")) if stage == 3 else "",
        buckets=Buckets(
            _elements(zero.get("reduce_bucket_size"), made.reduce),
            _elements(zero.get("stage3_prefetch_bucket_size"), made.prefetch),
            _elements(zero.get("stage3_param_persistence_threshold"), made.keep_whole_below),
            overlap=bool(zero.get("overlap_comm")),
        ),
    )


def of_axolotl(config: Mapping[str, Any], deepspeed: Mapping[str, Any] | None = None) -> Method:
    """From an Axolotl file (YAML); `deepspeed` is the file that it names."""
    low = config.get("bf16", "auto") not in (False, None, "false") or bool(config.get("bfloat16"))
    method = Method("ax", weights="bf16" if low else "fp32", checkpointing=bool(config.get("gradient_checkpointing")))
    if deepspeed is not None:
        asked = of_deepspeed(deepspeed)
        method = replace(method, sharding=asked.sharding, optimizer_at=asked.optimizer_at, weights_at=asked.weights_at,
                         buckets=asked.buckets)  # fmt: skip
    elif config.get("fsdp_config") or config.get("fsdp"):
        method = _fsdp(method, _mapping(config.get("fsdp_config")))
    if config.get("adapter") in ("lora", "qlora"):
        named = config.get("lora_target_modules")
        listed = (named,) if isinstance(named, str) else tuple(map(str, named)) if isinstance(named, list) else ()
        targets = ALL_LINEAR if config.get("lora_target_linear") or not listed else listed
        method = replace(method, adapter=Adapter(_whole(config.get("lora_r"), 8), targets))
        if config.get("load_in_4bit") or config["adapter"] == "qlora":
            method = replace(method, weights="nf4")
    return method


def work_of_axolotl(config: Mapping[str, Any], method: Method) -> Work:
    """Batch and sequence as an Axolotl file has them."""
    return Work(
        "bf16" if method.weights != "fp32" else "fp32",
        1,
        _whole(config.get("micro_batch_size"), 1),
        _whole(config.get("sequence_len"), 512),
        method,
        _whole(config.get("gradient_accumulation_steps"), 1),
    )


def _fsdp(method: Method, config: Mapping[str, Any]) -> Method:
    """Keys with and without the prefix that accelerate's own file has."""
    plain = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    off: Place = "cpu" if plain.get("offload_params") else ""
    whole = plain.get("reshard_after_forward") is False or plain.get("sharding_strategy") == "SHARD_GRAD_OP"
    kept = plain.get("activation_checkpointing", method.checkpointing and not config)
    return replace(method, sharding="fsdp2", optimizer_at=off, weights_at=off, keeps_gathered=whole,
                   checkpointing=bool(kept) or (method.checkpointing and method.backend == "ax"))  # fmt: skip


def _flat_deepspeed(inner: Mapping[str, Any]) -> dict[str, Any]:
    """accelerate's own keys for DeepSpeed, as DeepSpeed names them."""
    offload = {f"offload_{what}": {"device": inner.get(f"offload_{what}_device")} for what in ("optimizer", "param")}
    return {"zero_optimization": {"stage": inner.get("zero_stage", 2), **offload}, "bf16": {"enabled": "auto"}}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _place(value: Any) -> Place:
    places: dict[Any, Place] = {"cpu": "cpu", "nvme": "nvme"}
    return places.get(_mapping(value).get("device"), "")


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and value > 0 else default


def _elements(value: Any, default: int | None) -> int | None:
    if value == "auto":
        return None
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e15 else default
