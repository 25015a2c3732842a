"""Every script works when it is called from anywhere by its path, and says what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAMS = sorted(path for path in SCRIPTS.iterdir() if os.access(path, os.X_OK) and path.is_file())
ENV = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "NEXA_PYTHON": sys.executable}


def test_the_scripts_are_found() -> None:
    assert {"test", "lint", "setup", "quickstart", "shake", "defects", "bench_cli", "region"} <= {
        path.name for path in PROGRAMS
    }


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_it_says_what_it_is_for(path: Path, tmp_path: Path) -> None:
    """Without the checkout's environment on PATH, and without doing anything."""
    done = subprocess.run([path, "--help"], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert path.name in done.stdout and not done.stderr, done
    assert list(tmp_path.iterdir()) == []
