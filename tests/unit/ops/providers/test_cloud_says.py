"""What is known of a machine by who made it: the cloud's books, or this machine's own process table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.providers import local, table
from nexa_dist.ops.providers.aws import provider as aws_provider
from nexa_dist.run.aws.client import Cloud

NODE = Node("n0", "198.51.100.1", 1, instance_id="i-0")
CLUSTER = Cluster("c", "aws", (NODE,), Layout("p", "s", "s", "d"))


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(aws_provider, "known_scope", lambda _: SimpleNamespace(region="us-east-1"))
    return SimpleNamespace(workspace=SimpleNamespace(cluster=lambda _: None), detail=lambda _: None)


@pytest.mark.parametrize(
    ("state", "failed", "word", "off"),
    [
        ("running", "", "runs", False),
        ("pending", "", "runs", False),
        ("running", "its system status check fails", "unwell", False),
        ("shutting-down", "", "off", True),
        ("terminated", "", "off", True),
        ("stopped", "", "off", True),
        ("unknown", "", "forgotten", True),  # an answer that lags behind: no proof while it may be training
    ],
)
def test_what_the_machine_says(
    ctx: Any, monkeypatch: pytest.MonkeyPatch, state: str, failed: str, word: str, off: bool
) -> None:
    monkeypatch.setattr(Cloud, "state", lambda *_: state)
    monkeypatch.setattr(Cloud, "failed_check", lambda *_: failed)
    assert table.machine_says(ctx, CLUSTER, NODE)[0] == word
    assert table.is_off(ctx, CLUSTER, NODE) is off


def test_a_right_that_is_denied_says_nothing(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> str:
        raise NexaError("UnauthorizedOperation")

    monkeypatch.setattr(Cloud, "state", lambda *_: "running")
    monkeypatch.setattr(Cloud, "failed_check", denied)
    assert table.machine_says(ctx, CLUSTER, NODE)[0] == "runs"
    monkeypatch.setattr(Cloud, "state", denied)
    assert not table.is_off(ctx, CLUSTER, NODE)


def test_a_local_machine_is_on_while_its_parent_of_all_lives(tmp_path: Path) -> None:
    folder: Any = SimpleNamespace(path=tmp_path)
    note = tmp_path / "nodes" / "n0" / "daemon.json"
    note.parent.mkdir(parents=True)
    assert local.machine(folder, "n0") == "off"
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    told = {
        "pid": os.getpid(),
        "start_ticks": ticks,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }
    note.write_text(json.dumps(told))
    assert local.machine(folder, "n0") == "on"
    for other in ({"start_ticks": ticks + 1}, {"boot_id": "another"}, {"pid": 2**22 + 1}, {"pid": None}):
        note.write_text(json.dumps({**told, **other}))
        assert local.machine(folder, "n0") == "off"
    note.write_text("[5]")
    assert local.machine(folder, "n0") == "off"
