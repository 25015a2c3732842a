"""The arrows of the design: a module may import only what lies below it."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nexa_dist"
GROUND = {"wire", "shape", "errors", "secrets", "refusal", "model", "traits", "straggler"}
BELOW = {
    "errors": set(),
    "shape": set(),
    "wire": {"shape", "errors", "node.protocol"},
    "model": {"shape", "traits"},
    "traits": set(),
    "straggler": set(),
    "secrets": set(),
    "refusal": set(),
    "config": {"model", "errors", "secrets", "traits"},
    "plan": {"config", "train", "node.protocol", *GROUND},
    "remote": set(),
    "run": {"node.protocol", *GROUND},
    "ops": {"plan", "run", "config", "remote", "train", "stages", "node.protocol", "node.webhook", *GROUND},
    "ui": {"node.protocol", "straggler"},
    "verbs": {"ops", "plan", "run", "config", "stages", "model", "errors", "secrets", "traits", "ui"},
    "cli": {"verbs", "ui", "errors", "secrets"},
    "launch": {"cli", "verbs", "config", "errors"},
    "train": {"config", "model", "errors", "secrets", "straggler"},
    "stages": {"config", "run", "train", "__init__", *GROUND},
    "node": {"node.protocol", "node.webhook"},
    "node.protocol": set(),
    "node.webhook": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
ROOMS = {
    "plan": ("slurm", "failures", "runs", "money", "health", "fit", "aws", "static"),
    "ops": (
        "pipeline",
        "slurm",
        "serving",
        "fit",
        "runs",
        "work",
        "failures",
        "cluster",
        "health",
        "money",
        "notify",
        "providers",
    ),
    "node": ("watch", "warm", "code", "machine"),
    "run": ("slurm", "logs", "code", "ssh", "aws", "terraform"),
    "stages": ("data", "eval", "train", "filter", "teach", "serve"),
}
"""Folders of a layer, from the top down: each may import only what stands after it. Modules beside them have no place
in the order; like all others they may be in no circle."""
LARGEST = 15
BY_PATH = {"nexa_dist.run.agent_file": "nexa_dist.node"}
"""Packages that are opened as files, by the only modules that may. Modules that another program imports are found as
strings."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def known(name: str) -> str:
    """The module that `name`, of a module or of something in it, is or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def imports(path: Path) -> set[str]:
    """Modules of ours that this one imports, has started by name (`-m nexa_dist.…`), or opens as files."""
    found, me = {BY_PATH.get(name_of(path), "")}, name_of(path)
    folder = me.split(".") if path.name == "__init__.py" else me.split(".")[:-1]
    tree = ast.parse(path.read_text())
    words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {known(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The agent's package has another name on the nodes; elsewhere a relative import would hide the layer.
            assert not node.level or folder[1] == "node", f"{path}: relative imports hide the layer"
            above = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            found |= {known(f"{base}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Constant) and id(node) not in words and isinstance(node.value, str):
            if node.value.startswith("nexa_dist.") and known(node.value) == node.value:
                found.add(node.value)
    return found - {"", "nexa_dist", me}


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """Not when this file is read: each worker reads it, and one needs them."""
    return {name: imports(path) for name, path in MODULES.items()}


def layer_of(name: str) -> str:
    """The agent's own words are for all who read them; the rest of the agent is for nobody here."""
    if name in ("nexa_dist.node.protocol", "nexa_dist.node.webhook"):
        return name.removeprefix("nexa_dist.")
    return name.split(".")[1] if "." in name else "__init__"


def test_imports_point_down() -> None:
    assert {layer_of(name) for name in MODULES} - set(BELOW) == set(), "add its place, and docs/DECISIONS.md, first"
    wrong = {
        f"{name} imports {other}"
        for name, others in all_imports().items()
        for other in others
        if layer_of(other) not in BELOW[layer_of(name)] | {layer_of(name), layer_of(BY_PATH.get(name, name))}
    }
    assert wrong == set()


@pytest.mark.parametrize("layer", ROOMS)
def test_rooms_point_down(layer: str) -> None:
    order = {f"nexa_dist.{layer}.{room}": place for place, room in enumerate(ROOMS[layer])}
    there = {name_of(path.parent / "__init__.py") for path in (PACKAGE / layer).glob("*/__init__.py")}
    assert there == set(order), "a folder has no place in its layer's order"

    def place(name: str) -> int | None:
        return next((at for room, at in order.items() if f"{name}.".startswith(f"{room}.")), None)

    for name, others in all_imports().items():
        for other in others if place(name) is not None else ():
            mine, its = place(name), place(other)
            assert its is None or mine is None or mine <= its, f"{name} imports {other}, which stands above it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    reached = {name: set(others) for name, others in all_imports().items()}
    for through in reached:
        for others in reached.values():
            if through in others:
                others |= reached[through]
    assert sorted(name for name, others in reached.items() if name in others) == []


def test_no_folder_is_a_bag() -> None:
    sizes = {
        str(path.parent.relative_to(PACKAGE)): len(list(path.parent.glob("*.py"))) - 1 for path in MODULES.values()
    }
    assert {folder: size for folder, size in sizes.items() if size > LARGEST} == {}


def test_the_unit_tests_lie_as_the_package_does() -> None:
    """Without an __init__.py the name of a file of tests is all that tells it from another one."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    rooms = {file.parent.relative_to(Path(__file__).parent) for file in files}
    assert {str(room) for room in rooms if not (PACKAGE / room).is_dir()} == set()
    assert len({file.name for file in files}) == len(files)


def test_what_runs_on_a_node_needs_only_the_standard_library() -> None:
    for name in (name for name in MODULES if layer_of(name).startswith(("node", "remote"))):
        tree = ast.parse(MODULES[name].read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        others = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert others <= ({"torch"} if name == "nexa_dist.remote.group_test" else set()), name


def test_few_ask_for_a_provider_by_its_name() -> None:
    """All else asks what it is like (nexa_dist/traits.py), or calls it (ops/providers/contract.py)."""
    asked = {
        name: len(found)
        for name, path in MODULES.items()
        if not name.startswith("nexa_dist.config")
        and (found := re.findall(r"""provider(?:\.name)? (?:==|!=|in|not in) ["'(]""", path.read_text()))
    }
    assert sum(asked.values()) <= 10, asked
