"""The program that measures between nodes: real processes, real gloo, on addresses of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import probe
from nexa_dist.ops.health.group_test import START
from nexa_dist.remote import GROUP_TEST as PROGRAM


class Group:
    """One program for each node, as `nexa diag` starts them: by their source on standard input, which stays open."""

    def __init__(self, nodes: int, **more: Any) -> None:
        port, _ = probe.free_port("127.0.0.1", 0)
        self.plan = {
            "nodes": [f"n{i}" for i in range(nodes)], "nproc": 1, "backend": "gloo", "address": "127.0.0.1",
            "port": port, "limit_s": 240, "op_s": 0.02, "floor_gbps": 0.0, **more,
        }  # fmt: skip
        self.before: list[str] = []
        self.programs: list[subprocess.Popen[bytes]] = []

    def start(self, *indices: int) -> None:
        source = PROGRAM.read_bytes()
        for index in indices:
            told = json.dumps({**self.plan, "node": index})
            argv = [*self.before, sys.executable, "-c", START, str(len(source)), told]
            env = {"PATH": os.environ["PATH"], "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
            self.programs.append(made)
            assert made.stdin
            made.stdin.write(source)
            made.stdin.flush()
        for program in self.programs:
            assert program.stdin and program.stdout and b"imported" in program.stdout.readline()
            program.stdin.write(b"\n")
            program.stdin.flush()

    def said(self, index: int) -> dict[str, Any]:
        """All that one program told, later words over earlier ones. Waits for its end."""
        out = self.programs[index].stdout
        assert out
        told: dict[str, Any] = {}
        for line in out:
            told |= json.loads(line)
        return {**told, "code": self.programs[index].wait(timeout=90)}

    def close(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout):
                assert pipe
                pipe.close()


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    made = Group(**request.param)
    yield made
    made.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int, within_s: float = 90.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.02)
    return False


VARIANT = pytest.mark.long("variant of its end")


@pytest.mark.long("ten CPU seconds of imports; every provision measures two nodes")
@pytest.mark.parametrize("group", [{"nodes": 3}], indirect=True)
def test_three_nodes_measure_each_other(group: Group) -> None:
    group.start(0, 1, 2)
    first = group.said(0)
    assert first["code"] == 0 and group.said(1)["code"] == group.said(2)["code"] == 0
    result = first["result"]
    assert (result["backend"], result["ranks"], result["rounds_left"]) == ("gloo", 3, 0)
    assert result["latency_us"] > 0 and result["busbw_gb_s"] > 0
    matrix = result["matrix"]
    assert [matrix[i][i] for i in range(3)] == [None] * 3
    pairs = [(row, column) for row in range(3) for column in range(3) if row != column]
    assert all(0 < matrix[row][column] <= result["at_most"][row][column] for row, column in pairs)


@pytest.mark.long("variant of the group test")
@pytest.mark.parametrize("group", [{"nodes": 2}], indirect=True)
def test_who_waits_for_a_cpu_would_be_faster(group: Group) -> None:
    group.before = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]  # both wait for the same one
    group.start(0, 1)
    result = group.said(0)["result"]
    assert result["matrix"][0][1] < result["at_most"][0][1]
    assert result["matrix"][1][0] < result["at_most"][1][0]


@pytest.mark.long("variant of the group test")
@pytest.mark.parametrize("group", [{"nodes": 2, "nproc": 2}], indirect=True)
def test_the_ranks_of_a_node_send_at_once(group: Group) -> None:
    group.start(0, 1)
    result = group.said(0)["result"]
    assert result["ranks"] == 4
    assert result["matrix"][0][1] > 0 and result["matrix"][1][0] > 0
    assert group.said(1)["code"] == 0


@pytest.mark.long("variant of the group test")
@pytest.mark.parametrize("group", [{"nodes": 2, "limit_s": 12}], indirect=True)
def test_a_node_that_never_comes_is_waited_for_only_so_long(group: Group) -> None:
    group.start(0)
    said = group.said(0)
    assert said["code"] == 1 and said["stage"] == "met" and said["error"]


@pytest.mark.parametrize("group", [{"nodes": 2}], indirect=True)
@pytest.mark.parametrize("how", ["input ends", *(pytest.param(name, marks=VARIANT) for name in ("SIGTERM", "SIGKILL"))])
def test_it_ends_with_whoever_started_it(group: Group, how: str) -> None:
    group.start(0)
    program = group.programs[0]
    assert program.stdin
    until = time.monotonic() + 90
    while not (ranks := children(program.pid)):
        assert time.monotonic() < until
        time.sleep(0.02)
    if how == "input ends":
        program.stdin.close()
    else:
        program.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    program.wait(timeout=90)
    assert all(gone(rank) for rank in ranks)
