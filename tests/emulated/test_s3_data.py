"""Data of a bucket on its way to the nodes: the real aws command against the emulated region; the node is here."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.ledger_file import read as read_ledger
from nexa_dist.ops.work.data import bring_data
from nexa_dist.plan.money.bill import bill
from nexa_dist.remote import data_store
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.ssh.connections import Link, Ssh
from tests.processes.ops.test_bring_data import Here, read
from tests.unit.cloud_server import HOME, NOW, Desk, Emulated

OBJECTS = {"set/a.txt": b"one", "set/deep/b.bin": b"x" * 3_000_000, "set/made by hand/": b"", "settle": b"not of it"}


def bring(desk: Desk, url: str, region: str = HOME, again: bool = False) -> tuple[dict[str, Any], Path]:
    """What the manifest says, and what a script on the node sees."""
    node = Node("n0", "127.0.0.1", 1)
    cluster = Cluster("c", "aws", (node,), Layout(sys.executable, "~/s", "~/h", "~/d"), region=region)
    link = Link(Ssh(Here(), cluster, str(desk.root)), node, str(desk.root / "n0"))
    config = TrainConfig.model_validate({"script": "t.py", "data": {"text": url}})
    row = bring_data(desk.ctx, [link], config, desk.root / "runs/r1/brought", again=again)["text"]
    return row, desk.root / "n0/h/data" / row["id"] / "files" / row["single"]


@pytest.fixture
def bucket(emulated_region: Emulated) -> str:
    name, s3 = f"data-{emulated_region.name()}", aws_client.client("s3", HOME)
    s3.create_bucket(Bucket=name)
    for key, body in OBJECTS.items():
        s3.put_object(Bucket=name, Key=key, Body=body)
    return name


def test_it_is_fetched_once_and_named_by_what_arrived(bucket: str, desk: Desk) -> None:
    row, seen = bring(desk, f"s3://{bucket}/set/")
    assert read(seen) == {"a.txt": b"one", "deep/b.bin": b"x" * 3_000_000}
    assert (row["files"], row["bytes"], row["region"], row["single"]) == (2, 3_000_003, HOME, "")
    arrived = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in read(seen).items()]
    assert row["sha256"] == data_store.digest(arrived) != row["id"]
    one, seen = bring(desk, f"s3://{bucket}/set/a.txt", "us-west-2")
    assert (seen.read_bytes(), one["single"]) == (b"one", "a.txt")
    costs = bill(read_ledger(desk.root / ".nexa/clusters/c"), NOW + 10)
    assert costs.uncounted == (f"data text from {HOME} (0.00 GB) of r1",), "the price is not known, so it is not free"


@pytest.mark.long("each call of aws takes a second")
def test_what_cannot_be_had_is_said_in_aws_words(bucket: str, desk: Desk, emulated_region: Emulated) -> None:
    for url, words, cure in (
        ("s3://nobody-has-this/x", r"\(NoSuchBucket\) .*The specified bucket does not exist", "the name of the bucket"),
        (f"s3://{bucket}/none", "nothing is there", ""),
    ):
        with pytest.raises(NexaError, match=f"data: text: n0: {url}: .*{words}") as told:
            bring(desk, url)
        assert cure in told.value.hint
    emulated_region.control.rights(deny=["s3:GetObject"])
    with pytest.raises(NexaError, match=r"data: text: n0: s3://.*\(AccessDenied\|403\)|Forbidden|AccessDenied") as told:
        bring(desk, f"s3://{bucket}/set")
    assert "docs/RUNS.md" in told.value.hint
    assert not list((desk.root / "n0/h/data").glob("*/.complete"))


def test_a_place_that_changes_underneath_is_refused(bucket: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = aws_client.client("s3", HOME)
    real = data_store.Bucket.download

    def download(self: data_store.Bucket, *words: Any) -> None:
        real(self, *words)
        s3.put_object(Bucket=bucket, Key="set/a.txt", Body=b"two")

    monkeypatch.setattr(data_store.Bucket, "download", download)
    place = data_store.Bucket(f"s3://{bucket}/set", {})
    store = data_store.Store(str(desk.root / "data"), lambda **_: None, [])
    with pytest.raises(data_store.Refused, match="changed while it was fetched"):
        store.fetch(place.told(False), place)
    assert not [path for path in (desk.root / "data").iterdir() if path.is_dir()]
