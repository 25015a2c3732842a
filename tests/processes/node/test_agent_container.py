"""Ranks in a container: the agent sees, stops and ends them as ever, and no container stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node.machine.processes import run_processes
from nexa_dist.node.oslib import start_time
from nexa_dist.plan.runs.container import Host, for_agent, launcher
from nexa_dist.plan.runs.torchrun import Place
from tests import engines
from tests.processes.node.rig import IGNORE, Rig, torchrun, until
from tests.processes.node.test_hang import STUCK

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
SAVES = """
import os, signal, sys, time
def save(*_):
    open(os.environ["NEXA_RANK_DIR"] + "/saved", "w").close(); sys.exit(0)
signal.signal(15, save); print("ready", flush=True); time.sleep(600)
"""
TELL = """
import json, os
print(json.dumps({**os.environ, "cwd": os.getcwd(), "uid": os.getuid()}))
"""


@dataclass
class Boxed:
    """A rig whose launcher runs in a container of this engine."""

    rig: Rig
    program: Path
    image: str

    def spec(self, code: str, signals: str = "", **more: Any) -> dict[str, Any]:
        folder, attempt = self.rig.folder, more.get("attempt", 1)
        scratch, home = str(folder.parent), str(folder.parent / "node")
        place = Place("python3", str(self.rig.agent), scratch, home, home, str(folder), "", "")
        kind = "podman" if self.program.name == "podman" else "docker"
        host = Host(kind, str(self.program), self.image, os.getuid(), os.getgid(), 1 << 30, gpus=False)
        inner = torchrun(signals).replace("sys.executable", "'python3'")
        command = ("python3", "-c", inner, str(self.rig.agent), code)
        names = {*self.rig.spec("")["env"], *more.get("env", {}), "HF_TOKEN"}
        argv = launcher(host, place, command, name=f"nexa-{os.getpid()}-{attempt}", variables=names)
        return {"argv": argv, "container": for_agent(host, place), **more}

    def start(self, code: str, **more: Any) -> None:
        self.rig.start(code, **self.spec(code, **more))

    def ps(self) -> list[str]:
        """Containers of the engine, of any run."""
        label = f"label=nexa.run_dir={self.rig.folder}"
        argv = [self.program, "ps", "--all", "--quiet", "--filter", label]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def clean(self) -> None:
        assert self.ps() == [] and run_processes(str(self.rig.folder)) == []


@pytest.fixture(scope="session")
def real() -> Iterator[Path]:
    with engines.podman_somewhere() as program:
        yield program


@pytest.fixture(
    params=["stand-in", pytest.param("podman", marks=pytest.mark.long("a container engine, and a root for its image"))]
)
def boxed(request: pytest.FixtureRequest, tmp_path: Path, agent_file: Path) -> Iterator[Boxed]:
    if request.param == "podman":
        program, image = request.getfixturevalue("real"), engines.IMAGE
    else:
        program, image = engines.stand_in(tmp_path / "engine"), "image"
    agent = tmp_path / "agent" / agent_file.name
    agent.parent.mkdir()
    shutil.copy(agent_file, agent)
    made = Boxed(Rig(tmp_path / "scratch" / "a run's dir", agent), program, image)
    made.rig.folder.parent.mkdir()
    yield made
    (tmp_path / "engine" / "state" / "stuck").unlink(missing_ok=True)
    assert made.rig.stop()["left"] == []
    made.clean()


def test_it_runs_to_its_end_with_the_variables_of_the_run_alone(boxed: Boxed) -> None:
    boxed.start(TELL, env={"MINE": "a 'b'"})
    assert boxed.rig.ended()["state"] == "completed", boxed.rig.events()
    seen = [json.loads(boxed.rig.log(rank).read_text()) for rank in (0, 1)]
    assert [found["RANK"] for found in seen] == ["0", "1"]
    for found in seen:
        assert (found["MINE"], found["HF_TOKEN"]) == ("a 'b'", "canary-123")
        assert found["HOME"].endswith("/node/home") and found["cwd"] == str(boxed.rig.folder / "work")
        assert found["uid"] == os.getuid()
        assert "TMPDIR" not in found, "the node's temporary folder is none of the container's"
    assert [event["code"] for event in boxed.rig.events("rank_exit")] == [0, 0]
    assert "canary-123" not in (boxed.rig.folder / "spec.json").read_text()
    boxed.clean()


def test_a_stop_gives_the_ranks_their_grace_and_leaves_no_container(boxed: Boxed) -> None:
    boxed.start(SAVES, signals=IGNORE)
    boxed.rig.ready(0, 1)
    assert len(boxed.ps()) == 1
    assert boxed.rig.stop(grace_s=20)["state"] == "stopped"
    assert all((boxed.rig.folder / f"rank_{rank}" / "saved").exists() for rank in (0, 1))
    assert [event["code"] for event in boxed.rig.events("rank_exit")] == [0, 0]
    boxed.clean()


@pytest.mark.long("a variant of the others, with an end of its own")
def test_what_does_not_stop_is_ended(boxed: Boxed) -> None:
    boxed.start("import signal; signal.signal(15, signal.SIG_IGN)\n" + SLEEP, signals=IGNORE)
    boxed.rig.ready(0, 1)
    answer = boxed.rig.stop(grace_s=0)
    assert answer["state"] == "stopped" and answer["left"] == [] and answer["ended"] >= 4
    boxed.clean()


def test_it_ends_with_the_agent(boxed: Boxed) -> None:
    """A daemon's container is no child of the agent: the launcher in it looks at the agent itself."""
    boxed.start(SLEEP)
    boxed.rig.ready(0, 1)
    ranks = run_processes(str(boxed.rig.folder))
    os.kill(boxed.rig.agent_pid(), signal.SIGKILL)
    until(lambda: not [pid for pid in ranks if start_time(pid)])
    until(lambda: not boxed.ps())


