"""A language model by the numbers of its config.json, and how many parameters it has.

Counted from the figures alone, since importing transformers takes longer than all the rest of a preflight; a test holds
every family to the model that transformers itself builds on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexa_dist.errors import UsageError


@dataclass(frozen=True)
class Family:
    """What the models of one `model_type` have in common. `norms`: those of one layer, of its width each."""

    gated: bool = True
    """Three matrices in the feed-forward block and not two."""
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    norms: int = 2
    norm_bias: bool = False
    qk_norm: str = ""
    """What q and k are normalized by: "head" (one weight a feature of a head) or "all" (one a feature of q or k)."""
    positions: bool = False
    """Learned, in a table."""
    head_bias: bool = False
    tied: bool = False
    """Whether input and output share their table where the config does not say."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "granite": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "olmo2": Family(qk_norm="all"),
    "phi3": Family(),
    "phi": Family(gated=False, qkv_bias=True, out_bias=True, ffn_bias=True, norms=1, norm_bias=True, head_bias=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, qk_norm="head", tied=True),
    "starcoder2": Family(gated=False, qkv_bias=True, out_bias=True, ffn_bias=True, norm_bias=True, tied=True),
    "gpt2": Family(gated=False, qkv_bias=True, out_bias=True, ffn_bias=True, norm_bias=True, positions=True, tied=True),
    "gpt_neox": Family(gated=False, qkv_bias=True, out_bias=True, ffn_bias=True, norm_bias=True),
}
"""By `model_type` of config.json, as transformers names them."""
KEYS = {
    "hidden": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions"),
}
MOST = 1 << 40


@dataclass(frozen=True)
class ModelShape:
    """The numbers that memory and time follow from. Widths are in features."""

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    positions: int
    tied: bool
    experts: int = 1
    experts_a_token: int = 1
    attention_bias: bool = False
    """What a config may ask for beyond its family."""

    @property
    def traits(self) -> Family:
        return FAMILIES[self.family]

    @property
    def attention(self) -> int:
        """Parameters of the attention of one layer."""
        q, kv, kind = self.heads * self.head_width, self.kv_heads * self.head_width, self.traits
        normed = {"": 0, "head": 2 * self.head_width, "all": q + kv}[kind.qk_norm]
        biases = (kind.qkv_bias or self.attention_bias) * (q + 2 * kv)
        biases += (kind.out_bias or self.attention_bias) * self.hidden
        return self.hidden * (2 * q + 2 * kv) + biases + normed

    @property
    def expert(self) -> int:
        """Parameters of one feed-forward block."""
        bias = self.traits.ffn_bias * (self.ffn + self.hidden)
        return (3 if self.traits.gated else 2) * self.hidden * self.ffn + bias

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        norms = self.traits.norms * self.hidden * (2 if self.traits.norm_bias else 1)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return self.attention + self.experts * self.expert + norms + router

    @property
    def parameters(self) -> int:
        """All of them; a shared table counts once."""
        kind, table = self.traits, self.vocabulary * self.hidden
        head = kind.head_bias * self.vocabulary + (0 if self.tied else table)
        last = self.hidden * (2 if kind.norm_bias else 1)
        return table + kind.positions * self.positions * self.hidden + self.layers * self.layer + last + head

    @property
    def active(self) -> int:
        """Those that one token goes through: of a mixture of experts, the chosen ones."""
        return self.parameters - self.layers * (self.experts - self.experts_a_token) * self.expert


def read(config: Mapping[str, Any], where: str) -> ModelShape:
    """The shape in a config.json. Raises UsageError for a family that is not known here, or a number that is none."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(
            f"{where}: model_type {family!r} is none whose size is known here",
            hint=f"known are {', '.join(FAMILIES)}",
        )

    def number(*names: str, default: int | None = None) -> int:
        value = next((config[name] for name in names if config.get(name) is not None), default)
        if type(value) is not int or not 0 < value < MOST:
            raise UsageError(f"{where}: {names[0]} must be a whole number above 0, not {value!r}")
        return value

    hidden, heads = number(*KEYS["hidden"]), number(*KEYS["heads"])
    many = 1 if family == "gpt2" or "experts" not in " ".join(config) else None
    experts = many or number("num_local_experts", "num_experts", default=1)
    ffn = number("moe_intermediate_size" if experts > 1 and "moe_intermediate_size" in config else "intermediate_size",
                 "n_inner", default=4 * hidden if family == "gpt2" else None)  # fmt: skip
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        family=family,
        vocabulary=number(*KEYS["vocabulary"]),
        hidden=hidden,
        layers=number(*KEYS["layers"]),
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_width=number("head_dim", default=hidden // heads),
        ffn=ffn,
        positions=number(*KEYS["positions"], default=2048),
        tied=FAMILIES[family].tied if tied is None else bool(tied),
        experts=experts,
        experts_a_token=number("num_experts_per_tok", default=1) if experts > 1 else 1,
        attention_bias=bool(config.get("attention_bias")),
    )
