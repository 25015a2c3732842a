"""Sharded checkpoints of four ranks on two nodes (two run folders): what is saved, lost, damaged and found again.

The ranks are forked from one interpreter that has torch imported, and do what a line of JSON says.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.ops.providers.local import free_port
from nexa_dist.ops.work import cleanup
from nexa_dist.train import checkpoint
from nexa_dist.train.shards.steps import held

ADDRESS = f"127.0.{1 + os.getpid() % 200}.8"
REPO = Path(__file__).resolve().parents[3]
STAGE = """
import json, os, random, signal, sys, traceback
from pathlib import Path
import torch
from nexa_dist.train import control
from nexa_dist.train.env import RankEnv
from nexa_dist.train.shard_keeper import ShardKeeper
from nexa_dist.train.shards.ranks import Ranks
from nexa_dist.train.shards.store import Store

def fill(step, env, how):
    def write(folder):
        if how == "full" and env.rank == 3:
            raise OSError(28, "No space left on device")
        data = random.Random(step * 100 + env.rank).randbytes(9_000_000 if env.rank == 1 else 50_000)
        (folder / ("rank_%d.bin" % env.rank)).write_bytes(data)
        if env.rank == 0:
            (folder / "sub").mkdir()
            (folder / "sub" / "meta.json").write_text(json.dumps({"step": step}))
        if how == "blocked" and env.rank == 2:  # a folder where the replica of another node's file is to be
            (folder / "rank_1.bin").mkdir()
            (folder / "rank_1.bin" / "inside").write_text("")
        if how == "same":
            (folder / "config.json").write_text("{}")
        if how == "differs":
            (folder / "config.json").write_text(str(env.rank // 2))
        if env.rank == 2:
            (folder / "empty").write_bytes(b"")
    return write

def act(env, keeper, word, *rest):
    if word == "start":
        found = keeper.start()
        return [found[0], str(found[1])] if found else None
    if word in ("save", "later"):
        step, how = rest[0], rest[1] if len(rest) > 1 else ""
        return keeper.save(step, fill(step, env, how), later=word == "later")
    if word == "die":
        if env.rank == rest[0]:
            signal.setitimer(signal.ITIMER_REAL, rest[1])
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), 9))
        return None
    if word == "finish":
        return keeper.finish(rest[0], None)
    if word == "put":
        ranks = Ranks(env)
        store = Store(env, ranks, 2)
        store.look()
        return store.put(env.checkpoints / ("step_%08d" % rest[0])) if ranks.leads else None
    return getattr(keeper, word)(*rest)

def rank(number, told):
    local = number % told["per_node"]
    node = number // told["per_node"]
    os.environ.update(told["env"], RANK=str(number), LOCAL_RANK=str(local), NEXA_RUN_DIR=told["dirs"][node])
    os.chdir(told["dirs"][node])
    env = RankEnv.read("t", os.environ)
    control.join(env)
    keeper = ShardKeeper(env)
    out = []
    for words in told["acts"]:
        try:
            out.append(act(env, keeper, *words))
        except Exception as error:
            out.append("%s: %s" % (type(error).__name__, error))
    control.leave()
    Path("%s/out_%d" % (told["out"], number)).write_text(json.dumps(out))
    return 0

for line in sys.stdin:
    told = json.loads(line)
    pids = []
    for number in range(int(told["env"]["WORLD_SIZE"])):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = rank(number, told)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush(), sys.stdout.flush()
                os._exit(code)
        pids.append(pid)
    codes = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        for other in pids if codes[pid] else ():  # as torchrun does
            if other not in codes:
                os.kill(other, signal.SIGKILL)
    print("codes", json.dumps([codes[pid] for pid in pids]), flush=True)
