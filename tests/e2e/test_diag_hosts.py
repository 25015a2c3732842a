"""nexa diag on machines of their own: every fault is found in less than a minute, with its node and its cause.

The wires are real (veth, slowed by tc), so is the full disk. GPUs, driver and clock are stand-ins at the outermost
edge: the program nvidia-smi, and an interpreter whose clock is ahead."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run import files, trust
from tests.cloud import image, traces
from tests.cloud.host import nvidia_smi
from tests.e2e import conftest
from tests.e2e.test_region_hosts import Lab, make_lab

WHY_NOT = image.missing_here()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]
AHEAD_S = 90
CLOCK = f"""#!/bin/sh
# The interpreter of this node, {AHEAD_S} s ahead where it runs the agent.
case "$*" in
*agent.pyz*) exec REAL -S -E -c 'import runpy, sys, time
real = time.time
time.time = lambda: real() + {AHEAD_S}
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@" ;;
*) exec REAL "$@" ;;
esac
"""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Three machines, and a workspace that knows them as nodes of an aws cluster; n0 is machine 1."""

    lab: Lab
    nexa: conftest.Lab

    def diag(self, code: int = 0) -> dict[str, Any]:
        # A minute, and another one for a machine that is busy with other tests.
        return dict(self.nexa.json("diag", "three", code=code, timeout_s=600))

    def failures(self) -> list[tuple[str, str]]:
        report = self.diag(code=1)
        return [(f["node"], f["cause"]) for f in report["findings"] if f["severity"] == "fail"]

    def put(self, index: int, path: str, text: str) -> None:
        self.lab.said(index, f"sudo sh -c 'cat >{path}.new && chmod 755 {path}.new && mv {path}.new {path}'", text)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    lab = make_lab(tmp_path_factory.mktemp("region"))
    mark = traces.Mark(lab.folder / "region", "", os.fstat(lab.namespace).st_ino)
    try:
        lab.boot(1, 2, 3)
        for index in (1, 2, 3):
            lab.said(index, "cloud-init status --wait")
        nexa = conftest.Lab(
            tmp_path_factory.mktemp("three"), ("nsenter", f"--net=/proc/{os.getpid()}/fd/{lab.namespace}", "--")
        )
        write_cluster(nexa.root, lab)
        yield Hosts(lab, nexa)
    finally:
        lab.close(mark)
    os.close(lab.namespace)


def write_cluster(root: Path, lab: Lab, efa: bool = False) -> None:
    """What a provision leaves in the workspace."""
    trust.claim(root)
    folder = root / ".nexa" / "clusters" / "three"
    lines = [f"Host n{i}\n  HostName 203.0.113.{i + 1}" for i in range(3)]
    files.write_text(
        folder / "ssh" / "ssh_config",
        "\n".join(lines)
        + f'\nHost *\n  User ubuntu\n  IdentityFile "{lab.folder}/client"\n  IdentitiesOnly yes\n'
        + f'  UserKnownHostsFile "{lab.folder}/known_hosts"\n  LogLevel ERROR\n',
    )
    nodes = tuple(
        Node(
            f"n{i}", f"203.0.113.{i + 1}", 4, private_address=f"10.77.0.{5 + i}", instance_id=f"i-{i + 1}",
            offer="g5.12xlarge us-east-1a spot",
        )
        for i in range(3)
    )  # fmt: skip
    env = json.loads((image.ensure() / "image.json").read_text())["env"]
    layout = Layout(f"{env}/bin/python", "/opt/nexa/scratch", "~/shared", "~/durable")
    made = Cluster("three", "aws", nodes, layout, str(folder / "ssh" / "ssh_config"))
    files.write_json(folder / "cluster.json", made.to_json())
    config = ClusterConfig.model_validate(
        {"name": "three", "provider": "aws", "nodes": 3, "gpus_per_node": 4, "max_hours": 1, "efa": efa,
         "offers": [{"type": "g5.12xlarge"}]}
    )  # fmt: skip
    files.write_json(folder / "config.json", config.model_dump(mode="json", exclude_unset=True))


