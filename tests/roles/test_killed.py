"""playbooks/bootstrap.yml, killed where a task begins, converges: on a host with stubs of GPUs, EFA and their packages.

NEXA_TEST_EVERY_KILL=1 kills at every task once, which takes a quarter of an hour; else at some.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.run import agent_file
from tests.roles import test_efa, test_nvidia_driver
from tests.roles.rig import ROOT, Host

pytestmark = pytest.mark.e2e
PLAYBOOK = ROOT / "playbooks" / "bootstrap.yml"
SOME = 6


def stage(host: Host) -> dict[str, Any]:
    """A stock machine with two GPUs, NVSwitches and an EFA device; answers the inventory's variables."""
    devices = [test_nvidia_driver.GPU, test_nvidia_driver.GPU, test_nvidia_driver.SWITCH, test_efa.EFA]
    driver = test_nvidia_driver.stage(host, *devices)
    data = test_efa.archive(test_efa.PINNED, answering=1)
    host.put("/srv/efa.tar.gz", data, "0644")
    pins = yaml.safe_load((ROOT / "configs" / "pins.yaml").read_text())["nexa_pins"]
    pins["nvidia_driver"]["keyrings"] = driver["nvidia_driver_keyrings"]
    pins["efa"] |= {"url": "file:///srv/efa.tar.gz", "sha256": hashlib.sha256(data).hexdigest()}
    agent = host.folder / agent_file.NAME
    agent.write_bytes(agent_file.content())
    (host.folder / "pins.json").write_text(json.dumps({"nexa_pins": pins}))
    return {
        "nexa_provider": "aws",
        "nexa_scratch": "/opt/nexa/scratch",
        "nexa_shared": "/opt/nexa/shared",
        "nexa_durable": "/home/ubuntu/durable",
        "nexa_lock_file": str(ROOT / "docker" / "lock" / "train.txt"),
        "nexa_torch_file": str(ROOT / "docker" / "cuda_torch.txt"),
        "nexa_agent_file": str(agent),
        "nexa_agent_sha256": agent_file.sha256(),
        "nexa_torch_backend": "auto",
    }


def killed_at(host: Host, options: list[str], variables: dict[str, Any], picked: Callable[[str], bool]) -> str | None:
    """Begins the playbook and kills Ansible, with all that it started here, when a task begins that is picked. Answers
    its name; None if the playbook came to its end."""
    run = subprocess.Popen(host.argv(PLAYBOOK, *options, **variables), start_new_session=True, **host.how())
    assert run.stdout is not None
    lines = []
    try:
        for line in run.stdout:
            lines.append(line)
            task = re.match(r"(?:TASK|RUNNING HANDLER) \[(.*?)\] \*", line)
            if task and picked(task[1]):
                time.sleep(random.Random(task[1]).random())  # into the task, as far as it comes
                return task[1]
        assert run.wait(timeout=60) == 0, "".join(lines)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # it came to its end
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()


@pytest.mark.long("kill loop")
def test_a_killed_bootstrap_converges(new_host: Callable[[], Host]) -> None:
    host = new_host()
    variables = stage(host)
    options = ["-e", f"@{host.folder}/pins.json"]
    chance = random.Random(6)
    every = bool(os.environ.get("NEXA_TEST_EVERY_KILL"))
    seen: set[str] = set()
    killed: list[str] = []

    def picked(task: str) -> bool:
        if task in seen:
            return False
        seen.add(task)
        return every or (len(killed) < SOME and chance.random() < 0.2)

    for _ in range(200):
        if (task := killed_at(host, options, variables, picked)) is None:
            break
        killed.append(task)
    Path(os.environ.get("NEXA_TEST_KILLED", os.devnull)).write_text("\n".join(killed))
    assert len(killed) >= (50 if every else 2), killed
    again = host.playbook(PLAYBOOK, *options, **variables)
    assert again.changed == 0, again.out
    assert set(host.said("nvidia-smi").split()) == {test_nvidia_driver.PINNED}
    assert host.said("systemctl is-active nvidia-fabricmanager") == "active"
    assert host.said("/opt/amazon/efa/bin/fi_info -p efa -t FI_EP_RDM | grep -c domain") == "1"
    assert host.root("dpkg --audit") == ""
