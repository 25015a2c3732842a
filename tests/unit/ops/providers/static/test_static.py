"""The record of the user's own hosts, and hosts that will never answer again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.cluster.provision import refuse_other_provider
from nexa_dist.ops.providers.static import end as static_end
from nexa_dist.ops.providers.static.record import Host, Record
from nexa_dist.plan.static.cluster import static_cluster
from nexa_dist.plan.static.known_hosts import Adopted, HostKey
from nexa_dist.run import files
from nexa_dist.run.workspace import ClusterFolder
from tests.unit.cloud_server import Desk

KEY = HostKey("h0", "ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIJ/AezfhpVr7vwAd2wQjOU/WVxD4sIo5qrO0iTwsfuzS")
CONFIG = ClusterConfig.model_validate(
    {"name": "own", "cluster": [{"host": "h0", "gpus": 1}, {"host": "h1", "gpus": 1}]}
)


@pytest.fixture
def folder(desk: Desk) -> ClusterFolder:
    """Of two hosts, the first of them claimed."""
    made = desk.ctx.workspace.cluster("own")
    claimed = Host(
        Adopted("n0", "h0:22", KEY, "the file"), "", home="/home/u", missing=("/home/u/.nexa",), claimed=True
    )
    hosts = {"n0": claimed, "n1": Host(Adopted("n1", "h1:22", replace(KEY, place="h1"), "asked"), "ann")}
    Record("ws.own", hosts, static_cluster(CONFIG, Path("/")).to_json(), envs=("e0",)).save(made)
    return made


def test_the_record_is_read_as_it_was_written(folder: ClusterFolder) -> None:
    record = Record.of(folder)
    assert list(record.claimed) == ["n0"] and record.keys()["n1"].key.place == "h1"
    record.save(folder)
    assert Record.of(folder) == record
    assert Record.path(folder).stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_is_said(folder: ClusterFolder) -> None:
    files.write_json(Record.path(folder), {"hosts": {"n0": {"adopted": 1}}})
    with pytest.raises(NexaError, match=r"own\.json is damaged"):
        Record.of(folder)


def test_a_host_that_is_gone_for_good_is_not_asked_again(desk: Desk, folder: ClusterFolder) -> None:
    with pytest.raises(UsageError, match="no host of yours called n7"):
        static_end.give_up(folder, ["n0", "n7"])
    assert Record.of(folder).claimed
    static_end.give_up(folder, ["n0"])
    assert not Record.of(folder).claimed
    answer = static_end.destroy(desk.ctx, folder)
    assert answer["left"] == {"hosts": [], "processes": []} and answer["removed"] == {}
    assert answer["kept"] == ["n0: what was added there, since it was given up"]
    assert [row["name"] for row in answer["nodes"]] == ["n1"]


def test_a_name_is_of_one_provider(desk: Desk, folder: ClusterFolder) -> None:
    local = ClusterConfig(name="own", provider="local", nodes=1, gpus_per_node=1)
    with pytest.raises(UsageError, match="there already, and it is of your own hosts"):
        refuse_other_provider(folder, local)
    refuse_other_provider(folder, CONFIG)
    other = desk.ctx.workspace.cluster("lab")
    files.write_json(other.path / "config.json", {})
    with pytest.raises(UsageError, match="of another provider's nodes"):
        refuse_other_provider(other, CONFIG)
    refuse_other_provider(other, local)
