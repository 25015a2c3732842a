"""An environment handed from one node to another: whole and verified or not at all, and to nobody else."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import until

SHARE = Path(__file__).resolve().parents[3] / "ansible" / "roles" / "uv_env" / "files" / "share_env.py"
TOKEN = "a" * 48


def loaded() -> Any:
    found = importlib.util.spec_from_file_location("share_env", SHARE)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


share_env = loaded()


def share(act: str, **message: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-c", SHARE.read_text(), act]
    return subprocess.run(argv, input=json.dumps(message), capture_output=True, text=True, timeout=90)


@pytest.fixture
def env(tmp_path: Path) -> Path:
    made = tmp_path / "one" / "envs" / "abc"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "tool").write_text("#!/bin/sh\n")
    (made / "bin" / "tool").chmod(0o755)
    (made / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (made / "bin" / "python3").symlink_to("python")
    (made / "lib" / "empty").mkdir(parents=True)
    (made / "lib64").symlink_to("lib")
    (made / "large").write_bytes(os.urandom(3_000_000))
    os.link(made / "large", made / "lib" / "linked")
    (made / "large").chmod(0o4600)
    (made / ".complete").write_text("")
    return made


def tree(root: Path) -> dict[str, object]:
    found = {str(path.relative_to(root)): path for path in root.rglob("*")}
    return {
        name: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for name, path in found.items()
    }


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_arrives_as_it_was_and_each_token_is_good_for_one_try(env: Path, tmp_path: Path) -> None:
    done = share("offer", env=str(env), address="127.0.0.1", takers=2, limit_s=60)
    told = json.loads(done.stdout)
    there = tmp_path / "two" / "envs" / "abc"

    def take(folder: Path, offer: str, place: int) -> subprocess.CompletedProcess[str]:
        return share("take", env=str(folder), address="127.0.0.1", offer=offer, place=place)

    guessed = take(there, json.dumps({**told, "tokens": ["0" * 48]}), 0)
    assert guessed.returncode == 1 and not there.exists()
    done = take(there, done.stdout, 0)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"changed": True}), done.stderr
    assert tree(there) == tree(env) and not there.with_name("abc.taken").exists()
    for path in (there, *there.rglob("*")):
        assert path.is_symlink() or not path.stat().st_mode & 0o7077, f"others may look into {path}"
    assert [(there / name).stat().st_mode & 0o777 for name in ("bin/tool", "lib/linked")] == [0o700, 0o600]
    again = take(tmp_path / "three" / "envs" / "abc", json.dumps(told), 0)
    assert again.returncode == 1 and "Traceback" not in again.stderr, "a token that was used opens nothing"
    (env / "bin" / "tool").write_text("#!/bin/su\n")
    late = take(tmp_path / "four" / "envs" / "abc", json.dumps(told), 1)
    assert late.returncode == 1 and "bin/tool is not what it was" in late.stderr
    assert list((tmp_path / "four" / "envs").iterdir()) == [tmp_path / "four" / "envs" / "abc.lock"]
    until(lambda: not listens(told["port"]), "the offer ended with its last token")
    assert json.loads(take(there, json.dumps(told), 1).stdout) == {"changed": False}


@pytest.fixture
def served() -> Iterator[Callable[[bytes], int]]:
    """Somebody on the network who answers with what he is given; the port."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(data: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(data)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield serve
    for thread in threads:
        thread.join(90)
    for server in servers:
        server.close()


def offered(text: bytes, port: int = 1, sha256: str = "") -> str:
    digest = sha256 or hashlib.sha256(text).hexdigest()
    return json.dumps({"port": port, "sha256": digest, "bytes": max(1, len(text)), "tokens": [TOKEN]})


FILE = ["f", "a", 1, hashlib.sha256(b"a").hexdigest()]
TEXT = json.dumps([FILE]).encode()


@pytest.mark.parametrize(
    ("sent", "sha256"),
    [
        (b"", ""),
        (TEXT, ""),
        (TEXT + b"b", ""),
        (TEXT + b"a", "0" * 64),
        (b"\x1f\x8b" + b"\0" * 1024, hashlib.sha256(TEXT).hexdigest()),
    ],
    ids=["nothing", "a file is missing", "another file", "another list", "an archive"],
)
def test_what_is_not_the_controllers_leaves_nothing(
    served: Callable[[bytes], int], tmp_path: Path, sent: bytes, sha256: str
) -> None:
    env = tmp_path / "envs" / "abc"
    with pytest.raises((share_env.Refused, OSError)):
        share_env.take(str(env), "127.0.0.1", offered(TEXT, served(sent), sha256), 0)
    assert [path.name for path in env.parent.iterdir()] == ["abc.lock"]


