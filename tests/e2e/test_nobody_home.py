"""The controller is dead, and nobody has cloud credentials: every node still ends, with the run's last checkpoint safe.

Real nodes' own script, booted by cloud-init in the emulated region; local nodes keep the same clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.kill_loop import kill_tree
from tests.cloud.region import Running
from tests.e2e.conftest import NEXA, REPO, Lab, make_bucket, rented, until
from tests.e2e.local_cluster import LocalCluster

pytestmark = pytest.mark.e2e

CLUSTER = {
    "provider": "aws",
    "nodes": 2,
    "gpus_per_node": 1,
    "max_hours": 2,
    "boot_timeout_s": 90,
    "offers": [{"type": "g5.12xlarge", "zone": "us-east-1a"}],
}
BUCKET = "nexa-alone"
LATE_S = 60
PROVISION = ("provision", "--cluster", "c.yaml", "-y")


@pytest.fixture(scope="module")
def _bucket(here: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    make_bucket(rented(here, tmp_path_factory.mktemp("bucket")), BUCKET)


@pytest.fixture
def alone(here: Running, _bucket: None, tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes workspaces, each with a cluster of its own name. Several clusters wait for their ends at the same time."""
    made: list[Lab] = []

    def make(name: str, **keys: Any) -> Lab:
        (tmp_path / name).mkdir()
        made.append(rented(here, tmp_path / name))
        made[-1].write("c.yaml", json.dumps({"name": name, **CLUSTER, **keys}))
        return made[-1]

    yield make
    for child in [lab.begin("teardown", "--cluster", "c.yaml", "-y", "--keep-nothing") for lab in made]:
        said = child.communicate(timeout=400)
        assert child.returncode == 0, said


def on(here: Running, lab: Lab) -> dict[str, dict[str, Any]]:
    """Instances of the workspace's cluster that are billed, by node name."""
    rows = [row for row in here.client.state()["instances"] if row["tags"].get("nexa:cluster") == lab.root.name]
    return {row["tags"]["nexa:node"]: row for row in rows if row["state"] in ("pending", "running", "shutting-down")}


def left_alone(lab: Lab, *words: str, when: Callable[[], object]) -> None:
    """Starts a command, and kills it with everything that it started."""
    with open(lab.root / "log", "wb") as log:
        child = subprocess.Popen(
            [*lab.prefix, *NEXA, *words], cwd=lab.root, env=lab.environment(),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: when() or child.poll() is not None, f"{words[0]} is where it is to be killed")
        assert child.poll() is None, (lab.root / "log").read_text()[-3000:]
    finally:
        kill_tree(child)


def train_until_the_controller_is_killed(lab: Lab, here: Running) -> None:
    """A run that saves nothing by itself: what is in the bucket later was saved because the end was near."""
    lab.nexa(*PROVISION, timeout_s=500)
    lab.plain("own", "--steps", 100_000, "--save-every", 100_000, "--step-seconds", 0.3)
    left_alone(lab, "run", "own.yaml", when=lambda: "step 5/" in lab.log(0, "n0"))
    assert on(here, lab)


def ends_soon(lab: Lab, node: str, in_s: int) -> int:
    """Gives a node a deadline so near (less than deadline.sh's notice_s) that its ranks have to save at once."""
    due = int(time.time()) + in_s
    words = ("sudo", "-n", "/var/lib/nexa/deadline", "extend", str(due))
    assert lab.nexa("ssh", node, "--", *words).stdout.strip() == str(due)
    return due


