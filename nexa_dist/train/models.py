"""The model and its tokenizer, as the config describes them; shared by the backends that use transformers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import transformers

from nexa_dist.config.backends import BACKENDS
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import LoraConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.train import data
from nexa_dist.train.text import tokens

_hf: Any = transformers  # half of its functions carry no types


def build(config: TrainConfig, dataset: data.Dataset, *, empty: bool = False) -> Any:
    """The model in float32 on the CPU. Its size is counted on the meta device before memory is taken, and there it
    stays when it is to be `empty`."""
    shape = config.model
    assert shape is not None
    settings = _settings(config, dataset)
    refuse_if_too_large(str(config.backend), settings)
    if empty:
        with torch.device("meta"):
            model = _hf.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    elif shape.path is not None:
        model = _hf.AutoModelForCausalLM.from_pretrained(shape.path, dtype=torch.float32, local_files_only=True)
    else:
        model = _hf.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.config.use_cache = False
    return model if shape.lora is None else _with_adapters(model, shape.lora)


def _with_adapters(model: Any, lora: LoraConfig) -> Any:
    """The model with its own weights frozen. Raises UsageError for a layer that it does not have."""
    peft: Any = import_module("peft")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.scale,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as err:
        names = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        raise UsageError(
            f"model.lora.target_modules: {str(err).splitlines()[0]}",
            hint=f"its linear layers: {', '.join(sorted(names))}",
        ) from err


def _settings(config: TrainConfig, dataset: data.Dataset) -> Any:
    shape = config.model
    assert shape is not None and config.dataset is not None
    if shape.path is not None:
        return _hf.AutoConfig.from_pretrained(shape.path, local_files_only=True)
    return _hf.LlamaConfig(
        vocab_size=dataset.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=config.dataset.sequence_length,
        attention_dropout=shape.dropout,
        tie_word_embeddings=True,
        bos_token_id=dataset.end_id,
        eos_token_id=dataset.end_id,
    )


def parameters(config: TrainConfig, dataset: data.Dataset) -> int:
    """Of the model that `build` makes, counted on the meta device."""
    with torch.device("meta"):
        return int(_hf.AutoModelForCausalLM.from_config(_settings(config, dataset)).num_parameters())


def refuse_if_too_large(backend: str, settings: Any) -> None:
    """Raise NexaError for a model that the backend is not made for."""
    most = BACKENDS[backend].most_parameters
    if most is None:
        return
    with torch.device("meta"):
        parameters = _hf.AutoModelForCausalLM.from_config(settings).num_parameters()
    if parameters > most:
        raise NexaError(
            f"the model has {parameters / 1e9:.1f} B parameters, backend {backend} takes at most {most / 1e9:.0f} B:"
            " DDP holds all of it on every rank",
            hint="use a backend that shards the model, or a smaller one",
        )


def tokenizer(config: TrainConfig, dataset: data.Dataset) -> Any:
    if config.model is not None and config.model.words is not None:
        return _hf.AutoTokenizer.from_pretrained(config.model.words, local_files_only=True)
    return _hf.PreTrainedTokenizerFast(
        tokenizer_file=str(dataset.folder / "tokenizer.json"), eos_token=tokens.END, bos_token=tokens.END
    )
