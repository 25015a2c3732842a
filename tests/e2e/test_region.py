"""AWS clusters in an emulated region: the real Terraform provider, hosts that boot, real ssh, Ansible and torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from nexa_dist.run import files
from nexa_dist.train import checkpoint
from tests.chaos.kill_loop import Loop
from tests.cloud.region import Running
from tests.e2e.conftest import Lab, contents, make_bucket, rented, runs, until
from tests.e2e.test_nobody_home import LATE_S, ends_soon, left_alone, step_in_bucket

pytestmark = pytest.mark.e2e

CLUSTER = """\
name: cloud
provider: aws
nodes: 2
gpus_per_node: 2
max_hours: 2
boot_timeout_s: 90
offers: [{type: g5.12xlarge, zone: us-east-1a}, {type: g5.12xlarge, zone: us-east-1b}]
"""
END = "/opt/nexa/scratch/end"
CANARIES = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canaryCANARYcanaryCANARY"}


@pytest.fixture
def cloud(here: Running, tmp_path: Path) -> Iterator[Lab]:
    """A workspace whose commands run in the region; nothing of it is left there."""
    made = rented(here, tmp_path)
    made.write("cloud.yaml", CLUSTER)
    yield made
    here.client.clear()
    made.nexa("teardown", "--cluster", "cloud.yaml", "-y", "--keep-nothing", timeout_s=400)
    assert ours(here) == {}


def ours(here: Running) -> dict[str, list[str]]:
    """What the region itself says exists of the cluster, by kind."""
    found: dict[str, list[str]] = {}
    for kind, things in here.client.state()["resources"].items():
        for ident, tags in things.items():
            if tags.get("nexa:cluster") == "cloud":
                found.setdefault(kind, []).append(ident)
    return found


def running(here: Running) -> dict[str, dict[str, Any]]:
    """Instances that are billed, by node name."""
    found = here.client.state()["instances"]
    rows = found.values() if isinstance(found, dict) else found
    live = [
        row for row in rows if row["state"] in ("pending", "running") and row["tags"].get("nexa:cluster") == "cloud"
    ]
    by_name = {row["tags"]["nexa:node"]: row for row in live}
    assert len(by_name) == len(live), f"a node was made twice: {live}"
    return by_name


def cluster_json(cloud: Lab) -> dict[str, Any]:
    return dict(json.loads((cloud.root / ".nexa/clusters/cloud/cluster.json").read_text()))


def provision(cloud: Lab, **more: Any) -> str:
    """What the command says."""
    return cloud.nexa("provision", "--cluster", "cloud.yaml", "-y", timeout_s=500, **more).stderr


def node(cloud: Lab, name: str, command: str) -> str:
    return cloud.nexa("ssh", name, "--", "bash", "-c", command).stdout.strip()


def test_a_cluster_runs_loses_a_node_is_left_alone_and_is_torn_down(cloud: Lab, here: Running) -> None:
    """With a mesh and a bucket. The machine that holds the checkpoints gets a notice: another takes its place while the
    run goes on, and nothing is lost. The controller of the next run is killed, and one node's time is over. At the end
    no state is left to tear down by, only tags."""
    make_bucket(cloud, "nexa-story")
    cloud.write("cloud.yaml", CLUSTER + "mesh: wireguard\nbucket: nexa-story\n")
    provision(cloud, **CANARIES)
    first = running(here)
    assert set(first) == {"n0", "n1"}
    nodes = cluster_json(cloud)["nodes"]
    assert [row["private_address"][:6] for row in nodes] == ["10.77."] * 2
    assert nodes[0]["offer"] == "g5.12xlarge us-east-1a spot"
    folder = cloud.root / ".nexa/clusters/cloud"
    verdict = json.loads((folder / "diag.json").read_text())
    assert verdict["ok"] and verdict["nodes"] == {name: row["id"] for name, row in first.items()}

    spoken = node(cloud, "n0", "read -r line </dev/tcp/10.213.0.102/22; echo $line")
    assert spoken.startswith("SSH-2.0"), "WireGuard carries from node to node"

    train = endless(cloud, save_every=1_000_000, launcher="torchrun")  # it is saved for the notice alone
    child = cloud.begin("run", train, **CANARIES)
    try:
        until(lambda: "step 15/" in cloud.log(0, "n0"), "step 15")
        here.client.notice(first["n0"]["id"], seconds=120, reclaim=False)
        let_end(cloud, attempt=2)
        said = child.communicate(timeout=600)[1]
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, said
    manifest = cloud.manifest()
    assert manifest["status"] == "completed" and manifest["cost_usd"] > 0
    noticed, last = manifest["attempts"]
    assert [(row["kind"], row["replaced"]) for row in (noticed, last)] == [("notice", []), ("completed", ["n0"])]
    assert last["resume_step"] == reached(cloud)[1] >= 15
    assert " 10.77." in f" {cloud.record()['attempts'][0]['rdzv']}"  # the ranks meet on the private network
    second = running(here)
    assert second["n1"]["id"] == first["n1"]["id"] and second["n0"]["id"] != first["n0"]["id"]
    no_secret_anywhere(cloud)

    steps = [row["step"] for row in cloud.json("timeline", "--cluster", "cloud")]
    assert [s for s in steps if s in ("capacity", "create", "boot", "ssh", "bootstrap", "check")][:6] == [
        "capacity", "create", "boot", "ssh", "bootstrap", "check",
    ]  # fmt: skip
    run = cloud.plain(
        "alone", "--steps", 100_000, "--save-every", 100_000, "--step-seconds", 0.3, nproc_per_node=1,
        outputs=["notes"], setup=["mkdir notes", "echo $NEXA_NODE > notes/$NEXA_NODE"],
    )  # fmt: skip
    left_alone(cloud, "run", run, when=lambda: runs(cloud) == 2 and "step 5/" in cloud.log(0, "n0"))
    due = ends_soon(cloud, "n0", in_s=90)
    until(lambda: set(running(here)) == {"n1"}, "the other node ends", every_s=1)
    end = next(row["end_unix"] for row in here.client.bill()["instances"] if row["id"] == second["n0"]["id"])
    assert due <= end < due + LATE_S
    assert (saved := step_in_bucket(cloud, "cloud")) >= 5, "saved because the end was near"
    pulled = cloud.json("pull", "", "here")
    assert (pulled["checkpoint"]["step"], pulled["checkpoint"]["from"]) == (saved, "the bucket"), "its node is gone"
    assert checkpoint.verify(cloud.root / "here" / "checkpoints" / f"step_{saved:08d}") == []
    notes = {path.name: path.read_text() for path in (cloud.root / "here" / "outputs" / "notes").iterdir()}
    assert notes == {"n0": "n0\n", "n1": "n1\n"}, "what n0 wrote came from the bucket"

    (folder / "terraform" / "terraform.tfstate").unlink()
    receipt = cloud.json("teardown", "-y", "--keep-nothing", timeout_s=400)
    assert receipt["left"] == {"cloud": [], "errors": []}
    states = {row["id"]: row["state"] for row in receipt["resources"]}
    assert {states[row["id"]] for row in second.values()} == {"terminated"}
    assert {"vpc", "subnet", "security group", "launch template", "key pair"} <= {
        r["kind"] for r in receipt["resources"]
    }
    assert receipt["cost_usd"] > 0
    assert ours(here) == {}


def no_secret_anywhere(cloud: Lab) -> None:
    """No private key outside the folder of keys, and no secret of the user's, in anything that was written here."""
    folder = cloud.root / ".nexa" / "clusters" / "cloud"
    bodies = [
        line.encode()
        for key in (folder / "ssh").rglob("*")
        if key.is_file() and "PRIVATE KEY" in key.read_text()
        for line in key.read_text().splitlines()[2:-2]
    ]
    assert len(bodies) > 3
    leaked = [
        (path.name, mark)
        for path, content in contents(cloud.root)
        if path.parent.name not in ("ssh", "host_keys")
        for mark in [*bodies, *(canary.encode() for canary in CANARIES.values())]
        if mark in content
    ]
    assert leaked == []


