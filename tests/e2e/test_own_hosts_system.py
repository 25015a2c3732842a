"""A host of the user's own that nexa may set up as root: a machine of the emulated region that is in no cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab
from tests.e2e.test_region_hosts import WHY_NOT, lab
from tests.e2e.test_region_hosts import Lab as Machines

__all__ = ["lab"]  # machines that are on, for the tests of this file
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
    pytest.mark.long("variant: system_changes; tests/roles has the settings"),
]
OURS = "ls -d /etc/security/limits.d/*nexa* /etc/sysctl.d/*nexa* /etc/apt/apt.conf.d/*nexa* 2>/dev/null; true"
THEIRS = "find ~/.nexa /opt/nexa/shared 2>/dev/null | sort"


def test_the_system_is_set_up_once_and_stays_when_the_host_is_given_back(lab: Machines, tmp_path: Path) -> None:
    mine = Lab(tmp_path, ("nsenter", f"--net=/proc/{os.getpid()}/fd/{lab.namespace}", "--"))
    key = lab.folder / "host_key.pub"
    fingerprint = subprocess.check_output(["ssh-keygen", "-lf", str(key)], text=True).split()[1]
    mine.write("cfg", f"Host *\n  IdentityFile {lab.folder}/client\n  IdentitiesOnly yes\n")
    host = {"host": "203.0.113.1", "user": "ubuntu", "gpus": 4, "host_key": fingerprint}
    cluster = {"name": "mine", "cluster": [host], "ssh_config": "cfg", "shared": "/opt/nexa/shared"}
    mine.write("c.yaml", json.dumps({**cluster, "system_changes": True}))
    assert lab.said(1, OURS) == ""
    before = lab.said(1, THEIRS)

    assert "Write limits" in mine.nexa("provision", "--cluster", "c.yaml", "-y").stderr
    made = lab.said(1, OURS)
    assert "/etc/security/limits.d/" in made and "/etc/sysctl.d/" in made
    assert "0 tasks changed" in mine.nexa("provision", "--cluster", "c.yaml", "-y").stderr

    said = mine.nexa("teardown", "-y", "--keep-nothing").stderr
    assert "kept: on every host: packages and settings of the system" in said
    assert lab.said(1, OURS) == made
    assert lab.said(1, THEIRS) == before
