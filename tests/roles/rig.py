"""Hosts for one role at a time: the emulated region's machines, with Ansible run against them from its namespace.

What is real: ssh, sudo, Ansible, apt, dpkg, the kernel's settings, mounts, disks. What is not, since no machine here
has it: the PCI bus (a folder bound over /sys/bus/pci), NVIDIA's, Docker's and Amazon's packages (stubs in a repository
of their own), systemd (see host/systemctl).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.test_region_hosts import Lab

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).parent / "host"
FOLDER = "/srv/debs"
SHARED = ("-o", "ConnectTimeout=60", "-o", "ControlMaster=auto", "-o", "ControlPersist=600")


@dataclass(frozen=True)
class Deb:
    """A package; `files` by absolute path, executable if they begin with #!."""

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    postinst: str = ""

    def build(self, folder: Path) -> Path:
        tree = folder / f"{self.name}_{self.version.replace(':', '%')}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {self.name}\nVersion: {self.version}\nArchitecture: all\nMaintainer: nobody <no@body>\n"
        control += f"Depends: {self.depends}\n" if self.depends else ""
        (tree / "DEBIAN" / "control").write_text(control + "Description: stub of a test\n")
        for path, text in {**self.files, **({"/DEBIAN/postinst": self.postinst} if self.postinst else {})}.items():
            file = tree / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
        made = tree.with_suffix(tree.suffix + ".deb")
        argv = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made)]
        subprocess.run(argv, check=True, capture_output=True)
        return made


def index(debs: Sequence[Path]) -> str:
    """The Packages file of a flat repository."""
    entries = []
    for deb in debs:
        control = subprocess.run(["dpkg-deb", "-f", str(deb)], check=True, capture_output=True, text=True).stdout
        sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
        entries.append(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256}\n")
    return "\n".join(entries)


@dataclass(frozen=True)
class Play:
    """How a play ended."""

    code: int
    out: str
    changed: int
    tasks: tuple[str, ...]
    """Names of the tasks that changed something."""


