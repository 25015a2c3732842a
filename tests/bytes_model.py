"""A Llama of some thousand weights, with a tokenizer of bytes, for tests of what is around a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def byte_llama(folder: Path) -> tuple[Any, Any]:
    """Save one in a folder. Returns its tokenizer and itself; the same weights each time."""
    import tokenizers
    import torch
    import transformers

    hf: Any = transformers
    made: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(["x"], tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<s>", "</s>"]))  # fmt: skip
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(settings)
    model.save_pretrained(folder)
    return tokenizer, model