@pytest.mark.parametrize(
    "told",
    [
        "", "null", "[]", "5", "[" * 100_000, json.dumps({"url": "file:///etc/shadow"}),
        json.dumps({"port": 10**30, "sha256": "0" * 64, "bytes": 5, "tokens": [TOKEN]}),
        json.dumps({"port": 80, "sha256": "0" * 64, "bytes": 1 << 40, "tokens": [TOKEN]}),
        json.dumps({"port": 80, "sha256": "0" * 64 + "\n", "bytes": 5, "tokens": [TOKEN]}),
        json.dumps({"port": 80, "sha256": "0" * 64, "bytes": 5, "tokens": ["GET / HTTP"]}),
        json.dumps({"port": 80, "sha256": 5, "bytes": 5, "tokens": {}}),
    ],
)  # fmt: skip
def test_what_is_no_offer_is_not_followed(tmp_path: Path, told: str) -> None:
    with pytest.raises(share_env.Refused, match="is no offer"):
        share_env.take(str(tmp_path / "envs" / "abc"), "127.0.0.1", told, 0)


@pytest.mark.parametrize(
    "entries",
    [
        {}, [5], [["f"]],
        [["d", ""]], [["d", "."]], [["d", ".."]], [["d", "/etc"]], [["d", "a/../../b"]], [["d", "a\0"]],
        [["d", "a"], ["d", "a"]], [["f", "a/b", 0, ""]], [["d", ".complete"]], [["d", "a", 0o4777]],
        [["l", "a", "/etc"], ["f", "a/b", 0, ""]], [["l", "a", ".."]], [["l", "a", "b/../../c"]], [["l", "a", ""]],
        [["d", "d"], ["l", "d/a", "../.."]], [["l", "python", sys.executable]],
        [["d", "bin"], ["l", "bin/python", "/etc"]],
        [["h", "a", "/etc/shadow"]], [["h", "a", "b"]], [["c", "a", 1, 3]], [["p", "a"]], [["s", "a"]],
        [["f", "a", -1, ""]], [["f", "a", 1.5, ""]], [["f", "a", True, ""]], [["f", "a", 10**30, ""]], [["f", "a", 1]],
        [["f", "a", 1 << 36, ""], ["x", "b", 1, ""]],
    ],
)  # fmt: skip
def test_a_list_leads_nowhere_else(entries: Any) -> None:
    with pytest.raises(share_env.Refused):
        share_env.checked(entries)


def test_more_than_there_is_room_for_is_not_begun(
    served: Callable[[bytes], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1 << 30})
    monkeypatch.setattr(share_env.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(share_env.Refused, match="no room"):
        share_env.take(str(tmp_path / "envs" / "abc"), "127.0.0.1", offered(TEXT, served(TEXT + b"a")), 0)
    assert [path.name for path in (tmp_path / "envs").iterdir()] == ["abc.lock"]


def test_what_was_cut_off_is_gone_on_with_to_the_byte(tmp_path: Path) -> None:
    data = {name: os.urandom(size) for name, size in (("a", 1000), ("b", 5000), ("c", 0), ("d", 700))}
    stream = b"".join(data.values())
    text = json.dumps([["f", name, len(one), hashlib.sha256(one).hexdigest()] for name, one in data.items()]).encode()
    env, asked = tmp_path / "envs" / "abc", list[int]()

    def sent(most: int) -> None:
        """One connection that sends so many bytes of the files, from where it is asked to."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                peer, _ = server.accept()
                with peer, peer.makefile("rb") as said:
                    assert said.readline().decode().strip() == TOKEN
                    peer.sendall(text)
                    asked.append(int(said.readline()))
                    peer.sendall(stream[asked[-1] :][:most])

            thread = threading.Thread(target=answer)
            thread.start()
            try:
                share_env.take(str(env), "127.0.0.1", offered(text, server.getsockname()[1]), 0, go_on=True)
            finally:
                thread.join(90)

    for most in (300, 1500, 0):
        with pytest.raises(share_env.CutOff):
            sent(most)
        assert not env.exists(), "nothing half is under its own name"
    (env.with_name("abc.taken") / "a").write_bytes(b"of the same size".ljust(1000))  # torn by a power cut
    with pytest.raises(share_env.CutOff):
        sent(10)
    sent(10_000)
    assert asked == [0, 300, 1800, 0, 10]
    assert {path.name: path.read_bytes() for path in env.iterdir()} == {**data, ".complete": b""}
    assert not env.with_name("abc.taken").exists()


def test_an_offer_that_nobody_can_reach_ends_by_itself(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SHARE.read_text().replace("FIRST_S = 120.0", "FIRST_S = 0.1")
    message = json.dumps({"env": str(env), "address": "127.0.0.1", "takers": 1, "limit_s": 600})
    done = subprocess.run([sys.executable, "-I", "-c", text, "offer"], input=message, capture_output=True, text=True)
    until(lambda: not listens(json.loads(done.stdout)["port"]), "it ended long before its limit")
