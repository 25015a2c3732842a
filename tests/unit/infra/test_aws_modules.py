"""The deadline that every node keeps by itself, and what every module of the AWS stacks says of itself."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TERRAFORM = Path(__file__).resolve().parents[3] / "terraform"
NODES = TERRAFORM / "modules" / "aws_nodes"
FOLDERS = sorted([*TERRAFORM.glob("modules/aws_*"), *TERRAFORM.glob("stacks/aws*")])


class Machine:
    """A folder in place of a machine: its files, a `poweroff` that only notes, and a clock that can be set."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "nexa"
        self.log = folder / "poweroff.log"
        self.clock = folder / "clock"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program("poweroff", f'echo "off $*" >>"{self.log}"')
        self.program("systemd-run", "exit 1")  # never the service manager of the machine that tests
        self.program("systemctl", "exit 1")
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "NEXA_DEADLINE_DIR": str(self.state),
            "NEXA_DEADLINE_TICK_S": "1",
        }
        assert shutil.which("poweroff", path=self.env["PATH"]) == str(self.bin / "poweroff")

    def program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def set_clock(self, unix: int) -> None:
        """Time stands still at `unix` from now on."""
        fresh = self.clock.with_suffix(".next")
        fresh.write_text(str(unix))
        fresh.replace(self.clock)
        if not (self.bin / "date").exists():  # written once: a running program cannot be written over
            self.program("date", f'cat "{self.clock}"')

    def boot(self, expires_unix: int, max_s: int, instance_id: str = "i-1") -> None:
        """What cloud-init runs first at a boot: the bootcmd of the template, rendered."""
        template = (NODES / "user_data.yaml.tftpl").read_text()
        [command] = re.findall(r"bootcmd:\n  - \|\n((?:    .*\n|\n)+)", template)
        script = re.sub(r"^    ", "", command, flags=re.MULTILINE)
        deadline = (NODES / "deadline.sh").read_text().strip()
        script = script.replace("${indent(4, trimspace(deadline_sh))}", deadline)
        script = script.replace("${expires_unix}", str(expires_unix)).replace("${max_s}", str(max_s))
        script = script.replace("$${", "${").replace("/var/lib/nexa", str(self.state))
        assert "/run/systemd/system" in script
        script = script.replace("/run/systemd/system", str(self.bin / "no-systemd"))
        env = {**self.env, "INSTANCE_ID": instance_id}
        done = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, timeout=10)
        assert (done.returncode, done.stderr) == (0, "")

    def due_unix(self) -> int:
        return int((self.state / "due_unix").read_text())

    def extend(self, due_unix: object) -> None:
        (self.state / "mine").write_text(f"{due_unix}\n")
        (self.state / "mine").rename(self.state / "due_unix")

    def went_off(self, within_s: float) -> bool:
        give_up = time.monotonic() + within_s
        while not self.log.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        return self.log.exists()

    def processes(self) -> dict[int, list[str]]:
        """Command lines, by pid, of what the boots left running: this folder is in their environment."""
        mine = f"NEXA_DEADLINE_DIR={self.state}".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[:-1]
        return found

    def off(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.off()


def test_fires_when_it_is_due_and_not_before(machine: Machine) -> None:
    due = int(time.time()) + 2
    machine.boot(expires_unix=due, max_s=3600)
    assert not machine.went_off(within_s=due - time.time() - 0.5)
    assert machine.went_off(within_s=3)
    assert time.time() >= due
    assert machine.log.read_text() == "off \n"


@pytest.mark.parametrize(
    ("expires_in_s", "max_s", "due_in_s"), [(7200, 3600, 3600), (1800, 3600, 1800), (-5, 3600, -5)]
)
def test_the_earlier_deadline_counts(machine: Machine, expires_in_s: int, max_s: int, due_in_s: int) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(1_800_000_000 + expires_in_s, max_s)
    assert machine.due_unix() == 1_800_000_000 + due_in_s
    assert machine.went_off(within_s=2 if due_in_s < 0 else 0.2) == (due_in_s < 0)


def test_a_second_boot_keeps_the_first_one_s_deadline(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    machine.off()
    machine.set_clock(1_800_003_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    assert machine.due_unix() == 1_800_003_600
    assert not machine.went_off(within_s=0.3)
    machine.set_clock(1_800_003_600)  # also: the clock is read again while it waits
    assert machine.went_off(within_s=3)


def test_a_boot_after_the_deadline_goes_off_at_once(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    machine.off()
    machine.set_clock(1_800_010_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    assert machine.went_off(within_s=2)


def test_an_image_of_another_node_brings_no_deadline(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, instance_id="i-1")
    machine.off()
    machine.set_clock(1_850_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, instance_id="i-2")
    assert machine.due_unix() == 1_850_003_600


def test_an_extension_counts_from_the_next_look(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_800_000_010, max_s=3600)
    machine.extend(1_800_000_100)
    machine.set_clock(1_800_000_050)
    assert not machine.went_off(within_s=1.5)
    machine.set_clock(1_800_000_100)
    assert machine.went_off(within_s=3)


@pytest.mark.parametrize("text", ["", "soon", "08", "-1", "1800000000.5", "1800000000 1"])
def test_a_deadline_that_cannot_be_read_is_now(machine: Machine, text: str) -> None:
    machine.set_clock(1_700_000_000)
    machine.boot(expires_unix=1_800_000_000, max_s=3600)
    machine.extend(text)
    assert machine.went_off(within_s=3)


def test_a_machine_that_cannot_keep_a_deadline_goes_off(machine: Machine) -> None:
    machine.state.mkdir()
    (machine.state / "due_unix.new").mkdir()  # cannot be written
    with pytest.raises(AssertionError, match=r"due_unix\.new"):
        machine.boot(expires_unix=1_900_000_000, max_s=3600)
    assert machine.log.exists()


def test_the_watch_is_a_session_of_its_own(machine: Machine) -> None:
    machine.set_clock(1_700_000_000)
    machine.boot(expires_unix=1_800_000_000, max_s=3600)
    watch = ["/bin/sh", f"{machine.state}/deadline", "watch"]
    give_up = time.monotonic() + 5
    while watch not in machine.processes().values() and time.monotonic() < give_up:
        time.sleep(0.02)  # setsid may not have started it yet
    # A `$( )` of it shows as another process with the same words for a moment.
    pids = {pid for pid, argv in machine.processes().items() if argv == watch}
    sessions = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            sessions.add(os.getsid(pid))
    assert len(sessions) == 1
    assert sessions <= pids


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_deadline_is_portable_shell() -> None:
    done = subprocess.run(["shellcheck", "--shell=sh", NODES / "deadline.sh"], capture_output=True, text=True)
    assert done.stdout == ""


def test_user_data_fits() -> None:
    size = len((NODES / "user_data.yaml.tftpl").read_bytes()) + len((NODES / "deadline.sh").read_bytes())
    assert size < 12_000, "EC2 takes 16 KiB, and two keys come to it"


def blocks(text: str, kind: str) -> list[tuple[str, str]]:
    """Name and body of a file's top-level blocks of a kind."""
    return re.findall(rf'^{kind} "(\w+)" {{\n(.*?)^}}', text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_variables_and_outputs_are_described(folder: Path) -> None:
    variables = blocks((folder / "variables.tf").read_text(), "variable")
    assert variables
    for name, body in variables:
        assert re.search(r'^  description = ".+\.', body, re.MULTILINE), f"{name} has no description"
        assert re.search(r"^  type *= ", body, re.MULTILINE), f"{name} has no type"
    for name, body in blocks((folder / "outputs.tf").read_text(), "output"):
        assert re.search(r'^  description = ".+\.', body, re.MULTILINE), f"output {name} has no description"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_validation_has_a_case_that_it_refuses(folder: Path) -> None:
    validated = {n for n, body in blocks((folder / "variables.tf").read_text(), "variable") if "validation {" in body}
    tests = "".join(path.read_text() for path in folder.glob("tests/*.tftest.hcl"))
    refused = set(re.findall(r"var\.(\w+)", " ".join(re.findall(r"expect_failures = \[([^]]*)\]", tests))))
    assert refused == validated


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_provider_is_pinned(folder: Path) -> None:
    text = (folder / "versions.tf").read_text()
    assert 'version = "~> 5.100"' in text and "required_version" in text
