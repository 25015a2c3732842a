"""The local stack for real: Terraform makes and ends machines, ssh reaches them, nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.local_cluster import STACK, LocalCluster, clean_env, is_alive, is_open, make_key, marked_pids

TERRAFORM = shutil.which("terraform") or shutil.which("tofu")
NAP = f"1000.{os.getpid()}"
"""Seconds that no other process sleeps."""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not TERRAFORM or not shutil.which("sshd", path="/usr/sbin:/sbin:" + os.environ.get("PATH", "")),
        reason="needs terraform (or tofu) and sshd",
    ),
]


class Stack:
    """Terraform on the local stack, with its state and data in the cluster's folder."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.state = cluster.folder / "terraform.tfstate"
        variables = {
            "cluster": "e2e",
            "nodes": cluster.nodes,
            "root": str(cluster.root),
            "ssh_dir": str(cluster.folder / "ssh"),
        }
        self.tfvars = cluster.folder / "nodes.tfvars.json"
        self.tfvars.write_text(json.dumps(variables))

    def terraform(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        assert TERRAFORM
        done = subprocess.run(
            [TERRAFORM, f"-chdir={STACK}", *argv, "-no-color"],
            env=clean_env(TF_DATA_DIR=str(self.cluster.folder / "data")),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def on(self, verb: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        common = ["-input=false", f"-state={self.state}", f"-var-file={self.tfvars}"]
        return self.terraform(verb, *common, *options, check=check)

    def apply(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.on("apply", "-auto-approve", *options, check=check)

    def nodes(self) -> list[dict[str, Any]]:
        rows = json.loads(self.terraform("output", f"-state={self.state}", "-json", "nodes").stdout)
        assert isinstance(rows, list)
        return rows


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    made = Stack(LocalCluster.make(folder, ("n0", "n1")))
    try:
        made.terraform("init", "-input=false", "-backend=false")
        yield made
    finally:
        made.cluster.sweep()
        assert marked_pids(tmp_path) == {}


def test_life_cycle(stack: Stack) -> None:
    cluster = stack.cluster
    stack.apply()
    assert [(node["name"], node["gpus"], node["home"]) for node in stack.nodes()] == [
        ("n0", 1, f"{cluster.root}/n0/home"),
        ("n1", 2, f"{cluster.root}/n1/home"),
    ]
    for name in cluster.nodes:
        home = f"{cluster.root}/{name}/home"
        assert cluster.ssh(name, 'pwd; echo "$HOME"; echo ~').stdout.splitlines() == [home] * 3

    assert "No changes" in stack.on("plan", "-detailed-exitcode").stdout

    before = {name: cluster.daemon_pid(name) for name in cluster.nodes}
    stack.apply('-replace=module.node["n1"].terraform_data.node')
    assert cluster.daemon_pid("n0") == before["n0"]
    assert cluster.daemon_pid("n1") != before["n1"]
    assert not is_alive(before["n1"])
    assert cluster.ssh("n1", "true").returncode == 0

    refused = stack.on("plan", "-var=lease_s=-1", "-var=python=-c", check=False)  # by the module that takes them
    assert "lease_s must be a whole number" in refused.stderr and "python must be a program" in refused.stderr

    stack.on("destroy", "-auto-approve")
    assert marked_pids(cluster.root) == {}
    assert not any(is_open(str(node["address"]), int(node["port"])) for node in cluster.nodes.values())
    assert not cluster.root.exists()


@pytest.mark.long("variant of a local machine")
def test_files_travel_and_stay_in_the_home(stack: Stack) -> None:
    cluster = stack.cluster
    assert cluster.host("n0", "up").returncode == 0
    source = cluster.folder / "source"
    source.write_text("hello")
    ssh = f"ssh -F '{str(cluster.ssh_config).replace(chr(39), chr(39) * 2)}'"
    for argv in (["scp", "-q", "-F", str(cluster.ssh_config), str(source), "n0:by_scp"],
                 ["rsync", "-e", ssh, str(source), "n0:by_rsync"]):  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (cluster.root / "n0" / "home").iterdir()} == {"by_scp", "by_rsync"}


@pytest.mark.long("variant of a local machine")
def test_wrong_host_key_and_wrong_client_are_refused(stack: Stack) -> None:
    cluster = stack.cluster
    assert cluster.host("n0", "up").returncode == 0
    known_hosts = cluster.folder / "ssh" / "known_hosts"
    right = known_hosts.read_text()
    make_key(cluster.folder / "other")
    node = cluster.nodes["n0"]
    known_hosts.write_text(f"[{node['address']}]:{node['port']} {(cluster.folder / 'other.pub').read_text()}")
    assert "Host key verification failed" in cluster.ssh("n0", "true").stderr
    known_hosts.write_text(right)
    assert cluster.ssh("n0", "true").returncode == 0
    (cluster.folder / "other").replace(cluster.folder / "ssh" / "client")
    (cluster.folder / "ssh" / "client.pub").rename(cluster.folder / "ssh" / "moved.pub")
    assert "Permission denied" in cluster.ssh("n0", "true").stderr


def test_a_daemon_of_the_node_dies_with_it(stack: Stack) -> None:
    cluster = stack.cluster
    assert cluster.host("n0", "up").returncode == 0
    # Deaf to TERM, in a session of its own, parent gone: only the walk of the process tree finds it.
    script = f"setsid -f env -u NEXA_HOST sh -c 'trap \"\" TERM; sleep {NAP} & wait' >/dev/null 2>&1 </dev/null"
    assert cluster.ssh("n0", script).returncode == 0
    wait_for(sleepers)
    assert cluster.host("n0", "down").returncode == 0
    assert not sleepers()


def test_killed_daemon_leaves_nothing_after_down(stack: Stack) -> None:
    cluster = stack.cluster
    for name in cluster.nodes:
        assert cluster.host(name, "up").returncode == 0
    cluster.ssh("n0", f"setsid -f sleep {NAP} >/dev/null 2>&1 </dev/null")
    wait_for(sleepers)
    session = subprocess.Popen(["ssh", "-F", str(cluster.ssh_config), "-N", "n0"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(sshd_children(cluster, "n0")) > 0)
        os.kill(cluster.daemon_pid("n0"), signal.SIGKILL)
        node = cluster.nodes["n0"]
        wait_for(lambda: not is_open(str(node["address"]), int(node["port"])))
        assert sleepers(), "the sleep outlives its machine's parent: that is what down must find"
        assert cluster.host("n0", "down").returncode == 0
        assert not sleepers()
        assert session.wait(timeout=600) != 0
    finally:
        session.kill()
        session.wait()
    assert cluster.ssh("n1", "true").returncode == 0
    assert cluster.host("n0", "down").returncode == 0  # twice is fine


@pytest.mark.long("variant of a local machine")
def test_machine_goes_off_when_its_sshd_dies(stack: Stack) -> None:
    cluster = stack.cluster
    assert cluster.host("n0", "up").returncode == 0
    cluster.ssh("n0", f"setsid -f sleep {NAP} >/dev/null 2>&1 </dev/null")
    wait_for(sleepers)
    daemon = cluster.daemon_pid("n0")
    (sshd,) = (pid for pid, command in marked_pids(cluster.root).items() if "[listener]" in command)
    os.kill(sshd, signal.SIGKILL)
    wait_for(lambda: not is_alive(daemon))
    assert not sleepers()
    assert cluster.host("n0", "up").returncode == 0  # and it can be switched on again


def test_lost_state_is_swept(stack: Stack) -> None:
    stack.apply()
    stack.state.unlink()
    rows = json.loads(stack.cluster.sweep().stdout)
    assert [(row["node"], row["port"]) for row in rows] == [
        (name, node["port"]) for name, node in stack.cluster.nodes.items()
    ]
    assert all(len(row["pids"]) >= 2 for row in rows)
    assert marked_pids(stack.cluster.root) == {}
    assert json.loads(stack.cluster.sweep().stdout) == []


@pytest.mark.long("variant of a local machine")
def test_failed_start_leaves_nothing_and_names_the_cause(stack: Stack) -> None:
    cluster = stack.cluster
    (cluster.folder / "ssh" / "host_keys" / "n1").write_text("not a key\n")
    done = stack.apply(check=False)
    assert done.returncode == 1
    assert "n1 did not start" in done.stdout + done.stderr
    assert not any("n1" in command for command in marked_pids(cluster.root).values())
    stack.on("destroy", "-auto-approve")


def sleepers() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and is_alive(int(entry.name)):
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argv[:2] == [b"sleep", NAP.encode()]:
                found.append(int(entry.name))
    return found


def sshd_children(cluster: LocalCluster, node: str) -> list[int]:
    log = str(cluster.root / node / "sshd.log")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
            if b"sshd" in title and b"[listener]" not in title and os.readlink(entry / "fd" / "2") == log:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition: Any, timeout_s: float = 300.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.05)
