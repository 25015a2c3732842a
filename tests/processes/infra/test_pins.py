"""Pins that live in two places agree, and every Terraform variable says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TERRAFORM_FILES = sorted((ROOT / "terraform").glob("*/*/*.tf"))


def test_nodes_get_the_controllers_uv() -> None:
    lock = (ROOT / "docker" / "lock" / "controller.txt").read_text()
    (block,) = re.findall(r"^uv==.*\n(?:    --hash=.*\n)+", lock, re.M)
    assert (ROOT / "ansible" / "roles" / "uv_env" / "files" / "uv.txt").read_text() == block


def test_locks_name_no_index_and_no_torch() -> None:
    for lock in (ROOT / "docker" / "lock").glob("*.txt"):
        text = lock.read_text()
        assert not re.search(r"^(--|torch==)|https?://|file://", text, re.M), lock
        assert text.count("==") <= text.count("--hash=sha256:")


def test_terraform_is_pinned_for_both_architectures() -> None:
    lines = (ROOT / "scripts" / "terraform.sha256").read_text().splitlines()
    matches = [re.fullmatch(r"[0-9a-f]{64}  terraform_([\d.]+)_linux_(amd64|arm64)\.zip", line) for line in lines]
    assert {match[2] for match in matches if match} == {"amd64", "arm64"}
    assert len({match[1] for match in matches if match}) == 1


@pytest.mark.parametrize("file", TERRAFORM_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_variables_and_outputs_are_described(file: Path) -> None:
    for kind, name, body in re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', file.read_text(), re.M | re.S):
        assert re.search(r"^  description += ", body, re.M), f"{kind} {name}"
        assert kind == "output" or re.search(r"^  type += ", body, re.M), f"{kind} {name}"


def test_every_role_states_its_arguments() -> None:
    roles = [role for role in (ROOT / "ansible" / "roles").iterdir() if role.is_dir()]
    assert roles
    for role in roles:
        for part in ("defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
            assert (role / part).is_file(), f"{role.name}/{part}"


def test_the_shell_of_the_roles_is_in_files_that_shellcheck_reads() -> None:
    """What stays among the tasks hands arguments to such a file."""
    inline = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "ansible" / "roles").glob("*/tasks/*.yml"))
        for name, lines in re.findall(r"(\w+): \|\n((?: {6,}.*\n)+)", path.read_text())
        if re.search(r"^ +(if|for|while|set -eu)\b|\$\{?\w", lines, re.M)
    ]
    assert inline == []
