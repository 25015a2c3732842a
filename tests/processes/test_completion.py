"""Real shells complete the words of nexa."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import small_workspace

REPO = Path(__file__).parents[2]
ASK = """eval "$(nexa completion bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete nexa
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a shell in a small workspace, in which `nexa` is this checkout's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    workspace, programs = tmp_path / "workspace", tmp_path / "bin"
    for folder in (workspace, programs):
        folder.mkdir()
    small_workspace.make(workspace)
    (workspace / "train.yaml").write_text("script: x.py\n")
    (workspace / "notes.txt").touch()
    nexa = programs / "nexa"
    nexa.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nexa_dist "$@"\n')
    nexa.chmod(0o755)
    monkeypatch.chdir(workspace)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPO), "TERM": "dumb"}


def test_bash_completes_verbs_options_runs_clusters_nodes_and_files(shell: dict[str, str]) -> None:
    wanted = {
        "nexa tear": {"teardown"},
        "nexa report tr": {small_workspace.RUN},
        "nexa logs --node ": {"n0"},
        "nexa run --cluster ": {"lab", "train.yaml", "runs/", ".nexa/"},
        "nexa cost ": {"lab", small_workspace.RUN},
        "nexa config --schema ": {"cluster", "train", "manifest", "stage", "pipeline"},
        "nexa stop --g": {"--grace"},
    }
    told = subprocess.run(
        ["bash", "--norc", "-c", ASK], input="".join(f"{line}\n" for line in wanted), env=shell,
        stdout=subprocess.PIPE, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert dict(zip(wanted, (set(line.split()) for line in told.splitlines()), strict=True)) == wanted


@pytest.mark.long("another shell, which is seldom there")
def test_fish_completes(shell: dict[str, str]) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    words = 'nexa completion fish | source; complete -C "nexa tear"; complete -C "nexa report tr"'
    told = subprocess.check_output(["fish", "--no-config", "-c", words], env=shell, text=True, timeout=60)
    assert [line.split("\t")[0].strip() for line in told.splitlines()] == ["teardown", small_workspace.RUN]


@pytest.mark.long("another shell, which is seldom there, and a terminal")
def test_zsh_completes(shell: dict[str, str]) -> None:
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], shell)
    seen, asked, until = b"", 0, time.monotonic() + 60
    os.write(terminal, b'autoload -U compinit; compinit -u -D; eval "$(nexa completion zsh)"; echo rea""dy\n')
    try:
        for awaited, then in ((b"ready", b"nexa report tr\t"), (small_workspace.RUN.encode(), b"\x03")):
            while awaited not in seen[asked:]:
                assert select.select([terminal], [], [], until - time.monotonic())[0], seen
                seen += os.read(terminal, 4096)
            asked = len(seen)
            os.write(terminal, then)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
