"""The machines of the emulated region: they boot by cloud-init, answer SSH, train, end, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from tests.cloud import image, net, traces
from tests.cloud.host import Machines
from tests.cloud.region import region
from tests.cloud.types import HostSpec

WHY_NOT = image.missing_here()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
    pytest.mark.long("the emulated machines themselves; a fault of theirs fails the tests of aws too"),
]
METADATA = "http://169.254.169.254"
NOWHERE = "192.0.2.1"  # reserved for documentation: nobody's address
ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
sums = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(sums)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {sums.item():g}")
"""
ASK = f"""
import sys, urllib.error, urllib.request
def ask(path, method="GET", **headers):
    request = urllib.request.Request("{METADATA}" + path, method=method, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=30).read().decode()
    except urllib.error.HTTPError as error:
        return str(error.code)
token = ask("/latest/api/token", "PUT", **{{"X-aws-ec2-metadata-token-ttl-seconds": "60"}})
for path in sys.argv[1:]:
    print(ask(path), ask(path, **{{"X-aws-ec2-metadata-token": token}}), sep="|")
"""


def until(holds: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Lab:
    """Machines in a region's namespace without an API, and how to reach them from it."""

    folder: Path
    machines: Machines
    namespace: int
    ended: dict[str, str]
    """Reasons of on_off by instance id."""

    def boot(self, *indices: int, apart: bool = False) -> None:
        """`apart`: each in a network of its own, so that they meet only by their public addresses."""
        key, public = (self.folder / "host_key").read_text(), (self.folder / "host_key.pub").read_text()
        user_data = {
            "bootcmd": ["echo instance $INSTANCE_ID boots"],
            "ssh_deletekeys": True,
            "ssh_keys": {"ed25519_private": key, "ed25519_public": public},
            "users": ["default"],
            "write_files": [{"path": "/etc/nexa-test", "content": "from user_data\n"}],
            "runcmd": [["install", "-d", "-o", "ubuntu", "/opt/nexa/scratch"]],
        }
        for index in indices:
            spec = HostSpec(
                instance_id=f"i-{index}",
                region="us-east-1",
                zone="us-east-1a",
                vpc_id=f"vpc-{index if apart else 1}",
                type="g5.12xlarge",
                private_ip=f"10.77.0.{4 + index}",
                public_ip=f"203.0.113.{index}",
                subnet_cidr="10.77.0.0/20",
                user_data=f"#cloud-config\n{json.dumps(user_data)}".encode(),
                public_key=(self.folder / "client.pub").read_text().strip(),
                spot=True,
                tags={"nexa:node": f"n{index - 1}"},
            )
            self.machines.boot(spec)
        for index in indices:
            self.wait_up(index)

    def wait_up(self, index: int) -> None:
        console = self.machines.console(f"i-{index}")
        what = f"machine {index} is up"
        try:
            until(lambda: self.machines.states()[f"i-{index}"] == "up", what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{console.read_text() if console.exists() else 'no console'}") from error

    def close(self, mark: traces.Mark) -> None:
        """Ends the machines. Connections of programs that were killed end when they notice, or after their minute."""
        self.machines.close()
        until(lambda: traces.processes(mark) == [], "nothing of the region is left", 120)

    def ssh_argv(self, index: int, command: str) -> list[str]:
        enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.namespace}", "--"]
        options = [
            "-F",
            "/dev/null",
            "-i",
            str(self.folder / "client"),
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
        ]
        options += ["-o", f"UserKnownHostsFile={self.folder}/known_hosts", "-o", "StrictHostKeyChecking=yes"]
        return [*enter, "ssh", *options, "-o", "ConnectTimeout=10", f"ubuntu@203.0.113.{index}", command]

    def ssh(self, index: int, command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        argv = self.ssh_argv(index, command)
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=6000)

    def said(self, index: int, command: str, text: str = "") -> str:
        done = self.ssh(index, command, text)
        assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


def make_lab(folder: Path) -> Lab:
    """In a thread of its own: it moves into a new network namespace, and this process stays where it is."""
    for name in ("client", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"203.0.113.{index} {public}" for index in range(1, 10)))
    layer = image.ensure()
    ended: dict[str, str] = {}
    made: list[Lab] = []

    def move_in() -> None:
        namespace = net.open_region()
        machines = Machines(folder / "region", layer)
        machines.on_off = ended.__setitem__
        made.append(Lab(folder, machines, namespace, ended))

    thread = threading.Thread(target=move_in)
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = make_lab(tmp_path_factory.mktemp("region"))
    mark = traces.Mark(made.folder / "region", "", os.fstat(made.namespace).st_ino)
    try:
        made.boot(1, 2)
        assert len(traces.processes(mark)) > 4, "the marks that prove an empty region must find a full one"
        yield made
    finally:
        made.close(mark)
    assert [line for line in traces.left(mark) if not line.startswith("folder")] == []
    assert list((made.folder / "region" / "hosts").iterdir()) == []
    os.close(made.namespace)


