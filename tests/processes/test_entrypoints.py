"""The entry points of the images, with programs that stand in for what the images have."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ENTRYPOINTS = Path(__file__).parents[2] / "docker" / "entrypoints"
TELL = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@"\n'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "bash"):
        (folder / name).write_text(TELL)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


def call(name: str, programs: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": f"{programs}:{os.defpath}", "HOME": "/nonexistent"}
    argv = ["/bin/bash", str(ENTRYPOINTS / name), *words]
    return subprocess.run(argv, env={**bare, **env}, capture_output=True, text=True, timeout=60)


def test_without_a_model_it_is_a_shell_and_with_words_those(programs: Path) -> None:
    assert call("vllm_entry.sh", programs).stdout.split() == ["bash"]
    assert call("vllm_entry.sh", programs, "vllm", "bench", "a b").stdout.splitlines() == ["vllm", "bench", "a b"]
    assert call("vllm_entry.sh", programs, "vllm", "x", MODEL="m").stdout.splitlines() == ["vllm", "x"]


def test_with_a_model_it_serves_and_reads_quotes_but_expands_nothing(programs: Path) -> None:
    done = call("vllm_entry.sh", programs, MODEL="org/a b", PORT="9000", TP="4",
                VLLM_EXTRA_ARGS="--seed 1 --override '{\"a\": [1, 2]}' $(id) `id` *")  # fmt: skip
    assert done.stdout.splitlines() == [
        "vllm", "serve", "org/a b", "--host", "0.0.0.0", "--port", "9000", "--tensor-parallel-size", "4",
        "--seed", "1", "--override", '{"a": [1, 2]}', "$(id)", "`id`", "*",
    ]  # fmt: skip
    plain = call("vllm_entry.sh", programs, MODEL="m", VLLM_EXTRA_ARGS=" \n ").stdout.split()
    assert plain == ["vllm", "serve", "m", "--host", "0.0.0.0", "--port", "8000", "--tensor-parallel-size", "1"]
    assert call("vllm_entry.sh", programs, MODEL="m").stdout.split() == plain


@pytest.mark.parametrize(
    "env", [{"PORT": "0"}, {"PORT": "99999"}, {"TP": "two"}, {"TP": "9" * 30}, {"VLLM_EXTRA_ARGS": "--a 'b"}]
)
def test_what_makes_no_sense_is_refused_by_name(programs: Path, env: dict[str, str]) -> None:
    done = call("vllm_entry.sh", programs, MODEL="m", **env)
    assert done.returncode == 2 and not done.stdout
    assert f"error: {next(iter(env))}" in done.stderr


def test_a_server_is_well_when_it_says_so(programs: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" and well else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    well = True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"MODEL": "m", "PORT": str(server.server_address[1])}
        assert call("health.sh", programs, **env).returncode == 0
        well = False
        assert call("health.sh", programs, **env).returncode != 0
        server.shutdown()
    assert call("health.sh", programs, **env).returncode != 0, "nobody listens"
    assert call("health.sh", programs).returncode == 0, "no server was asked for"


@pytest.mark.parametrize("path", sorted(ENTRYPOINTS.iterdir()), ids=lambda path: path.name)
def test_it_says_what_it_is_for(path: Path, programs: Path) -> None:
    done = call(path.name, programs, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 2 and "#" not in done.stdout
