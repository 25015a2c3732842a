"""A language model by the numbers of its config.json: its tensors, and so how many parameters it has.

Counted from the figures alone, since importing transformers takes longer than all the rest of a preflight; a test holds
the tensors of every family to those of the model that transformers itself builds on the meta device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nexa_dist.errors import UsageError
from nexa_dist.plan.fit.families import FAMILIES, Family

KEYS = {
    "hidden": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions"),
}
MOST = 1 << 40


@dataclass(frozen=True)
class Tensor:
    """Parameters of one shape, `copies` of them. Only a `linear` is an nn.Linear (or GPT-2's Conv1D) of a layer, to
    which adapters and quantization apply; `experts` are all those of a layer in one tensor. `outside`: of no layer."""

    name: str
    shape: tuple[int, ...]
    copies: int
    kind: Literal["linear", "experts", "router", "vector", "table"]
    outside: bool = False

    @property
    def numel(self) -> int:
        """Elements of one of them."""
        return math.prod(self.shape)

    @property
    def all(self) -> int:
        return self.numel * self.copies


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
    more_norms: int = 0
    all_biased: bool = False

    @property
    def traits(self) -> Family:
        return FAMILIES[self.family]

    @functools.cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters; a table that input and output share is there once."""
        return (*self._attention(), *self._feed_forward(), *self._norms(), *self._outside())

    @functools.cached_property
    def parameters(self) -> int:
        return sum(tensor.all for tensor in self.tensors)

    @property
    def active(self) -> int:
        """Those that one token goes through: of a mixture of experts, the chosen ones."""
        every = sum(tensor.all for tensor in self.tensors if tensor.kind == "experts")
        return self.parameters - every * (self.experts - self.experts_a_token) // self.experts

    def _attention(self) -> Iterator[Tensor]:
        q, kv, kind = self.heads * self.head_width, self.kv_heads * self.head_width, self.traits
        biased = kind.qkv_bias or self.attention_bias or self.all_biased
        yield from self._matrices(kind.attention[:3], (q, kv, kv), self.hidden, biased)
        out = kind.out_bias or self.attention_bias or self.all_biased
        yield from self._matrices(kind.attention[3:], (self.hidden,), q, out)
        if kind.qk_norm:
            for name, width in (("q_norm", q), ("k_norm", kv)):
                yield self._vector(name, self.head_width if kind.qk_norm == "head" else width)

    def _feed_forward(self) -> Iterator[Tensor]:
        kind, into = self.traits, 2 if self.traits.gated else 1
        if self.experts == 1:
            biased = kind.ffn_bias or self.all_biased
            yield from self._matrices(kind.feed_forward[:-1], (self.ffn,) * into, self.hidden, biased)
            yield from self._matrices(kind.feed_forward[-1:], (self.hidden,), self.ffn, biased)
            return
        yield Tensor("gate", (self.experts, self.hidden), self.layers, "router")
        yield Tensor("gate_up_proj", (self.experts, into * self.ffn, self.hidden), self.layers, "experts")
        yield Tensor("down_proj", (self.experts, self.hidden, self.ffn), self.layers, "experts")

    def _norms(self) -> Iterator[Tensor]:
        kind = self.traits
        of_one = kind.norm_weight + kind.norm_bias
        yield Tensor("norm", (self.hidden,), self.layers * (kind.norms + self.more_norms) * of_one, "vector")
        yield Tensor("norm", (self.hidden,), of_one, "vector", outside=True)

    def _outside(self) -> Iterator[Tensor]:
        yield Tensor("embed", (self.vocabulary, self.hidden), 1 if self.tied else 2, "table", outside=True)
        if self.traits.positions:
            yield Tensor("positions", (self.positions, self.hidden), 1, "table", outside=True)
        if self.traits.head_bias:
            yield Tensor("head_bias", (self.vocabulary,), 1, "vector", outside=True)

    def _matrices(self, names: Iterable[str], outs: tuple[int, ...], into: int, biased: bool) -> Iterator[Tensor]:
        """The matrices of so many outputs each; those of one name are one."""
        rows: dict[str, int] = {}
        for name, out in zip(names, outs, strict=True):
            rows[name] = rows.get(name, 0) + out
        for name, out in rows.items():
            yield Tensor(name, (into, out) if self.traits.transposed else (out, into), self.layers, "linear")
            if biased:
                yield self._vector(name, out)

    def _vector(self, name: str, width: int) -> Tensor:
        return Tensor(name, (width,), self.layers, "vector")


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
    narrow = experts > 1 and "moe_intermediate_size" in config
    widths = (
        ("ffn_hidden_size",) if family == "falcon" else ("n_inner",) if family == "gpt2" else ("intermediate_size",)
    )
    tied = config.get("tie_word_embeddings")
    falcon = _falcon(config, heads, number) if family == "falcon" else {}
    return ModelShape(
        family=family,
        vocabulary=number(*KEYS["vocabulary"]),
        hidden=hidden,
        layers=number(*KEYS["layers"]),
        heads=heads,
        kv_heads=falcon.pop("kv_heads", 0) or number("num_key_value_heads", default=heads),
        head_width=number("head_dim", default=hidden // heads),
        ffn=number(
            *(("moe_intermediate_size",) if narrow else widths),
            default=4 * hidden if family in ("gpt2", "falcon") else None,
        ),
        positions=number(*KEYS["positions"], default=2048),
        tied=FAMILIES[family].tied if tied is None else bool(tied),
        experts=experts,
        experts_a_token=number("num_experts_per_tok", default=1) if experts > 1 else 1,
        attention_bias=bool(config.get("attention_bias")),
        **falcon,
    )


def _falcon(config: Mapping[str, Any], heads: int, number: Any) -> dict[str, Any]:
    """What falcon's two architectures say in words of their own."""
    new = bool(config.get("new_decoder_architecture"))
    one = not new and config.get("multi_query", True)
    two = config.get("num_ln_in_parallel_attn") != 1 if new else not config.get("parallel_attn", True)
    return {
        "kv_heads": number("num_kv_heads", default=heads) if new else 1 if one else heads,
        "more_norms": int(two),
        "all_biased": bool(config.get("bias")),
    }
