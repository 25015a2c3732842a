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


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_it_says_so_without_an_environment_too(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [path, "--help"], cwd=tmp_path, env={**ENV, "NEXA_PYTHON": "/nonexistent"}, capture_output=True, text=True,
        timeout=90,
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout) > 40 and "Traceback" not in done.stderr, done


BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "NEXA_PYTHON": "/nonexistent"}


@pytest.mark.parametrize(
    "words, said",
    [
        ("setup nosuch", "unknown kind of set-up: nosuch"),
        ("lint x", "takes no words"),
        ("bootstrap_env.sh --nosuch", "one folder, or none"),
        ("bootstrap_env.sh a b", "one folder, or none"),
        ("run_eval.sh", "no RUN is named"),
        ("run_train.sh", "no TRAIN.yaml is named"),
        ("run_axolotl.sh none.yaml", "there is no none.yaml"),
        ("bench_data many", "many is no number of rows"),
        ("smollm2 --nosuch", "one folder is needed"),
        ("smollm2 a none.whl", "one folder is needed"),
        ("wordnet_glosses --nosuch", "one file is needed"),
        ("release_notes", "one version is needed"),
        ("run_sync.sh nosuch", "run_sync.sh"),
        ("nexa-bootstrap.sh --nosuch", "there is no option --nosuch"),
        ("cleanup.sh", "there is no /nonexistent"),
        ("bench_cli", "there is no /nonexistent"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(words: str, said: str, tmp_path: Path) -> None:
    """Without any environment, and before anything is made."""
    name, *rest = words.split()
    done = subprocess.run(
        [SCRIPTS / name, *rest], cwd=tmp_path, env=BARE, capture_output=True, text=True, timeout=90, stdin=-3
    )
    assert done.returncode == (1 if "/nonexistent" in said else 2)  # 2: the words were wrong
    assert said in done.stderr and "Traceback" not in done.stderr, done
    assert "hint: " in done.stderr or name == "run_sync.sh"
    assert list(tmp_path.iterdir()) == []