"""


class Nodes:
    """`run` lets all ranks do some acts; answers what each said of each. `said` is all that they printed."""

    def __init__(self, folder: Path, stage: subprocess.Popen[str]) -> None:
        self.folder, self.stage = folder, stage
        self.said = ""
        self.codes: list[int] = []

    def node(self, number: int) -> Path:
        return self.folder / f"node_{number}"

    def step(self, node: int, step: int) -> Path:
        return self.node(node) / "checkpoints" / f"step_{step:08d}"

    def run(self, *acts: list[Any], world: int = 4, per_node: int = 2, attempt: int = 1, **env: str) -> list[Any]:
        dirs = [self.node(number) for number in range(world // per_node)]
        for path in dirs:
            path.mkdir(exist_ok=True)
        for old in self.folder.glob("out_*"):
            old.unlink()
        settings = {
            "WORLD_SIZE": str(world), "MASTER_ADDR": ADDRESS, "MASTER_PORT": str(free_port(ADDRESS)),
            "NEXA_ATTEMPT": str(attempt), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            "NEXA_RUN_ID": "r1", **env,
        }  # fmt: skip
        told = {"env": settings, "per_node": per_node, "dirs": [str(p) for p in dirs], "acts": acts}
        assert self.stage.stdin and self.stage.stdout
        print(json.dumps({**told, "out": str(self.folder)}), file=self.stage.stdin, flush=True)
        self.said = ""
        for line in self.stage.stdout:
            if line.startswith("codes "):
                self.codes = json.loads(line[6:])
                break
            self.said += line
        return [
            json.loads(path.read_text()) if (path := self.folder / f"out_{rank}").exists() else None
            for rank in range(world)
        ]


@contextlib.contextmanager
def staged() -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", STAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, process_group=0,
    )  # fmt: skip
    try:
        yield child
        assert child.stdin
        child.stdin.close()
        assert child.wait(60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.fixture(scope="module")
def stage() -> Iterator[subprocess.Popen[str]]:
    with staged() as child:
        yield child


@pytest.fixture
def nodes(tmp_path: Path, stage: subprocess.Popen[str]) -> Nodes:
    return Nodes(tmp_path, stage)


def names(folder: Path) -> set[str]:
    return set(checkpoint.names(folder)) - {checkpoint.MANIFEST}


ALL = {"rank_0.bin", "rank_1.bin", "rank_2.bin", "rank_3.bin", "sub/meta.json", "empty"}


def test_a_lost_node_starts_from_its_replica_and_damage_is_walked_back_over(nodes: Nodes) -> None:
    out = nodes.run(["start"], ["begin", 0], ["save", 10], ["save", 20], ["finish", 20])
    assert nodes.codes == [0] * 4, nodes.said
    assert [one[:4] for one in out] == [[None] * 4] * 4 and "warning" not in nodes.said
    assert out[0][4]["step"] == 20 and out[1][4] == {}
    for node in (0, 1):
        assert not checkpoint.verify(nodes.step(node, 20)) and names(nodes.step(node, 20)) == ALL
    told = checkpoint.manifest(nodes.step(1, 20))["shards"]
    assert (out[0][4]["digest"], out[0][4]["nodes"]) == (told["digest"], 2)
    assert told["nodes"] == [["rank_0.bin", "rank_1.bin", "sub/meta.json"], ["empty", "rank_2.bin", "rank_3.bin"]]
    assert (told["world_size"], told["layout"]) == (4, [2, 2])
    shutil.rmtree(nodes.node(1))
    out = nodes.run(["start"], attempt=2)
    assert out == [[[20, str(nodes.step(rank // 2, 20))]] for rank in range(4)], nodes.said
    assert "step 20: 6 files (9.2 MB) go to nodes that lack them" in nodes.said
    assert checkpoint.digest(nodes.step(1, 20)) == checkpoint.digest(nodes.step(0, 20))
    assert not checkpoint.verify(nodes.step(1, 20))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


RUN = "train_20260101_000000_old"


def test_a_cleanup_takes_all_shards_of_a_step_or_none(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has its own shards alone; only both together are a checkpoint."""
    nodes.run(["begin", 0], ["save", 10], ["save", 20], ["finish", 20], NEXA_REPLICAS="0")
    disks = [nodes.folder / name for name in ("a", "b")]
    for number, disk in enumerate(disks):
        shutil.copytree(nodes.node(number) / "checkpoints", disk / RUN / "checkpoints")
    before = {disk: checkpoint.names(disk) for disk in disks}

    def clean(kind: str, *which: Path, code: int = 0) -> str:
        said: list[str] = []
        for path in (path for disk in disks for path in (disk / RUN, *(disk / RUN).rglob("*"))):
            os.utime(path, (1e9, 1e9))
        words = [word for disk in which for word in (f"--{kind}", str(disk))]
        assert cleanup.main([*words, "--keep", "1", "--days", "1", "--delete"], said.append) == code
        return "\n".join(said)

    step = f"{RUN}/checkpoints/step_00000010"
    for kind in ("scratch", "durable"):  # of one node: what the other one has is not known
        said = clean(kind, disks[0])
        assert "3 of its 6 files are on no node here: name the folders of its other nodes" in said
        assert "0 folders" in said and {disk: checkpoint.names(disk) for disk in disks} == before

    rename = Path.rename

    def stuck(self: Path, to: Path) -> Path:
        if self == disks[1] / step:
            raise OSError(16, "Device or resource busy")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stuck)
    assert "Device or resource busy" in clean("durable", *disks, code=1)
    assert {disk: checkpoint.names(disk) for disk in disks} == before
    monkeypatch.setattr(Path, "rename", rename)

    flip(disks[1] / RUN / "checkpoints" / "step_00000020" / "rank_3.bin")
    assert "0 folders" in clean("durable", *disks)  # the newest that is whole is then the older one
    flip(disks[1] / RUN / "checkpoints" / "step_00000020" / "rank_3.bin")
    assert "2 folders" in clean("durable", *disks)
    assert [checkpoint.steps(disk / RUN / "checkpoints") for disk in disks] == [[20], [20]]

    for disk in disks:  # as scratch: the newest whole one, which is nowhere else, stays with both
        (disk / RUN / "spec.json").write_text("{}")
    assert "step_00000020, which is nowhere else, stays" in clean("scratch", *disks)
    assert [path.name for disk in disks for path in (disk / RUN).iterdir()] == ["checkpoints"] * 2
    assert held([disk / RUN / "checkpoints" for disk in disks])[0].is_whole()
    assert len(list((disks[0] / "archive").iterdir())) == 2


