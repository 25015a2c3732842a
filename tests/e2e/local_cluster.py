"""What the tests of local nodes share: keys, free ports, ssh, and a look at what is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.ops.providers.local import free_port

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "terraform" / "stacks" / "local"
HOST_PY = ROOT / "terraform" / "modules" / "local_node" / "host.py"


def clean_env(**extra: str) -> dict[str, str]:
    """The environment without another session's Terraform and Ansible settings."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "ANSIBLE_"))}
    return {**env, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": "/dev/null", **extra}


def is_open(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def marked_pids(root: Path) -> dict[int, str]:
    """Every process whose environment names a node under `root`, or whose command line names `root`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                text = (entry / "environ").read_bytes() + command
            except OSError:
                continue
            if os.fsencode(f"NEXA_HOST={root}/") in text or (b"sshd" in command and os.fsencode(str(root)) in text):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass(frozen=True)
class LocalCluster:
    """Folders, keys and ports of a local cluster. Nothing runs until `host("n0", "up")` or Terraform."""

    folder: Path
    nodes: dict[str, dict[str, str | int]]

    @classmethod
    def make(cls, folder: Path, names: tuple[str, ...]) -> LocalCluster:
        (folder / "ssh" / "host_keys").mkdir(parents=True)
        nodes: dict[str, dict[str, str | int]] = {}
        known_hosts, ssh_config = [], []
        for index, name in enumerate(names):
            address = f"127.0.{1 + os.getpid() % 200}.{2 + index}"
            nodes[name] = {"address": address, "port": free_port(address), "gpus": 1 + index}
            key = folder / "ssh" / "host_keys" / name
            make_key(key)
            known_hosts.append(f"[{address}]:{nodes[name]['port']} {key.with_suffix('.pub').read_text()}")
            ssh_config.append(f"Host {name}\n  HostName {address}\n  Port {nodes[name]['port']}\n")
        make_key(folder / "ssh" / "client")
        (folder / "ssh" / "known_hosts").write_text("".join(known_hosts))
        common = f"""
Host *
  IdentityFile "{folder}/ssh/client"
  IdentitiesOnly yes
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile "{folder}/ssh/known_hosts"
  LogLevel ERROR
"""
        (folder / "ssh" / "ssh_config").write_text("".join(ssh_config) + common)
        return cls(folder, nodes)

    @property
    def root(self) -> Path:
        return self.folder / "nodes"

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh" / "ssh_config"

    def ssh(self, node: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", str(self.ssh_config), *options, node, command]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)

    def host(self, node: str, verb: str, **more: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "NEXA_LOCAL_CLUSTER": "e2e",
            "NEXA_LOCAL_NODE": node,
            "NEXA_LOCAL_ROOT": str(self.root),
            "NEXA_LOCAL_ADDRESS": str(self.nodes[node]["address"]),
            "NEXA_LOCAL_PORT": str(self.nodes[node]["port"]),
            "NEXA_LOCAL_SSH_DIR": str(self.folder / "ssh"),
            **more,
        }
        argv = [sys.executable, "-I", str(HOST_PY), verb]
        return subprocess.run(argv, env=clean_env(**settings), capture_output=True, text=True, timeout=600)

    def sweep(self) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-I", str(HOST_PY), "sweep", str(self.root)]
        return subprocess.run(argv, env=clean_env(), capture_output=True, text=True, timeout=600)

    def daemon_pid(self, node: str) -> int:
        return int(json.loads((self.root / node / "daemon.json").read_text())["pid"])


def make_key(path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "nexa", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