def endless(cloud: Lab, save_every: int = 10, **more: Any) -> str:
    """train.yaml of a rank a node that goes on until `let_end`."""
    args = ("--steps", 1_000_000, "--save-every", save_every, "--step-seconds", 0.4, "--until", END)
    return cloud.plain("own", *args, nproc_per_node=1, **more)


def let_end(cloud: Lab, attempt: int) -> None:
    """Once this attempt has done a step."""
    until(lambda: "\nstep " in cloud.log(0, "n0", attempt), f"attempt {attempt} does its steps")
    for name in ("n0", "n1"):
        node(cloud, name, f"touch {END}")


def events(cloud: Lab) -> list[dict[str, Any]]:
    """What the nodes of rank 0 told, the first of them first."""
    paths = sorted((cloud.newest() / "logs" / "n0").glob("agent*.jsonl"))  # agent.1.jsonl was put aside first
    return [row for path in paths for row in files.read_lines(path)]


def reached(cloud: Lab) -> dict[int, int]:
    """The last step of rank 0 that is known, by attempt."""
    found, attempt = dict[int, int](), 0
    for row in events(cloud):
        attempt = row["attempt"] if row["event"] == "started" else attempt
        if row["event"] == "progress":
            found[attempt] = row["steps"].get("0") or found.get(attempt, 0)
        elif row["event"] == "rank_exit" and row["rank"] == 0 and row["step"] is not None:
            found[attempt] = row["step"]
    return found


