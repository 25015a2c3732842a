"""The user's own hosts from adoption to their return: real sshds with host keys of their own, homes that are not ours.

The training environment is in a folder that is there before (a link to the cached one), so it has to stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.load import load_cluster
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.static import known_hosts as static_known_hosts
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace
from tests.e2e.conftest import NO_TORCH, Lab, until
from tests.e2e.local_cluster import LocalCluster, is_open, make_key
from tests.e2e.test_bootstrap import BASE_PYTHON, env_folder

pytestmark = pytest.mark.e2e

WHO = """
from os import environ as e
print("rank", e["RANK"], "of", e["WORLD_SIZE"], "on", e["NEXA_NODE"])
"""


@dataclass(frozen=True)
class Own:
    """Two hosts that belong to somebody, and a workspace from which they are used."""

    hosts: LocalCluster
    lab: Lab

    @property
    def shared(self) -> Path:
        return self.hosts.folder / "caches"

    def home(self, node: str) -> Path:
        return self.hosts.root / node / "home"

    def fingerprint(self, node: str) -> str:
        key = self.hosts.folder / "ssh" / "host_keys" / f"{node}.pub"
        argv = ["ssh-keygen", "-lf", str(key)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]

    def file(self, name: str = "own", keys: bool = True, **changes: Any) -> str:
        """cluster.yaml of both hosts; with their fingerprints, or without."""
        listed = [
            {
                "host": str(node["address"]),
                "port": node["port"],
                "gpus": 1,
                "price_usd_per_hour": 3.6,
                **({"host_key": self.fingerprint(n)} if keys else {}),
            }
            for n, node in self.hosts.nodes.items()
        ]
        config = {"cluster": listed, "ssh_config": "their_ssh_config", "python": BASE_PYTHON}
        return self.lab.write(f"{name}.yaml", json.dumps({**config, "shared": str(self.shared), **changes}))

    def switch_off(self, node: str) -> None:
        address, port = str(self.hosts.nodes[node]["address"]), int(self.hosts.nodes[node]["port"])
        os.kill(self.hosts.daemon_pid(node), signal.SIGKILL)
        until(lambda: not is_open(address, port), "the host is off")

    def tree(self, *nodes: str) -> dict[str, str]:
        """All that is in these homes, as it is; without `nodes` in all of them, and in the folder that they share."""
        found = {}
        for root in [self.home(node) for node in nodes or self.hosts.nodes] + [self.shared] * (not nodes):
            for path in sorted(root.rglob("*")):
                kind = f"-> {os.readlink(path)}" if path.is_symlink() else "/"
                if path.is_file() and not path.is_symlink():
                    kind = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(self.hosts.folder))] = f"{path.lstat().st_mode:o} {kind}"
        return found

    def find(self, file: str) -> list[tuple[str, str, str]]:
        """Whose key each host shows, in this process."""
        ctx = Context(Workspace(self.lab.root), Runner(), lambda _: None)
        found = static_known_hosts.find(ctx, load_cluster(self.lab.root / file))
        return [(one.node, one.key.fingerprint, one.by) for one in found]


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest) -> Path:
    """The training environment of this machine's cache, which a provision of a local cluster has made."""
    if not (env_folder() / ".complete").exists():
        request.getfixturevalue("lab")
    return env_folder()


