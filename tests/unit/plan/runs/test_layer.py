"""Which projects are installed into a layer of the run's own."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.plan.runs.layer import Layer, layer_of

BUILD = '[build-system]\nrequires = ["hatchling>=1"]\n'
PROJECT = '[project]\nname = "lab"\n'
SCRIPTS = PROJECT + '[project.scripts]\nlab = "lab:main"\n'
FLAT, SRC = ("lab/a.py", "pyproject.toml"), ("pyproject.toml", "src/lab/a.py")
HATCH, OLD, MUST = Layer(("hatchling>=1",)), Layer(("setuptools",)), Layer(("setuptools",), must=True)


def config(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"module": "lab", **more})


@pytest.mark.parametrize(
    ("text", "names", "more", "layer"),
    [
        (None, ("train.py",), {}, None),
        ("[tool.ruff]\nline-length = 99\n", FLAT, {}, None),
        ("[tool.ruff]\nline-length = 99\n", SRC, {}, None),
        (PROJECT, FLAT, {}, None),
        (PROJECT, SRC, {}, MUST),
        (SCRIPTS, FLAT, {}, OLD),
        (SCRIPTS, FLAT, {"module": None, "program": "lab"}, MUST),
        (BUILD, FLAT, {}, HATCH),
        (BUILD + "[tool.uv]\npackage = false\n", FLAT, {}, None),
        (BUILD + "[tool.poetry]\npackage-mode = false\n", FLAT, {}, None),
        (PROJECT + "[tool.uv]\npackage = true\n", FLAT, {}, OLD),
        (BUILD, FLAT, {"install": False}, None),
        (BUILD, FLAT, {"install": False, "setup": ["make"]}, Layer(None)),
        (None, ("train.py",), {"setup": ["make"]}, Layer(None)),
        (None, ("setup.py",), {"install": True}, MUST),
        ("build-system = 3\nproject = 3\n", FLAT, {}, OLD),
    ],
)
def test_a_package_is_installed_and_what_only_holds_settings_is_not(
    text: str | None, names: tuple[str, ...], more: dict[str, Any], layer: Layer | None
) -> None:
    assert layer_of(config(**more), names, None if text is None else text.encode()) == layer


@pytest.mark.parametrize(
    ("pyproject", "names", "words"),
    [
        (b"[project\n", FLAT, "pyproject.toml: "),
        (b"\xff", FLAT, "pyproject.toml: "),
        (None, ("a.py",), "install: true: the project has neither pyproject.toml nor setup.py"),
    ],
)
def test_what_cannot_be_installed_is_said(pyproject: bytes | None, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layer_of(config(install=True), names, pyproject)
