"""One cluster of the emulated region, with mesh and bucket, for three tests: each finds it whole, or makes it so."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.run import files
from tests.cloud import provider
from tests.cloud.region import Running
from tests.e2e.conftest import NO_TORCH, REPO, Lab, make_bucket, rented, runs, until
from tests.e2e.test_mesh import REDUCE
from tests.e2e.test_region import (
    CLUSTER,
    cluster_json,
    endless,
    events,
    let_end,
    node,
    ours,
    provision,
    reached,
    running,
)

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("_whole")]

BROKEN = "#!/bin/sh\necho 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15\n"


@pytest.fixture(scope="module")
def cloud(here: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A workspace whose commands run in the region, with one provider for all of them."""
    made = rented(here, tmp_path_factory.mktemp("kept"))
    make_bucket(made, "nexa-kept")
    made.write("cloud.yaml", CLUSTER + "mesh: wireguard\nbucket: nexa-kept\n")
    with provider.running(here.prefix, here.environ()):
        yield made
        made.nexa("teardown", "--cluster", "cloud.yaml", "-y", "--keep-nothing", timeout_s=400)
    assert ours(here) == {}


@pytest.fixture
def _whole(cloud: Lab, here: Running) -> Iterator[None]:
    if set(running(here)) != {"n0", "n1"}:
        provision(cloud)
    yield
    here.client.clear()


@pytest.mark.long("two losses, one of them without a notice; the run of test_region.py has one")
def test_rank_0s_node_goes_with_notice_and_then_without(cloud: Lab, here: Running) -> None:
    """The run outlives the machine that holds its checkpoints, twice: nothing is lost after a notice; without one an
    interval, and another one when the newest checkpoint was still on its way to the bucket. The other machine stays."""
    before, known = running(here), runs(cloud)
    child = cloud.begin("run", endless(cloud))
    try:
        until(lambda: runs(cloud) > known and "step 15/" in cloud.log(0, "n0"), "step 15")
        here.client.notice(before["n0"]["id"], seconds=120, reclaim=False)
        until(lambda: len(cloud.record()["attempts"]) == 2, "a second attempt")
        second = until(lambda: "n0" in (now := running(here)) and now, "another n0")
        assert second["n0"]["id"] != before["n0"]["id"]
        resumed = cloud.record()["attempts"][1]["resume_step"]
        until(lambda: durable(cloud) >= resumed + 20, "a checkpoint of 20 to 29 steps more is in the bucket")
        here.client.reclaim(second["n0"]["id"])
        let_end(cloud, attempt=3)
        said = child.communicate(timeout=400)[1]
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, said
    first, other, last = cloud.manifest()["attempts"]
    assert [row["kind"] for row in (first, other, last)] == ["notice", "node", "completed"]
    done = reached(cloud)
    assert other["resume_step"] == done[1]
    assert done[2] - 21 <= last["resume_step"] <= done[2]
    [margin] = first["notices"].values()
    assert 0 <= margin["saved_unix"] - margin["seen_unix"] < 60
    assert margin["acts_unix"] - margin["saved_unix"] > 60
    assert [row["replaced"] for row in (first, other, last)] == [[], ["n0"], ["n0"]]
    assert running(here)["n1"]["id"] == before["n1"]["id"]


def durable(cloud: Lab) -> int:
    """Step of the newest checkpoint that reached the bucket."""
    return max((row.get("durable") or 0 for row in events(cloud) if row["event"] == "progress"), default=0)


SEEN = """
import os
data = os.environ["NEXA_DATA"]
size = os.path.getsize(data + "/far/deep/b.bin")
print("seen", sorted(os.listdir(data + "/near")), size, open(data + "/far/a.txt").read())
"""


def quickstart_trains(cloud: Lab) -> None:
    shutil.copy(REPO / "configs/train/quickstart.yaml", cloud.root)
    shutil.copytree(REPO / "nexa_dist/plan", cloud.root / "text")  # less text than the standard library
    few = ("trainer.steps=30", "nproc_per_node=1", "dataset.source=path", "dataset.path=text", "dataset.min_mb=0.1")
    few += ('env.OMP_NUM_THREADS="1"',)  # the cores are all hosts' together
    cloud.nexa("run", "quickstart.yaml", *(word for each in few for word in ("--set", each)), timeout_s=400)
    manifest = cloud.manifest()
    assert manifest["status"] == "completed"
    report = manifest["eval_report"]
    assert report["train_loss_last"] < report["train_loss_first"] - 0.5


