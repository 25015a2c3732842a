"""The controller is dead, and nobody has cloud credentials: every node still ends, with the run's last checkpoint safe.

Real nodes' own script, booted by cloud-init in the emulated region; local nodes keep the same clock.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.kill_loop import kill_tree
from tests.cloud.region import Running, Unable, region
from tests.e2e.conftest import NEXA, REPO, Lab, until
from tests.e2e.local_cluster import LocalCluster

pytestmark = pytest.mark.e2e

CLUSTER = """\
name: alone
provider: aws
gpus_per_node: 1
max_hours: 2
boot_timeout_s: 30
offers: [{type: g5.12xlarge, zone: us-east-1a}]
"""
BUCKET = "nexa-alone"
LATE_S = 60


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    try:
        with region(f"alone-{os.getpid()}") as running:
            make = f"import boto3; boto3.client('s3', region_name='us-east-1').create_bucket(Bucket='{BUCKET}')"
            subprocess.run([*running.prefix, sys.executable, "-c", make], env={**os.environ, **running.env}, check=True)
            yield running
    except Unable as error:
        pytest.skip(str(error))


@pytest.fixture
def cloud(here: Running, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, here.prefix, {**here.env, "NEXA_SETTLE_S": "3"})
    yield made
    made.nexa("teardown", "--cluster", "alone.yaml", "-y", timeout_s=400)


def on(here: Running) -> dict[str, dict[str, Any]]:
    """Instances that are billed, by node name."""
    found = here.client.state()["instances"]
    return {row["tags"]["nexa:node"]: row for row in found if row["state"] in ("pending", "running", "shutting-down")}


def provision(cloud: Lab, here: Running, **keys: Any) -> float:
    """Makes the cluster; the time at which the command ended."""
    cloud.write("alone.yaml", CLUSTER + "".join(f"{key}: {value}\n" for key, value in keys.items()))
    cloud.nexa("provision", "--cluster", "alone.yaml", "-y", timeout_s=500)
    assert len(on(here)) == keys["nodes"]
    return time.time()


def train_until_the_controller_is_killed(cloud: Lab) -> None:
    """A run that saves nothing by itself: what is in the bucket later was saved because the end was near."""
    shutil.copytree(REPO / "configs/train", cloud.root / "configs/train")
    args = ["--steps", "100000", "--save-every", "100000", "--step-seconds", "0.3"]
    train = {"name": "own", "script": "configs/train/own_script.py", "args": args}
    cloud.write("own.yaml", json.dumps(train))
    with open(cloud.root / "run.log", "wb") as log:
        child = subprocess.Popen(
            [*cloud.prefix, *NEXA, "run", "own.yaml"], cwd=cloud.root, env=cloud.environment(),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: "step 5/" in cloud.log(0, "n0"), "step 5", 240)
    finally:
        kill_tree(child)


def order(cloud: Lab, node: str, *words: str) -> str:
    """As root on a node."""
    ssh = ["ssh", "-F", str(cloud.root / ".nexa/clusters/alone/ssh/ssh_config"), node, "sudo", "-n", *words]
    argv = [*cloud.prefix, *ssh]
    done = subprocess.run(argv, env=cloud.environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def step_in_bucket(cloud: Lab) -> int:
    """Step of the newest whole checkpoint, fetched and verified file by file."""
    env = {**cloud.environment(), "NEXA_BUCKET": f"s3://{BUCKET}/alone", "NEXA_PYTHON": sys.executable}
    argv = [*cloud.prefix, "bash", str(REPO / "scripts/run_sync.sh"), "pull", cloud.newest().name, "fetched"]
    done = subprocess.run(argv, cwd=cloud.root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(Path(done.stdout.strip()).name.removeprefix("step_"))


def seen_off(here: Running, by_unix: float) -> float:
    """Waits until no instance is billed any more; the time at which that was seen."""
    until(lambda: not on(here), "every instance was terminated", max(1.0, by_unix + LATE_S - time.time()))
    return time.time()


def test_a_run_is_saved_and_every_node_ends_at_its_deadline(cloud: Lab, here: Running) -> None:
    provision(cloud, here, nodes=2, bucket=BUCKET)
    train_until_the_controller_is_killed(cloud)
    due = int(time.time()) + 150
    assert [order(cloud, node, "/var/lib/nexa/deadline", "extend", str(due)) for node in ("n0", "n1")] == [str(due)] * 2
    assert seen_off(here, due) >= due
    assert step_in_bucket(cloud) >= 5


def test_a_run_is_saved_and_every_node_ends_when_its_lease_is_over(cloud: Lab, here: Running) -> None:
    lease_minutes = 3
    provision(cloud, here, nodes=2, bucket=BUCKET, lease_minutes=lease_minutes)
    train_until_the_controller_is_killed(cloud)
    assert len(on(here)) == 2
    seen_off(here, time.time() + lease_minutes * 60)
    assert step_in_bucket(cloud) >= 5


def test_nodes_end_though_the_controller_was_killed_while_it_made_them(cloud: Lab, here: Running) -> None:
    cloud.write("alone.yaml", CLUSTER.replace("max_hours: 2", "max_hours: 0.025") + "nodes: 2\n")
    child = subprocess.Popen(
        [*cloud.prefix, *NEXA, "provision", "--cluster", "alone.yaml", "-y"], cwd=cloud.root, env=cloud.environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: len(on(here)) == 2, "both instances exist", 120)
    finally:
        kill_tree(child)
    expires = json.loads((cloud.root / ".nexa/clusters/alone/site.json").read_text())["expires_unix"]
    assert time.time() < expires
    seen_off(here, expires)


def billed(cloud: Lab) -> dict[str, Any]:
    """What the ledger says when nothing is on any more."""
    told: dict[str, Any] = json.loads(cloud.nexa("cost", "alone", "--json").stdout)
    assert told["usd"] > 0 and told["usd_per_hour"] == 0 and told["unpriced"] == []
    assert all(row["stop_unix"] for row in told["nodes"])
    return told


def test_a_script_that_crashes_and_a_node_without_network_end_by_themselves(cloud: Lab, here: Running) -> None:
    """The run is given up; then nobody uses the cluster, and one of its nodes cannot be reached by anyone."""
    idle_minutes = 1
    provision(cloud, here, nodes=2, idle_minutes=idle_minutes)
    cloud.write("crash.py", "raise SystemExit('no such luck')")
    cloud.write("crash.yaml", json.dumps({"name": "crash", "script": "crash.py"}))
    cloud.nexa("run", "crash.yaml", "--cluster", "alone", code=1, timeout_s=200)
    ended = time.time()
    here.client.partition(on(here)["n1"]["id"])
    seen_off(here, ended + idle_minutes * 60)
    told = billed(cloud)
    (run,) = told["runs"]
    assert run["attempts"] == 2 and 0 < run["usd"] < told["usd"] and len(told["nodes"]) == 2
    assert told["phases"]["idle"]["seconds"] >= 2 * idle_minutes * 60 - 10


def test_a_cluster_whose_bootstrap_failed_ends_by_itself(cloud: Lab, here: Running) -> None:
    idle_minutes = 1
    cloud.write("alone.yaml", f"{CLUSTER}nodes: 1\nidle_minutes: {idle_minutes}\nscratch: /proc/scratch\n")
    said = cloud.nexa("provision", "--cluster", "alone.yaml", "-y", code=1, timeout_s=300).stderr
    assert "bootstrap failed: host n0, task 'Make the missing folders'" in said
    seen_off(here, time.time() + idle_minutes * 60)
    told = billed(cloud)
    assert told["runs"] == [] and told["phases"]["bootstrapping"]["usd"] > 0


def test_a_local_node_ends_at_its_time_with_all_that_runs_on_it(tmp_path: Path) -> None:
    cluster = LocalCluster.make(tmp_path, ("n0", "n1"))
    try:
        for node, max_s in (("n0", "6"), ("n1", "600")):
            assert cluster.host(node, "up", NEXA_LOCAL_MAX_S=max_s).returncode == 0
        began = time.monotonic()
        daemon = cluster.daemon_pid("n0")
        assert cluster.ssh("n0", "setsid sleep 600 >/dev/null 2>&1 </dev/null &").returncode == 0
        extend = '"$NEXA_DEADLINE_DIR/deadline" extend 1 && test -r "$NEXA_DEADLINE_DIR/acts_unix"'
        until(lambda: not Path(f"/proc/{daemon}").exists(), "n0 switched itself off", 15)
        assert time.monotonic() - began > 3
        assert cluster.ssh("n0", "true").returncode == 255
        other = cluster.daemon_pid("n1")
        assert cluster.ssh("n1", extend).returncode == 0
        until(lambda: not Path(f"/proc/{other}").exists(), "n1 was told another time", 15)
        until(lambda: [row["on"] for row in json.loads(status(cluster))] == [False, False], "nothing is left", 10)
    finally:
        cluster.sweep()


def status(cluster: LocalCluster) -> str:
    return subprocess.run(
        [sys.executable, "-I", str(REPO / "terraform/modules/local_node/host.py"), "status", str(cluster.root)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_a_local_run_is_saved_before_its_nodes_end(tmp_path: Path) -> None:
    """The controller lives here, and says why the run ended."""
    lab = Lab(tmp_path)
    lab.write("brief.yaml", "name: brief\nprovider: local\nnodes: 2\ngpus_per_node: 1\nmax_hours: 0.05\n")
    try:
        lab.nexa("provision", "--cluster", "brief.yaml", timeout_s=900)
        shutil.copytree(REPO / "configs/train", lab.root / "configs/train")
        args = ["--steps", "100000", "--save-every", "100000", "--step-seconds", "0.2"]
        lab.write("own.yaml", json.dumps({"name": "own", "script": "configs/train/own_script.py", "args": args}))
        child = lab.begin("run", "own.yaml")
        _, said = child.communicate(timeout=180)
        attempt = lab.manifest()["attempts"][-1]
        assert (attempt["kind"], len(lab.manifest()["attempts"])) == ("deadline", 1), said
        assert lab.manifest()["status"] == "stopped"
        assert list((lab.root / ".nexa/durable").glob("*/checkpoints/step_*/*")), said
    finally:
        lab.nexa("teardown", "--cluster", "brief", "-y")
