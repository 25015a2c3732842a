"""The seam to the nodes with real programs in place of ssh: what they may say, and what Ctrl-C ends."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nexa_dist.run.runner import TOO_MUCH, Result, Runner
from nexa_dist.run.ssh.connections import CHECKED, NOT_OURS, PUT, on_all


def test_the_agent_is_put_whole_or_not_at_all_and_runs_only_as_it_was_sent(tmp_path: Path) -> None:
    path, good = tmp_path / "a b" / "agent.pyz", hashlib.sha256(b"whole").hexdigest()

    def put(data: bytes) -> int:
        return subprocess.run(("sh", "-c", PUT, "sh", str(path), good), input=data, capture_output=True).returncode

    def run() -> tuple[int, bytes]:
        done = subprocess.run(("sh", "-c", CHECKED, "sh", str(path), good, "echo", "a b"), capture_output=True)
        return done.returncode, done.stdout

    assert put(b"who") and not path.exists() and run() == (NOT_OURS, b"")
    assert not put(b"whole") and path.stat().st_mode & 0o777 == 0o700 and run() == (0, b"a b\n")
    path.write_bytes(b"wholE")
    assert run() == (NOT_OURS, b"")
    assert [p.name for p in path.parent.iterdir()] == ["agent.pyz"]


def test_what_says_too_much_is_ended(tmp_path: Path) -> None:
    began, runner = time.monotonic(), Runner()
    said = runner.run(("sh", "-c", "yes & exec yes >&2"), most_bytes=1 << 20, timeout_s=90)
    assert said.code == TOO_MUCH and not said.out and time.monotonic() - began < 60
    echoed = runner.run(("sh", "-c", "cat; echo done >&2; exit 3"), stdin=b"x" * 300_000, most_bytes=1 << 20)
    assert (echoed.code, len(echoed.out), echoed.err) == (3, 300_000, b"done\n")
    assert runner.run(("sh", "-c", "exec 0<&-; echo x"), stdin=b"x" * 300_000, most_bytes=1 << 20).out == b"x\n"
    assert runner.run(("sleep", "600"), most_bytes=1, timeout_s=0.05).code == 124


def test_an_interrupt_ends_what_a_pool_waits_for() -> None:
    runner, begun = Runner(), threading.Event()

    def act(number: int) -> Result:
        if number == 1:
            begun.wait(90)
            raise KeyboardInterrupt  # as if it had come to the one who waits
        begun.set()
        return runner.run(("sleep", "600"), timeout_s=600, most_bytes=100)

    with pytest.raises(KeyboardInterrupt):
        on_all([1, 2, 3], act)
    assert runner.run(("true",)).code == 0
