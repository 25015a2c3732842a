"""Tailscale by contract: a stub on the machines that writes down every flag, and a tailnet's API on 127.0.0.1."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from nexa_dist.ops.cluster.mesh import JOINED_BY_US, KEY_FILE
from tests.cloud import image, net, traces
from tests.e2e import conftest
from tests.e2e.conftest import REPO
from tests.e2e.test_region_hosts import Lab, make_lab, until
from tests.unit.tailnet import SECRET, TOKEN, Api, serve

WHY_NOT = image.missing_here()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]
STUB = Path(__file__).with_name("tailscale_stub.sh")
CANARIES = (SECRET, TOKEN, "canary0KEYcanary", "canary1KEYcanary", "canary2KEYcanary", "canary3KEYcanary")


@dataclass
class Watch:
    """Looks for the canaries, 50 times a second in all command lines and 4 times a second in the files of a folder."""

    root: Path
    hits: list[str] = field(default_factory=list)
    looks: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*"):
                self.look(path / "cmdline")
            for folder, _, names in os.walk(self.root) if self.looks % 12 == 0 else ():
                for name in names:
                    self.look(Path(folder, name))

    def look(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError:  # it ended, or is a socket
            return
        self.hits += [f"{path}: {word}" for word in CANARIES if word.encode() in data]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = make_lab(tmp_path_factory.mktemp("tailnet"))
    mark = traces.Mark(made.folder / "region", "", os.fstat(made.namespace).st_ino)
    version = yaml.safe_load((REPO / "configs" / "pins.yaml").read_text())["nexa_pins"]["tailscale"]["version"]
    try:
        made.boot(1, 2)
        for index in (1, 2):
            made.said(index, "sudo mkdir -m 1777 /var/lib/stub; sudo tee /usr/bin/tailscale", STUB.read_text())
            made.said(index, f"sudo chmod 755 /usr/bin/tailscale; cd /var/lib/stub; echo {version} >version")
            made.said(index, f"echo 100.64.0.{index} >/var/lib/stub/ip")
        yield made
    finally:
        made.close(mark)
    os.close(made.namespace)


@pytest.fixture
def api(lab: Lab) -> Iterator[Api]:
    with net.inside(lab.namespace):
        door = net.listen("127.0.0.1", 8080)
    with serve(door) as made:
        yield made


@pytest.fixture
def own(lab: Lab, api: Api, tmp_path: Path) -> Iterator[conftest.Lab]:
    """A workspace of somebody who owns the two machines, with an OAuth client in the environment."""
    inside = ("nsenter", f"--net=/proc/{os.getpid()}/fd/{lab.namespace}", "--")
    made = conftest.Lab(tmp_path, inside, api.environ)
    made.write("ssh_config", f"Host *\n    IdentityFile {lab.folder}/client\n    IdentitiesOnly yes\n")
    key = " ".join((lab.folder / "host_key.pub").read_text().split()[:2])
    hosts = [{"host": f"203.0.113.{index}", "user": "ubuntu", "gpus": 1, "host_key": key} for index in (1, 2)]
    keys = {"name": "own", "ssh_config": "ssh_config", "mesh": "tailscale", "shared": image.SHARED}
    made.write("own.yaml", json.dumps({"cluster": hosts, **keys}))
    watch = Watch(tmp_path)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield made
    finally:
        made.nexa("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing")
        watch.over.set()
        thread.join()
    assert watch.looks > 50 and watch.hits == []
    probe = tmp_path / "probe"
    probe.write_text(SECRET)
    watch.look(probe)
    assert watch.hits == [f"{probe}: {SECRET}"], "it would have been seen"


def noted(lab: Lab, index: int, name: str) -> list[str]:
    return lab.said(index, f"cat /var/lib/stub/{name} 2>/dev/null || true").splitlines()


def hostname(lab: Lab, index: int) -> str:
    ups = [line for line in noted(lab, index, "calls") if " up " in line]
    return next(word.partition("=")[2] for word in ups[-1].split() if word.startswith("--hostname="))


@pytest.mark.long("three provisions; tests/unit/ops/cluster/test_mesh_joining.py has the keys")
def test_a_refused_key_then_join_again_and_leave(lab: Lab, api: Api, own: conftest.Lab) -> None:
    lab.said(2, "touch /var/lib/stub/refuses")
    failed = own.nexa("provision", "--cluster", "own.yaml", "-y", code=1, timeout_s=400).stderr
    assert "host n1, task 'Join': " in failed and "invalid key" in failed
    for index in (1, 2):
        assert lab.ssh(index, f"sudo ls {KEY_FILE}").returncode != 0
    lab.said(2, "cd /var/lib/stub; sudo rm refuses calls modes")
    own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400)
    assert len(api.keys) == 3 and noted(lab, 2, "keys")[-1] == api.keys[-1][0], "another key for the one that is not in"
    for index in (1, 2):
        name = hostname(lab, index)
        assert name.startswith("nexa-own-") and name.endswith(f"-n{index - 1}")
        flags = (
            f"--auth-key=file:{KEY_FILE} --hostname={name} --advertise-tags=tag:nexa --accept-dns=false --timeout=60s"
        )
        assert [line for line in noted(lab, index, "calls") if " up " in line] == [f"root up {flags}"]
        assert noted(lab, index, "modes") == ["600 root"]
        assert lab.ssh(index, f"sudo ls {KEY_FILE}").returncode != 0
    assert sorted(noted(lab, 1, "keys") + noted(lab, 2, "keys")) == sorted(key for key, _ in api.keys)
    made = json.loads((own.root / ".nexa/clusters/own/cluster.json").read_text())
    assert [node["private_address"] for node in made["nodes"]] == ["100.64.0.1", "100.64.0.2"]

    again = own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400).stderr
    assert "0 tasks changed" in again and len(api.keys) == 3, "who is in gets no other key"

    receipt = own.json("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing")
    assert receipt["mesh"] == {"logged_out": ["n0", "n1"], "deleted": [], "left_to_expire": []}
    for index in (1, 2):
        assert "root logout" in noted(lab, index, "calls")
        assert lab.ssh(index, f"ls {JOINED_BY_US} {KEY_FILE}").stdout == ""


@pytest.mark.long("variant: a host that is cut off")
def test_a_host_that_cannot_be_reached_is_deleted_by_its_name(lab: Lab, api: Api, own: conftest.Lab) -> None:
    own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400)
    api.devices |= {
        "1": {"hostname": hostname(lab, 2), "tags": ["tag:nexa"]},
        "2": {"hostname": hostname(lab, 2), "tags": ["tag:theirs"]},
        "3": {"hostname": "somebody", "tags": ["tag:nexa"]},
    }
    lab.machines.partition("i-2", cut=True)
    until(lambda: lab.ssh(2, "true").returncode == 255, "it cannot be reached")
    own.nexa("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing", code=4, timeout_s=600)
    assert set(api.devices) == {"2", "3"}
    lab.machines.partition("i-2", cut=False)
    until(lambda: lab.ssh(2, "true").returncode == 0, "it can be reached again")


@pytest.mark.long("variant: a tailnet that was there")
def test_a_tailnet_of_the_users_own_is_left_alone(lab: Lab, api: Api, own: conftest.Lab) -> None:
    for index in (1, 2):
        lab.said(index, "sudo tailscale link; : >/var/lib/stub/calls")
    own.nexa("provision", "--cluster", "own.yaml", "-y", timeout_s=400)
    receipt = own.json("teardown", "--cluster", "own.yaml", "-y", "--keep-nothing")
    assert receipt["mesh"] == {"logged_out": [], "deleted": [], "left_to_expire": []}
    for index in (1, 2):
        assert {line.split()[1] for line in noted(lab, index, "calls")} == {"version", "status", "ip"}
    assert not api.keys
    for index in (1, 2):
        lab.said(index, "sudo tailscale logout")
