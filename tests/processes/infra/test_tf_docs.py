"""Each module and stack of Terraform says what it is for, and its tables are those of its files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
FOLDERS = sorted(path.parent for path in (REPO / "terraform").glob("*/*/variables.tf"))


def tf_docs(repo: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, repo / "scripts" / "tf_docs", *argv], capture_output=True, text=True)


def test_the_tables_are_those_of_the_files() -> None:
    done = tf_docs(REPO, "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_it_is_for_is_said_and_the_map_has_it(folder: Path) -> None:
    heading, text = (folder / "README.md").read_text().partition("<!--")[0].split("\n", 1)
    assert heading == f"# {folder.name}" and len(text) > 150
    assert f"]({folder.relative_to(REPO / 'terraform')})" in (REPO / "terraform" / "README.md").read_text()


def test_a_change_is_noticed_and_written(tmp_path: Path) -> None:
    shutil.copytree(REPO / "terraform", tmp_path / "terraform", ignore=shutil.ignore_patterns(".terraform"))
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts" / "tf_docs", tmp_path / "scripts")
    folder = tmp_path / "terraform" / "modules" / "aws_node_template"
    before = (folder / "README.md").read_text()
    variables = (folder / "variables.tf").read_text()
    (folder / "variables.tf").write_text(variables.replace("default     = true", "default     = false"))
    done = tf_docs(tmp_path, "--check")
    assert done.returncode == 1 and "stale: terraform/modules/aws_node_template/README.md (" in done.stderr
    assert (folder / "README.md").read_text() == before
    assert tf_docs(tmp_path).returncode == 0 and tf_docs(tmp_path, "--check").returncode == 0
    row = "| `public_addresses` | `bool` | `{}` | Whether"
    assert row.format("true") in before and row.format("false") in (folder / "README.md").read_text()
    assert "`list(object({ card = number, device = number, type = string }))` | `[]`" in before