@pytest.mark.long("three machines")
def test_machines_that_are_as_they_should_be(hosts: Hosts) -> None:
    report = hosts.diag()
    assert report["ok"], report["findings"]
    assert [len(report["facts"][name]["gpus"]) for name in ("n0", "n1", "n2")] == [4, 4, 4]
    assert report["facts"]["n0"]["peers"]["10.77.0.6"]["mtu"] == 9001
    matrix = report["test"]["matrix"]
    assert all(matrix[row][column] > 1 for row in range(3) for column in range(3) if row != column)


@pytest.mark.long("three machines; tests/unit/plan/health/test_diag_judge.py has each fault")
def test_four_faults_at_once_each_with_its_node_and_cause(hosts: Hosts) -> None:
    smi, python = "/usr/bin/nvidia-smi", _python(hosts)
    hosts.put(1, smi, "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    hosts.put(2, smi, nvidia_smi("A10G", 3))
    hosts.lab.said(2, "sudo mount -t tmpfs -o size=64m,mode=777 none /opt/nexa/scratch")
    hosts.lab.said(3, f"sudo cp -P {python} {python}.kept")
    hosts.put(3, python, CLOCK.replace("REAL", f"{python}.kept"))
    try:
        assert hosts.failures() == [("n0", "driver"), ("n1", "disk full"), ("n1", "gpu missing"), ("n2", "clock")]
    finally:
        for index in (1, 2):
            hosts.put(index, smi, nvidia_smi("A10G", 4))
        hosts.lab.said(2, "sudo umount /opt/nexa/scratch")
        hosts.lab.said(3, f"sudo mv {python}.kept {python}")
    assert hosts.diag()["ok"]


@pytest.mark.long("variant of a fault")
def test_a_wrong_number_of_efa_devices(hosts: Hosts) -> None:
    write_cluster(hosts.nexa.root, hosts.lab, efa=True)
    try:
        report = hosts.diag(code=1)
    finally:
        write_cluster(hosts.nexa.root, hosts.lab)
    found = [(f["node"], f["seen"], f["expected"]) for f in report["findings"] if f["cause"] == "efa"]
    assert found == [(name, "0 EFA devices", "1 by its type") for name in ("n0", "n1", "n2")]


@pytest.mark.long("minutes: measures until it is sure")
def test_a_slow_node_and_a_slow_link(hosts: Hosts) -> None:
    tc = "sudo tc qdisc add dev eth0"
    hosts.lab.said(2, f"{tc} root tbf rate 200mbit burst 256kb latency 100ms")
    try:
        assert hosts.failures() == [("n1", "slow node")]
    finally:
        hosts.lab.said(2, "sudo tc qdisc del dev eth0 root")
    hosts.lab.said(
        3,
        f"{tc} root handle 1: htb default 1 && sudo tc class add dev eth0 parent 1: classid 1:1 htb rate 40gbit && "
        "sudo tc class add dev eth0 parent 1: classid 1:2 htb rate 200mbit && "
        "sudo tc filter add dev eth0 protocol ip parent 1: prio 1 u32 match ip dst 10.77.0.5/32 flowid 1:2",
    )
    try:
        report = hosts.diag(code=1)
    finally:
        hosts.lab.said(3, "sudo tc qdisc del dev eth0 root")
    found = [(f["node"], f["cause"], f["seen"]) for f in report["findings"] if f["severity"] == "fail"]
    assert [row[:2] for row in found] == [("n2", "slow link")]
    assert found[0][2].startswith("n2 to n0: 0.")


@pytest.mark.long("variant of a fault")
def test_a_node_that_the_first_one_cannot_reach(hosts: Hosts) -> None:
    """What is sent to it is lost without a word, so that everybody waits."""
    hosts.lab.said(1, "sudo ip neigh replace 10.77.0.7 lladdr 02:00:00:00:00:99 nud permanent dev eth0")
    try:
        assert hosts.failures() == [("n2", "group test")]
    finally:
        hosts.lab.said(1, "sudo ip neigh del 10.77.0.7 dev eth0")


def _python(hosts: Hosts) -> str:
    return str(json.loads((hosts.nexa.root / ".nexa/clusters/three/cluster.json").read_text())["layout"]["python"])
