"""An Axolotl file before it is sent: keys that Axolotl would take in silence without knowing them, and what cannot be.

keys.json is what `python -m nexa_dist.train.backends.ax_keys` printed, of the Axolotl in docker/lock/heavy.txt.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nexa_dist.config.problems import nearest
from nexa_dist.config.yaml.file import parse_yaml
from nexa_dist.config.yaml.tree import Document, PathKey, dotted
from nexa_dist.errors import ConfigError, Problem

REFUSED = {
    "load_best_model_at_end": "the checkpoints are the run's own, and the last one counts",
    "use_ray": "nexa run starts the ranks",
    "hub_model_id": "a node has the weights in the run's folder: nexa pull brings them",
}
"""Keys that a run cannot honour, where they are set to more than false, and why."""


@cache
def known() -> Mapping[str, Any]:
    """keys.json, as ax_keys.py says it."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("keys.json").read_text(encoding="utf-8"))
    return found


def check(file: str, content: bytes, sent: Collection[str]) -> None:
    """`content` of the user's Axolotl file; `sent` are the names of all files that go to the nodes. Raises ConfigError
    with every fault."""
    document = parse_yaml(content, file)
    problems = [*document.problems, *_unknown(document), *_impossible(document, sent)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))


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
            yield _at(document, path, "unknown key of Axolotl", nearest(names[-1], sorted(keys)))
    for name in document.data:
        if name not in top and not strange:
            yield _at(document, (name,), "unknown key of Axolotl", nearest(name, sorted(top)))


def _impossible(document: Document, sent: Collection[str]) -> Iterator[Problem]:
    data = document.data
    if data.get("deepspeed") and (data.get("fsdp_config") or data.get("fsdp")):
        both = "fsdp_config" if data.get("fsdp_config") else "fsdp"
        yield _at(document, (both,), "deepspeed is there too: each spreads the model its own way", "remove one")
    deepspeed = data.get("deepspeed")
    if isinstance(deepspeed, str) and deepspeed.removeprefix("./") not in sent and not deepspeed.startswith("/"):
        yield _at(document, ("deepspeed",), f"{deepspeed} is not among the files that are sent", "files: adds it")
    for key in ("base_model", "datasets"):
        if not data.get(key) and not (key == "datasets" and data.get("pretraining_dataset")):
            yield _at(document, (key,), "this key is missing", "")
    for key, why in REFUSED.items():
        if data.get(key):
            yield _at(document, (key,), f"has no place in a run: {why}", "remove it")


def _at(document: Document, path: PathKey, message: str, hint: str) -> Problem:
    line = document.lines.get(path, (1, 1))[0]
    return Problem(document.file, line, dotted(path), message, hint)