def test_what_no_node_holds_is_walked_back_over_and_said(nodes: Nodes) -> None:
    nodes.run(["begin", 0], ["save", 10], ["save", 20], ["finish", 20], NEXA_REPLICAS="0")
    assert names(nodes.step(1, 20)) == {"empty", "rank_2.bin", "rank_3.bin"}
    shutil.copytree(nodes.folder, nodes.folder / "kept", ignore=shutil.ignore_patterns("kept"))
    flip(nodes.step(1, 20) / "rank_3.bin")
    out = nodes.run(["start"], ["begin", 10], attempt=2)
    assert [one[0][0] for one in out] == [10] * 4, nodes.said
    assert f"skipped checkpoint {nodes.step(1, 20)}: rank_3.bin: its SHA-256 does not fit" in nodes.said
    assert "skipped checkpoint of step 20: 3 of its 6 files are on no node" in nodes.said
    assert names(nodes.step(1, 10)) == ALL
    shutil.rmtree(nodes.node(1))  # and without a replica nothing is left of any step, but of the one that was brought
    assert nodes.run(["start"], attempt=3)[3][0][0] == 10

    for node in (0, 1):
        shutil.rmtree(nodes.node(node), ignore_errors=True)
        shutil.copytree(nodes.folder / "kept" / f"node_{node}", nodes.node(node))
    shutil.rmtree(nodes.step(0, 20))
    nodes.run(["save", 20], world=2, NEXA_REPLICAS="0")  # another save of step 20, on node 0 alone
    (nodes.step(0, 20) / "rank_0.bin").unlink()
    shutil.rmtree(nodes.node(1) / "checkpoints" / "step_00000010")
    shutil.rmtree(nodes.step(0, 10))
    assert nodes.run(["start"])[0] == [None]
    assert "skipped checkpoint of step 20: 3 of its 6 files are on no node" in nodes.said


@pytest.mark.long("seeds")
@pytest.mark.parametrize("seed", range(6))
def test_a_rank_killed_anywhere_in_a_save_leaves_no_half_step(nodes: Nodes, seed: int) -> None:
    """With a replica, and then without: the newest step that is taken is one that was saved to its end."""
    chance = random.Random(seed)
    replicas = {"NEXA_REPLICAS": str(seed % 2)}
    nodes.run(["begin", 0], ["save", 10], **replicas)
    for attempt in range(2, 6):
        killed, after_s = chance.randrange(4), chance.uniform(0.0, 0.4)
        saves = [["save", step] for step in range(20, 400, 10)]
        nodes.run(["start"], ["begin", 10], ["die", killed, after_s], *saves, attempt=attempt, **replicas)
        assert nodes.codes[killed] == -9, nodes.said
        both = [checkpoint.steps(nodes.node(node) / "checkpoints") for node in (0, 1)]
        out = nodes.run(["start"], attempt=attempt, **replicas)
        assert nodes.codes == [0] * 4, nodes.said
        found = {one[0][0] for one in out}
        common = max(set(both[0]) & set(both[1]))
        assert len(found) == 1 and max(found) >= common, (both, nodes.said)
        for node in (0, 1):
            path = nodes.step(node, max(found))
            assert checkpoint.verify(path) == [] and names(path) == ALL


