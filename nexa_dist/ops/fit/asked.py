"""What a train.yaml asks for, as the judge of fits takes it: whose model, which method, how much work.

Of a backend with a config file of its own (an accelerate, DeepSpeed or Axolotl file) that file is read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import IN_DATA
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.errors import UsageError
from nexa_dist.plan.fit.method import (
    ALL_LINEAR,
    METHODS,
    Adapter,
    Method,
    Precision,
    Work,
    as_if,
    of_accelerate,
    of_axolotl,
    of_deepspeed,
    work_of_axolotl,
)


@dataclass(frozen=True)
class Asked:
    """`path`: directory of a pretrained model; empty for one from scratch, whose config.json is `settings`. `data`:
    local or on the nodes, as it is written."""

    path: str
    settings: Mapping[str, Any]
    work: Work
    steps: int
    data: tuple[str, ...]
    other: tuple[str, ...] = ()
    """What else is brought to the nodes from this machine."""
    examples: str | None = None
    """The one of `data` whose rows our own trainer reads."""
    teacher: str = ""
    """Directory of a pretrained model that the other one learns from."""
    words: str = ""
    """Directory of a pretrained model whose tokenizer one from scratch takes."""


def asked(config: TrainConfig, root: Path, backend: str = "") -> Asked:
    """`root`: where paths of train.yaml begin. `backend`: a name of METHODS, instead of what the file has. Raises
    UsageError where the model is the script's own."""
    if not config.backend:
        raise UsageError(
            f"the model of {config.script or config.module or config.program} is its own: nobody here knows what it "
            "needs",
            hint="nexa preflight is for backend: hf, acc, ds and ax",
        )
    name, own = str(config.backend), _file(root, config.config)
    if name == "ax":
        made = _of_axolotl(own, root)
    else:
        made = _of_sections(config, _method(name, own), own)
    path = _local(made.path, config)
    if path and (root / path / "config.json").is_file():
        made = replace(made, path=str(root / path))
    made = replace(made, teacher=_here(made.teacher, root), words=_here(made.words, root))
    other = tuple(source for source in config.data.values() if "://" not in source and source not in made.data)
    made = replace(made, other=other)
    return replace(made, work=as_if(made.work, METHODS[backend])) if backend else made


def _here(folder: str, root: Path) -> str:
    """As a path of this machine, where it is one."""
    return str(root / folder) if folder and (root / folder / "config.json").is_file() else folder


def _local(path: str, config: TrainConfig) -> str:
    """Where a path below $NEXA_DATA comes from, when that is on this machine."""
    found = IN_DATA.fullmatch(path)
    source = config.data.get(found[1], "") if found else ""
    return f"{source}{found[2]}" if found and source and "://" not in source else path


def _method(backend: str, own: Mapping[str, Any]) -> Method:
    if backend == "acc" and own:
        return of_accelerate(own)
    if backend == "ds" and own:
        return of_deepspeed(own)
    return METHODS[backend]


def _of_sections(config: TrainConfig, method: Method, own: Mapping[str, Any]) -> Asked:
    model, dataset, trainer = config.model, config.dataset, config.trainer
    assert model is not None and dataset is not None and trainer is not None
    if method.backend == "ds":  # what its file leaves to the trainer is as the trainer has it
        low = own.get("bf16")
        precision = "bf16" if isinstance(low, Mapping) and low.get("enabled") is True else trainer.precision
        method = replace(method, weights=precision)
    else:
        words: dict[Any, Precision] = {"bf16": "bf16", "no": "fp32"}
        precision = words.get(own.get("mixed_precision"), trainer.precision)
    if model.lora is not None:
        method = replace(method, adapter=Adapter(model.lora.rank, model.lora.target_modules or ALL_LINEAR))
    work = Work(precision, 1, trainer.batch_size, dataset.sequence_length, method)
    path = _local(dataset.path, config) if dataset.path else ""
    data = (path,) if path else ()
    settings = {
        "model_type": "llama", "vocab_size": model.vocab_size, "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate_size, "max_position_embeddings": dataset.sequence_length,
        "tie_word_embeddings": True,
    }  # fmt: skip
    rows = path if dataset.source == "examples" else None
    teacher = _local(trainer.kd_teacher or "", config)
    folder = _local(model.tokenizer or "", config)
    return Asked(model.path or "", {} if model.path else settings, work, trainer.steps, data, (), rows, teacher, folder)


def _of_axolotl(own: Mapping[str, Any], root: Path) -> Asked:
    named = own.get("deepspeed")
    method = of_axolotl(own, _file(root, named) if isinstance(named, str) else None)
    rows = own.get("datasets")
    paths = [row.get("path") for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    steps = own.get("max_steps")
    return Asked(
        str(own.get("base_model") or ""),
        {},
        work_of_axolotl(own, method),
        steps if type(steps) is int and steps > 0 else 0,
        tuple(path for path in paths if isinstance(path, str)),
    )


def _file(root: Path, name: str | None) -> Mapping[str, Any]:
    """A config file of another program, as plain data; what is wrong with it is for that program to say."""
    if not name:
        return {}
    path = Path(name) if Path(name).is_file() else root / name
    raw = read_bytes(path)
    if path.suffix != ".json":
        return parse_yaml(raw, display_name(path)).data
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
