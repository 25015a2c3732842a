"""scripts/setup: the download of Terraform against a local server, and what it says where it is not root."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROGRAM = b"#!/bin/sh\necho made up\n"
COMMANDS = ("bash", "dirname", "cat", "sha256sum", "cut", "id", "env")


def archive(member: str = "terraform") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr(member, PROGRAM)
        opened.writestr("LICENSE.txt", "text")
    return made.getvalue()


class Server(http.server.ThreadingHTTPServer):
    body = archive()
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with scripts alone, and a PATH without terraform, uv and apt-get."""
    shutil.copytree(SCRIPTS, tmp_path / "checkout" / "scripts")
    (tmp_path / "bin").mkdir()
    for command in COMMANDS:
        found = shutil.which(command)
        assert found
        (tmp_path / "bin" / command).symlink_to(found)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    return tmp_path / "checkout"


def setup(checkout: Path, kind: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = str(checkout.parent / "bin")
    argv = [str(checkout / "scripts" / "setup"), kind]
    return subprocess.run(argv, env={"PATH": path, **env}, capture_output=True, text=True, timeout=60)


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/mirror/"


def test_right_hash_installs_once(checkout: Path, server: Server) -> None:
    right = hashlib.sha256(server.body).hexdigest()
    for _ in range(2):
        done = setup(checkout, "terraform", NEXA_TERRAFORM_URL=address(server), NEXA_TERRAFORM_SHA256=right)
        assert done.returncode == 0, done.stderr
    program = checkout / ".nexa" / "bin" / "terraform"
    assert program.read_bytes() == PROGRAM
    assert os.access(program, os.X_OK)
    assert [entry.name for entry in program.parent.iterdir()] == ["terraform"]
    assert len(server.asked) == 1
    assert server.asked[0].startswith("/mirror/1.11.4/terraform_1.11.4_linux_")


def test_pinned_hash_refuses_another_file(checkout: Path, server: Server) -> None:
    done = setup(checkout, "terraform", NEXA_TERRAFORM_URL=address(server))
    assert done.returncode == 1
    assert "nothing was installed" in done.stderr
    assert not (checkout / ".nexa").exists()


def test_archive_without_terraform_is_refused(checkout: Path, server: Server) -> None:
    server.body = archive("other")
    right = hashlib.sha256(server.body).hexdigest()
    done = setup(checkout, "terraform", NEXA_TERRAFORM_URL=address(server), NEXA_TERRAFORM_SHA256=right)
    assert done.returncode == 1
    assert "not a Terraform archive" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "file:///etc", "nonsense"])
def test_unreachable_address_is_a_plain_error(checkout: Path, url: str) -> None:
    done = setup(checkout, "terraform", NEXA_TERRAFORM_URL=url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].startswith("error: ") or done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (checkout / ".nexa").exists()


def fake(checkout: Path, name: str, text: str) -> None:
    file = checkout.parent / "bin" / name
    file.unlink(missing_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_an_ordinary_user_is_told_what_to_install(checkout: Path) -> None:
    fake(checkout, "id", "echo 1000")
    fake(checkout, "apt-get", "exit 9")
    fake(checkout, "sshd", "")
    done = setup(checkout, "dev")
    assert done.returncode == 1
    assert "hint: sudo apt-get update && sudo apt-get install -y openssh-client rsync shellcheck" in done.stderr
    assert not (checkout / ".venv").exists()


def test_root_installs_what_is_missing(checkout: Path) -> None:
    fake(checkout, "id", "echo 0")
    fake(checkout, "apt-get", 'echo "$*" >>"$NOTES"; case "$*" in *install*) exit 100 ;; esac')
    fake(checkout, "sshd", "")
    fake(checkout, "ssh", "")
    notes = checkout / "notes"
    assert setup(checkout, "controller", NOTES=str(notes)).returncode != 0
    assert notes.read_text().splitlines() == ["update -qq", "install -y -qq --no-install-recommends rsync"]


def test_an_old_python_is_a_clear_error(checkout: Path) -> None:
    for name in ("sshd", "ssh", "rsync", "terraform"):
        fake(checkout, name, "")
    fake(checkout, "python3", "exit 1")
    done = setup(checkout, "controller")
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr


def test_an_unknown_kind_is_refused(checkout: Path) -> None:
    done = setup(checkout, "everything")
    assert done.returncode == 2
    assert "one of controller, dev, terraform" in done.stderr


def test_slurm_is_submitted_to_by_an_interpreter_that_has_what_nexa_needs() -> None:
    bare = [sys.executable, "-S", "-I", str(SCRIPTS / "submit_slurm.py"), "nosuch.yaml"]  # without any package
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "hint: scripts/setup controller" in done.stderr
    assert "Traceback" not in done.stderr
