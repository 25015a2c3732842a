"""Files from a node: cut off anywhere they are gone on with, and nothing that is not whole is ever in its place."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.node import outputs
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Stream
from nexa_dist.run.ssh import receive
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.ssh.receive import Asked, Got, Receiver

DATA = {"a": b"0123456789", "d/b": b"", "d/c": b"x" * 9}


class Door(FakeRunner):
    """Sends as the agent does, from `folder`; `tamper` gets the bytes of each connection, counted from 0."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.count = folder, 0
        self.tamper: Callable[[int, bytes], bytes] = lambda _, data: data
        self.offsets: list[list[int]] = []

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        self.offsets.append([one["off"] for one in json.loads(stdin)["files"]])
        reading, writing = os.pipe()
        os.write(writing, stdin)
        out = io.BytesIO()
        outputs.send(str(self.folder), reading, out)
        os.close(reading)
        os.close(writing)
        self.count += 1
        return Stream(io.BytesIO(self.tamper(self.count - 1, out.getvalue())), lambda: None, lambda _: None)


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setattr(receive, "PAUSE_S", 0.0)
    monkeypatch.setattr(outputs, "CHUNK_BYTES", 4)
    for name, data in DATA.items():
        path = tmp_path / "node" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Door(tmp_path / "node")


def take(door: Door, here: Path, *, unless: str = "", mark: str = "1", **more: float) -> list[Got]:
    cluster = Cluster("c", "local", (Node("n0", "127.0.0.9", 1),), Layout("python3", "/s", "/h", "/d"))
    link = Link(Ssh(door, cluster, "/nowhere"), cluster.nodes[0], "/home")
    asked = [Asked(name, len(data), here / "there" / name, mark, unless) for name, data in DATA.items()]
    return Receiver(link, str(door.folder), here / "parts").take(asked, **more)


def test_all_come_and_nothing_else_is_left(door: Door, tmp_path: Path) -> None:
    assert take(door, tmp_path) == [Got(hashlib.sha256(data).hexdigest(), len(data)) for data in DATA.values()]
    there = {
        str(p.relative_to(tmp_path / "there")): p.read_bytes() for p in (tmp_path / "there").rglob("*") if p.is_file()
    }
    assert there == DATA and not list((tmp_path / "parts").iterdir())


def test_cut_off_at_any_byte_it_goes_on_where_it_was(door: Door, tmp_path: Path) -> None:
    whole = b""

    def keep(_: int, data: bytes) -> bytes:
        nonlocal whole
        whole = data
        return data

    door.tamper = keep
    take(door, tmp_path / "first")
    resumed = 0
    for at in range(len(whole)):
        here, door.count, door.offsets = tmp_path / str(at), 0, []
        door.tamper = lambda count, data, at=at: data[:at] if count == 0 else data  # type: ignore[misc]
        got = take(door, here)
        assert [one.sha256 for one in got] == [hashlib.sha256(data).hexdigest() for data in DATA.values()], at
        assert {name: (here / "there" / name).read_bytes() for name in DATA} == DATA
        assert len(door.offsets) <= 2
        resumed += any(door.offsets[-1])
    assert resumed > len(DATA["a"]), "what came is not sent again"


def test_a_killed_receiver_leaves_no_file_in_its_place(door: Door, tmp_path: Path) -> None:
    door.tamper = lambda _, data: data[:70]  # within the first file, again and again
    assert {one.why for one in take(door, tmp_path)[1:]} == {"the link to the node was cut"}
    assert not (tmp_path / "there" / "d").exists()
    door.tamper = lambda _, data: data
    assert all(one.sha256 for one in take(door, tmp_path))


def test_half_a_file_of_another_state_is_not_gone_on_with(door: Door, tmp_path: Path) -> None:
    door.tamper = lambda _, data: data[:60]
    take(door, tmp_path)
    (door.folder / "a").write_bytes(b"another one")
    door.tamper, door.offsets = lambda _, data: data, []
    take(door, tmp_path, mark="2")
    assert door.offsets[0][0] == 0 and (tmp_path / "there" / "a").read_bytes() == b"another one"


def test_what_is_damaged_on_its_way_is_asked_for_again_and_then_given_up(door: Door, tmp_path: Path) -> None:
    door.tamper = lambda count, data: data.replace(b"4567", b"4667") if count == 0 else data
    assert take(door, tmp_path)[0].sha256 == hashlib.sha256(DATA["a"]).hexdigest()
    door.tamper = lambda _, data: data.replace(b"4567", b"4667")
    got = take(door, tmp_path / "again")
    assert "arrives as another" in got[0].why and got[2].sha256
    assert not (tmp_path / "again" / "there" / "a").exists()


def test_what_is_the_same_does_not_come(door: Door, tmp_path: Path) -> None:
    got = take(door, tmp_path, unless=hashlib.sha256(DATA["a"]).hexdigest())
    assert got[0] == Got(same=True) and got[1].sha256 and not (tmp_path / "there" / "a").exists()


def test_one_that_cannot_be_read_is_named_and_the_others_come(door: Door, tmp_path: Path) -> None:
    (door.folder / "a").unlink()
    got = take(door, tmp_path)
    assert got[0].why == "No such file or directory" and all(one.sha256 for one in got[1:])


STRANGE = (
    b"hello\n",
    b'{"at": 9, "off": 0, "len": 1}\nx',
    b'{"at": 0, "off": 3, "len": 1}\nx',
    b'{"at": 0, "off": 0, "len": 0}\n',
    b'{"at": 0, "off": 0, "len": 9007199254740992}\n',
    b'{"at": 1, "off": 0, "len": 1}\nx{"at": 0, "off": 0, "len": 1}\nx',
    b'{"at": 0, "bytes": 0, "sha256": "no"}\n',
    b"{" * (1 << 21),
)


@pytest.mark.parametrize("said", STRANGE)
def test_a_node_that_makes_no_sense_is_given_up(door: Door, tmp_path: Path, said: bytes) -> None:
    door.tamper = lambda *_: said
    assert all("makes no sense" in one.why for one in take(door, tmp_path))
    assert door.count == receive.TRIES and not (tmp_path / "there").exists()


def test_a_file_without_an_end_is_given_up(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "GROWN_BYTES", 4)
    door.tamper = lambda *_: b"".join(b'{"at": 0, "off": %d, "len": 8}\n12345678' % (8 * n) for n in range(9))
    assert "much longer than it was" in take(door, tmp_path)[0].why


def test_it_ends_when_its_time_is_over(door: Door, tmp_path: Path) -> None:
    assert [one.why for one in take(door, tmp_path, seconds=0.0)] == ["not within 0 s"] * 3
