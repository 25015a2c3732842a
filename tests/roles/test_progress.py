"""What is waited for is told while it is waited for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nexa_dist.run.ansible import run_playbook

pytestmark = pytest.mark.e2e


def test_a_task_that_waits_names_who_holds_the_lock(tmp_path: Path) -> None:
    steps = [f"test -e {tmp_path}/2 && exit", f"mv {tmp_path}/1 {tmp_path}/2", f"mv {tmp_path}/0 {tmp_path}/1"]
    script = "; ".join([*steps, "echo locked by 42 >&2", "exit 1"])
    (tmp_path / "0").touch()
    task = {
        "name": "Wait for apt",
        "ansible.builtin.command": {"argv": ["sh", "-c", script]},
        "register": "here",
        "until": "here is succeeded",
        "retries": 5,
        "delay": 0,
    }
    (tmp_path / "playbooks").mkdir()
    book = tmp_path / "playbooks" / "wait.yml"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    said: list[str] = []
    run_playbook(book, tmp_path / "runner", {"all": {"hosts": {"n0": local}}}, "", said.append)
    assert said.count("n0: Wait for apt: locked by 42") == 2