def step_in_bucket(lab: Lab, cluster: str) -> int:
    """Step of the newest run's newest whole checkpoint, fetched and verified file by file."""
    made = json.loads((lab.root / f".nexa/clusters/{cluster}/cluster.json").read_text())
    env = {**lab.environment(), "NEXA_BUCKET": made["bucket"], "NEXA_PYTHON": sys.executable}
    argv = [*lab.prefix, "bash", str(REPO / "scripts/run_sync.sh"), "pull", lab.newest().name, "fetched"]
    done = subprocess.run(argv, cwd=lab.root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(Path(done.stdout.strip()).name.removeprefix("step_"))


def ended(here: Running, lab: Lab, by_unix: float) -> dict[str, float]:
    """Waits until nothing of the cluster is billed any more. When each node ended, by the region's own books."""
    until(
        lambda: not on(here, lab), "every instance was terminated", max(LATE_S, by_unix + 2 * LATE_S - time.time()), 1
    )
    rows = [row for row in here.client.bill()["instances"] if row["tags"].get("nexa:cluster") == lab.root.name]
    assert max(row["end_unix"] for row in rows) < by_unix + LATE_S
    return {row["tags"]["nexa:node"]: row["end_unix"] for row in rows}


@pytest.mark.long("the lease, beside the deadline that test_region.py has")
def test_a_run_is_saved_and_each_node_ends_at_its_deadline_or_when_its_lease_is_over(
    alone: Callable[..., Lab], here: Running
) -> None:
    lease_s = 180
    lab = alone("left", bucket=BUCKET, lease_minutes=lease_s / 60)
    train_until_the_controller_is_killed(lab, here)
    over = time.time() + lease_s
    due = ends_soon(lab, "n0", in_s=95)
    ends = ended(here, lab, over)
    assert due <= ends["n0"] < due + LATE_S < over - lease_s / 10, "by its deadline: the lease was renewed later"
    assert over - lease_s / 4 < ends["n1"]
    assert step_in_bucket(lab, "left") >= 5


def billed(lab: Lab) -> dict[str, Any]:
    """What the ledger says when nothing is on any more."""
    told: dict[str, Any] = json.loads(lab.nexa("cost", lab.root.name, "--json").stdout)
    assert told["usd"] > 0 and told["usd_per_hour"] == 0 and told["unpriced"] == []
    assert all(row["stop_unix"] for row in told["nodes"])
    return told


@pytest.mark.long("three clusters that wait for their ends")
def test_what_nobody_finished_or_uses_ends_by_itself(alone: Callable[..., Lab], here: Running) -> None:
    """The controller was killed while it made the nodes. A script crashed, then nobody uses its cluster, one node of
    which cannot be reached by anyone. And nodes whose bootstrap failed."""
    killed = alone("killed", max_hours=0.05)
    left_alone(killed, *PROVISION, when=lambda: len(on(here, killed)) == 2)
    expires = json.loads((killed.root / ".nexa/clusters/killed/site.json").read_text())["expires_unix"]
    assert time.time() < expires

    idle_s = 60
    crashed = alone("crashed", idle_minutes=1)
    crashed.nexa(*PROVISION, timeout_s=500)
    crashed.write("crash.py", "raise SystemExit('no such luck')")
    crashed.write("crash.yaml", json.dumps({"name": "crash", "script": "crash.py"}))
    crashed.nexa("run", "crash.yaml", code=1, timeout_s=400)
    crash_by = time.time() + idle_s
    here.client.partition(on(here, crashed)["n1"]["id"])

    failed = alone("failed", nodes=1, idle_minutes=1, scratch="/proc/scratch")
    said = failed.nexa(*PROVISION, code=1, timeout_s=500).stderr
    assert "bootstrap failed: host n0, task 'Make the missing folders'" in said
    failed_by = time.time() + idle_s

    assert len(ended(here, killed, expires)) == 2
    # Its agents touched their nodes' clocks when the second attempt began, and whenever ten seconds had passed.
    attempt = crashed.record()["attempts"][-1]
    stops = ended(here, crashed, crash_by)
    assert len(stops) == 2 and min(stops.values()) >= attempt["started_unix"] + idle_s - 2
    told = billed(crashed)
    (run,) = told["runs"]
    assert run["attempts"] == 2 and 0 < run["usd"] < told["usd"] and len(told["nodes"]) == 2
    idle = sum(row["stop_unix"] - attempt["ended_unix"] for row in told["nodes"])
    assert told["phases"]["idle"]["seconds"] >= idle - 2 > 0
    ended(here, failed, failed_by)
    told = billed(failed)
    assert told["runs"] == [] and told["phases"]["bootstrapping"]["usd"] > 0


def test_a_local_node_ends_at_its_time_with_all_that_runs_on_it(tmp_path: Path) -> None:
    cluster = LocalCluster.make(tmp_path, ("n0", "n1"))
    try:
        began = time.monotonic()
        for node, max_s in (("n1", "600"), ("n0", "30")):
            assert cluster.host(node, "up", NEXA_LOCAL_MAX_S=max_s).returncode == 0
        daemon = cluster.daemon_pid("n0")
        assert cluster.ssh("n0", "setsid sleep 600 >/dev/null 2>&1 </dev/null &").returncode == 0
        until(lambda: not Path(f"/proc/{daemon}").exists(), "n0 switched itself off")
        assert time.monotonic() - began > 25
        assert cluster.ssh("n0", "true").returncode == 255
        other = cluster.daemon_pid("n1")
        assert cluster.ssh("n1", 'test -r "$NEXA_DEADLINE_DIR/acts_unix"').returncode == 0
        cluster.ssh("n1", '"$NEXA_DEADLINE_DIR/deadline" extend 1')  # it may be off before it can answer
        until(lambda: not Path(f"/proc/{other}").exists(), "n1 was told another time")
        until(lambda: [row["on"] for row in json.loads(status(cluster))] == [False, False], "nothing is left")
    finally:
        cluster.sweep()


def status(cluster: LocalCluster) -> str:
    return subprocess.run(
        [sys.executable, "-I", str(REPO / "terraform/modules/local_node/host.py"), "status", str(cluster.root)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.long("the same on the local provider")
def test_a_local_run_is_saved_before_its_nodes_end(tmp_path: Path) -> None:
    """The controller lives here, and says why the run ended."""
    lab = Lab(tmp_path)
    lab.write("brief.yaml", "name: brief\nprovider: local\nnodes: 2\ngpus_per_node: 1\nmax_hours: 1\n")
    try:
        lab.nexa("provision", "--cluster", "brief.yaml", timeout_s=900)
        lab.plain("own", "--steps", 100_000, "--save-every", 100_000, "--step-seconds", 0.2)
        child = lab.begin("run", "own.yaml")
        until(lambda: "step 5/" in lab.log(0, "n0"), "step 5")
        extend = f'"$NEXA_DEADLINE_DIR/deadline" extend {int(time.time()) + 140}'
        for node in ("n0", "n1"):
            lab.nexa("ssh", node, "--", "sh", "-c", extend)
        _, said = child.communicate(timeout=400)
        attempt = lab.manifest()["attempts"][-1]
        assert (attempt["kind"], len(lab.manifest()["attempts"])) == ("deadline", 1), said
        assert lab.manifest()["status"] == "stopped"
        assert list((lab.root / ".nexa/durable").glob("*/checkpoints/step_*/*")), said
    finally:
        lab.nexa("teardown", "--cluster", "brief", "-y", "--keep-nothing")
