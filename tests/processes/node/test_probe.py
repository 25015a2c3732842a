"""What `probe` says and begins, and that nothing of it stays when nothing comes of it."""

from __future__ import annotations

import os
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

from nexa_dist.node.code import tree as code_tree
from nexa_dist.node.oslib import start_time
from nexa_dist.node.probe import free_port
from tests.processes.node.rig import Rig, until


def probe(rig: Rig, **more: Any) -> dict[str, Any]:
    return rig.call("probe", message={"python": sys.executable, "scratch": str(rig.folder.parent), **more})


def direct(rig: Rig, code: str = "print('ran')") -> dict[str, Any]:
    """The spec of a run with one rank, started by the agent itself."""
    script = rig.folder.parent / "train.py"
    script.write_text(code)
    return rig.spec(
        "", world=1, launcher="direct", argv=[sys.executable, "-u", str(script)], first_rank=0, nproc=1, world_size=1,
        node_rank=0, nnodes=1, master_addr="127.0.0.1", master_port=9, preload=["json"], keep_warm=True,
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def early(rig: Rig, spec: dict[str, Any]) -> dict[str, Any]:
    """What is known of the spec before the nodes have answered."""
    known = {key: spec[key] for key in ("argv", "cwd", "env", "nproc", "preload")}
    return {"run_dir": str(rig.folder), "spec": known, "secrets": {}}


def test_what_is_there_and_which_versions(rig: Rig, tmp_path: Path) -> None:
    there, wrong, missing = tmp_path / code_tree.digest({}), tmp_path / "0123456789abcdef", tmp_path / "missing"
    there.mkdir()
    wrong.mkdir()
    answer = probe(rig, have=[str(there), str(wrong), str(missing)])
    assert answer["have"] == [str(there)]
    assert answer["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not rig.folder.exists()


def test_an_interpreter_that_does_not_run_is_said(rig: Rig, tmp_path: Path) -> None:
    assert "No such file" in probe(rig, python=str(tmp_path / "none"))["error"]


def test_the_ranks_come_from_the_interpreter_that_probe_loaded(rig: Rig) -> None:
    spec = direct(rig)
    answer = probe(rig, warm=early(rig, spec))
    assert "error" not in answer
    rig.call("start", str(rig.folder), message={"spec": spec, "secrets": {}, "go": True})
    assert rig.ended()["state"] == "completed"
    assert [e["warm"] for e in rig.events("rank_start")] == [True]
    assert rig.log().read_text() == "ran\n"
    assert rig.status()["warm"] is None


def test_without_a_word_on_threads_there_are_as_many_as_the_controller_will_say(rig: Rig) -> None:
    spec = direct(rig, "import os; print(os.environ['OMP_NUM_THREADS'])")
    del spec["env"]["OMP_NUM_THREADS"]
    probe(rig, warm=early(rig, spec))
    spec["env"]["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
    rig.call("start", str(rig.folder), message={"spec": spec, "secrets": {}, "go": True})
    assert rig.ended()["state"] == "completed"
    assert [e["warm"] for e in rig.events("rank_start")] == [True]


def test_a_refused_launch_leaves_nothing(rig: Rig) -> None:
    probe(rig, warm=early(rig, direct(rig)))
    pid = rig.status()["warm"]
    assert start_time(pid)
    (rig.folder / f"warm.json.{pid}.tmp").touch()  # as when it is ended while it says that it is ready
    assert rig.call("forget", str(rig.folder)) == {"left": []}
    assert start_time(pid) is None
    assert not rig.folder.exists()
    assert rig.call("forget", str(rig.folder)) == {"left": []}


def test_a_refused_relaunch_keeps_what_the_run_has(rig: Rig) -> None:
    rig.start("print('ran')", world=1)
    rig.ended()
    until(lambda: start_time(rig.agent_pid()) is None)  # beside an agent that lives nothing is loaded
    probe(rig, warm=early(rig, direct(rig)))
    pid = rig.status()["warm"]
    rig.call("forget", str(rig.folder))
    assert start_time(pid) is None
    assert rig.log().read_text() == "ran\n"
    assert rig.status()["state"] == "completed"


def test_probe_leaves_an_attempt_that_is_under_way_alone(rig: Rig) -> None:
    rig.start("import time; print('ready', flush=True); time.sleep(600)", world=1)
    rig.ready(0)
    probe(rig, warm=early(rig, direct(rig)))
    assert rig.status()["warm"] is None
    assert len(rig.status()["processes"]) >= 1


def test_start_that_carries_go_waits_for_nobody(rig: Rig) -> None:
    spec = rig.spec("print('ran')", world=1)
    rig.call("start", str(rig.folder), message={"spec": spec, "secrets": {}, "go": True})
    assert rig.ended()["state"] == "completed"
    assert [e["go"] for e in rig.events("prepared")] == [True]


def test_without_go_the_ranks_wait(rig: Rig) -> None:
    rig.start("print('ran')", world=1, go=False)
    until(lambda: rig.events("prepared"))
    assert rig.events("prepared")[0]["go"] is False
    assert rig.events("torchrun") == []
    rig.call("go", str(rig.folder))
    assert rig.ended()["state"] == "completed"


def test_a_port_is_free_on_every_address_and_no_connection_gets_it() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    port, error = free_port("127.0.0.2", 0)
    assert (20000 <= port < first, error) == (True, "")
    with socket.create_server(("127.0.0.3", port)):  # torch's store listens on every address
        assert free_port("127.0.0.2", port) == (0, f"127.0.0.2 port {port}: [Errno 98] Address already in use")


def test_the_next_runs_interpreter_stands_back_and_its_ranks_run_the_code_of_their_start(rig: Rig) -> None:
    rig.start("import time; print('ready', flush=True); time.sleep(600)", world=1)
    rig.ready(0)
    then = Rig(rig.folder.parent / "next", rig.agent)
    spec = direct(then, "print('as it was')")
    probe(then, warm={**early(then, spec), "after": str(rig.folder)})
    until(lambda: then.events("warm"))
    pid = then.status()["warm"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    assert rig.status()["processes"] and pid not in rig.status()["processes"]
    rig.stop()
    direct(then, "print('changed', open('/proc/self/oom_score_adj').read().strip())")
    then.call("start", str(then.folder), message={"spec": spec, "secrets": {}, "go": True})
    assert then.ended()["state"] == "completed"
    assert [e["warm"] for e in then.events("rank_start")] == [True]
    assert then.log().read_text().split() == ["changed", Path("/proc/self/oom_score_adj").read_text().strip()]


def test_an_interpreter_whose_run_never_comes_ends_after_the_run_before_and_leaves_nothing(
    rig: Rig, tmp_path: Path
) -> None:
    impatient = tmp_path / "agent.pyz"
    with zipfile.ZipFile(rig.agent) as whole, zipfile.ZipFile(impatient, "w") as made:
        for name in whole.namelist():
            text = whole.read(name)
            for was, now in (
                (b"UNUSED_S = 900.0, 120.0", b"UNUSED_S = 900.0, 0.1"),
                (b"LOOK_S = 1.0", b"LOOK_S = 0.01"),
            ):
                assert was in text or not name.endswith("warm/server.py")
                text = text.replace(was, now)
            made.writestr(name, text)
    rig.start("import time; print('ready', flush=True); time.sleep(600)", world=1)
    rig.ready(0)
    then = Rig(rig.folder.parent / "next", impatient)
    probe(then, warm={**early(then, direct(then)), "after": str(rig.folder)})
    until(lambda: then.events("warm"))
    pid = then.status()["warm"]
    assert probe(then) and start_time(pid)  # tens of looks later
    rig.stop()
    until(lambda: start_time(pid) is None)
    assert not then.folder.exists()
