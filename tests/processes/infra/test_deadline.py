"""The deadline that every node keeps by itself."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.infra.machine import DEADLINE_SH, Machine, Simulation
from tests.processes.node.rig import until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.off()


def test_fires_when_it_is_due_and_not_before(machine: Machine) -> None:
    due = int(time.time()) + 2
    machine.boot(expires_unix=due, max_s=3600)
    assert machine.went_off()
    assert machine.log.stat().st_mtime > due - 0.1  # the clock of the file system ticks every few milliseconds
    assert machine.log.read_text() == "off \n"


@pytest.mark.parametrize(
    ("expires_in_s", "max_s", "due_in_s"), [(7200, 3600, 3600), (1800, 3600, 1800), (-5, 3600, -5)]
)
def test_the_earlier_deadline_counts(machine: Machine, expires_in_s: int, max_s: int, due_in_s: int) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(1_800_000_000 + expires_in_s, max_s)
    assert machine.due_unix() == 1_800_000_000 + due_in_s
    assert machine.went_off(90 if due_in_s < 0 else 0.2) == (due_in_s < 0)


def test_a_second_boot_keeps_the_first_one_s_deadline(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    machine.off()
    machine.set_clock(1_800_003_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    assert machine.due_unix() == 1_800_003_600
    assert not machine.went_off(within_s=0.3)
    machine.set_clock(1_800_003_600)  # also: the clock is read again while it waits
    assert machine.went_off()


def test_a_boot_after_the_deadline_goes_off_at_once(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    machine.off()
    machine.set_clock(1_800_010_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    assert machine.went_off()


def test_an_image_of_another_node_brings_no_deadline(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, instance_id="i-1")
    machine.off()
    machine.set_clock(1_850_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, instance_id="i-2")
    assert machine.due_unix() == 1_850_003_600


def test_another_time_counts_from_the_next_look(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_800_000_010, max_s=3600)
    machine.replace_due(1_800_000_100)
    machine.set_clock(1_800_000_050)
    assert not machine.went_off(within_s=1.5)
    machine.set_clock(1_800_000_100)
    assert machine.went_off()


@pytest.mark.parametrize("text", ["", "soon", "08", "-1", "1800000000.5", "1800000000 1"])
def test_a_deadline_that_cannot_be_read_is_now(machine: Machine, text: str) -> None:
    machine.set_clock(1_700_000_000)
    machine.boot(expires_unix=1_800_000_000, max_s=3600)
    machine.replace_due(text)
    assert machine.went_off()


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
    until(lambda: watch in machine.processes().values())  # setsid may not have started it yet
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
    done = subprocess.run(["shellcheck", "--shell=sh", DEADLINE_SH], capture_output=True, text=True)
    assert done.stdout == ""


def test_a_lease_and_idleness_end_it_too(machine: Machine) -> None:
    def acts_at(unix: int) -> None:
        until(lambda: (machine.state / "acts_unix").exists() and int((machine.state / "acts_unix").read_text()) == unix)

    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, lease_s=20, idle_s=30)
    acts_at(1_800_000_020)
    machine.set_clock(1_800_000_015)
    os.utime(machine.state / "lease", (1_800_000_015, 1_800_000_015))
    acts_at(1_800_000_030)
    os.utime(machine.state / "busy", (1_800_000_015, 1_800_000_015))
    acts_at(1_800_000_035)
    assert not machine.log.exists()
    machine.set_clock(1_800_000_035)
    assert machine.went_off()


def test_what_it_writes_can_be_read_by_everybody(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600)
    for name, words in (("acts_unix", "1800003600"), ("runs_until", "4480 4600 due"), ("state", "")):
        path = machine.state / name
        until(path.exists)
        assert path.read_text().startswith(words)
        assert path.stat().st_mode & 0o777 == 0o644


def test_root_may_extend_as_far_as_max_s_allows(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, lease_s=600)
    assert machine.command("extend", 1_800_009_000).stdout == "1800003600\n"
    assert machine.command("extend", 1_800_000_100).stdout == "1800000100\n"
    assert machine.command("extend", 1_800_009_000, 7200).stdout == "1800007200\n"
    assert machine.command("extend", 1_800_007_100).stdout == "1800007100\n"
    assert (machine.state / "limits").read_text() == "7200 600 0 1800000000\n"
    for words in (["soon"], ["1800000000", "x"], ["-5"], ["1e9"], ["999999999999999999999"], ["08"]):
        assert machine.command("extend", *words).returncode != 0
    assert machine.due_unix() == 1_800_007_100
    for name in ("due_unix", "limits"):
        (machine.state / name).write_text("x\n")
        assert machine.command("extend", 1_800_000_200).returncode == (name == "limits")


def test_a_further_boot_renews_no_lease_and_another_instance_begins_anew(machine: Machine) -> None:
    machine.set_clock(1_800_000_000)
    machine.boot(expires_unix=1_900_000_000, max_s=3600, lease_s=600, idle_s=60)
    os.utime(machine.state / "lease", (1, 1))
    program = machine.state / "deadline"
    first = program.stat().st_ino
    machine.boot(expires_unix=1_900_000_000, max_s=9999, lease_s=0, idle_s=0)
    assert program.stat().st_ino != first  # replaced: one that is just starting cannot be written over
    assert (machine.state / "lease").stat().st_mtime == 1
    assert (machine.state / "limits").read_text() == "3600 600 60 1800000000\n"
    machine.off()
    (machine.state / "busy").unlink()
    (machine.state / "busy").mkdir()  # whatever the image has there
    machine.boot(expires_unix=1_900_000_000, max_s=7200, lease_s=60, idle_s=0, instance_id="i-2")
    assert (machine.state / "limits").read_text() == "7200 60 0 1800000000\n"
    assert (machine.state / "lease").stat().st_mtime > 1
    assert (machine.state / "busy").is_file()


@pytest.mark.parametrize(
    ("lease_s", "every_s", "pause_s", "times"),
    [
        pytest.param(600, 60, 380, 1000, marks=pytest.mark.long("a variant: the longest lease, a thousand renewals")),
        (120, 12, 50, 300),
    ],
)
def test_a_controller_that_lives_never_loses_a_node(
    tmp_path: Path, lease_s: int, every_s: int, pause_s: int, times: int
) -> None:
    """Renewals are late by up to half of the interval, and one in twenty comes after a pause; the clock is set too."""
    chance = random.Random(lease_s)
    up, events = 100, []
    for _ in range(times):
        wait_s = pause_s * chance.random() if chance.random() < 0.05 else every_s * (0.5 + chance.random())
        up += 1 + int(wait_s)
        events.append((up, "lease", ""))
        if chance.random() < 0.01:
            events.append((up, "clock", str(chance.randint(-3000, 3000))))
    simulation = Simulation(tmp_path, due_in_s=10**8, lease_s=lease_s)
    assert simulation.watch(events) == ("on", up + 1)


@pytest.mark.parametrize(
    ("events", "off_at"),
    [
        ([], 700),
        ([(400, "lease", "")], 1000),
        ([(400, "lease", ""), (401, "clock", "-86400")], 1000),
        ([(400, "lease", ""), (405, "clock", "86400")], 1000),
        ([(400, "lease", "86400")], 1000),  # touched in the future
        ([(400, "lease", "-86400")], 1000),  # and in the past
        ([(400, "lease", "86400"), (430, "lease", "")], 1030),
        ([(400, "busy", "")], 700),  # idleness is another clock
    ],
)
def test_a_lease_that_is_not_renewed_ends_it(tmp_path: Path, events: list[tuple[int, str, str]], off_at: int) -> None:
    simulation = Simulation(tmp_path, due_in_s=10**7, lease_s=600)
    how, up = simulation.watch([*events, (5000, "busy", "")])
    assert how == "off"
    assert off_at - 30 <= up <= off_at + 30  # a look apart, when the clock says nothing of use
    if not any(value for _, _, value in events):
        assert up == off_at


def test_idle_time_counts_from_the_last_run(tmp_path: Path) -> None:
    busy = [(at, "busy", "") for at in range(110, 5000, 10)]
    assert Simulation(tmp_path, due_in_s=10**7, idle_s=60).watch([*busy, (9000, "end", "")]) == ("off", 4990 + 60)
    assert (tmp_path / "runs_until").read_text().endswith(" due\n")  # a run renews it itself, and must not be ended


@pytest.mark.parametrize("jump_s", [-86_400, -5, 0, 5, 1000])
def test_a_clock_that_is_set_extends_nothing(tmp_path: Path, jump_s: int) -> None:
    simulation = Simulation(tmp_path, due_in_s=3600)
    how, up = simulation.watch([(500, "clock", str(jump_s)), (9000, "end", "")])
    assert how == "off"
    assert 3700 - max(jump_s, 0) - 5 <= up <= 3700 + 5


def test_no_time_whatever_is_later_than_max_s(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, due_in_s=3600, max_s=3600)
    how, up = simulation.watch([(500, "due", "1900000000"), (600, "clock", "-9000"), (99_000, "end", "")])
    assert (how, up) == ("off", 3702)


def test_a_watch_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also when the machine booted in between, and what it knew is gone or garbled."""
    simulation = Simulation(tmp_path, due_in_s=10**6, lease_s=600)
    assert simulation.watch([(400, "lease", "")])[0] == "on"
    simulation.clock, simulation.touched["lease"] = 1_800_000_310, 1_800_000_300
    for text, up, off_at in ((None, 410, 1000), (None, 5, 595), ("", 410, 1000), ("1 2 x", 410, 1000)):
        state = (tmp_path / "state").read_text()
        simulation.up = up
        if text is not None:
            (tmp_path / "state").write_text(text)
        how, off = simulation.watch([(9000, "end", "")])
        assert (how, abs(off - off_at) <= 30) == ("off", True), (text, up, off)
        (tmp_path / "state").write_text(state)


@pytest.mark.parametrize("what", ["gone", "symlink", "folder"])
def test_a_lease_that_is_no_file_is_as_old_as_the_machine(tmp_path: Path, what: str) -> None:
    simulation = Simulation(tmp_path, due_in_s=10**6, lease_s=600)
    (tmp_path / "lease").unlink()
    if what == "symlink":
        (tmp_path / "lease").symlink_to(tmp_path / "busy")
    elif what == "folder":
        (tmp_path / "lease").mkdir()
    how, up = simulation.watch([(at, "lease", "0") for at in range(150, 650, 50)] + [(9000, "end", "")])
    assert (how, up) == ("off", 700)


def test_a_full_disk_keeps_it_neither_on_nor_off(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, due_in_s=3600, lease_s=600)
    for name in ("acts_unix.new", "runs_until.new", "state.new"):
        (tmp_path / name).mkdir()
    how, up = simulation.watch([(at, "lease", "") for at in range(150, 1000, 50)] + [(9000, "end", "")])
    assert (how, up) == ("off", 950 + 600)