@pytest.fixture(scope="module")
def rig(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("own") / "it's theirs"
    folder.mkdir()
    made = LocalCluster.make(folder, ("n0", "n1"))
    own = Own(made, Lab(folder / "a workspace"))
    subprocess.run(["git", "init", "-q", str(own.lab.root)], check=True)
    theirs = made.ssh_config.read_text().split("Host *")[1]
    settings = [line for line in theirs.splitlines() if "StrictHost" not in line and "KnownHosts" not in line]
    # Nobody knows these hosts yet.
    own.lab.write("their_ssh_config", "\n".join(["Host *", "  UserKnownHostsFile their_known_hosts", *settings]) + "\n")
    (own.shared / "envs").mkdir(parents=True)
    (own.shared / "envs" / environment.name).symlink_to(environment)
    try:
        for node in made.nodes:
            assert made.host(node, "up").returncode == 0
        (own.home("n0") / "thesis.tex").write_text("theirs")
        yield own
    finally:
        made.sweep()


@pytest.fixture
def own(rig: Own) -> Iterator[Own]:
    """The hosts, and the proof that after the test they are as they were."""
    before = rig.tree()
    try:
        yield rig
        assert rig.tree() == before
    finally:  # one test that fails half way must not leave its cluster to the next
        for node in rig.hosts.nodes:
            rig.hosts.host(node, "up")
        for folder in (rig.lab.root / ".nexa" / "clusters").glob("*/own.json"):
            rig.lab.nexa("teardown", "--cluster", folder.parent.name, "-y", "--keep-nothing")


def test_a_life(own: Own) -> None:
    before = own.tree()
    clusters = own.lab.root / ".nexa" / "clusters"

    said = own.lab.nexa("provision", "--cluster", own.file(keys=False), "-y", code=2).stderr
    assert own.fingerprint("n0") in said and own.fingerprint("n1") in said and "nobody yet" in said
    assert "nobody vouches for the host keys of n0, n1" in said
    wrong = own.file()
    config = json.loads((own.lab.root / wrong).read_text())
    config["cluster"][1]["host_key"] = own.fingerprint("n0")
    own.lab.write(wrong, json.dumps(config))
    said = own.lab.nexa("provision", "--cluster", wrong, "-y", code=1).stderr
    assert f"it has ssh-ed25519 {own.fingerprint('n1')}; host_key is {own.fingerprint('n0')}" in said
    assert own.tree() == before and not (clusters / "own").exists()

    file = own.file()
    made = own.lab.json("provision", "--cluster", file)
    assert made["host_keys"]["n1"]["fingerprint"] == own.fingerprint("n1")
    assert made["host_keys"]["n1"]["known by"] == "the file"
    assert made["layout"]["python"].startswith(str(own.shared / "envs"))
    for node in ("n0", "n1"):  # nothing but the folders, as the login user
        assert {p.name for p in own.home(node).iterdir()} - {"thesis.tex"} == {".nexa"}
    assert "0 tasks changed" in own.lab.nexa("provision", "--cluster", file).stderr

    own.lab.nexa("run", own.lab.script("who", WHO, **NO_TORCH), "--cluster", file)
    assert "rank 1 of 2 on n1" in own.lab.log(1, "n1")
    rows = own.lab.json("status", "--cluster", "own")["clusters"][0]["nodes"]
    assert [row["state"] for row in rows] == ["up", "up"]
    assert own.lab.nexa("ssh", "--cluster", file, "n1", "--", "pwd").stdout.strip() == str(own.home("n1"))
    assert own.lab.json("cost", "own")["usd_per_hour"] == 7.2

    receipt = own.lab.json("teardown", "--cluster", file)
    assert receipt["kept"] == [] and not any(receipt["left"].values())
    assert receipt["cost_usd"] > 0 and (own.lab.root / receipt["receipt"]).exists()
    assert own.tree() == before
    assert not (clusters / "own").exists()
    assert "never made" in own.lab.nexa("teardown", "--cluster", file).stderr


@pytest.mark.long("variant: two clusters")
def test_two_clusters_on_the_same_hosts_and_what_stays(own: Own) -> None:
    first, second = own.file("first"), own.file("second")
    for file in (first, second):
        own.lab.nexa("provision", "--cluster", file)

    config = json.loads((own.lab.root / first).read_text())
    config["cluster"].pop()
    own.lab.write(first, json.dumps(config))
    said = own.lab.nexa("run", own.lab.script("who", WHO), "--cluster", first, code=2).stderr
    assert "was edited since cluster first was provisioned" in said
    said = own.lab.nexa("provision", "--cluster", first, code=2).stderr
    assert "n1" in said and "would be left behind" in said

    own.lab.nexa("teardown", "--cluster", "first")
    own.lab.nexa("run", own.lab.script("who", WHO, **NO_TORCH), "--cluster", second)
    checkpoint = own.home("n0") / ".nexa" / "durable" / "step_40" / "model.bin"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    kept = own.lab.json("teardown", "--cluster", second)["kept"]
    assert len(kept) == 1 and "1 files" in kept[0] and "checkpoints are never deleted" in kept[0]
    assert checkpoint.read_bytes() == b"weights"
    checkpoint.unlink()
    for folder in (".nexa/durable/step_40", ".nexa/durable", ".nexa"):
        (own.home("n0") / folder).rmdir()


@pytest.mark.long("variant: hosts that are away")
def test_a_host_that_is_down_or_another_is_named_and_nothing_is_forgotten(own: Own) -> None:
    own.lab.nexa("provision", "--cluster", own.file())
    unnamed = own.file(keys=False)
    key = own.hosts.folder / "ssh" / "host_keys" / "n1"
    old = {path: path.read_bytes() for path in (key, key.with_suffix(".pub"))}
    own.switch_off("n1")
    for path in old:
        path.unlink()
    make_key(key)
    assert own.hosts.host("n1", "up").returncode == 0
    before = own.tree("n1")
    try:
        for words in (("provision", "--cluster", unnamed), ("run", own.lab.script("who", WHO), "--cluster", "own")):
            assert "the host key is not the pinned one" in own.lab.nexa(*words, code=1).stderr
        assert "the host key is not the pinned one" in own.lab.nexa("teardown", "--cluster", "own", code=4).stderr
        # The file is where the user says that he knows the new one.
        assert own.find(own.file())[1] == ("n1", own.fingerprint("n1"), "the file")
        assert own.tree("n1") == before and not (own.home("n0") / ".nexa").exists()
    finally:
        own.switch_off("n1")
        for path, content in old.items():
            path.write_bytes(content)
    for verb, code in (("provision", 1), ("teardown", 4)):
        said = own.lab.nexa(verb, "--cluster", own.file(), code=code).stderr
        assert f"node n1 ({own.hosts.nodes['n1']['address']})" in said
    assert own.hosts.host("n1", "up").returncode == 0
    receipt = own.lab.json("teardown", "--cluster", "own")
    assert set(receipt["removed"]) == {"n1"}


def test_who_vouches_for_a_key(own: Own) -> None:
    known = own.lab.root / "their_known_hosts"
    theirs = (own.lab.root / "their_ssh_config").read_text()
    own.lab.write("their_ssh_config", re.sub("UserKnownHostsFile .*", f'UserKnownHostsFile "{known}"', theirs))
    file = own.file(keys=False)
    prints = [own.fingerprint("n0"), own.fingerprint("n1")]
    lines = (own.hosts.folder / "ssh" / "known_hosts").read_text()
    try:
        assert own.find(file) == [("n0", prints[0], ""), ("n1", prints[1], "")]
        assert not known.exists(), "the user's own file is not written to"
        known.write_text(lines)
        assert own.find(file) == [("n0", prints[0], "known_hosts"), ("n1", prints[1], "known_hosts")]
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
        assert own.find(file)[0][2] == "known_hosts", "hashed names too"

        first, second = lines.splitlines()
        swapped = [f"{a.split()[0]} {b.split(maxsplit=1)[1]}" for a, b in ((first, second), (second, first))]
        known.write_text("\n".join(swapped) + "\n")
        with pytest.raises(NexaError, match="not the one in your known_hosts") as caught:
            own.find(file)
        assert prints[0] in str(caught.value) and prints[1] in str(caught.value)

        whole = own.file()
        config = json.loads((own.lab.root / whole).read_text())
        config["cluster"][0]["host_key"] = " ".join(first.split()[1:3])
        own.lab.write(whole, json.dumps(config))
        assert own.find(whole) == [("n0", prints[0], "the file"), ("n1", prints[1], "the file")]
        config["cluster"].append({"host": "127.0.0.99", "port": 9, "gpus": 1})
        config["cluster"].append({"host": "localhost.invalid", "gpus": 1})
        own.lab.write(whole, json.dumps(config))
        with pytest.raises(NexaError) as caught:
            own.find(whole)
        assert "node n2 (127.0.0.99)" in str(caught.value) and "node n3 (localhost.invalid)" in str(caught.value)
    finally:
        own.lab.write("their_ssh_config", theirs)
        known.unlink(missing_ok=True)


def test_a_host_listed_under_two_names(own: Own) -> None:
    node = own.hosts.nodes["n0"]
    alias = f"Host alias\n  HostName {node['address']}\n  Port {node['port']}\n"
    theirs = (own.lab.root / "their_ssh_config").read_text()
    own.lab.write("their_ssh_config", alias + theirs)
    file = own.file()
    config = json.loads((own.lab.root / file).read_text())
    config["cluster"][1] = {"host": "alias", "gpus": 1, "host_key": own.fingerprint("n0")}
    own.lab.write(file, json.dumps(config))
    try:
        said = own.lab.nexa("provision", "--cluster", file, code=1).stderr
        assert f"n1 is the same host as n0: [{node['address']}]:{node['port']}" in said
    finally:
        own.lab.write("their_ssh_config", theirs)


def test_through_a_jump_host(own: Own, tmp_path: Path) -> None:
    """n1 is reached through n0, whose key only the user's own known_hosts has."""
    front, behind = own.hosts.nodes["n0"], own.hosts.nodes["n1"]
    kind_and_key = (own.hosts.folder / "ssh" / "known_hosts").read_text().splitlines()[0].split(maxsplit=1)[1]
    known = tmp_path / "jump_known"
    known.write_text(f"jumpkey {kind_and_key}\n")
    theirs = (own.lab.root / "their_ssh_config").read_text()
    jump = f"Host jump\n  HostName {front['address']}\n  Port {front['port']}\n  HostKeyAlias jumpkey\n"
    jump += f"  UserKnownHostsFile {known}\n"
    far = f"Host behind\n  HostName {behind['address']}\n  Port {behind['port']}\n  ProxyJump jump\n"
    plain = Own(own.hosts, Lab(tmp_path))
    plain.lab.write("their_ssh_config", jump + far + theirs)
    file = plain.file(cluster=[{"host": "behind", "gpus": 1}])

    ctx = Context(Workspace(tmp_path), Runner(), lambda _: None)
    config = load_cluster(tmp_path / file)
    found = static_known_hosts.find(ctx, config)
    assert [(one.key.fingerprint, one.by) for one in found] == [(own.fingerprint("n1"), "")]
    folder = ctx.workspace.cluster("own")
    static_known_hosts.pin(folder, config, found)
    argv = ["ssh", "-F", str(folder.ssh_config), "behind", "pwd"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    assert done.stdout.strip() == str(own.home("n1")), done.stderr
    known.write_text(f"jumpkey {found[0].key.kind} {found[0].key.blob}\n")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    assert done.returncode == 255 and "Host key verification failed" in done.stderr

    own.lab.write("jump_config", jump + far + theirs)  # in a workspace with a quote in its path
    file = own.file(cluster=[{"host": "behind", "gpus": 1}], ssh_config="jump_config")
    said = own.lab.nexa("provision", "--cluster", file, code=2).stderr
    assert "takes no path with spaces or quotes" in said


def test_hosts_that_are_not_ready_are_told_before_anything_is_changed(own: Own) -> None:
    before = own.tree()
    said = own.lab.nexa("provision", "--cluster", own.file(scratch="~/thesis.tex/fast"), code=1).stderr
    assert f"n0: {own.home('n0')}/thesis.tex is not a folder" in said and "nothing was changed" in said
    said = own.lab.nexa("provision", "--cluster", own.file(python="python9.9"), code=1).stderr
    assert "n0" in said and "n1" in said and "python9.9 is not there" in said and "apt-get install" in said
    talks = own.home("n1") / ".bashrc"
    talks.write_text("echo Welcome to gpu-7\n")
    try:
        said = own.lab.nexa("provision", "--cluster", own.file(), code=1).stderr
        assert "n1" in said and "its shell prints text of its own to every session: 'Welcome to gpu-7'" in said
    finally:
        talks.unlink()
    assert own.tree() == before
