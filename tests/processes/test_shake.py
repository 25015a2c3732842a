"""The tool that stops the processes of tests: whom it may stop, and that in the end everybody goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from tests.processes.node.rig import until
from tests.shake import Process, Shaker, eligible, read

ROOT = 10
TREE = {
    1: Process(0, "init", "S", 1),
    9: Process(1, "scripts/shake", "S", 2),
    ROOT: Process(9, "pytest", "S", 3),
    11: Process(ROOT, "worker", "S", 4),
    12: Process(11, "nexa", "R", 5),
    13: Process(11, "held", "T", 6),
    14: Process(11, "sudo", "S", 7),
    15: Process(14, "sh", "S", 8),
    16: Process(15, "sleep", "S", 9),
    20: Process(1, "daemon", "S", 10, marked=True),
    21: Process(20, "session", "S", 11),
    30: Process(1, "sshd", "S", 12),
    31: Process(30, "bash", "S", 13),
}


def test_only_what_the_tests_started_is_stopped_and_nothing_below_sudo() -> None:
    assert eligible(TREE, ROOT, set()) == [11, 12, 20, 21]


def test_a_process_whose_parent_has_ended_is_still_known() -> None:
    seen: set[tuple[int, int]] = set()
    eligible(TREE, ROOT, seen)
    later = {1: TREE[1], ROOT: TREE[ROOT], 12: Process(1, "nexa", "S", 5), 21: Process(1, "other", "S", 99)}
    assert eligible(later, ROOT, seen) == [12], "21 is a number that was given away again"


def test_what_was_stopped_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        found = read(child.pid, b"")
        assert found
        shaker = Shaker(0, random.Random(1), 2.0, lambda: {child.pid: Process(0, "python", "S", found.start, True)})
        try:
            shaker.stop_one(time.monotonic())
            until(lambda: (now := read(child.pid, b"")) and now.state == "T")
            shaker.go_on(time.monotonic() - 60)
            assert shaker.stopped, "its time is not over"
            shaker.go_on(float("inf"))
            until(lambda: (now := read(child.pid, b"")) and now.state != "T")
        finally:
            child.kill()
    assert shaker.stops == 1
