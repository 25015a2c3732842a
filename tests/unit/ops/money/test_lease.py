"""Signs of life and other deadlines for nodes, with the nodes' own script and a shell in place of ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.money import lease
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.ssh.connections import Link, Ssh

DEADLINE = Path(__file__).resolve().parents[4] / "terraform" / "shared" / "deadline.sh"


class Shell(Runner):
    """Runs on this machine what ssh would run on a node; `silent` nodes do not answer."""

    def __init__(self, folder: Path, *silent: str) -> None:
        self.folder, self.silent = folder, silent

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        node = argv[-2]
        if node in self.silent:
            return Result(tuple(argv), 255, err=b"ssh: connect to host: No route to host")
        env = {"PATH": "/usr/bin:/bin", "NEXA_DEADLINE_DIR": str(self.folder / node)}
        done = subprocess.run(["/bin/sh", "-c", argv[-1]], env=env, capture_output=True, timeout=90)
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)


def make(folder: Path, name: str, due_unix: int) -> None:
    node = folder / name
    node.mkdir()
    for file in ("lease", "busy"):
        (node / file).touch()
        os.utime(node / file, (1, 1))
    (node / "due_unix").write_text(f"{due_unix}\n")
    (node / "acts_unix").write_text(f"{due_unix}\n")
    (node / "limits").write_text(f"3600 600 0 {due_unix - 3600}\n")
    shutil.copy(DEADLINE, node / "deadline")
    (node / "deadline").chmod(0o755)


def links(folder: Path, *silent: str) -> list[Link]:
    nodes = tuple(Node(name, "198.51.100.1", 1) for name in ("n0", "n1"))
    cluster = Cluster("c", "aws", nodes, Layout("p", "s", "s", "d"))
    return lease.doors(Ssh(Shell(folder, *silent), cluster, "/nowhere"))


def age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def test_a_sign_of_life_renews_the_lease_and_says_what_is_left(tmp_path: Path) -> None:
    due = int(time.time()) + 1000
    for name in ("n0", "n1"):
        make(tmp_path, name, due)
    signs = lease.renew(links(tmp_path))
    assert signs.silent == {}
    assert all(left is not None and 970 <= left <= 1000 for left in signs.left_s.values())
    assert age_s(tmp_path / "n1/lease") < 60 < age_s(tmp_path / "n1/busy")
    lease.renew(links(tmp_path), busy=True)
    assert age_s(tmp_path / "n1/busy") < 60
    assert sorted(path.name for path in (tmp_path / "n0").iterdir()) == sorted(
        ["acts_unix", "busy", "deadline", "due_unix", "lease", "limits"]
    )


def test_a_silent_node_and_one_without_a_clock_hold_up_no_other(tmp_path: Path) -> None:
    make(tmp_path, "n1", int(time.time()) + 1000)
    signs = lease.renew(links(tmp_path, "n0"))
    assert "No route to host" in signs.silent["n0"]
    assert set(signs.left_s) == {"n1"} and age_s(tmp_path / "n1/lease") < 60
    assert lease.renew(links(tmp_path)).left_s["n0"] is None  # it answers, and has no clock


def test_nodes_are_in_use_for_as_long_as_a_block_lasts(tmp_path: Path) -> None:
    make(tmp_path, "n0", int(time.time()) + 1000)
    busy, before = tmp_path / "n0/busy", set(threading.enumerate())
    with lease.in_use(links(tmp_path, "n1"), every_s=0.05):
        for _ in range(2):
            os.utime(busy, (1, 1))
            give_up = time.monotonic() + 90
            while age_s(busy) > 60 and time.monotonic() < give_up:
                time.sleep(0.01)
            assert age_s(busy) < 60
    for thread in set(threading.enumerate()) - before:  # a sign of life that is on its way may come after the block
        thread.join(90)
    os.utime(busy, (1, 1))
    time.sleep(0.1)
    assert age_s(busy) > 60


def test_another_deadline_as_far_as_max_s_allows(tmp_path: Path) -> None:
    due = int(time.time()) + 1000
    for name in ("n0", "n1"):
        make(tmp_path, name, due)
    assert lease.rearm(links(tmp_path), due - 500) == {"n0": due - 500, "n1": due - 500}
    assert lease.rearm(links(tmp_path), due + 500)["n0"] == due
    assert lease.rearm(links(tmp_path), due + 500, max_s=7200) == {"n0": due + 500, "n1": due + 500}
    assert (tmp_path / "n1/due_unix").read_text() == f"{due + 500}\n"
    (tmp_path / "n0/due_unix").unlink()
    with pytest.raises(NexaError, match=r"(?s)n0: setting its deadline.*it has none"):
        lease.rearm(links(tmp_path), due)
    assert (tmp_path / "n1/due_unix").read_text() == f"{due}\n"


@pytest.mark.parametrize(("lease_s", "every_s"), [(120, 12), (600, 60), (86_400, 60), (10, 5)])
def test_a_lease_is_renewed_many_times_before_it_ends(lease_s: float, every_s: float) -> None:
    assert lease.renew_every_s(lease_s) == every_s