@pytest.mark.long(
    "a cluster for variants of a create; tests/emulated and unit/ops/providers/aws/test_capacity.py have them"
)
def test_a_full_zone_a_lost_reply_and_a_busy_api(
    cloud: Lab, here: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here.client.fault("capacity", zone="us-east-1a", after=1)  # n0 is made there, n1 is refused: a part of a gang
    here.client.fault("throttle", call="Describe*", rate=0.1)
    here.client.fault("lost_reply", call="RunInstances", times=2)
    here.client.fault("lost_reply", call="CreateRoute", times=1)
    here.client.fault("lost_reply", call="CreateLaunchTemplate", times=1)
    here.client.fault("hidden", seconds=2)
    said = provision(cloud)
    assert "us-east-1a spot: InsufficientInstanceCapacity, its part of the gang was given back" in said
    assert {node["offer"] for node in cluster_json(cloud)["nodes"]} == {"g5.12xlarge us-east-1b spot"}
    assert set(running(here)) == {"n0", "n1"}
    here.client.clear()

    # Another workspace, on another machine: it may not touch the cluster, but may be told to end it.
    other = Lab(tmp_path_factory.mktemp("elsewhere"), cloud.prefix, cloud.env)
    other.write("cloud.yaml", CLUSTER)
    assert "is held by" in other.nexa("provision", "--cluster", "cloud.yaml", "-y", code=1).stderr
    assert set(running(here)) == {"n0", "n1"}
    assert "-y says yes" in other.nexa("teardown", "--cluster", "cloud.yaml", code=2).stderr
    receipt = other.json("teardown", "--cluster", "cloud.yaml", "-y", "--keep-nothing", timeout_s=400)
    assert receipt["left"] == {"cloud": [], "errors": []}
    assert ours(here) == {}
    assert (
        "gone" in cloud.nexa("teardown", "-y", "--keep-nothing", timeout_s=400).stderr
    )  # the first workspace learns it


@pytest.mark.long("a cluster in the user's own network; tests/emulated/test_given.py has each judgement of it")
@pytest.mark.usefixtures("one_provider")
def test_a_private_network_a_capacity_block_and_tags_of_the_users_own(cloud: Lab, here: Running) -> None:
    """Nothing of a network is made. What a launch makes has the tags, though the template's were overwritten."""
    ec2 = boto3.client(
        "ec2", "us-east-1", endpoint_url=f"http://127.0.0.1:{here.port}",
        aws_access_key_id="test", aws_secret_access_key="test", config=Config(proxies={}),
    )  # fmt: skip
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    made = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1c")
    subnet = made["Subnet"]["SubnetId"]
    ends = datetime.now(UTC) + timedelta(hours=2)
    block = ec2.create_capacity_reservation(
        InstanceType="g5.12xlarge", InstancePlatform="Linux/UNIX", AvailabilityZone="us-east-1c", InstanceCount=1,
        EndDate=ends,
    )["CapacityReservation"]["CapacityReservationId"]  # fmt: skip
    here.client.fault("overwritten")
    text = CLUSTER.replace("nodes: 2", "nodes: 1").partition("offers:")[0]
    text += f"subnets: [{subnet}]\ncapacity_reservation: cb-{block[3:]}\ntags: {{CostCenter: '1234'}}\n"
    cloud.write("cloud.yaml", text)
    said = provision(cloud)
    assert f"{subnet}: no route to 0.0.0.0/0" in said
    (node,) = cluster_json(cloud)["nodes"]
    assert node["address"] == node["private_address"] and node["address"].startswith("10.9.1.")
    assert node["offer"] == "g5.12xlarge us-east-1c on_demand"
    scope = json.loads((cloud.root / ".nexa/clusters/cloud/site.json").read_text())
    assert scope["expires_unix"] == int(ends.timestamp()) - 35 * 60 < scope["created_unix"] + 2 * 3600
    kinds = ours(here)
    assert not {"vpcs", "subnets", "route_tables", "internet_gateways", "vpc_endpoints", "placement_groups"} & set(
        kinds
    )
    assert {"instances", "volumes", "network_interfaces", "launch_templates", "key_pairs"} <= set(kinds)
    things = here.client.state()["resources"]
    lacking = [i for kind, ids in kinds.items() for i in ids if things[kind][i].get("CostCenter") != "1234"]
    assert lacking == []
    assert cloud.json("plan", "--cluster", "cloud.yaml")["changes"] == {}, "another provision changes nothing"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.long("minutes: variants of a provision")
def test_no_capacity_then_a_saved_plan_a_killed_command_and_a_host_that_never_boots(cloud: Lab, here: Running) -> None:
    here.client.fault("capacity", after=1)
    said = provision(cloud, code=1)
    assert "no capacity for 2 nodes: g5.12xlarge us-east-1a spot: InsufficientInstanceCapacity" in said
    assert running(here) == {}
    here.client.clear()
    here.client.fault("no_boot", nth=1)

    before = ours(here)
    said = cloud.nexa("plan", "--cluster", "cloud.yaml", "-o", "plan.bin").stderr
    assert re.search(r"InsufficientInstanceCapacity \d+ min ago, so tried last", said)
    assert ours(here) == before
    child = cloud.begin("provision", "--plan", "plan.bin", "-y")
    until(lambda: running(here), "the first instance exists")
    with stopped(int((cloud.root / ".nexa/clusters/cloud/terraform/busy").read_text())):
        child.kill()  # the controller alone
        child.communicate()
        told = cloud.root / "told"
        with told.open("w") as file:
            child = cloud.begin("provision", "--cluster", "cloud.yaml", "-y", stderr=file)
        until(lambda: "a Terraform of a killed command is still at work" in told.read_text(), "it waits")
    child.communicate(timeout=600)
    said = told.read_text()
    assert child.returncode == 0, said
    assert "n0: ending" not in said
    assert re.search(r"made anew, since they do not answer: n[01]$", said, re.M), said
    assert set(running(here)) == {"n0", "n1"}


@pytest.mark.long("kill loop")
def test_killed_anywhere_it_recovers(here: Running, tmp_path: Path) -> None:
    loop = Loop(here, tmp_path, seed=3)
    books = loop.run(8)
    assert books.faults == [], (tmp_path / "log.txt").read_text(errors="replace")[-8000:]
    assert sum(books.kills.values()) == 8
