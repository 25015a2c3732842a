"""What every module of the AWS stacks says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TERRAFORM = Path(__file__).resolve().parents[3] / "terraform"
NODES = TERRAFORM / "modules" / "aws_nodes"
FOLDERS = sorted([*TERRAFORM.glob("modules/aws_*"), *TERRAFORM.glob("stacks/aws*")])
TWICE = {("aws", "cluster"), ("aws", "vpc_id")}
"""Their modules are not always made."""


def test_user_data_fits() -> None:
    size = len((NODES / "user_data.yaml.tftpl").read_bytes()) + len((TERRAFORM / "shared" / "deadline.sh").read_bytes())
    assert size < 12_000, "EC2 takes 16 KiB, and two keys come to it"


def blocks(text: str, kind: str) -> list[tuple[str, str]]:
    """Name and body of a file's top-level blocks of a kind."""
    return re.findall(rf'^{kind} "(\w+)" {{\n(.*?)^}}', text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_variables_and_outputs_are_described(folder: Path) -> None:
    variables = blocks((folder / "variables.tf").read_text(), "variable")
    assert variables
    for name, body in variables:
        assert re.search(r'^  description = ".+\.', body, re.MULTILINE), f"{name} has no description"
        assert re.search(r"^  type *= ", body, re.MULTILINE), f"{name} has no type"
    for name, body in blocks((folder / "outputs.tf").read_text(), "output"):
        assert re.search(r'^  description = ".+\.', body, re.MULTILINE), f"output {name} has no description"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_validation_has_a_case_that_it_refuses(folder: Path) -> None:
    validated = {n for n, body in blocks((folder / "variables.tf").read_text(), "variable") if "validation {" in body}
    tests = "".join(path.read_text() for path in folder.glob("tests/*.tftest.hcl"))
    refused = set(re.findall(r"var\.(\w+)", " ".join(re.findall(r"expect_failures = \[([^]]*)\]", tests))))
    assert refused == validated


@pytest.mark.parametrize("folder", sorted(TERRAFORM.glob("stacks/*")), ids=lambda folder: folder.name)
def test_a_variable_of_a_stack_is_judged_there_or_in_the_module_that_takes_it_and_not_twice(folder: Path) -> None:
    judges: dict[str, str] = {}  # conditions by the stack's variable that a module takes as it is
    for name, body in blocks((folder / "main.tf").read_text(), "module"):
        source = re.search(r'source += "(.+)"', body)
        assert source, name
        module = dict(blocks((folder / source[1] / "variables.tf").read_text(), "variable"))
        for taken, given in re.findall(r"^  (\w+) += var\.(\w+)$", body, re.MULTILINE):
            judges[given] = judges.get(given, "") + " ".join(re.findall(r"condition += (.+)", module.get(taken, "")))
    for name, body in blocks((folder / "variables.tf").read_text(), "variable"):
        conditions = re.findall(r"condition += (.+)", body)
        assert conditions or judges.get(name) or "= bool" in body, f"nobody judges {name}"
        if (folder.name, name) not in TWICE:
            assert not [each for each in conditions if each in judges.get(name, "")], f"{name} is judged twice"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_provider_is_pinned(folder: Path) -> None:
    text = (folder / "versions.tf").read_text()
    assert 'version = "~> 5.100"' in text and "required_version" in text
