"""A folder goes from one node to another by the controller's hand; both are folders of this machine, without ssh."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node, Provider
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.hand_on import ALONE, hand_on
from nexa_dist.run.fake import Call, FakeRunner
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace


class Here(FakeRunner):
    """What goes to a node runs here."""

    def answer(self, call: Call) -> Result:
        assert isinstance(call.stdin, bytes)
        done = subprocess.run(shlex.split(call.argv[-1]), input=call.stdin, capture_output=True, timeout=60)
        return Result(call.argv, done.returncode, done.stdout, done.stderr)


def handed(
    folder: Path, provider: Provider, address: str = "127.0.0.1", size: int = 0, **damage: Any
) -> dict[str, str]:
    nodes = (Node("n0", "10.0.0.1", 1, private_address=address), Node("n1", "10.0.0.2", 1))
    cluster = Cluster("c", provider, nodes, Layout(sys.executable, "~/s", "~/h", "~/d"))
    links = [Link(Ssh(Here(), cluster, str(folder)), node, str(folder)) for node in nodes]
    folders = {node.name: str(folder / node.name / "corpus") for node in nodes} | damage
    ctx = Context(Workspace(folder), Here(), lambda text: None)
    return hand_on(ctx, links[0], links[1:], folders, "corpus")


def test_it_arrives_whole_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "n0" / "corpus"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.bin").write_bytes(b"x" * 3_000_000)
    (source / ".complete").touch()
    assert handed(tmp_path, "local") == {"n1": ALONE}
    monkeypatch.setattr("nexa_dist.ops.work.hand_on.LIMIT_S", 1)  # an offer that nobody takes ends
    assert "/gone" in handed(tmp_path, "aws", n1="/proc/gone/corpus")["n1"]
    assert not (tmp_path / "n1").exists()
    monkeypatch.undo()
    assert handed(tmp_path, "aws") == {"n1": ""}
    taken = tmp_path / "n1" / "corpus"
    assert (taken / "deep" / "a.bin").read_bytes() == b"x" * 3_000_000 and (taken / ".complete").exists()


def test_hosts_of_ones_own_hand_on_where_no_stranger_is(tmp_path: Path) -> None:
    source = tmp_path / "n0" / "corpus"
    source.mkdir(parents=True)
    (source / "a.bin").write_bytes(b"x" * 1000)
    (source / ".complete").touch()
    for address, why in (("203.0.113.7", "203.0.113.7 is a public address"), ("2600::1", "2600::1 is a public address"),
                         ("gpu1", "n0 is known by a name, gpu1")):  # fmt: skip
        assert handed(tmp_path, "static", address)["n1"].startswith(f"{ALONE}: {why}")
    assert handed(tmp_path, "static") == {"n1": ""}
    assert (tmp_path / "n1" / "corpus" / "a.bin").read_bytes() == b"x" * 1000