def test_a_save_that_one_rank_cannot_do_is_nobodys(nodes: Nodes) -> None:
    out = nodes.run(
        ["begin", 0], ["save", 10], ["save", 20, "full"], ["later", 20, "full"], ["settle"], ["save", 20, "differs"],
        ["later", 20, "same"], ["later", 30], ["settle"], ["finish", 30],
    )  # fmt: skip
    assert nodes.codes == [0] * 4, nodes.said
    full = "NexaError: checkpoint at step 20 was not saved: rank 3: [Errno 28] No space left on device"
    differs = (
        "NexaError: checkpoint at step 20 was not saved: rank 2's node wrote another config.json than a node before it"
    )
    assert [one[1:6] for one in out] == [[None, full, None, full, differs]] * 4
    assert [one[6:9] for one in out] == [[None] * 3] * 4
    assert out[0][9]["step"] == 30
    for node in (0, 1):
        root = nodes.node(node) / "checkpoints"
        assert sorted(path.name for path in root.iterdir()) == ["step_00000020", "step_00000030"]
        assert names(nodes.step(node, 20)) == {*ALL, "config.json"}
    (nodes.node(1) / "generation").write_text("2\n")  # the agent of a newer attempt
    out = nodes.run(["save", 40], ["start"])
    assert {one[0].split(": ")[0] for one in out} == {"Superseded"}
    assert out[0][1] == [30, str(nodes.step(0, 30))]


def test_a_replica_that_cannot_be_written_keeps_nobody_waiting(nodes: Nodes) -> None:
    out = nodes.run(["begin", 0], ["save", 10, "blocked"], ["save", 20], ["finish", 20])
    assert nodes.codes == [0] * 4, nodes.said
    assert len({str(one[1]) for one in out}) == 1
    assert "checkpoint at step 10 was not saved: rank 1: [Errno 17] File exists" in out[0][1]
    for node in (0, 1):
        assert [path.name for path in (nodes.node(node) / "checkpoints").iterdir()] == ["step_00000020"]


def test_other_numbers_of_ranks_and_nodes_find_all_files(nodes: Nodes) -> None:
    nodes.run(["begin", 0], ["save", 10], ["finish", 10], NEXA_REPLICAS="0")
    out = nodes.run(["start"], world=6, attempt=2)
    assert [one[0] for one in out] == [[10, str(nodes.step(rank // 2, 10))] for rank in range(6)], nodes.said
    assert names(nodes.step(2, 10)) == ALL and not checkpoint.verify(nodes.step(2, 10))
    out = nodes.run(["start"], ["begin", 10], ["save", 20], ["finish", 20], world=2, attempt=3)
    assert [one[0] for one in out] == [[10, str(nodes.step(0, 10))]] * 2
    out = nodes.run(["start"], attempt=4)
    assert out[3][0] == [20, str(nodes.step(1, 20))] and names(nodes.step(1, 20)) == {
        "rank_0.bin",
        "rank_1.bin",
        "sub/meta.json",
    }


def test_a_durable_folder_that_all_see_gets_the_whole(nodes: Nodes) -> None:
    durable = nodes.folder / "durable"
    out = nodes.run(["begin", 0], ["save", 10], ["later", 20], ["finish", 20], NEXA_DURABLE=str(durable))
    whole = durable / "r1" / "checkpoints" / "step_00000020"
    assert "step 20 is durable, waited" in nodes.said
    assert not checkpoint.verify(whole) and names(whole) == ALL
    assert (out[0][3]["path"], out[0][3]["sha256"]) == (str(whole), checkpoint.digest(whole))
    assert names(nodes.step(0, 20)) == {"rank_0.bin", "rank_1.bin", "sub/meta.json"}  # no replica is needed then
    assert sorted(path.name for path in (durable / "r1").iterdir()) == ["checkpoints", "generation"]
    flip(nodes.step(1, 20) / "rank_3.bin")  # a disk that goes bad before it is brought there
    told = nodes.run(["put", 20], NEXA_DURABLE=str(nodes.folder / "other"))[2]
    assert told[0].endswith("step_00000020: rank_3.bin is damaged"), told
    assert not list((nodes.folder / "other").glob("r1/checkpoints/*"))
    shutil.rmtree(nodes.node(1))
    more = {"NEXA_DURABLE": str(durable), "NEXA_RESUME_STEP": "20", "NEXA_RESUME_FROM": str(nodes.step(1, 20))}
    out = nodes.run(["start"], attempt=2, **more)
    assert out[3][0] == [20, str(whole)], nodes.said
    flip(whole / "rank_2.bin")
    assert nodes.run(["start"], attempt=2, **more)[3][0] == (
        "NexaError: checkpoint of step 20 is not whole: 3 of its 6 files are on no node"
    )


@pytest.mark.long("variant of the folder that all see")
def test_where_each_node_has_a_durable_folder_each_keeps_its_own(nodes: Nodes) -> None:
    for node in (0, 1):
        nodes.node(node).mkdir()
    env = {"NEXA_DURABLE": "durable"}
    out = nodes.run(["begin", 0], ["save", 10], ["finish", 10], **env)
    assert nodes.codes == [0] * 4 and out[0][2]["step"] == 10, nodes.said
    for node in (0, 1):
        assert names(nodes.node(node) / "durable" / "r1" / "checkpoints" / "step_00000010") == ALL
