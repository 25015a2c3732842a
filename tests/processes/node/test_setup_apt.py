"""`apt:` by the real apt-get and dpkg: this machine's own system below an overlay, in a mount namespace of the test, so
that nothing of it is changed; the package comes from a folder, without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.node.rig import until

FOLDERS = ("etc", "usr", "var")
TOOLS = ("apt-get", "dpkg", "dpkg-deb", "mount", "unshare")
pytestmark = [
    pytest.mark.long("apt and dpkg write and sync a whole system's state"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason="needs root on Debian, and apt's own tools"
    ),
]
NAME = "nexa-test-package"


class System:
    """The node: its system is an overlay that each command sees through a mount namespace of its own."""

    def __init__(self, root: Path, agent: Path) -> None:
        self.root, self.agent, self.run = root, agent, root / "run"
        for name in FOLDERS:
            for kind in ("up", "work"):
                (root / f"{name}.{kind}").mkdir(parents=True)
        self.run.mkdir()
        (root / "repo").mkdir()

    def package(self, version: str, postinst: str = "") -> None:
        """A package in the folder that apt-get takes it from."""
        made = self.root / "made"
        shutil.rmtree(made, ignore_errors=True)
        (made / "DEBIAN").mkdir(parents=True)
        (made / "usr/share/nexa").mkdir(parents=True)
        (made / "usr/share/nexa/it").write_text(version)
        told = f"Package: {NAME}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x.x>\nDescription: a test\n"
        (made / "DEBIAN/control").write_text(told)
        if postinst:
            (made / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{postinst}\n")
            (made / "DEBIAN/postinst").chmod(0o755)
        deb = self.root / "repo" / "it.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", made, deb], check=True, stdout=subprocess.DEVNULL)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        told += f"Filename: ./it.deb\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
        (self.root / "repo" / "Packages").write_text(told)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        mounts = [f"mount -t overlay overlay -o lowerdir=/{name},upperdir={self.root}/{name}.up,"
                  f"workdir={self.root}/{name}.work /{name}" for name in FOLDERS]  # fmt: skip
        place = "/var/nexa-repo"  # apt reads it as a user of its own
        only = (
            f"rm -rf /etc/apt/sources.list.d/* {place}; cp -r {self.root}/repo {place}; chmod -R a+rX {place}; "
            f"echo 'deb [trusted=yes] file:{place} ./' > /etc/apt/sources.list"
        )
        script = "\n".join(["set -e", *mounts, only, 'exec "$@"'])
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def call(self, *words: str) -> tuple[int, str]:
        child = self.begin(*words)
        said = child.communicate(timeout=300)[0]
        return child.returncode, said

    def setup(self, *packages: str) -> list[str]:
        told = {"apt": packages, "lines": [], "key": "k", "layer_key": "l", "python": sys.executable, "layer": "",
                "shared": str(self.root), "requires": None, "program": None, "must": False}  # fmt: skip
        spec = {"attempt": 1, "cwd": str(self.run), "setup": told}
        (self.run / "spec.json").write_text(json.dumps(spec))
        return [sys.executable, "-S", "-E", str(self.agent), "setup", str(self.run)]

    def installed(self) -> str:
        return self.call("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", NAME)[1]


@pytest.fixture
def system(tmp_path: Path, agent_file: Path) -> System:
    made = System(tmp_path / "node", agent_file)
    code, said = made.call("true")
    if code:
        pytest.skip(f"no overlay can be mounted here: {said.strip()[-200:]}")
    return made


def outside() -> bytes:
    """This machine's own list of packages."""
    return Path("/var/lib/dpkg/status").read_bytes()


def test_a_package_is_installed_once_and_one_that_is_nowhere_is_named(system: System) -> None:
    before = outside()
    system.package("1.0", f"umask > {system.root}/umask")
    code, said = system.call(*system.setup(NAME))
    assert code == 0 and f"nexa: apt-get install -y --no-install-recommends {NAME}" in said, said
    assert system.installed() == "installed 1.0"
    assert (system.root / "umask").read_text() == "0022\n", "others than the run use the system"
    assert system.call(*system.setup(NAME)) == (0, ""), "what is there is not asked for again"
    code, said = system.call(*system.setup(NAME, "no-such-package-anywhere"))
    assert code == 100 and "Unable to locate package no-such-package-anywhere" in said
    why = json.loads((system.run / "setup.attempt_1").read_text())["why"]
    assert why.endswith("apt-get install -y --no-install-recommends no-such-package-anywhere: exit code 100")
    assert outside() == before and not Path("/usr/share/nexa/it").exists()


def test_killed_while_it_installs_the_next_one_ends_what_was_begun(system: System) -> None:
    before, mark = outside(), system.root / "configuring"
    system.package("1.0", f"[ -e {mark}.go ] && exit 0; touch {mark}; sleep 600")
    child = system.begin(*system.setup(NAME))
    until(lambda: mark.exists() or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    child.send_signal(signal.SIGKILL)  # and with it, by --kill-child, all that it had begun
    child.wait()
    assert "installed" not in system.installed().split()
    Path(f"{mark}.go").touch()
    code, said = system.call(*system.setup(NAME))
    assert code == 0, said
    assert system.installed() == "installed 1.0" and outside() == before
