"""Models by the figures of their public config.json, and the number of their parameters as their publishers give it or
as the sum of the tensors of their weights is known. Figures only."""

from __future__ import annotations

from typing import Any


def _row(
    family: str, vocab: int, hidden: int, layers: int, heads: int, kv: int, ffn: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": family, "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": ffn, "tie_word_embeddings": tied,
        **more,
    }  # fmt: skip


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "vocab_size": 50257, "n_embd": hidden, "n_layer": layers, "n_head": heads,
            "n_positions": 1024}  # fmt: skip


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"model_type": "falcon", "vocab_size": 65024, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "bias": False, **more}  # fmt: skip


KNOWN: dict[str, tuple[dict[str, Any], int]] = {
    "SmolLM2-135M": (_row("llama", 49152, 576, 30, 9, 3, 1536, True), 134_515_008),
    "SmolLM2-1.7B": (_row("llama", 49152, 2048, 24, 32, 32, 8192, True), 1_711_376_384),
    "TinyLlama-1.1B": (_row("llama", 32000, 2048, 22, 32, 4, 5632, False), 1_100_048_384),
    "Llama-2-7B": (_row("llama", 32000, 4096, 32, 32, 32, 11008, False), 6_738_415_616),
    "Llama-2-13B": (_row("llama", 32000, 5120, 40, 40, 40, 13824, False), 13_015_864_320),
    "Llama-2-70B": (_row("llama", 32000, 8192, 80, 64, 8, 28672, False), 68_976_648_192),
    "Llama-3-8B": (_row("llama", 128256, 4096, 32, 32, 8, 14336, False), 8_030_261_248),
    "Llama-3-70B": (_row("llama", 128256, 8192, 80, 64, 8, 28672, False), 70_553_706_496),
    "Llama-3.1-405B": (_row("llama", 128256, 16384, 126, 128, 8, 53248, False), 405_853_388_800),
    "Llama-3.2-1B": (_row("llama", 128256, 2048, 16, 32, 8, 8192, True), 1_235_814_400),
    "Llama-3.2-3B": (_row("llama", 128256, 3072, 28, 24, 8, 8192, True), 3_212_749_824),
    "Mistral-7B-v0.1": (_row("mistral", 32000, 4096, 32, 32, 8, 14336, False), 7_241_732_096),
    "Mixtral-8x7B": (
        _row("mixtral", 32000, 4096, 32, 32, 8, 14336, False, num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "Mixtral-8x22B": (
        _row("mixtral", 32768, 6144, 56, 48, 8, 16384, False, num_local_experts=8, num_experts_per_tok=2),
        140_630_071_296,
    ),
    "Qwen2.5-0.5B": (_row("qwen2", 151936, 896, 24, 14, 2, 4864, True), 494_032_768),
    "Qwen2.5-1.5B": (_row("qwen2", 151936, 1536, 28, 12, 2, 8960, True), 1_543_714_304),
    "Qwen2.5-7B": (_row("qwen2", 152064, 3584, 28, 28, 4, 18944, False), 7_615_616_512),
    "Qwen2.5-14B": (_row("qwen2", 152064, 5120, 48, 40, 8, 13824, False), 14_770_033_664),
    "Qwen2.5-32B": (_row("qwen2", 152064, 5120, 64, 40, 8, 27648, False), 32_763_876_352),
    "Qwen2.5-72B": (_row("qwen2", 152064, 8192, 80, 64, 8, 29568, False), 72_706_203_648),
    "Qwen3-0.6B": (_row("qwen3", 151936, 1024, 28, 16, 8, 3072, True, head_dim=128), 596_049_920),
    "Qwen3-8B": (_row("qwen3", 151936, 4096, 36, 32, 8, 12288, False, head_dim=128), 8_190_735_360),
    "Qwen3-30B-A3B": (
        _row("qwen3_moe", 151936, 2048, 48, 32, 4, 6144, False, head_dim=128, moe_intermediate_size=768,
             num_experts=128, num_experts_per_tok=8),
        30_532_122_624,
    ),
    "Gemma-2B": (_row("gemma", 256000, 2048, 18, 8, 1, 16384, True, head_dim=256), 2_506_172_416),
    "Gemma-7B": (_row("gemma", 256000, 3072, 28, 16, 16, 24576, True, head_dim=256), 8_537_680_896),
    "Gemma-2-9B": (_row("gemma2", 256000, 3584, 42, 16, 8, 14336, True, head_dim=256), 9_241_705_984),
    "Phi-3-mini": (_row("phi3", 32064, 3072, 32, 32, 32, 8192, False), 3_821_079_552),
    "Phi-2": (_row("phi", 51200, 2560, 32, 32, 32, 10240, False), 2_779_683_840),
    "Pythia-6.9B": (_row("gpt_neox", 50432, 4096, 32, 32, 32, 16384, False), 6_857_302_016),
    "Pythia-12B": (_row("gpt_neox", 50688, 5120, 36, 40, 40, 20480, False), 11_846_072_320),
    "GPT-2": (_gpt2(768, 12, 12), 124_439_808),
    "GPT-2-XL": (_gpt2(1600, 48, 25), 1_557_611_200),
    "Yi-34B": (_row("llama", 64000, 7168, 60, 56, 8, 20480, False), 34_388_917_248),
    "Falcon-7B": (_falcon(4544, 32, 71, multi_query=True, parallel_attn=True), 6_921_720_704),
    "Falcon-40B": (_falcon(8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8), 41_303_293_952),
    "OLMo-7B": (_row("olmo", 50304, 4096, 32, 32, 32, 11008, False), 6_888_095_744),
    "OLMo-2-7B": (_row("olmo2", 100352, 4096, 32, 32, 32, 11008, False), 7_298_617_344),
    "Qwen2.5-3B": (_row("qwen2", 151936, 2048, 36, 16, 2, 11008, True), 3_085_938_688),
    "SmolLM2-360M": (_row("llama", 49152, 960, 32, 15, 5, 2560, True), 361_821_120),
    "Phi-4": (_row("phi3", 100352, 5120, 40, 40, 10, 17920, False), 14_659_507_200),
    "Phi-3-medium": (_row("phi3", 32064, 5120, 40, 40, 10, 17920, False), 13_960_238_080),
    "Phi-1.5": (_row("phi", 51200, 2048, 24, 32, 32, 8192, False), 1_418_270_720),
    "GPT-2-medium": (_gpt2(1024, 24, 16), 354_823_168),
    "GPT-2-large": (_gpt2(1280, 36, 20), 774_030_080),
    "Gemma-3-1B": (_row("gemma3_text", 262144, 1152, 26, 4, 1, 6912, True, head_dim=256), 999_885_952),
    "Mistral-Nemo-12B": (_row("mistral", 131072, 5120, 40, 32, 8, 14336, False, head_dim=128), 12_247_782_400),
    "StarCoder2-3B": (_row("starcoder2", 49152, 3072, 30, 24, 2, 12288, True), 3_030_371_328),
    "StarCoder2-15B": (_row("starcoder2", 49152, 6144, 40, 48, 4, 24576, False), 15_957_889_024),
    "Pythia-160M": (_row("gpt_neox", 50304, 768, 12, 12, 12, 3072, False), 162_322_944),
    "Pythia-1.4B": (_row("gpt_neox", 50304, 2048, 24, 16, 16, 8192, False), 1_414_647_808),
    "Pythia-2.8B": (_row("gpt_neox", 50304, 2560, 32, 32, 32, 10240, False), 2_775_208_960),
}  # fmt: skip
