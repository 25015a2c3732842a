"""What a command of `nexa` imports: a word that only reads our files is there at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_workspace

ROOT = Path(__file__).parents[2]
HEAVY = "pydantic pydantic_core yaml rich boto3 botocore ansible ansible_runner fabric paramiko torch transformers "
HEAVY += "python_terraform asyncio importlib.metadata concurrent.futures"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nexa_dist import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    heavy = "pydantic yaml rich boto3 ansible ansible_runner fabric paramiko torch transformers python_terraform"
    heavy += " subprocess asyncio json importlib.metadata concurrent"
    assert not loaded & set(heavy.split())
    assert "usage: nexa" in done.stdout


@pytest.mark.parametrize("name", small_workspace.READING)
@pytest.mark.parametrize("json", [False, True])
def test_a_verb_that_reads_what_we_wrote_imports_nothing_heavy(
    name: str, json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "w").mkdir()
    words = [*small_workspace.READING[name], *["--json"] * json]
    code = (
        "import sys\nfrom nexa_dist import cli\n"
        f"code = cli.main({words!r})\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=small_workspace.make(tmp_path / "w"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.split()) & set(HEAVY.split()) == set()
    assert any(word in done.stdout for word in ("lab", small_workspace.RUN, "create", "ValueError"))
