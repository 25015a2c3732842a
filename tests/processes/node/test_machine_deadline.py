"""The machine's own clock, as a run sees it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nexa_dist.node.watch.machine_deadline import Due
from tests.processes.node.rig import Rig, until

SAVING = """
import os, signal, sys, time
def save(*_):
    open(os.path.join(os.environ["NEXA_RUN_DIR"], "saved"), "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""


def uptime_s() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def tell(folder: Path, stop_in_s: float, end_in_s: float, why: str = "lease") -> None:
    up = uptime_s()
    for name in ("lease", "due_unix"):
        (folder / name).touch()
    (folder / "new").write_text(f"{int(up + stop_in_s)} {int(up + end_in_s)} {why}\n")
    (folder / "new").rename(folder / "runs_until")


def test_says_once_that_a_run_has_to_end(tmp_path: Path) -> None:
    due = Due(str(tmp_path))
    tell(tmp_path, 50, 170)
    assert due.look(0.0) is None
    tell(tmp_path, -1, 119)
    assert due.look(1.0) is None  # it was just there
    found = due.look(2.0)
    assert found and found["why"] == "lease"
    assert 60 < found["acts_unix"] - found["seen_unix"] < 119.1  # one of them is rounded to a tenth
    assert due.look(4.0) is None


@pytest.mark.parametrize("text", ["", "1", "1 2", "x 2 due", "1 2 due more", None, "\0" * 300])
def test_what_cannot_be_read_ends_no_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "runs_until").write_text(text)
    assert Due(str(tmp_path)).look(0.0) is None
    assert not (tmp_path / "busy").exists()


def test_a_clock_that_is_renewed_ends_no_run(tmp_path: Path) -> None:
    due = Due(str(tmp_path))
    for now in range(0, 20, 2):
        tell(tmp_path, 90, 120)
        assert due.look(float(now)) is None


@pytest.mark.parametrize("why", ["lease", "due"])
def test_what_was_renewed_since_the_machine_looked_ends_no_run(tmp_path: Path, why: str) -> None:
    due = Due(str(tmp_path))
    tell(tmp_path, -1, 119, why)
    source = tmp_path / ("lease" if why == "lease" else "due_unix")
    later = (tmp_path / "runs_until").stat().st_mtime + 1
    os.utime(source, (later, later))
    assert due.look(0.0) is None
    os.utime(tmp_path / "runs_until", (later + 1, later + 1))
    assert due.look(2.0) is not None


def test_shows_every_ten_seconds_that_the_machine_is_in_use(tmp_path: Path) -> None:
    due, busy = Due(str(tmp_path)), tmp_path / "busy"
    busy.touch()
    seen = []
    for now in range(0, 40, 2):
        os.utime(busy, (1, 1))
        due.look(float(now))
        seen += [now] if time.time() - busy.stat().st_mtime < 60 else []
    assert seen == [0, 10, 20, 30]


def test_the_ranks_save_before_the_power_goes(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "busy").touch()
    os.utime(clock / "busy", (1, 1))
    tell(clock, 600, 720)
    monkeypatch.setenv("NEXA_DEADLINE_DIR", str(clock))
    rig.start(SAVING, grace_s=200)
    rig.ready(0, 1)
    until(lambda: (clock / "busy").stat().st_mtime > 1)
    tell(clock, -1, 120, "due")
    status = rig.ended()
    assert (status["state"], status["reason"], status["left"]) == ("stopped", "deadline", [])
    assert (rig.folder / "saved").exists()
    [due], [stopping] = rig.events("due"), rig.events("stopping")
    assert (due["why"], stopping["reason"]) == ("due", "deadline")
    assert 0 < stopping["grace_s"] < 106  # some seconds are kept for the end of the machine
    assert rig.events("notice") == []  # it is no spot notice: nobody has to replace the node
