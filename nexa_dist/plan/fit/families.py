"""What the models of one `model_type` have in common, as transformers builds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj")
NEOX = ("query_key_value", "query_key_value", "query_key_value", "dense")


@dataclass(frozen=True)
class Family:
    """`norms`: those of one layer, of its width each. Names are those of the modules; what shares a name is one
    matrix."""

    gated: bool = True
    """Three matrices in the feed-forward block and not two."""
    attention: tuple[str, str, str, str] = SPLIT
    """Modules of queries, keys, values and what comes out."""
    feed_forward: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    norms: int = 2
    norm_weight: bool = True
    norm_bias: bool = False
    qk_norm: Literal["", "head", "all"] = ""
    """What q and k are normalized by: "head" (one weight a feature of a head) or "all" (one a feature of q or k)."""
    positions: bool = False
    """Learned, in a table."""
    head_bias: bool = False
    tied: bool = False
    """Whether input and output share their table where the config does not say."""
    transposed: bool = False
    """Matrices stand as (in, out)."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "granite": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "olmo": Family(norms=0, norm_weight=False),
    "olmo2": Family(qk_norm="all"),
    "phi3": Family(
        attention=("qkv_proj", "qkv_proj", "qkv_proj", "o_proj"),
        feed_forward=("gate_up_proj", "gate_up_proj", "down_proj"),
    ),
    "phi": Family(gated=False, attention=("q_proj", "k_proj", "v_proj", "dense"), feed_forward=("fc1", "fc2"),
                  qkv_bias=True, out_bias=True, ffn_bias=True, norms=1, norm_bias=True, head_bias=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, qk_norm="head", tied=True),
    "falcon": Family(gated=False, attention=NEOX, feed_forward=("dense_h_to_4h", "dense_4h_to_h"), norms=1,
                     norm_bias=True, tied=True),
    "starcoder2": Family(gated=False, feed_forward=("c_fc", "c_proj"), qkv_bias=True, out_bias=True, ffn_bias=True,
                         norm_bias=True, tied=True),
    "gpt2": Family(gated=False, attention=("c_attn", "c_attn", "c_attn", "c_proj"), feed_forward=("c_fc", "c_proj"),
                   qkv_bias=True, out_bias=True, ffn_bias=True, norm_bias=True, positions=True, tied=True,
                   transposed=True),
    "gpt_neox": Family(gated=False, attention=NEOX, feed_forward=("dense_h_to_4h", "dense_4h_to_h"),
                       qkv_bias=True, out_bias=True, ffn_bias=True, norm_bias=True),
}  # fmt: skip
"""By `model_type` of config.json, as transformers names them."""