def test_a_machine_is_what_its_user_data_says(lab: Lab) -> None:
    assert "status: done" in lab.said(1, "cloud-init status --wait")
    said = lab.said(1, "id -un; hostname; cat /etc/nexa-test; stat -c %U /opt/nexa/scratch; sudo -n id -u")
    assert said.split("\n") == ["ubuntu", "ip-10-77-0-5", "from user_data", "ubuntu", "0"]
    assert lab.said(1, "getent hosts $(hostname)").startswith("10.77.0.5 ")
    assert "instance i-1 boots" in lab.machines.console("i-1").read_text()


def test_this_machine_is_not_seen_or_changed(lab: Lab) -> None:
    assert lab.said(1, "sudo ls /home /root /usr/local /tmp /var/tmp").split() == [
        *("/home:", "ubuntu", "/root:", "/tmp:", "/usr/local:", "/var/tmp:")
    ]
    name = "nexa-was-here"
    lab.said(1, f"sudo touch /usr/bin/{name} /etc/{name} /var/lib/{name} && ls /usr/bin/{name}")
    assert not any(Path(folder, name).exists() for folder in ("/usr/bin", "/etc", "/var/lib"))
    assert lab.ssh(2, f"ls /usr/bin/{name}").returncode != 0
    assert lab.ssh(1, "sudo sysctl -w kernel.panic=7 || sudo sh -c 'echo 7 >/proc/sys/kernel/panic'").returncode != 0
    assert lab.ssh(1, "sudo date -s 2001-01-01").returncode != 0


def test_machines_reach_each_other_and_nothing_outside(lab: Lab) -> None:
    def connect(address: str, port: int) -> subprocess.CompletedProcess[str]:
        return lab.ssh(1, f"timeout 20 bash -c 'echo >/dev/tcp/{address}/{port}'")

    assert connect("10.77.0.6", 22).returncode == 0
    assert connect("203.0.113.2", 22).returncode == 0
    outside = connect(NOWHERE, 80)
    assert outside.returncode != 0 and "unreachable" in outside.stderr, outside
    routes = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{lab.namespace}", "--", "ip", "-json", "route"]
    found = json.loads(subprocess.run(routes, capture_output=True, text=True, check=True).stdout)
    assert found and all(route["dst"] != "default" for route in found)
    assert lab.said(1, "cat /etc/resolv.conf; ip -6 route") == ""


def test_metadata_needs_a_token(lab: Lab) -> None:
    paths = {
        "/latest/meta-data/instance-id": "i-1",
        "/latest/meta-data/local-ipv4": "10.77.0.5",
        "/latest/meta-data/placement/availability-zone": "us-east-1a",
        "/latest/meta-data/tags/instance/nexa:node": "n0",
        "/latest/meta-data/spot/instance-action": "404",
        "/latest/meta-data/public-keys/": "0=key",
    }
    answers = lab.said(1, f"python3 - {' '.join(paths)}", ASK).split("\n")
    assert answers == [f"401|{value}" for value in paths.values()]
    action = "/latest/meta-data/spot/instance-action"
    lab.machines.notice("i-1", 1_700_000_000.0)
    told = lab.said(1, f"python3 - {action}", ASK).partition("|")[2]
    assert json.loads(told) == {"action": "terminate", "time": "2023-11-14T22:13:20Z"}
    lab.machines.notice("i-1", None)
    assert lab.said(1, f"python3 - {action}", ASK).endswith("|404")


