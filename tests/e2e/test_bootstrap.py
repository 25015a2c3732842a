"""playbooks/bootstrap.yml for real on two local nodes that share one folder of caches."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.ops import light
from nexa_dist.run import agent_file
from nexa_dist.run.ansible import run_playbook
from tests.e2e.local_cluster import ROOT, LocalCluster, clean_env, marked_pids

pytestmark = pytest.mark.e2e
PLAYBOOK = ROOT / "playbooks" / "bootstrap.yml"
SHARED = Path(os.environ.get("NEXA_TEST_SHARED", "~/.cache/nexa")).expanduser()
"""Kept between runs, so that a machine builds the environment once."""
FIND_LINKS = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
BASE_PYTHON = f"{sys.base_prefix}/bin/python3"
BACKEND = light.BACKEND


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("bootstrap") / "a folder"
    folder.mkdir()
    made = LocalCluster.make(folder, ("n0", "n1"))
    try:
        for name in made.nodes:
            assert made.host(name, "up").returncode == 0
        (folder / agent_file.NAME).write_bytes(agent_file.content())
        yield made
    finally:
        made.sweep()
        assert marked_pids(folder) == {}


def inventory(cluster: LocalCluster, **changes: str) -> dict[str, Any]:
    variables = {
        "ansible_python_interpreter": BASE_PYTHON,
        "nexa_shared": str(SHARED),
        "nexa_lock_file": str(ROOT / "docker" / "lock" / "train.txt"),
        "nexa_torch_file": str(ROOT / "docker" / "cuda_torch.txt"),
        "nexa_agent_file": str(cluster.folder / agent_file.NAME),
        "nexa_agent_sha256": agent_file.sha256(),
        "nexa_python": BASE_PYTHON,
        "nexa_torch_backend": BACKEND,
        "nexa_uv_find_links": FIND_LINKS,
        **changes,
    }
    hosts = {
        name: {f"nexa_{kind}": f"{cluster.root}/{name}/{kind}" for kind in ("scratch", "durable")}
        for name in cluster.nodes
    }
    return {"all": {"hosts": hosts, "vars": variables, "children": {"settled": {}, "meshed": {}}}}


def play(cluster: LocalCluster, *options: str, **changes: str) -> dict[str, int]:
    """Runs the playbook; tasks changed by host."""
    file = cluster.folder / "inventory.json"
    file.write_text(json.dumps(inventory(cluster, **changes)))
    env = clean_env(
        ANSIBLE_CONFIG=str(ROOT / "ansible" / "ansible.cfg"),
        ANSIBLE_SSH_ARGS=f"-F {shlex.quote(str(cluster.ssh_config))}",
        ANSIBLE_HOME=str(cluster.folder / "ansible"),
        ANSIBLE_NOCOLOR="1",
    )
    argv = [f"{Path(sys.executable).parent}/ansible-playbook", "-i", str(file), str(PLAYBOOK), *options]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return {host: int(count) for host, count in re.findall(r"^(n\d+) .*changed=(\d+)", done.stdout, re.M)}


def env_folder() -> Path:
    """The recipe of the hash, as ansible/roles/uv_env/meta/argument_specs.yml states it."""
    lock = (ROOT / "docker" / "lock" / "train.txt").read_bytes()
    torch = (ROOT / "docker" / "cuda_torch.txt").read_bytes()
    version = "{}.{}".format(*sys.version_info[:2]).encode()
    return SHARED / "envs" / hashlib.sha256(b"\0".join([lock, torch, version, BACKEND.encode()])).hexdigest()[:16]


@pytest.mark.long("five plays; every provision twice in other tests says 0 tasks changed")
def test_bootstrap_converges(cluster: LocalCluster) -> None:
    first = play(cluster)
    assert all(count > 0 for count in first.values())
    for name in cluster.nodes:
        assert (cluster.root / name / "durable").stat().st_mode & 0o777 == 0o700

    assert play(cluster) == {"n0": 0, "n1": 0}
    assert play(cluster, "--check", "--diff") == {"n0": 0, "n1": 0}

    versions = json.loads((env_folder() / "nexa-env.json").read_text())
    assert set(versions) == {"env_hash", "python", "torch", "cuda", "transformers"}
    pin = (ROOT / "docker" / "cuda_torch.txt").read_text().split("torch==")[1].split()[0]
    assert versions["torch"].split("+")[0] == pin


@pytest.mark.long("variant: check mode")
def test_check_mode_on_a_fresh_node(cluster: LocalCluster, tmp_path: Path) -> None:
    changed = play(cluster, "--check", nexa_shared=str(tmp_path / "fresh"))
    assert set(changed) == {"n0", "n1"}
    assert not (tmp_path / "fresh").exists()


def test_failure_names_host_task_and_cause_and_no_secret_is_written(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_API_KEY"):
        monkeypatch.setenv(name, "canaryOfAnsible")
    said: list[str] = []
    hosts = inventory(cluster)
    del hosts["all"]["hosts"]["n0"]
    hosts["all"]["hosts"]["n1"]["nexa_python"] = "/no/such/python3"
    ssh_args = f"-F {shlex.quote(str(cluster.ssh_config))}"
    with pytest.raises(NexaError) as caught:
        run_playbook(PLAYBOOK, tmp_path / "runner", hosts, ssh_args, said.append)
    assert "host n1" in str(caught.value)
    assert "Ask the interpreter for its version" in str(caught.value)
    assert "/no/such/python3 is not on this node" in str(caught.value)
    assert "{" not in str(caught.value)
    written = [path for path in (tmp_path / "runner").rglob("*") if path.is_file()]
    assert [path.name for path in written if b"canaryOfAnsible" in path.read_bytes()] == []
    [command] = [path.read_text() for path in written if path.name == "command"]
    assert json.loads(command)["env"]["ANSIBLE_HOST_KEY_CHECKING"] == "True"
