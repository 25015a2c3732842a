"""The mesh for real: WireGuard between machines of different networks, and training where nothing else gets through."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.plan import mesh
from nexa_dist.plan.mesh import INTERFACE, KEEPALIVE_S, PORT, Seat
from tests.cloud import image, net, traces
from tests.e2e import conftest
from tests.e2e.conftest import REPO
from tests.e2e.test_region_hosts import Lab, make_lab, until

WHY_NOT = image.missing_here()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]
NAMES = ("n0", "n1", "n2")
PLAY = """\
- hosts: all
  any_errors_fatal: true
  gather_facts: false
  roles: [wireguard]
"""
REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
many = torch.ones(1 << 20)
for _ in range(5):
    dist.all_reduce(many)
print("rank", dist.get_rank(), "sum", many[0].item(), os.environ["GLOO_SOCKET_IFNAME"], os.environ["MASTER_ADDR"])
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Vendors:
    """Three machines, each at another vendor; `n0` is machine 1. They meet only by their public addresses."""

    lab: Lab

    @property
    def inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self.lab.namespace}", "--")

    @property
    def addresses(self) -> dict[str, str]:
        return {name: f"203.0.113.{index}" for index, name in enumerate(NAMES, 1)}

    def play(self, *words: str, hidden: str = "", code: int = 0, **variables: Any) -> dict[str, dict[str, int]]:
        """The role on all machines; what Ansible counted, by host. `hidden`: a machine that the others cannot call."""
        hosts = [{"host": address, "gpus": 1} for address in self.addresses.values()]
        config = ClusterConfig(name="mesh", provider="static", cluster=hosts, mesh="wireguard")  # type: ignore[arg-type]
        made = mesh.wireguard(config, [Seat(name, address) for name, address in self.addresses.items()])
        for name, link in made["nexa_mesh_links"].items():
            for peer in link["peers"]:
                peer["endpoint"] = "" if peer["name"] == hidden else peer["endpoint"]
                peer["keepalive_s"] = KEEPALIVE_S if name == hidden else 0
        folder = self.lab.folder
        args = f"-F /dev/null -i {folder}/client -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/known_hosts"
        given = {"wireguard_links": made["nexa_mesh_links"], "wireguard_mtu": made["nexa_mesh_mtu"], **variables}
        group = {"ansible_ssh_common_args": args, "ansible_user": "ubuntu", **given}
        listed = {name: {"ansible_host": address} for name, address in self.addresses.items()}
        (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": listed, "vars": group}}))
        (folder / "play.yml").write_text(PLAY)
        env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        env |= {"ANSIBLE_CONFIG": f"{REPO}/ansible/ansible.cfg", "ANSIBLE_HOME": str(folder / "ansible")}
        # Another region has machines of the same addresses: a shared connection must not lead there.
        env |= {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp")}
        program = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "inventory.json")]
        done = subprocess.run(
            [*self.inside, *program, *words, str(folder / "play.yml")],
            env={**env, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stdout + done.stderr
        with open(folder / "said.txt", "a") as said:
            said.write(done.stdout + done.stderr)
        counted = re.findall(r"^(n\d) +: (.*)$", done.stdout, re.MULTILINE)
        return {name: {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", text)} for name, text in counted}

    def changed(self, *words: str, **more: Any) -> list[int]:
        return [row["changed"] for _, row in sorted(self.play(*words, **more).items())]

    def show(self, index: int, what: str) -> dict[str, str]:
        """`wg show` of one machine: the rest of a line by public key."""
        lines = self.lab.said(index, f"sudo wg show {INTERFACE} {what}").splitlines()
        return {key: rest for key, _, rest in (line.partition("\t") for line in lines)}

    def reaches(self, index: int, address: str) -> bool:
        return self.lab.ssh(index, f"timeout 20 bash -c 'read -r line </dev/tcp/{address}/22'").returncode == 0

    def left(self, index: int) -> str:
        """What of a mesh is on a machine; nothing where there is none."""
        places = ("/sys/class/net/", "/etc/wireguard/", "/run/", "/var/lib/", "/tmp/")
        names = " ".join(f"{place}nexa*" for place in places)
        return self.lab.ssh(index, f"sudo sh -c 'ls -d {names}; pgrep -a wireguard-go'").stdout

    def shut(self) -> None:
        """From here on the networks carry nothing between the machines but UDP packets to WireGuard's port."""
        lines = []
        for index in (1, 2, 3):
            bridge = net.short("br", f"vpc-{index}")
            lines += [
                f"rule add pref 10 iif {bridge} to 203.0.113.0/24 ipproto udp dport {PORT} lookup main",
                f"rule add pref 11 iif {bridge} to 203.0.113.0/24 prohibit",
            ]
        subprocess.run([*self.inside, "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendors]:
    lab = make_lab(tmp_path_factory.mktemp("vendors"))
    mark = traces.Mark(lab.folder / "region", "", os.fstat(lab.namespace).st_ino)
    try:
        lab.boot(1, 2, 3, apart=True)
        made = Vendors(lab)
        assert made.reaches(1, "203.0.113.2")
        made.shut()
        assert not made.reaches(1, "203.0.113.2"), "what is to be proven needs a wall that holds"
        yield made
    finally:
        lab.close(mark)
    os.close(lab.namespace)


@pytest.fixture
def joined(vendors: Vendors) -> None:
    """The mesh as the role makes it, whatever a test before has left."""
    vendors.play()


@pytest.mark.long("variant of the mesh: the role alone")
def test_the_role_converges_once_and_checks(vendors: Vendors) -> None:
    vendors.play(wireguard_state="absent")
    assert vendors.changed("--check", "--diff") == [1, 1, 1], "the configuration would be written"
    assert vendors.lab.ssh(1, f"test -e /sys/class/net/{INTERFACE} -o -e /etc/wireguard/{INTERFACE}.key").returncode
    assert min(vendors.changed()) > 0
    assert vendors.changed() == [0, 0, 0]
    assert vendors.changed("--check", "--diff") == [0, 0, 0]
    for address in ("10.213.0.102", "10.213.0.103"):
        assert vendors.reaches(1, address)
    seen = vendors.lab.said(
        2, f"ip -br addr show {INTERFACE}; cat /sys/class/net/{INTERFACE}/mtu; pgrep -c wireguard-go"
    )
    assert seen.split() == [INTERFACE, "UNKNOWN", "10.213.0.102/24", "1420", "1"]
    assert all(stamp != "0" for stamp in vendors.show(2, "latest-handshakes").values())
    kept = vendors.lab.said(1, "sudo sh -c \"stat -c '%a %U %n' /etc/wireguard/*\"")
    assert kept.splitlines() == [f"600 root /etc/wireguard/{INTERFACE}.{end}" for end in ("conf", "key")]


@pytest.mark.long("variant of the mesh: the role alone")
@pytest.mark.usefixtures("joined")
def test_a_private_key_stays_where_it_was_made(vendors: Vendors) -> None:
    vendors.play("-vvvv", wireguard_mtu=1400)  # another MTU: the interface is made anew, with the same key
    assert vendors.lab.said(1, f"cat /sys/class/net/{INTERFACE}/mtu") == "1400"
    private = [vendors.lab.said(index, f"sudo cat /etc/wireguard/{INTERFACE}.key") for index in (1, 2, 3)]
    for path, data in conftest.contents(vendors.lab.folder):
        if "region" not in path.relative_to(vendors.lab.folder).parts:
            assert not any(key.encode() in data for key in private), path
    assert vendors.lab.ssh(1, f"grep -r {private[0]} /home /tmp /var/tmp /run 2>/dev/null").stdout == ""
    assert vendors.changed() == [2, 2, 2]


@pytest.mark.long("variant of the mesh: the role alone")
@pytest.mark.usefixtures("joined")
def test_a_peer_made_anew_is_only_synced(vendors: Vendors) -> None:
    def interface() -> str:
        return vendors.lab.said(1, f"cat /sys/class/net/{INTERFACE}/ifindex; pgrep -o wireguard-go")

    before, keys = interface(), set(vendors.show(1, "peers"))
    vendors.lab.machines.power_off("i-3")
    until(lambda: vendors.lab.machines.states()["i-3"] == "off", "machine 3 is gone")
    vendors.lab.boot(3, apart=True)
    assert vendors.changed()[:2] == [2, 2]
    assert interface() == before, "the interface never went down"
    assert len(keys & set(vendors.show(1, "peers"))) == 1
    assert vendors.reaches(1, "10.213.0.103")


@pytest.mark.long("variant of the mesh: the role alone")
@pytest.mark.usefixtures("joined")
def test_after_a_reboot_it_is_brought_up_again(vendors: Vendors) -> None:
    first = vendors.lab.said(2, "cat /proc/1/stat | cut -d' ' -f22")
    vendors.lab.ssh(2, "sudo reboot")
    until(lambda: vendors.lab.ssh(2, "cat /proc/1/stat | cut -d' ' -f22").stdout.strip() not in ("", first), "back")
    assert vendors.changed() == [0, 1, 0]
    assert vendors.reaches(2, "10.213.0.101")


@pytest.mark.long("variant of the mesh: the role alone")
def test_one_that_cannot_be_called_calls(vendors: Vendors) -> None:
    vendors.play(wireguard_state="absent")
    vendors.play(hidden="n2")
    assert sorted(vendors.show(3, "persistent-keepalive").values()) == [str(KEEPALIVE_S)] * 2
    assert f"203.0.113.3:{PORT}" in vendors.show(1, "endpoints").values(), "learnt from its call"
    assert vendors.reaches(1, "10.213.0.103")


@pytest.mark.long("variant of the mesh: the role alone")
def test_a_firewall_is_named(vendors: Vendors) -> None:
    vendors.play(wireguard_state="absent")
    vendors.play(wireguard_port=PORT + 1, wireguard_prove_s=3, code=2)


@pytest.mark.long("variant of the mesh: the role alone")
def test_absent_takes_all_of_it_away(vendors: Vendors) -> None:
    vendors.play()
    assert min(vendors.changed(wireguard_state="absent")) > 0
    until(lambda: vendors.left(1) == "", "wireguard-go ends when its interface is gone")
    assert vendors.lab.said(1, "command -v wg") == "/usr/bin/wg", "packages that were there before stay"
    assert vendors.changed(wireguard_state="absent") == [0, 0, 0]
    assert vendors.changed("--check", wireguard_state="absent") == [0, 0, 0]


@pytest.fixture
def own(vendors: Vendors, tmp_path: Path) -> Iterator[conftest.Lab]:
    """A workspace of somebody who owns two of the machines."""
    lab = conftest.Lab(tmp_path, vendors.inside)
    lab.write("ssh_config", f"Host *\n    IdentityFile {vendors.lab.folder}/client\n    IdentitiesOnly yes\n")
    key = " ".join((vendors.lab.folder / "host_key.pub").read_text().split()[:2])
    hosts = [{"host": vendors.addresses[name], "user": "ubuntu", "gpus": 1, "host_key": key} for name in NAMES[:2]]
    keys = {"name": "own", "ssh_config": "ssh_config", "mesh": "wireguard", "shared": image.SHARED}
    lab.write("own.yaml", json.dumps({"cluster": hosts, **keys}))
    yield lab
    lab.nexa("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing")


@pytest.mark.long("three machines of three vendors; the nodes of test_region.py have a mesh too")
def test_two_hosts_sum_where_only_the_mesh_gets_through(vendors: Vendors, own: conftest.Lab) -> None:
    own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400)
    made = json.loads((own.root / ".nexa/clusters/own/cluster.json").read_text())
    assert [node["private_address"] for node in made["nodes"]] == ["10.213.0.101", "10.213.0.102"]
    assert "0 tasks changed" in own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400).stderr

    before = carried(vendors)
    own.nexa("run", own.script("reduce", REDUCE), "--cluster", "own.yaml", timeout_s=600)
    assert own.log(0, "n0").strip().endswith(f"rank 0 sum 32.0 {INTERFACE} 10.213.0.101")
    assert carried(vendors) - before > 5 * (4 << 20), "five times 4 MiB of float32, both ways"
    assert not vendors.reaches(1, "203.0.113.2")

    own.nexa("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing")
    until(lambda: vendors.left(1) == vendors.left(2) == "", "wireguard-go ends when its interface is gone")


def carried(vendors: Vendors) -> int:
    """Bytes that the first machine has sent and received over the mesh."""
    return sum(int(count) for line in vendors.show(1, "transfer").values() for count in line.split())