def test_a_partition_cuts_and_heals(lab: Lab) -> None:
    lab.machines.partition("i-2", cut=True)
    until(lambda: lab.ssh(2, "true").returncode == 255, "no ssh while cut")
    assert lab.ssh(1, "timeout 1 bash -c 'echo >/dev/tcp/10.77.0.6/22'").returncode != 0
    assert lab.machines.states()["i-2"] == "up"
    lab.machines.partition("i-2", cut=False)
    until(lambda: lab.ssh(2, "true").returncode == 0, "ssh after healing")


def test_machines_train_together(lab: Lab) -> None:
    env = json.loads((image.ensure() / "image.json").read_text())["env"]
    runs = []
    for index in (1, 2):
        lab.said(index, "cat >all_reduce.py", ALL_REDUCE)
        command = (
            f"GLOO_SOCKET_IFNAME=eth0 {env}/bin/torchrun --nnodes 2 --nproc-per-node 1 --node-rank {index - 1}"
            " --master-addr 10.77.0.5 --master-port 29500 all_reduce.py"
        )
        argv = lab.ssh_argv(index, command)
        runs.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for rank, run in enumerate(runs):
        out, err = run.communicate(timeout=600)
        assert run.returncode == 0, err
        assert f"rank {rank} of 2: 3" in out


def test_power_is_the_machines_own(lab: Lab) -> None:
    lab.boot(3)
    assert "in 300 seconds" in lab.said(3, "sudo shutdown -P +5 || true; sudo shutdown -c; touch kept")
    first = lab.said(3, "cat /proc/1/stat | cut -d' ' -f22")
    assert lab.ssh(3, "poweroff").returncode == 1, "only root may"
    lab.ssh(3, "sudo reboot")

    def booted_again() -> bool:
        done = lab.ssh(3, "cat /proc/1/stat | cut -d' ' -f22; ls kept")
        return done.returncode == 0 and done.stdout.split() not in ([first, "kept"], [])

    until(booted_again, "the machine is back, with its disk")
    assert lab.ended == {}
    lab.ssh(3, "sudo systemctl poweroff")
    until(lambda: lab.ended == {"i-3": "powered off"}, "on_off is called")
    assert lab.machines.states()["i-3"] == "off"
    assert not (lab.folder / "region" / "hosts" / "i-3").exists()
    del lab.ended["i-3"]


def test_orders_from_outside(lab: Lab) -> None:
    lab.boot(4)
    lab.machines.power_off("i-4")
    lab.machines.power_off("i-unknown")
    until(lambda: lab.machines.states()["i-4"] == "off", "it is off")
    assert "i-4" not in lab.ended, "nobody is told what he ordered"
    assert lab.ssh(4, "true").returncode == 255


def test_a_killed_region_takes_its_machines_along() -> None:
    name = f"kill-{os.getpid()}"

    def ask(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "tests.cloud.command", verb, "--name", name, *words]
        return subprocess.run(argv, cwd=image.REPO, capture_output=True, text=True, timeout=600)

    with region(name) as here:
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
        ec2 = session.client("ec2", endpoint_url=f"http://127.0.0.1:{here.port}")
        vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.16.0/20")["Subnet"]["SubnetId"]
        ami = ec2.describe_images()["Images"][0]["ImageId"]
        ec2.run_instances(ImageId=ami, MinCount=1, MaxCount=1, InstanceType="g5.12xlarge", SubnetId=subnet)
        here.client.wait(lambda state: [i for i in state["instances"] if i["host"] == "up"], 90)
        machine = json.loads(ask("status", "--json").stdout)[0]["instances"][0]
        assert machine["processes"] >= 3 and 0 < machine["memory_mb"] < 300
        os.kill(here.pid, signal.SIGKILL)
        until(lambda: not traces.is_alive(machine["pid"]), "the machine is gone")
        again = ask("exec", "true")
        assert again.returncode == 1 and "is not up" in again.stderr
    assert not here.folder.exists()