def test_a_client_that_is_killed_ends_the_attempt_and_the_container(boxed: Boxed) -> None:
    boxed.start(SLEEP)
    boxed.rig.ready(0, 1)
    os.kill(boxed.rig.events("torchrun")[0]["pid"], signal.SIGKILL)
    ended = boxed.rig.ended()
    assert (ended["state"], ended["code"]) == ("failed", 137)
    until(lambda: not boxed.ps())
    boxed.clean()


def test_a_newer_attempt_takes_the_place_of_an_older_one(boxed: Boxed) -> None:
    boxed.start(SLEEP)
    boxed.rig.ready(0, 1)
    first = boxed.ps()
    boxed.start(SLEEP, attempt=2)
    boxed.rig.ready(0, 1, attempt=2)
    assert len(boxed.ps()) == 1 and boxed.ps() != first


@pytest.mark.long("a variant of the others, with an end of its own")
def test_ranks_that_hang_leave_their_stacks(boxed: Boxed) -> None:
    boxed.start(STUCK.replace("LAST", "3"), hang_timeout_s=3)
    boxed.rig.ready(0, 1)
    (boxed.rig.folder / "work" / "go").touch()
    ended = boxed.rig.ended()
    assert (ended["state"], ended["reason"]) == ("failed", "hang")
    for rank in (0, 1):
        assert "wait_for_the_others" in boxed.rig.log(rank).read_text()
    boxed.clean()


@pytest.mark.long("a variant of the others, with an end of its own")
def test_one_that_was_stopped_before_it_began_begins_nothing(boxed: Boxed) -> None:
    """The engine may be slow: what it starts when all is over looks first."""
    boxed.start("pass")
    boxed.rig.ended()
    late = [str(word) for word in json.loads((boxed.rig.folder / "spec.json").read_text())["argv"]]
    env = {**os.environ, "NEXA_RUN_DIR": str(boxed.rig.folder), "NEXA_ATTEMPT": "1"}
    done = subprocess.run(late, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143, done.stderr
    assert len(boxed.rig.events("rank_start")) == 2, "those of before"


def test_a_container_that_cannot_be_removed_is_not_called_gone(boxed: Boxed) -> None:
    if boxed.program.name == "podman":
        pytest.skip("podman removes it")
    boxed.start(SLEEP)
    boxed.rig.ready(0, 1)
    state = boxed.program.parent / "state"
    (state / "stuck").touch()
    ghost = {"id": "ghost", "label": str(boxed.rig.folder), "pid": 1 << 30}
    (state / "ghost.json").write_text(json.dumps(ghost))
    answer = boxed.rig.call("stop", str(boxed.rig.folder), message={"grace_s": 0}, check=False)
    assert "cannot be removed: device or resource busy" in answer["error"]
    later = {"spec": boxed.rig.spec("pass", **boxed.spec("pass", attempt=2)), "go": True}
    answer = boxed.rig.call("start", str(boxed.rig.folder), message=later, check=False)
    assert "of an earlier attempt cannot be removed" in answer["error"], "and nothing begins beside it"


@pytest.mark.long("a variant of the others, with an end of its own")
def test_an_engine_that_is_gone_fails_the_attempt_and_says_so(boxed: Boxed) -> None:
    spec = boxed.spec("pass")
    spec["argv"] = ("/nonexistent/docker", *spec["argv"][1:])
    boxed.rig.start("pass", **spec)
    assert boxed.rig.ended()["code"] == 127
    assert "/nonexistent/docker" in (boxed.rig.folder / "torchrun.attempt_1.log").read_text()
