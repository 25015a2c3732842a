"""README.md is short, its tree is the tree that is there, every page that it or another page links to exists, and the
indexes of the other pages are whole."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
TREE = README.split("## The tree\n")[1].split("```")[1]
HIDDEN = {".ci", ".github"}


def folders(below: str) -> set[str]:
    """Folders of the checkout that git knows, directly below one."""
    argv = ["git", "ls-files", "--full-name", below or "."]
    listed = subprocess.check_output(argv, cwd=REPO, text=True).splitlines()
    inside = [name.removeprefix(below).split("/") for name in listed]
    return {parts[0] for parts in inside if len(parts) > 1}


def test_it_is_read_in_three_minutes() -> None:
    assert README.count("\n") <= 150


def test_its_tree_has_every_folder_and_no_other() -> None:
    assert set(re.findall(r"^([a-z_]+)/ ", TREE, re.M)) == folders("") - HIDDEN
    package = TREE[TREE.index("\nnexa_dist/") : TREE.index("\nconfigs/")]
    assert set(re.findall(r"^  ([a-z_]+)/ ", package, re.M)) == folders("nexa_dist/")
    for layer, words in re.findall(r"^  ([a-z_]+)/ +(.*(?:\n {14}.*)*)", package, re.M):
        rooms = folders(f"nexa_dist/{layer}/") - {"yaml"}  # a reader of ours, no room of a noun
        assert not {room for room in rooms if not re.search(rf"\b{room}\b", words)}, f"{layer}: a room is not named"
    tests = TREE[TREE.index("\ntests/") : TREE.index("\ndocs/")]
    assert set(re.findall(r"(?<=[ ·])([a-z0-9]+)/", tests)) == folders("tests/")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))])
def test_what_a_page_links_to_is_there(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", (REPO / page).read_text())
    for target, part in links:
        path = (REPO / page).parent / target
        assert path.exists(), f"{page} links to {target}"
        text = path.read_text() if part else ""
        heads = [
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
        ]
        heads += re.findall(r'<a id="([^"]+)">', text)
        assert not part or part in heads, f"{page} links to {target}#{part}"


@pytest.mark.parametrize("page", ["ARCHITECTURE", "CONTRIBUTING"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    """By their place in the package, or in the checkout; GROUP, VERB and the like stand for any."""
    named = re.findall(r"`([a-z_]+/[\w./{},*-]+\.\w+)`", (REPO / "docs" / f"{page}.md").read_text())
    paths = [
        name.replace(braces, one)
        for name in named
        for braces in re.findall(r"\{[^}]*\}", name) or [""]
        for one in braces.strip("{}").split(",")
    ]
    paths = [path for path in paths if not re.search(r"[A-Z]{3}|^meta/|^files/", path)]
    below = (REPO, REPO / "nexa_dist")
    assert len(paths) > 5
    assert [path for path in paths if not any([*root.glob(path)] for root in below)] == []


def test_every_decision_is_in_the_index_once() -> None:
    index, _, entries = (REPO / "docs" / "DECISIONS.md").read_text().partition("\n1. ")
    named = [int(number) for row in re.findall(r"^\| .* \| ([\d, ]+) \|$", index, re.M) for number in row.split(",")]
    assert sorted(named) == [1, *(int(number) for number in re.findall(r"^(\d+)\. \*\*", entries, re.M))]


def test_the_page_of_runs_has_every_key_of_train_yaml() -> None:
    keys = json.loads((REPO / "docs" / "train.schema.json").read_text())["properties"]
    page = (REPO / "docs" / "RUNS.md").read_text()
    assert [key for key in keys if f"`{key}`" not in page] == []
