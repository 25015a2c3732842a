"""An environment handed from one node to another: whole or not at all, and to nobody else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import until

SHARE = Path(__file__).resolve().parents[3] / "ansible" / "roles" / "uv_env" / "files" / "share_env.py"


def share(act: str, **message: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-c", SHARE.read_text(), act]
    return subprocess.run(argv, input=json.dumps(message), capture_output=True, text=True, timeout=90)


@pytest.fixture
def env(tmp_path: Path) -> Path:
    made = tmp_path / "one" / "envs" / "abc"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "tool").write_text("#!/bin/sh\n")
    (made / "bin" / "tool").chmod(0o755)
    (made / "bin" / "python").symlink_to("/usr/bin/python3")
    (made / "large").write_bytes(os.urandom(3_000_000))
    (made / ".complete").write_text("{}")
    return made


@pytest.fixture
def url(env: Path) -> Iterator[str]:
    done = share("offer", env=str(env), address="127.0.0.1", takers=1, limit_s=60)
    told = json.loads(done.stdout)["url"]
    yield told
    until(lambda: not listens(told), "the offer ended")


def listens(url: str) -> bool:
    host, port = url.split("/")[2].split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def tree(root: Path) -> dict[str, object]:
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_symlink() or path.is_file()}
    return {
        name: os.readlink(path) if path.is_symlink() else (path.stat().st_mode, path.read_bytes())
        for name, path in found.items()
    }


def test_it_arrives_as_it_was_and_only_once(env: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.rpartition("/")[0] + "/guess")
    there = tmp_path / "two" / "envs" / "abc"
    done = share("take", env=str(there), url=url)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"changed": True}), done.stderr
    assert tree(there) == tree(env) and not there.with_name("abc.taken").exists()
    until(lambda: not listens(url), "the offer ended with its only taker")
    assert json.loads(share("take", env=str(there), url=url).stdout) == {"changed": False}


@pytest.mark.parametrize("sent", [b"", b"x" * 700, b"\0" * 1024], ids=["nothing", "no tar", "an empty tar"])
def test_what_ends_early_leaves_nothing(sent: bytes, tmp_path: Path) -> None:
    there = tmp_path / "envs" / "abc"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + sent)

        thread = threading.Thread(target=answer)
        thread.start()
        done = share("take", env=str(there), url=f"http://127.0.0.1:{server.getsockname()[1]}/x")
        thread.join(90)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.strip()
    assert not there.exists()
