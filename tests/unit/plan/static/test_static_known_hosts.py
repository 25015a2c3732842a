from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.load import load_cluster
from nexa_dist.errors import ConfigError
from nexa_dist.plan.inventory import inventory
from nexa_dist.plan.static import known_hosts as static_known_hosts
from nexa_dist.plan.static.cluster import judge, settled, static_cluster
from nexa_dist.plan.static.known_hosts import HostKey

BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIJ/AezfhpVr7vwAd2wQjOU/WVxD4sIo5qrO0iTwsfuzS"
PRINT = "SHA256:MR4kIWze7Fo9ZLAKYKwZj9zUY4j1a+w8t/iUnxTRwYo"
KEY = HostKey("[127.0.9.9]:2299", "ssh-ed25519", BLOB)
OTHER = "SHA256:" + "A" * 43
SHOWN = f"debug1: kex: host key algorithm: ssh-ed25519\ndebug1: Server host key: ssh-ed25519 {PRINT}\n"


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    assert static_known_hosts.fingerprint(BLOB) == PRINT
    assert HostKey.of_line(f"{KEY} a comment") == KEY


def test_a_key_fits_by_its_fingerprint_or_by_itself_alone() -> None:
    assert static_known_hosts.fits(PRINT, KEY) and static_known_hosts.fits(f"ssh-ed25519 {BLOB}", KEY)
    assert not static_known_hosts.fits(OTHER, KEY) and not static_known_hosts.fits(f"ssh-rsa {BLOB}", KEY)


def test_a_fingerprint_may_be_of_any_type_of_key() -> None:
    assert (
        static_known_hosts.kinds_to_ask(PRINT)[0] == "ssh-ed25519" and len(static_known_hosts.kinds_to_ask(PRINT)) == 5
    )
    assert static_known_hosts.kinds_to_ask(f"ssh-rsa {BLOB}") == ("ssh-rsa",)


