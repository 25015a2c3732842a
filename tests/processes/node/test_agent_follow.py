"""`follow`: bytes as they are, from where the reader is; and what its open input tells the agent."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node.watch import controller_lease
from nexa_dist.node.watch.log_index import Times
from tests.processes.node.rig import Rig, until

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def frames(rig: Rig, offsets: dict[str, int]) -> tuple[dict[str, bytes], dict[str, Any]]:
    message = json.dumps({"offsets": offsets, "once": True}).encode() + b"\n"
    out = subprocess.run([*rig.argv, "follow", str(rig.folder)], input=message, capture_output=True, timeout=90).stdout
    stream = io.BytesIO(out)
    found: dict[str, bytes] = {}
    end: dict[str, Any] = {}
    last: dict[str, Any] = {}
    while header := stream.readline():
        last = json.loads(header)
        end = last.get("end", end)
        if "len" in last:
            found[last["src"]] = found.get(last["src"], b"") + stream.read(last["len"])
    assert last == {"through": True}
    return found, end


def test_follow_goes_on_from_byte_offsets_with_bytes_as_they_are(rig: Rig) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\xff\x1b]0;title\x07 ' + b'x' * 200_000 + b'\nend')"
    rig.start(code, world=1)
    rig.ended()
    found, end = frames(rig, {})
    log = found["rank_0/attempt_1.log"]
    assert log == b"\xff\x1b]0;title\x07 " + b"x" * 200_000 + b"\nend"
    assert end["state"] == "completed"
    assert found["rank_0/attempt_1.log.times"].endswith(b" %d\n" % len(log))
    again, _ = frames(rig, {"rank_0/attempt_1.log": len(log) - 3, "agent.jsonl": 0})
    assert again["rank_0/attempt_1.log"] == b"end"


def test_the_index_of_a_log_tells_when_its_bytes_were_there(tmp_path: Path) -> None:
    log = tmp_path / "rank_0" / "attempt_2.log"
    log.parent.mkdir()
    index = Times(str(tmp_path), 2)
    before = time.time()
    for text in (b"", b"one\n", b"", b"two\n"):
        with log.open("ab") as file:
            file.write(text)
        index.note()
    (tmp_path / "rank_0" / "attempt_1.log").write_text("of another attempt")
    index.note()
    lines = [line.split() for line in (tmp_path / "rank_0" / "attempt_2.log.times").read_text().splitlines()]
    assert [size for _, size in lines] == ["4", "8"]
    assert all(before - 0.001 <= float(at) <= time.time() + 0.001 for at, _ in lines)
    assert len(list(tmp_path.rglob("*.times"))) == 1


@pytest.fixture
def controller(rig: Rig) -> Iterator[Any]:
    """Starts `follow` as a controller does, with its input left open."""
    made: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [*rig.argv, "follow", str(rig.folder)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0
        )
        made.append(child)
        assert child.stdin
        child.stdin.write(b"{}\n")
        until(lambda: child.pid in seated(rig.folder))
        return child

    yield begin
    for child in made:
        child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


def seated(run_dir: Path) -> set[int]:
    """The processes that hold the contact's lock: one read for all, while files in /proc/PID/fd come and go."""
    inodes = [str(file.stat().st_ino) for file in run_dir.glob("contact")]
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(pid) for _, kind, _, _, pid, file, *_ in locks if kind == "FLOCK" and file.split(":")[-1] in inodes}


def test_a_run_that_is_to_end_with_its_controller_does(rig: Rig, controller: Any) -> None:
    rig.start(SLEEP, on_disconnect="kill")
    rig.ready(0, 1)
    first, second = controller(), controller()
    first.kill()
    first.wait()
    until(lambda: {first.pid, second.pid} & seated(rig.folder) == {second.pid})
    second.stdin.close()
    status = rig.ended()
    assert (status["state"], status["reason"], status["processes"]) == ("stopped", "disconnected", [])


def test_a_run_is_kept_by_default_without_a_controller(rig: Rig, controller: Any) -> None:
    wait = "import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    rig.start(wait)
    rig.ready(0, 1)
    child = controller()
    child.kill()
    child.wait()
    time.sleep(controller_lease.CLOSED_AFTER_S + 1)  # where it does matter, the run would end
    (rig.folder / "work" / "go").touch()
    assert rig.ended()["state"] == "completed"


def test_silence_counts_only_while_the_agent_is_awake(tmp_path: Path) -> None:
    watch = controller_lease.Contact(str(tmp_path))
    now = 0.0

    def lost_after(steps: int, tick: float) -> bool:
        nonlocal now
        for _ in range(steps):
            now += tick
            if watch.lost(now):
                return True
        return False

    assert not lost_after(80, 1.0)  # nobody has come yet
    seat = controller_lease.take_seat(str(tmp_path))
    assert not lost_after(10, 1.0)
    os.utime(seat, ns=(1, 1))  # a sign of life
    assert not lost_after(14, 1.0)
    now += 3600.0  # the machine slept
    assert not watch.lost(now)
    assert lost_after(2, 1.0)
    os.utime(seat, ns=(2, 2))
    assert not lost_after(10, 1.0)
    os.close(seat)  # the connection is closed
    assert not lost_after(2, 0.5)
    assert lost_after(3, 0.5)


def test_a_controller_that_comes_and_goes_between_two_looks_is_not_missed(tmp_path: Path) -> None:
    (tmp_path / "contact").touch()
    os.utime(tmp_path / "contact", ns=(1, 1))  # the clock of the file system may stand still for all of this test
    watch = controller_lease.Contact(str(tmp_path))
    assert not watch.lost(0.0)
    os.close(controller_lease.take_seat(str(tmp_path)))
    assert [watch.lost(1.0), watch.lost(2.0), watch.lost(3.0)] == [False, False, True]
