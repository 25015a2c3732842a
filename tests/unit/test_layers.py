"""The arrows of the design: a module may import only what lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nexa_dist"
BELOW = {
    "errors": set(),
    "shape": set(),
    "wire": {"shape", "errors"},
    "model": set(),
    "secrets": set(),
    "refusal": set(),
    "config": {"model", "errors", "secrets"},
    "plan": {"config", "model", "wire", "shape", "errors", "secrets", "refusal"},
    "run": {"model", "wire", "shape", "errors", "secrets", "refusal"},
    "ops": {"plan", "run", "config", "model", "wire", "shape", "errors", "secrets", "refusal"},
    "ui": set(),
    "live": {"ui"},
    "verbs": {"ops", "plan", "run", "config", "model", "errors", "secrets", "ui", "live"},
    "cli": {"verbs", "ui", "errors", "secrets"},
    "launch": {"cli", "verbs", "config", "errors"},
    "train": {"config", "model", "errors", "secrets"},
    "node": set(),
    "__main__": {"cli"},
    "__init__": set(),
}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            # The agent's package has another name on the nodes; elsewhere a relative import would hide the layer.
            assert layer_of(path) == "node" and node.level == 1, f"{path}: relative imports hide the layer"
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "nexa_dist" else [f"nexa_dist.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("nexa_dist.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    assert layer in BELOW, f"{layer} has no place in the layers: add it, and docs/DECISIONS.md, first"
    wrong = imports(path) - BELOW[layer] - {layer}
    assert not wrong, f"{path.relative_to(PACKAGE)} ({layer}) imports {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "node").glob("*.py")), ids=lambda p: p.name)
def test_the_agent_needs_only_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nexa_dist import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    heavy = "pydantic yaml rich boto3 ansible ansible_runner fabric paramiko torch transformers python_terraform"
    heavy += " subprocess asyncio json importlib.metadata concurrent"
    assert not loaded & set(heavy.split())
    assert "usage: nexa" in done.stdout
