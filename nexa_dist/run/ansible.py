"""Ansible on one cluster, through ansible-runner: progress by host and task, failures in plain words."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.run.files import close_tree
from nexa_dist.secrets import is_secret_name

SHOWN = 4
"""Changed tasks of a role that are named."""


def run_playbook(
    playbook: Path, folder: Path, inventory: dict[str, Any], ssh_args: str, on_progress: Callable[[str], None]
) -> int:
    """Runs `playbook` on every host of `inventory`; answers how many tasks changed something. Raises NexaError naming
    host, task and its stderr.

    `folder` takes ansible-runner's files; the user's ~/.ansible is left alone.
    """
    import ansible_runner

    failures: list[str] = []
    stats: dict[str, Any] = {}
    roles = Roles(on_progress)

    def on_event(event: dict[str, Any]) -> bool:
        if event["event"] == "playbook_on_stats":
            stats.update(event["event_data"])
        roles.take(event)
        if event["event"] in ("runner_on_failed", "runner_on_unreachable"):
            if not event["event_data"].get("ignore_errors"):
                failures.append(_failure(event))
        return False  # not to disk: a result may be long, and the journal has the outcome

    def on_status(data: dict[str, Any], runner_config: Any) -> None:
        if data["status"] == "starting":  # the environment that it gives the child, and writes to a file of `folder`
            for name in [name for name in runner_config.env if is_secret_name(name)]:
                del runner_config.env[name]

    end_left_over(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    done = ansible_runner.run(
        private_data_dir=str(folder),
        playbook=str(playbook),
        inventory=inventory,
        quiet=True,
        event_handler=on_event,
        status_handler=on_status,
        envvars={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "ANSIBLE_CONFIG": str(playbook.parent.parent / "ansible" / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(playbook.parent.parent / "ansible" / "roles"),
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
            "ANSIBLE_SSH_ARGS": ssh_args,
            "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner turns it off where nobody says so
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        },
    )
    close_tree(folder)
    if done.status == "canceled":  # ansible-runner takes SIGINT and SIGTERM for itself
        raise KeyboardInterrupt
    if done.status != "successful":
        last = "\n".join(done.stdout.read().strip().splitlines()[-8:])
        why = "\n".join(failures) or f"ansible ended with status {done.status} (exit {done.rc}): {last}"
        raise NexaError(f"bootstrap failed: {why}", hint="mend the cause and run nexa provision again")
    return sum(stats.get("changed", {}).values())


def end_left_over(folder: Path) -> None:
    """Ends the Ansible of a killed command of this cluster, and the ssh connections that it left: two plays at once
    would undo each other's work. They are known by `ANSIBLE_HOME`. The caller holds the cluster's lock.
    """
    mark = os.fsencode(f"ANSIBLE_HOME={folder / 'home'}") + b"\0"
    for _ in range(50):
        # Not glob("[0-9]*/environ"): pathlib asks whether each is there, and raises for a process that ends meanwhile.
        left = [int(path.name) for path in Path("/proc").glob("[0-9]*") if mark in _bytes(path / "environ")]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.1)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes() + b"\0"
    except OSError:  # gone, or somebody else's
        return b""


@dataclass
class Roles:
    """Says one line a role when it is through, and each try that failed."""

    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    role: str = ""
    tasks: int = 0
    began: float = 0.0
    changed: dict[str, list[str]] = field(default_factory=dict)
    """Hosts that each task changed, by task."""

    def take(self, event: dict[str, Any]) -> None:
        data, name = event.get("event_data", {}), event["event"]
        if name == "playbook_on_task_start":
            role = str(data.get("role") or data.get("play") or "play")
            if role != self.role:
                self.end()
                self.role, self.began = role, self.now()
            self.tasks += 1
        elif name == "runner_on_ok" and data.get("res", {}).get("changed"):
            self.changed.setdefault(str(data["task"]), []).append(str(data["host"]))
        elif name == "runner_retry" and data.get("res", {}).get("stderr"):
            self.say(f"{data['host']}: {data['task']}: {data['res']['stderr'].strip().splitlines()[-1]}")
        elif name == "playbook_on_stats":
            self.end()

    def end(self) -> None:
        if self.role:
            what = [f"{task} ({', '.join(hosts) if len(hosts) < 4 else f'{len(hosts)} hosts'})"
                    for task, hosts in self.changed.items()]  # fmt: skip
            more = f" and {len(what) - SHOWN} more" if len(what) > SHOWN else ""
            changed = f"; changed: {', '.join(what[:SHOWN])}{more}" if what else ""
            self.say(f"{self.role}: {self.tasks} tasks, {self.now() - self.began:.1f} s{changed}")
        self.role, self.tasks, self.changed = "", 0, {}


def _failure(event: dict[str, Any]) -> str:
    data = event["event_data"]
    result = data.get("res", {})
    said = [str(result[key]).strip() for key in ("msg", "stderr", "module_stderr") if result.get(key)]
    if not result.get("stderr") and result.get("stdout"):
        said.append(str(result["stdout"]).strip())
    for item in result.get("results", []):
        said += [str(item[key]).strip() for key in ("msg", "stderr") if item.get("failed") and item.get(key)]
    tail = "\n".join("\n".join(said).splitlines()[-12:])
    return f"host {data['host']}, task '{data.get('task', '?')}': {tail}"