@pytest.mark.long("two trainings, and data that emulated/test_s3_data.py and processes/ops/test_bring_data.py hold too")
def test_the_quickstart_trains_and_data_comes_by_a_nodes_own_profile_and_goes_on_over_their_network(
    cloud: Lab, here: Running
) -> None:
    """After a node was made anew the other one has the data for it: the bucket may be gone by then."""
    quickstart_trains(cloud)
    place = f"{cluster_json(cloud)['bucket']}/data"
    cloud.write("far/a.txt", "far")
    cloud.write("far/deep/b.bin", "x" * 9_000_000)
    aws = [*cloud.prefix, str(Path(sys.executable).with_name("aws")), "s3", "cp", "--recursive", "far", place]
    subprocess.run(aws, cwd=cloud.root, env=cloud.environment(), check=True, timeout=120, stdout=subprocess.DEVNULL)
    cloud.write("near/c.txt", "near")
    train = cloud.script("seen", SEEN, data={"far": place, "near": "near"}, nproc_per_node=1, **NO_TORCH)
    said = cloud.nexa("run", train, timeout_s=400).stderr
    for name in ("n0", "n1"):
        assert "seen ['c.txt'] 9000000 far" in cloud.log(int(name[1]), name)
    assert re.search(r"n1: data far \(8.58 MiB\) from n0", said) and "cannot come from" not in said
    again = cloud.nexa("run", train, timeout_s=400).stderr
    assert "data far" not in again and "data near" not in again
    here.client.reclaim(running(here)["n1"]["id"])
    until(lambda: "n1" not in running(here), "n1 is gone")
    provision(cloud)
    said = cloud.nexa("run", train, timeout_s=400).stderr
    assert re.search(r"n1: data far \(8.58 MiB\) from n0", said) and "n0: data" not in said
    assert "seen ['c.txt'] 9000000 far" in cloud.log(1, "n1")


@pytest.mark.long("a bad node and a lost one, each replaced by a provision")
def test_what_a_provision_mends(cloud: Lab, here: Running) -> None:
    """One of its nodes goes bad and one is taken back; another node hands the environment on."""
    first = running(here)
    assert "0 tasks changed" in provision(cloud)
    assert "no changes" in cloud.nexa("plan", "--cluster", "cloud.yaml").stderr
    assert set(running(here)) == set(first)
    second = go_bad(cloud, here, first)
    cloud.nexa("run", "reduce.yaml", timeout_s=400)
    assert "sum 1024.0 eth0 10.77." in cloud.log(0, "n0"), "their own network is faster than the mesh"

    here.client.reclaim(second["n1"]["id"])
    until(lambda: set(running(here)) == {"n0"}, "the cloud took n1 back")
    forget_what_is_attached(cloud)
    third = handed_on(cloud, here)
    assert third["n0"]["id"] == first["n0"]["id"]
    assert third["n1"]["id"] != second["n1"]["id"]


def go_bad(cloud: Lab, here: Running, first: dict[str, Any]) -> dict[str, Any]:
    """A node's GPU fails: found by nexa diag, kept from running, replaced by the next provision, its cost told."""
    ledger = cloud.root / ".nexa/clusters/cloud/ledger.jsonl"
    known = len(files.read_lines(ledger))
    node(cloud, "n1", f"printf %s {shlex.quote(BROKEN)} | sudo tee /usr/bin/nvidia-smi")
    assert "error: n1: driver: nvidia-smi: Unable to determine" in cloud.nexa("diag", code=1).stderr
    refused = cloud.nexa("run", cloud.script("reduce", REDUCE), code=1).stderr
    assert "n1: driver: nvidia-smi: Unable to determine" in refused

    said = provision(cloud)
    assert "another machine in the place of n1 (driver)" in said
    second = running(here)
    assert second["n0"]["id"] == first["n0"]["id"] and second["n1"]["id"] != first["n1"]["id"]
    told = [row for row in files.read_lines(ledger)[known:] if row["event"] == "replaced"]
    assert [(row["node"], row["id"], row["causes"]) for row in told] == [("n1", first["n1"]["id"], ["driver"])]
    assert told[0]["minutes"] > 0 and told[0]["usd"] > 0

    changed = changed_on("n0", said)
    assert "Put the agent into it" not in changed and "Apply the configuration" in changed
    spoken = node(cloud, "n0", "read -r line </dev/tcp/10.213.0.102/22; echo $line")
    assert spoken.startswith("SSH-2.0"), "n0 has learnt the other key"
    return second


def changed_on(name: str, said: str) -> list[str]:
    """Ansible's tasks that changed a node, in the lines of a provision."""
    return re.findall(rf"(?:changed:|,) ([^,;]+?) \([^)]*{name}\b[^)]*\)", said)


def handed_on(cloud: Lab, here: Running) -> dict[str, Any]:
    """A provision that finds no environment on n0: it comes from n1, and nothing is asked of the outside."""
    env = os.path.dirname(node(cloud, "n0", "ls -d /opt/nexa/shared/envs/*/.complete"))
    node(cloud, "n0", f"rm -rf {env}")
    said = provision(cloud)
    assert "Build it (" not in said
    assert changed_on("n0", said) == ["Send the configuration", "Apply the configuration"], (
        "of the mesh alone: n1 has another key"
    )
    assert node(cloud, "n0", "ls -d /opt/nexa/shared/envs/*/.complete") == f"{env}/.complete"
    assert node(cloud, "n1", "pgrep -f '[h]mac.compare_digest' || echo none") == "none"
    assert f"{env}/bin/python" in node(cloud, "n0", f"head -1 {env}/bin/torchrun")
    return running(here)


def forget_what_is_attached(cloud: Lab) -> None:
    """As an apply that was killed after these were made, and before the state said so."""
    path = cloud.root / ".nexa/clusters/cloud/terraform/terraform.tfstate"
    state = json.loads(path.read_text())
    attached = ("aws_vpc_security_group_ingress_rule", "aws_vpc_security_group_egress_rule",
                "aws_route_table_association", "aws_vpc_endpoint", "aws_iam_role_policy")  # fmt: skip
    kept = [row for row in state["resources"] if row["type"] not in attached]
    assert len(state["resources"]) - len(kept) >= 4
    path.write_text(json.dumps({**state, "resources": kept, "serial": state["serial"] + 1}))
