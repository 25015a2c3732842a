"""`python -m tests.axolotl_keys`, in the environment heavy: prints the keys that Axolotl's schema knows.

What it prints is nexa_dist/config/backend_files/axolotl_keys.json, by which a typo is refused where Axolotl is not
installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def known() -> dict[str, Any]:
    """`version` of Axolotl; `keys`: names by the place that they stand in, dotted, without the index of a list (places
    that take any key are left out); `plugins`: names that a plugin adds at the top, by its name."""
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    schemas: Any = importlib.import_module("axolotl.utils.schemas.config")
    keys: dict[str, set[str]] = {}
    _collect([schemas.AxolotlInputConfig], "", keys, 0)
    return {
        "version": importlib.metadata.version("axolotl"),
        "keys": {place: sorted(names) for place, names in sorted(keys.items())},
        "plugins": dict(sorted(_plugins())),
    }


def _collect(models: list[type[BaseModel]], place: str, keys: dict[str, set[str]], depth: int) -> None:
    inside: dict[str, list[Any]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            for word in _names(name, field):
                keys.setdefault(place, set()).add(word)
                inside.setdefault(word, []).append(field.annotation)
    for name, types in inside.items():
        kinds = [kind for one in types for kind in _kinds(one)]
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if below and dict not in kinds and depth < 3:
            _collect(list(dict.fromkeys(below)), f"{place}.{name}".lstrip("."), keys, depth + 1)


def _names(name: str, field: FieldInfo) -> Iterator[str]:
    """The field's own name, and its aliases."""
    yield name
    for alias in (field.alias, field.validation_alias):
        choices = getattr(alias, "choices", [alias])
        yield from (choice for choice in choices if isinstance(choice, str))


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a field takes, those of a list's items too; dict where any key goes."""
    origin = get_origin(annotation)
    if origin is dict or annotation in (dict, Any) or getattr(annotation, "__name__", "") == "DictDefault":
        yield dict
    elif origin is None:
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from _kinds(inner)


def _plugins() -> Iterator[tuple[str, list[str]]]:
    package = importlib.import_module("axolotl.integrations")
    base: Any = importlib.import_module("axolotl.integrations.base")
    for found in pkgutil.iter_modules(package.__path__):
        with contextlib.suppress(Exception):  # one that needs a package or a GPU: its keys are not known, nor refused
            module = importlib.import_module(f"axolotl.integrations.{found.name}")
            for name, kind in list(vars(module).items()):
                if isinstance(kind, type) and issubclass(kind, base.BasePlugin) and kind is not base.BasePlugin:
                    args = kind().get_input_args()
                    model = args and getattr(importlib.import_module(args.rpartition(".")[0]), args.rpartition(".")[2])
                    yield f"{module.__name__}.{name}", sorted(model.model_fields) if model else []


if __name__ == "__main__":
    json.dump(known(), sys.stdout, indent=1)
    print()
