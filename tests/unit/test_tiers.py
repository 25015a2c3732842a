"""tests/README.md is true: the tests that hold the promises exist, and are of the tier under which they stand."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import DURATIONS
from tests.defects import Defect, defects

TESTS = Path(__file__).parents[1]
PROMISES = {
    *(f"provision, run, teardown on {provider}" for provider in ("local", "own hosts", "aws", "a stack")),
    *("resume", "replacement", "notice", "cap", "nobody home", "receipt", "sweep", "mesh", "diag", "image", "logs"),
    *("why", "cost", "secrets", "pinned host keys", "hostile input", "strangers and damaged files"),
    *("what only looks dead is not ended", "data is whole, verified and brought once"),
    "a teacher is asked once for each row, within its budget",
    "one chain from raw rows to a served model",
    "a served model is a run, and only those with the key reach it",
    "a stage that is killed comes to the same bytes, and what is done is not done again",
    "a model that is not good enough goes no further",
    "results come home, whole, and no only copy is ended unasked",
    "each run of a queue takes place once",
    "a sharded checkpoint is whole on all nodes together, or absent",
    "what fits is foretold, and to the byte",
    "somebody is told, once",
    "a run can be had again as it was",
    *("a run in a container is a run, and leaves no container", "our images have the nodes' environments"),
    "a job of Slurm's saves, waits and resumes, or is stopped",
    "a cluster that is a job's allocation is made once, given notice, made anew, and given back",
    *("report", "completion", "environments", "Axolotl"),
    *("what a run needs of its nodes is set up once", "a DeepSpeed file is done as it says, or refused"),
    "a student learns what its teacher says",
    *("what runs is what is named", "what is not sent is said, and nothing is guessed", "the wheel", "quickstart"),
}


@functools.cache
def tiers(file: str) -> dict[str, str]:
    """The tier of every test of a file below tests/."""
    tree = ast.parse((TESTS / file).read_text())
    long = "pytest.mark.long("
    whole = any(
        isinstance(node, ast.Assign)
        and "pytestmark" in ast.unparse(node.targets[0])
        and long in ast.unparse(node.value)
        for node in tree.body
    )
    return {
        node.name: "long" if whole or any(long in ast.unparse(mark) for mark in node.decorator_list) else "short"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its first two lines."""
    text = (TESTS / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def tier_of(name: str) -> str:
    file, _, test = name.partition("::")
    assert (TESTS / file).is_file(), f"{name}: there is no such file"
    assert test in tiers(file), f"{name}: there is no such test"
    return tiers(file)[test]


TABLE = {row[0]: row[1:] for row in rows("Which test holds which promise")}


def test_every_promise_has_a_row() -> None:
    assert set(TABLE) == PROMISES


@pytest.mark.parametrize("promise", TABLE)
def test_the_tests_of_a_promise_are_there(promise: str) -> None:
    short, long = (re.findall(r"`([^`]+)`", cell) for cell in TABLE[promise])
    assert short, "no test of the short tier would notice it broken"
    assert {name: tier_of(name) for name in short} == dict.fromkeys(short, "short")
    assert {name: tier_of(name) for name in long} == dict.fromkeys(long, "long")


def test_the_seconds_are_of_tests_that_are_there() -> None:
    """A test that is renamed begins late, when the others have nothing left."""
    told = [line.split(maxsplit=1)[1] for line in DURATIONS.read_text().splitlines() if not line.startswith("#")]
    for name in told:
        tier_of(name.removeprefix("tests/").partition("[")[0])
    assert len(told) == len(set(told))


def test_the_list_of_defects_is_the_one_that_is_tried() -> None:
    told = {row[0]: row[1].strip("`") for row in rows("Defects, and what notices them")}
    assert told == {defect.name: defect.noticed_by.removeprefix("tests/") for defect in defects()}
    assert len(told) >= 20


@pytest.mark.parametrize("defect", defects(), ids=lambda defect: defect.name)
def test_a_defect_can_still_be_put_in(defect: Defect) -> None:
    assert (TESTS.parent / defect.file).read_text().count(defect.old) == 1
