"""The build of the training environment, with a uv that only takes notes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes.node.rig import until

MAKE_ENV = Path(__file__).resolve().parents[3] / "ansible" / "roles" / "uv_env" / "files" / "make_env.py"
FAKE_UV = """#!/bin/sh
[ "$1" != --version ] || { echo "uv 99.0.0"; exit; }
echo "$*" >>"$NOTES"
case "$*" in
*broken.txt*) echo "no such package" >&2; exit 2 ;;
venv*)
    sleep 0.1
    while [ -e "$NOTES.hold" ]; do sleep 0.02; done
    for env; do :; done
    mkdir -p "$env/bin"
    printf '#!/bin/sh\\necho "{}"\\n' >"$env/bin/python"
    chmod +x "$env/bin/python" ;;
esac
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(FAKE_UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    (tmp_path / "envs").mkdir()
    return tmp_path


def start(node: Path, **changes: str) -> subprocess.Popen[str]:
    spec = {
        "env": str(node / "envs" / "abc"),
        "inputs": str(node / "inputs"),
        "tools": str(node),
        "backend": "cpu",
        "find_links": "",
        "cache": str(node / "cache"),
        **changes,
    }
    env = {"PATH": f"{node / 'bin'}:{os.defpath}", "NOTES": str(node / "notes")}
    argv = [sys.executable, "-I", str(MAKE_ENV)]
    process = subprocess.Popen(argv, env=env, text=True, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin
    process.stdin.write(json.dumps(spec))
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def notes(node: Path) -> list[str]:
    return (node / "notes").read_text().splitlines()


def test_two_nodes_build_it_once(node: Path) -> None:
    both = [start(node), start(node)]
    assert sorted(finish(process)["changed"] for process in both) == [False, True]
    assert len([line for line in notes(node) if line.startswith("venv")]) == 1
    assert json.loads((node / "envs" / "abc" / "nexa-env.json").read_text())["env_hash"] == "abc"
    assert finish(start(node)) == {"changed": False}


def test_a_half_built_one_is_made_anew(node: Path) -> None:
    (node / "envs" / "abc").mkdir()
    (node / "envs" / "abc" / "rubbish").touch()
    assert finish(start(node)) == {"changed": True}
    assert not (node / "envs" / "abc" / "rubbish").exists()


def test_a_killed_build_is_made_anew(node: Path) -> None:
    hold = node / "notes.hold"
    hold.touch()
    killed = start(node)
    until((node / "notes").exists)
    killed.kill()
    killed.wait()
    hold.unlink()
    # The uv that it left behind ends first: it would write into the new environment.
    assert finish(start(node)) == {"changed": True}
    assert notes(node).count(notes(node)[0]) == 2
    assert (node / "envs" / "abc" / "bin" / "python").exists()
    killed.communicate()


def test_torch_comes_from_the_backend_or_the_given_wheels(node: Path) -> None:
    finish(start(node))
    assert "--torch-backend=cpu" in notes(node)[-1]
    finish(start(node, env=str(node / "envs" / "def"), find_links="/wheels?password=canary"))
    assert "--no-deps" in notes(node)[-1]
    assert "--torch-backend" not in notes(node)[-1]
    assert "canary" not in (node / "notes").read_text()  # not in any argv
    assert all("--require-hashes" in line for line in notes(node) if "lock.txt" in line and "torch" not in line)


def test_a_failure_says_what_uv_said(node: Path) -> None:
    process = start(node, inputs=str(node / "broken.txt"))
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "uv failed (exit 2):\nno such package" in err
    assert "Traceback" not in err
    assert not (node / "envs" / "abc" / ".complete").exists()
