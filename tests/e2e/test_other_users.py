"""Nothing that a life cycle leaves behind is for other users of this machine: ours, and the folders of the nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab, everything_of, runs, until

pytestmark = pytest.mark.e2e
OF_THE_PROJECT = ("code", "work", "layer")


def seen_by_others(root: Path) -> list[str]:
    """What is in `.nexa` and `runs` that somebody else may look into, each with its mode. The project's own files keep
    theirs on a node, and uv gives those of a layer some, below a folder that nobody else may enter."""
    found = []
    for top in (root / ".nexa", root / "runs"):
        for folder, names, files in os.walk(top):
            names[:] = [
                name for name in names if name not in OF_THE_PROJECT or Path(folder, name).stat().st_mode & 0o077
            ]
            ours = [name for name in files if not name.startswith("trigger")]  # another test's sign for its ranks
            for path in (Path(folder), *(Path(folder, name) for name in (*names, *ours))):
                if not path.is_symlink() and path.exists() and path.stat().st_mode & 0o077:
                    found.append(f"{path.stat().st_mode & 0o777:o} {path.relative_to(root)}")
    return sorted(set(found))


def test_nothing_of_a_run_is_for_other_users(clean: Lab) -> None:
    if not runs(clean):  # any run will do, and tests before this one have left some
        clean.nexa("run", clean.plain("private"))
    left = seen_by_others(clean.root)
    assert not left, "\n".join(left)


@pytest.mark.long("a cluster of its own: also what a teardown keeps")
def test_nothing_of_a_life_cycle_is_for_other_users(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.write("c.yaml", "name: own\nprovider: local\nnodes: 2\ngpus_per_node: 1\n")
    try:
        lab.nexa("provision", "--cluster", "c.yaml")
        lab.nexa("run", lab.plain("private"))
        lab.nexa("diag", "--json")
        lab.nexa("cost", "--json")
        left = seen_by_others(tmp_path)
        assert not left, "\n".join(left)
    finally:
        lab.nexa("teardown", "-y", "--keep-nothing")
    until(lambda: not everything_of(tmp_path), f"nothing of {tmp_path} is left")
    assert seen_by_others(tmp_path) == []
