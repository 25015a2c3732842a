"""The flight recorder of ranks that hang: real collectives of gloo, real dumps, and what `nexa why` makes of them."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexa_dist import wire
from nexa_dist.node import outputs
from nexa_dist.node.watch import flight
from nexa_dist.ops.providers.local import free_port
from nexa_dist.plan.failures.diagnose import judge
from nexa_dist.plan.failures.evidence import Evidence, NodeEvidence, RankEvidence
from nexa_dist.plan.runs.torchrun import DEFAULT_ENVIRONMENT
from tests.processes.node.rig import PASS_ON, REPORT, Rig

REPO = Path(__file__).resolve().parents[3]
STUCK = (
    REPORT
    + """
import pathlib, pickle, torch
from nexa_dist.train import control
from nexa_dist.train.env import RankEnv
control.join(RankEnv.read("x", os.environ))
for _ in range(2):
    torch.distributed.all_reduce(torch.ones(4, 2))
while int(pickle.loads(torch._C._distributed_c10d._dump_fr_trace())["pg_status"]["0"]["last_completed_collective"]) < 2:
    time.sleep(0.01)  # the thread that did it tells the recorder after it has told this one
if rank == 0:
    waits = torch.distributed.all_reduce(torch.ones(4, 2), async_op=True)
come = [pathlib.Path(os.environ["NEXA_PROGRESS"]).parents[1] / f"come_{r}" for r in (0, 1)]
come[rank].touch()
while not all(path.exists() for path in come):
    time.sleep(0.01)
report(2, of=9)  # a hang is counted from here, whoever is late
print("ready", flush=True)
if rank == 0:
    waits.wait()
time.sleep(600)
"""
)


def test_ranks_that_hang_tell_in_which_collective(rig: Rig) -> None:
    pytest.importorskip("torch")
    env = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("")), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(REPO), **DEFAULT_ENVIRONMENT,
    }  # fmt: skip
    rig.start(STUCK, hang_timeout_s=1.0, signals=PASS_ON, env=env)
    assert rig.ended()["reason"] == "hang"
    assert "deprecated" not in (rig.folder / "rank_0" / "attempt_1.log").read_text()  # a name of the recorder
    names = [event["event"] for event in rig.events()]
    assert names.index("hang") < names.index("flight") < names.index("ended")
    events = [wire.event(json.dumps(event).encode()) for event in rig.events("flight")]
    told = {event["rank"]: event["groups"][0] for event in events}
    assert {rank: (group["enqueued"], group["completed"]) for rank, group in told.items()} == {0: (3, 2), 1: (2, 2)}
    assert (told[0]["op"], told[0]["seq"], told[0]["sizes"]) == ("gloo:all_reduce", 3, "[[4, 2]]")
    node = NodeEvidence("n0", tuple(rig.events()))
    verdict = judge(Evidence((node,), tuple(RankEvidence("n0", rank) for rank in (0, 1))))
    assert (verdict.name, verdict.first) == ("hang", ("n0", 1))
    assert verdict.others[-1] == (
        "collectives: rank 0 waits in all_reduce [[4, 2]] number 3 of default_pg, to which rank 1 has not come (rank 1"
        " ended with number 2)"
    )
    elsewhere = tuple(RankEvidence("n1", rank) for rank in (0, 1))
    assert judge(Evidence((node,), elsewhere)).others == ()  # of ranks of another node it has nothing to tell
    left = sorted(path.name for path in (rig.folder / "rank_0").iterdir() if path.name.startswith("flight"))
    assert left == ["flight.attempt_1.json.gz"]
    kept = json.loads(gzip.decompress((rig.folder / "rank_0" / left[0]).read_bytes()))
    assert [entry["collective_seq_id"] for entry in kept["entries"]] == [1, 2, 3]
    assert outputs.TRACKED.fullmatch(f"rank_0/{left[0]}")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_dump_runs_nothing_and_one_that_is_none_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    good = {"entries": [], "pg_status": {}}
    for rank, value in enumerate((Evil(tmp_path / "owned"), ["no", "dict"], good)):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / f"flight_{rank}").write_bytes(pickle.dumps(value))
    flight.main(str(tmp_path), 1)
    assert not (tmp_path / "owned").exists()
    events = [json.loads(line) for line in (tmp_path / "agent.jsonl").read_text().splitlines()]
    assert [(event["event"], event["rank"], event["groups"]) for event in events] == [("flight", 2, [])]
    with pytest.raises(pickle.UnpicklingError, match=r"holds no posix\.mkdir"):
        flight.read(str(tmp_path / "rank_0" / "flight_0"))


def test_a_rank_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "rank_0").mkdir()
    os.mkfifo(tmp_path / "rank_0" / "flight_0.pipe")
    flight.ask(str(tmp_path), set(), wait_s=1e9)  # nobody has the pipe open
    with open(os.open(tmp_path / "rank_0" / "flight_0.pipe", os.O_RDONLY | os.O_NONBLOCK), "rb"):
        flight.ask(str(tmp_path), {0}, wait_s=1e9)  # it is frozen
    flight.forget(str(tmp_path))
    assert not list((tmp_path / "rank_0").iterdir())


def test_peers_are_left_alone_until_other_nodes_have_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks whose peers are ended fail, and dump nothing."""
    slept: list[float] = []
    monkeypatch.setattr(flight, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append))
    (tmp_path / "rank_0").mkdir()
    (tmp_path / "rank_0" / "flight_0").write_bytes(pickle.dumps({}))
    os.mkfifo(tmp_path / "rank_0" / "flight_0.pipe")
    flight.ask(str(tmp_path), set(), hold_s=5.0)  # nobody has the pipe open
    assert slept == []
    with open(os.open(tmp_path / "rank_0" / "flight_0.pipe", os.O_RDONLY | os.O_NONBLOCK), "rb"):
        flight.ask(str(tmp_path), set(), hold_s=5.0)
    assert 5.0 <= sum(slept) < 5.1