@dataclass(frozen=True)
class Host:
    lab: Lab
    number: int
    folder: Path
    sockets: Path
    """Of ssh's shared connections; a short path."""

    @property
    def address(self) -> str:
        return f"203.0.113.{self.number}"

    def options(self) -> list[str]:
        """Of ssh; the first word on anything counts."""
        plain = self.lab.ssh_argv(self.number, "")
        return [*SHARED, "-o", f"ControlPath={self.sockets}/%C", *plain[plain.index("ssh") + 1 : -2]]

    def ssh(self, command: str, data: bytes) -> str:
        """By the connection that Ansible uses too."""
        argv = [*self.lab.ssh_argv(self.number, "")[:3], "ssh", *self.options(), f"ubuntu@{self.address}", command]
        done = subprocess.run(argv, input=data, capture_output=True, timeout=600)
        assert done.returncode == 0, f"{command}: exit {done.returncode}: {(done.stdout + done.stderr).decode()}"
        return done.stdout.decode().strip()

    def said(self, command: str) -> str:
        return self.ssh(command, b"")

    def root(self, script: str) -> str:
        """A shell script as root."""
        return self.ssh("sudo sh -eu -s", script.encode())

    def put(self, path: str, content: bytes, mode: str = "0755") -> None:
        self.ssh(f"sudo install -D -m {mode} /dev/stdin {shlex.quote(path)}", content)

    def sysfs(self, files: Mapping[str, str]) -> None:
        """Shows these files below /sys instead of the machine's own: their folders of /sys/bus/pci, /sys/block and
        /sys/module, at every boot."""
        parts = " ".join(f"/sys/{part}" for part in ("bus/pci", "block", "module"))
        lines = [f"for part in {parts}; do ! mountpoint -q $part || umount $part; done", "rm -rf /srv/sys"]
        for name, text in files.items():
            lines += [f"mkdir -p /srv/sys/{Path(name).parent}", f"printf '%s\\n' {shlex.quote(text)} >/srv/sys/{name}"]
        self.root("\n".join(lines))
        self.put("/var/lib/cloud/scripts/per-boot/hardware", (HOST / "boot").read_bytes())
        self.root("/var/lib/cloud/scripts/per-boot/hardware")

    def systemd(self) -> None:
        self.put("/usr/local/bin/systemctl", (HOST / "systemctl").read_bytes())

    def repository(self, debs: Sequence[Deb]) -> dict[str, bytes]:
        """Puts packages into a repository on the host. Answers the packages' bytes by file name."""
        folder = self.folder / "debs"
        folder.mkdir(exist_ok=True)
        built = [deb.build(folder) for deb in debs]
        (folder / "Packages").write_text(index(built))
        sent = ["tar", "-C", str(folder), "-c", "Packages", *(path.name for path in built)]
        self.ssh(
            f"sudo sh -c 'mkdir -p {FOLDER} && tar -C {FOLDER} --no-same-owner -x'",
            subprocess.run(sent, check=True, capture_output=True).stdout,
        )
        # The real ones are signed; apt's own checks are not what is tested here.
        allow = (
            b'Acquire::AllowInsecureRepositories "1"; APT::Get::AllowUnauthenticated "1"; APT::Sandbox::User "root";'
        )
        self.put("/etc/apt/apt.conf.d/99test", allow, "0644")
        self.root("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
        return {path.name: path.read_bytes() for path in built}

    def play(self, tasks: Sequence[Mapping[str, Any]], *options: str, code: int | None = 0, **more: Any) -> Play:
        """Runs a playbook of these tasks, with `more` as the inventory's variables. See `playbook`."""
        book = self.folder / "play.yml"
        book.write_text(json.dumps([{**PLAY, "tasks": list(tasks)}]))
        return self.playbook(book, *options, code=code, **more)

    def playbook(
        self,
        book: Path,
        *options: str,
        code: int | None = 0,
        when: Mapping[str, Callable[[], Any]] | None = None,
        **more: Any,
    ) -> Play:
        """`when`: what to do once, when Ansible has said these words for the first time."""
        out, waiting = "", dict(when or {})
        with subprocess.Popen(self.argv(book, *options, **more), **self.how()) as run:
            assert run.stdout is not None
            for line in run.stdout:
                out += line
                for words in [words for words in waiting if words in line]:
                    waiting.pop(words)()
        assert code is None or run.returncode == code, f"exit {run.returncode}\n{out}"
        changed = re.search(r"^node .*changed=(\d+)", out, re.M)
        blocks = re.split(r"^(?:TASK|RUNNING HANDLER) \[(?:\S+ : )?", out, flags=re.M)[1:]
        names = tuple(b.partition("]")[0] for b in blocks if re.search(r"^changed: ", b, re.M))
        return Play(run.returncode, out, int(changed[1]) if changed else -1, names)

    def argv(self, book: Path, *options: str, **more: Any) -> list[str]:
        inventory = self.folder / "inventory.json"
        variables = {
            "ansible_host": self.address,
            "ansible_user": "ubuntu",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        inventory.write_text(json.dumps({"all": {"hosts": {"node": {**variables, **more}}}}))
        enter = self.lab.ssh_argv(self.number, "")[:3]
        program = f"{Path(sys.executable).parent}/ansible-playbook"
        return [*enter, "timeout", "600", program, "-i", str(inventory), str(book), *options]

    def close(self) -> None:
        """Ends ssh's shared connections."""
        for socket in self.sockets.iterdir():
            argv = ["ssh", "-F", "/dev/null", "-o", f"ControlPath={socket}", "-O", "exit", "host"]
            subprocess.run(argv, capture_output=True, timeout=120)
            socket.unlink(missing_ok=True)  # it answers first, and takes this away later

    def how(self) -> dict[str, Any]:
        """Keyword arguments for subprocess."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
        env = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "ansible" / "roles"),
            "ANSIBLE_SSH_ARGS": shlex.join(self.options()),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
        }
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return {"env": env, "text": True, **pipes}


PLAY = {
    "hosts": "all",
    "name": "one role",
    "gather_facts": True,
    "gather_subset": ["!all", "!min", "distribution", "user"],
    "force_handlers": True,
    "vars_files": [str(ROOT / "configs" / "pins.yaml")],
}


def role(name: str, **variables: Any) -> list[dict[str, Any]]:
    return [{"name": name, "ansible.builtin.include_role": {"name": name}, "vars": variables}]


def bootstrap_variables(name: str) -> dict[str, Any]:
    """What playbooks/bootstrap.yml gives a role."""
    play = yaml.safe_load((ROOT / "playbooks" / "bootstrap.yml").read_text())[0]
    found = [
        task["vars"]
        for task in play["tasks"]
        for kind in ("import_role", "include_role")
        if task.get(f"ansible.builtin.{kind}", {}).get("name") == name
    ]
    return dict(found[0])


def converges(host: Host, tasks: Sequence[Mapping[str, Any]], **more: Any) -> Play:
    """Check mode on the fresh host, the play, the play again, check mode again: nothing is left to change."""
    checked = host.play(tasks, "--check", "--diff", **more)
    first = host.play(tasks, **more)
    assert (checked.changed > 0) == (first.changed > 0), checked.out + first.out
    again = host.play(tasks, **more)
    assert again.changed == 0, again.out
    assert host.play(tasks, "--check", "--diff", **more).changed == 0
    return first