@pytest.mark.parametrize(
    ("debug", "known"),
    [
        (SHOWN + "debug1: Host 'h' is known and matches the ED25519 host key.\nPermission denied", "known"),
        (SHOWN + "No ED25519 host key is known for h.\nHost key verification failed.", "unknown"),
        (SHOWN + "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "changed"),
        (SHOWN + "@ WARNING: REVOKED HOST KEY DETECTED! @\nHost key verification failed.", "changed"),
    ],
)
def test_what_ssh_says_of_a_key(debug: str, known: str) -> None:
    assert static_known_hosts.verdict(debug) == (known, "ssh-ed25519", PRINT)


def test_a_certificate_is_its_key_and_a_silent_host_has_none() -> None:
    said = f"debug1: Server host certificate: ssh-ed25519-cert-v01@openssh.com {PRINT}, serial 0 ID"
    assert static_known_hosts.verdict(said) == ("known", "ssh-ed25519", PRINT)
    # A jump host that is unknown: the target never said a word.
    assert static_known_hosts.verdict("No ED25519 host key is known for jump.\nHost key verification failed.") == (
        "",
        "",
        "",
    )


def test_one_host_under_two_names_is_found() -> None:
    assert static_known_hosts.same_place([("n0", KEY), ("n1", KEY)]) == ["n1 is the same host as n0: [127.0.9.9]:2299"]
    assert static_known_hosts.same_place([("n0", KEY), ("n1", HostKey("h", "ssh-ed25519", BLOB))]) == []


def test_the_pinned_keys_alone_count_and_the_users_settings_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "it's [mine]*"
    theirs.write_text(
        "Host front\n  HostName 192.0.2.7\n  ProxyJump jump\n  User ann\nHost *\n  StrictHostKeyChecking no\n"
        "  UserKnownHostsFile /theirs\n  Port 2222\n"
    )
    ours = tmp_path / "ssh_config"
    ours.write_text(
        static_known_hosts.ssh_config(["front", "front", "192.0.2.8"], f"{tmp_path}/known hosts", [str(theirs)])
    )

    def asked(host: str) -> dict[str, str]:
        told = subprocess.run(["ssh", "-F", str(ours), "-G", host], capture_output=True, text=True, check=True).stdout
        return dict(line.partition(" ")[::2] for line in told.splitlines())

    front = asked("front")
    assert front["userknownhostsfile"] == f"{tmp_path}/known hosts" and front["stricthostkeychecking"] == "true"
    assert (front["hostname"], front["user"], front["port"], front["proxyjump"]) == ("192.0.2.7", "ann", "2222", "jump")
    assert front["globalknownhostsfile"] == "none" and front["updatehostkeys"] == "false"
    jump = asked("jump")  # not ours to pin
    assert jump["userknownhostsfile"] == "/theirs" and jump["port"] == "2222"


def look(**more: object) -> dict[str, object]:
    base = {"faults": [], "lacks": [], "version": [3, 11, 2], "python": "/usr/bin/python3", "user": "u"}
    return {**base, "account": "boot 1 2", **more}


def test_all_that_is_wrong_is_said_of_each_host() -> None:
    looks = {
        "n0": look(),
        "n1": look(account="boot 1 3", version=[3, 9, 1], lacks=["rsync", "tar"], faults=["u cannot write to /data"]),
        "n2": look(),
    }
    assert judge(looks, install=False) == [
        "n1: u cannot write to /data",
        "n1: /usr/bin/python3 is 3.9, and 3.11 is needed: name another with python:",
        "n1: missing: rsync tar (hint: sudo apt-get install -y rsync tar)",
        "n2: the same account (u) on the same machine as n0",
        "python differs between hosts: n0 3.11, n1 3.9, n2 3.11; name one that all have with python:",
    ]
    assert judge({"n0": look(lacks=["rsync"])}, install=True) == []
    assert judge({"n0": look(lacks=["rsync"])}, install=False) != []


def config(**host: object) -> ClusterConfig:
    return ClusterConfig.model_validate({"name": "own", "cluster": [{"host": "h", "gpus": 1, **host}]})


def test_ansible_reaches_own_hosts_by_the_users_name_for_them(tmp_path: Path) -> None:
    told = config(port=2299, user="ann").model_copy(update={"rdzv_port": 29500})
    made = settled(static_cluster(told, tmp_path), told, {"n0": "192.0.2.7"}, "/c/ssh_config", "e0")
    assert made.layout.python == "~/.nexa/shared/envs/e0/bin/python" and made.env_hash == "e0"
    # The hosts themselves do not know what the user calls them.
    assert (made.nodes[0].peer_address, made.rdzv, made.nodes[0].address) == ("192.0.2.7", "192.0.2.7:29500", "h")
    plain = settled(static_cluster(told, tmp_path), told, {"n0": "h"}, "/c/ssh_config", "e0")
    assert plain.nodes[0].private_address == ""
    listed = inventory(made, {"n0": "/home/ann"}, {"x": True}, {"n0": {"nexa_python": "/p"}})["all"]
    assert listed["vars"]["x"] is True
    host = listed["hosts"]["n0"]
    assert (host["ansible_host"], host["ansible_port"], host["ansible_user"]) == ("h", 2299, "ann")
    assert host["nexa_python"] == "/p" and host["nexa_shared"] == "/home/ann/.nexa/shared"
    bare = inventory(static_cluster(config(), tmp_path), {"n0": "/h"}, {})["all"]["hosts"]["n0"]
    assert "ansible_port" not in bare and "ansible_user" not in bare  # ssh_config may say them


@pytest.mark.parametrize("given", [PRINT, f"ssh-ed25519 {BLOB}", f"ssh-ed25519 {BLOB} ann@desk"])
def test_a_host_key_in_the_file(given: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"cluster: [{{host: a, gpus: 1, host_key: {given}}}]\n")
    assert load_cluster(path).cluster[0].host_key == given.removesuffix(" ann@desk")


@pytest.mark.parametrize(
    "given",
    [
        "MD5:00:11",
        PRINT[:-1],
        "SHA256:" + "é" * 43,
        BLOB,
        "ssh-ed25519",
        f"ssh-rsa {BLOB}",
        f"ssh-ed25519 {BLOB[:20]}",
        "ssh-ed25519 !!!!",
        f"ssh-dss {BLOB}",
    ],
)
def test_half_a_host_key_is_refused(given: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f'cluster: [{{host: a, gpus: 1, host_key: "{given}"}}]\n')
    with pytest.raises(ConfigError, match="expected a fingerprint"):
        load_cluster(path)
