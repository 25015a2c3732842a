"""A project with a src folder, a console script and lines of its own for the nodes, on a real cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NO_TORCH, Lab

pytestmark = pytest.mark.e2e

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "lab"
version = "1.5"
[project.scripts]
lab-train = "lab.cli:main"
"""
CLI = """
import os, sys
from importlib.metadata import version
def main():
    text = open("made/it").read().strip()
    print("lab", version("lab"), text, sys.argv[1:], os.path.relpath(__file__), flush=True)
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def project(clean: Lab) -> Iterator[Lab]:
    clean.write("pyproject.toml", PYPROJECT)
    clean.write("src/lab/__init__.py", "")
    clean.write("src/lab/cli.py", CLI)
    yield clean
    (clean.root / "pyproject.toml").unlink()
    shutil.rmtree(clean.root / "src")


def test_a_project_is_installed_and_its_lines_run_once_a_node(project: Lab, tmp_path: Path) -> None:
    def train(name: str, **more: Any) -> str:
        return project.write(f"{name}.yaml", json.dumps({"name": name, "args": ["a b"], "nproc_per_node": 1, **more}))

    lines = [f"echo ran >> {tmp_path}/$NEXA_NODE", "mkdir -p made && echo $((6 * 7)) > made/it"]
    said = "lab 1.5 42 ['a b'] src/lab/cli.py\n"
    more: dict[str, Any] = {"setup": lines, **NO_TORCH}
    files = [train("program", program="lab-train", **more), train("module", module="lab.cli", **more)]
    project.nexa("run", files[0])
    assert [project.log(rank, f"n{rank}") for rank in (0, 1)] == [said, said]
    first = project.newest().name
    project.nexa("run", files[1])
    assert [project.log(rank, f"n{rank}") for rank in (0, 1)] == [said, said]
    assert [(tmp_path / name).read_text() for name in ("n0", "n1")] == ["ran\n", "ran\n"]
    logs = project.nexa("logs", "--rank", "setup").stdout
    assert sorted(logs.splitlines()) == [
        f"[n{n}:setup] nexa: {words}"
        for n in (0, 1)
        for words in (
            f"done before on this node, by {first}: 2 files copied",
            f"installed before on this node, by {first}",
        )
    ]

    failed = project.nexa("run", train("fails", module="lab.cli", setup=[*lines, "make nothing"]), code=1).stderr
    assert "setup: line 3 of 3 (make nothing): exit code 2" in failed
    assert len(project.record()["attempts"]) == 1
    assert "failed first (exit code 2): the setup of this node failed: line 3 of 3" in project.nexa("why").stdout
    assert project.processes() == []
