"""The user's Axolotl YAML: keys that Axolotl would take in silence without knowing them, and what cannot be.

axolotl_keys.json is what `python -m tests.axolotl_keys` printed, of the Axolotl in docker/lock/heavy.txt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nexa_dist.config.load import of_project
from nexa_dist.config.problems import nearest, problem_at, value_at
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.config.yaml.json_text import read_json
from nexa_dist.config.yaml.tree import Document
from nexa_dist.errors import ConfigError, Problem

REFUSED = {
    "load_best_model_at_end": "the checkpoints are the run's own, and the last one counts",
    "use_ray": "nexa run starts the ranks",
    "hub_model_id": "a node has the weights in the run's folder: nexa pull brings them",
}
"""Keys that a run cannot honour, where they are set to more than false, and why."""


@cache
def known() -> Mapping[str, Any]:
    """axolotl_keys.json, as tests/axolotl_keys.py says it."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("axolotl_keys.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class AxolotlFile:
    """`files`: paths in the project that it names."""

    files: tuple[str, ...] = ()


def read(config: TrainConfig) -> AxolotlFile:
    """The file that `config` of train.yaml names, from the folder of the project. Raises ConfigError with every fault
    of it."""
    path = of_project(str(config.config))
    found = check(display_name(path), read_bytes(path))
    for deepspeed in map(of_project, found.files):
        if deepspeed.is_file() and (problem := _on_a_disk(read_json(deepspeed))):
            raise ConfigError([problem])
    return found


def check(file: str, content: bytes) -> AxolotlFile:
    """`content` of the file of this name. Raises ConfigError with every fault."""
    document = parse_yaml(content, file)
    problems = [*document.problems, *_unknown(document), *_impossible(document)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    deepspeed = document.data.get("deepspeed")
    return AxolotlFile((deepspeed,) if isinstance(deepspeed, str) else ())


def _on_a_disk(deepspeed: Document) -> Problem | None:
    """DeepSpeed takes such an optimizer up in part, and says nothing. Backend ds adds the rest (ds_engine.py)."""
    path = ("zero_optimization", "offload_optimizer", "device")
    if value_at(deepspeed.data, path) != "nvme":
        return None
    words = "an optimizer on a disk cannot be resumed under Axolotl"
    return problem_at(path, words, "write cpu, or train with backend: ds", deepspeed)


def _unknown(document: Document) -> Iterator[Problem]:
    places, plugins = known()["keys"], known()["plugins"]
    named = [str(name) for name in document.data.get("plugins") or ()]
    top = {*places[""], *(key for name in named for key in plugins.get(name, ()))}
    strange = any(name not in plugins for name in named)  # a plugin of the user's own may add any key
    for path in document.lines:
        names = [part for part in path if isinstance(part, str)]
        if not names or not isinstance(path[-1], str) or names[0] not in top:
            continue
        keys = places.get(".".join(names[:-1]), ()) if len(names) > 1 else top
        if keys and names[-1] not in keys:
            yield problem_at(path, "unknown key of Axolotl", nearest(names[-1], sorted(keys)), document)
    for name in document.data:
        if name not in top and not strange:
            yield problem_at((name,), "unknown key of Axolotl", nearest(name, sorted(top)), document)


def _impossible(document: Document) -> Iterator[Problem]:
    data = document.data
    if data.get("deepspeed") and (data.get("fsdp_config") or data.get("fsdp")):
        both = "fsdp_config" if data.get("fsdp_config") else "fsdp"
        yield problem_at((both,), "deepspeed is there too: each spreads the model its own way", "remove one", document)
    for key in ("base_model", "datasets"):
        if not data.get(key) and not (key == "datasets" and data.get("pretraining_dataset")):
            yield problem_at((key,), "this key is missing", "", document)
    for key, why in REFUSED.items():
        if data.get(key):
            yield problem_at((key,), f"has no place in a run: {why}", "remove it", document)
