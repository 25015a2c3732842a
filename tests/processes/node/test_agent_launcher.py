"""The agent with `launcher: direct`, and the warm interpreter that waits between two attempts."""

from __future__ import annotations

import sys
from typing import Any

from nexa_dist.node.oslib import start_time
from tests.processes.node.rig import REPORT, Rig, freeze, until


def direct(rig: Rig, code: str, *, world: int = 2, **more: Any) -> None:
    script = rig.folder.parent / "train.py"
    script.write_text(code)
    rig.start(
        "", world=world, launcher="direct", argv=[sys.executable, "-u", str(script)], first_rank=0, nproc=world,
        world_size=world, node_rank=0, nnodes=1, master_addr="127.0.0.1", master_port=9, preload=["json"], **more,
    )  # fmt: skip


WORK = REPORT + "report(3)\nprint('ready')\ntime.sleep(600)\n"


def test_ranks_without_torchrun(rig: Rig) -> None:
    direct(rig, "import os\nprint(os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'])")
    status = rig.ended()
    assert (status["state"], [e["code"] for e in status["ranks"]]) == ("completed", [0, 0])
    assert rig.log(1).read_text() == "1 1 2\n"
    assert len(rig.events("torchrun")) == 1


def test_ranks_without_torchrun_that_hang(rig: Rig) -> None:
    go = rig.folder.parent / "go"
    direct(rig, f"import os, time\nprint('ready')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{WORK}",
           hang_timeout_s=0.5)  # fmt: skip
    rig.ready(0, 1)
    pid = rig.events("rank_start")[1]["pid"]
    freeze(pid)
    go.touch()
    status = rig.ended()
    assert (status["reason"], status["left"], len(status["ranks"])) == ("hang", [], 2)
    for rank in (0, 1):
        assert 'train.py", line' in rig.log(rank).read_text()


def test_a_warm_interpreter_waits_for_the_next_attempt_and_no_longer(rig: Rig) -> None:
    direct(rig, WORK, keep_warm=True)
    ready = until(lambda: rig.events("warm"))[0]
    warm = rig.status()["warm"]
    assert warm == ready["pid"]
    assert warm not in rig.status()["processes"]
    answer = rig.stop(release=False, reason="another rank or node failed")
    assert (answer["left"], answer["processes"], answer["warm"]) == ([], [], warm)

    direct(rig, WORK, keep_warm=True, attempt=2)
    rig.ready(0, 1, attempt=2)
    assert [e.get("warm") for e in rig.events("rank_start")[2:]] == [True, True]
    assert len(rig.status()["processes"]) == 2
    answer = rig.stop()
    assert (answer["state"], answer["left"], answer["processes"], answer["warm"]) == ("stopped", [], [], None)
    assert start_time(warm) is None
    assert not (rig.folder / "warm.json").exists()


def test_a_run_that_completes_keeps_nothing_warm(rig: Rig) -> None:
    direct(rig, REPORT + f"report(1)\nwhile not os.path.exists({str(rig.folder / 'warm.json')!r}): time.sleep(0.02)\n",
           keep_warm=True)  # fmt: skip
    status = rig.ended()
    assert (status["state"], status["left"], status["warm"]) == ("completed", [], None)
    assert not (rig.folder / "warm.json").exists()


def test_a_superseded_attempt_that_hangs_in_a_warm_fork_is_ended(rig: Rig) -> None:
    direct(rig, WORK, keep_warm=True)
    until(lambda: rig.events("warm"))
    rig.stop(release=False)
    direct(rig, "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + WORK, keep_warm=True, attempt=2)
    rig.ready(0, 1, attempt=2)
    old = rig.status()["processes"]
    direct(rig, "print('third')", keep_warm=True, attempt=3)
    assert rig.ended()["state"] == "completed"
    assert not [pid for pid in old if start_time(pid)]
    assert rig.log(0, 3).read_text() == "third\n"
