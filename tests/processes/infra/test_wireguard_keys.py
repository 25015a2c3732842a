"""What one host says is its key reaches nobody's wg-quick file unless it is one. Both hosts are this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REPO

GOOD = "kB0Zs6fvB4e3dDhaVLOyEGpXB1WRSMwz5gPhmeDCQ0E="
PLAY = "- {hosts: all, any_errors_fatal: true, gather_facts: false, roles: [wireguard]}\n"
PROGRAMS = {
    "wg": 'if [ "$1" = genkey ]; then printf "%s" "$LIE"; else cat; fi',
    "wg-quick": "exit 1",
    "unshare": "exit 0",
    "sudo": 'while [ "${1#-}" != "$1" ]; do [ "$1" != -u ] || shift; shift; done; exec "$@"',
}


def play(tmp_path: Path, lie: str) -> subprocess.CompletedProcess[str]:
    """The role on n0, which has a key, and on n1, which makes one; `wg pubkey` says what lies there for the private."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    hosts, links = {}, {}
    for name, address, peer, other in (("n0", "10.9.9.1", "n1", "10.9.9.2"), ("n1", "10.9.9.2", "n0", "10.9.9.1")):
        (tmp_path / name).mkdir()
        hosts[name] = {"wireguard_folder": str(tmp_path / name)}
        peers = [{"name": peer, "address": other, "endpoint": "", "keepalive_s": 0}]
        links[name] = {"address": f"{address}/24", "peers": peers}
    (tmp_path / "n0" / "nexa-test.key").write_text(GOOD)
    given = {
        "wireguard_links": links, "wireguard_interface": "nexa-test", "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(tmp_path / "tmp"),
    }  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": given}}))
    (tmp_path / "play.yml").write_text(PLAY)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    env |= {"ANSIBLE_CONFIG": f"{REPO}/ansible/ansible.cfg", "ANSIBLE_HOME": str(tmp_path / "home")}
    env["ANSIBLE_NOCOLOR"] = "1"
    env |= {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        "LIE": lie,
    }
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.json", "play.yml"]
    return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)


MORE = pytest.mark.long("another line of the same kind: each takes a playbook")


@pytest.mark.parametrize(
    "lie",
    [
        f"{GOOD}\nPostUp = touch /tmp/owned",
        pytest.param(f"{GOOD}\rPostUp = x", marks=MORE),
        pytest.param(f"{GOOD} x", marks=MORE),
        pytest.param("{{ lookup('pipe', 'id') }}", marks=MORE),
        pytest.param("", marks=MORE),
    ],
)
def test_what_is_no_key_is_in_nobodys_file(tmp_path: Path, lie: str) -> None:
    done = play(tmp_path, lie)
    assert done.returncode and "What n1 says is no public key of WireGuard" in done.stdout, done.stdout
    assert not list(tmp_path.glob("n*/*.conf"))


@pytest.mark.long("what is a key is taken; test_mesh.py does it for real, as root")
def test_a_key_is_in_the_others_file(tmp_path: Path) -> None:
    play(tmp_path, GOOD.replace("k", "x"))
    assert f"PublicKey = {GOOD}\n" in (tmp_path / "n1" / "nexa-test.conf").read_text()
