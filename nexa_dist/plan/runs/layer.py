"""Layer of a run's own over the environment: for the project, and for what its setup installs."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError

PYPROJECT, SETUP = "pyproject.toml", "setup.py"


@dataclass(frozen=True)
class Layer:
    """Layer of a run: what goes into it."""

    requires: tuple[str, ...] | None
    """Requirements that build the project; None where it is not installed."""
    must: bool = False
    """True when the run is of no use without the project: its program could not be found."""


def layer_of(config: TrainConfig, names: Collection[str], pyproject: bytes | None) -> Layer | None:
    """The layer of a run, None where it needs none. `names` are the project's files. Raises UsageError for a
    pyproject.toml that cannot be read, or where there is nothing to install and train.yaml says so."""
    try:
        project = tomllib.loads((pyproject or b"").decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{PYPROJECT}: {error}", hint="mend it: the nodes install the project by it") from None
    source = any(name.startswith("src/") for name in names)
    wanted = config.install
    if wanted is None:
        wanted = config.backend is None and _is_package(project, source)
    if config.install and pyproject is None and SETUP not in names:
        raise UsageError(f"install: true: the project has neither {PYPROJECT} nor {SETUP}", hint="remove install")
    if wanted:
        build = _table(project, "build-system").get("requires")
        requires = [text for text in build if isinstance(text, str)] if isinstance(build, list) else ["setuptools"]
        return Layer(tuple(requires), must=bool(config.install or config.program or source))
    return Layer(None) if config.setup else None


def _is_package(project: dict[str, Any], source: bool) -> bool:
    """Tell whether a project is a package as uv and poetry see it: one that only lists packages and settings is
    none."""
    tools, own = _table(project, "tool"), _table(project, "project")
    said = _table(tools, "uv").get("package", _table(tools, "poetry").get("package-mode"))
    if isinstance(said, bool):
        return said
    scripts = any(key in own for key in ("scripts", "gui-scripts", "entry-points"))
    return "build-system" in project or scripts or bool(own and source)


def _table(of: dict[str, Any], name: str) -> dict[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}
