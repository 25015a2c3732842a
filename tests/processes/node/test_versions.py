"""An agent of another version: its run is named and left alone, and can be stopped; it starts nothing of ours."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexa_dist import wire
from nexa_dist.node.protocol import UNSAID, VERSION
from nexa_dist.ops.runs import status
from nexa_dist.ops.runs.attempt_state import AttemptState
from nexa_dist.run import agent_file as sent
from nexa_dist.run.logs.items import AgentEvent
from tests.processes.node.rig import REPORT, Rig, events_of, until

NEWER = VERSION + 1
SLEEP = REPORT + "report(1)\ntime.sleep(600)"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """agent.pyz as another nexa would send it: the same code under another version."""
    path, told = tmp_path / "agent.pyz", f"VERSION = {VERSION}\n"
    with zipfile.ZipFile(io.BytesIO(sent.content())) as ours, zipfile.ZipFile(path, "w") as theirs:
        for name in ours.namelist():
            text = ours.read(name).decode()
            if name.endswith("/protocol.py"):
                assert text.count(told) == 1
                text = text.replace(told, f"VERSION = {NEWER}\n")
            theirs.writestr(name, text)
    return path


def asked(rig: Rig) -> Any:
    """A link that asks our own agent on this machine."""

    def call(verb: str, folder: str) -> dict[str, Any]:
        return wire.answer("n0", verb, json.dumps(rig.call(verb, folder)).encode(), failed=False)

    return SimpleNamespace(call=call)


def test_a_run_of_another_version_is_named_left_alone_and_can_be_stopped(rig: Rig, newer: Path) -> None:
    other = Rig(rig.folder, newer)
    other.start(SLEEP, version=NEWER)
    until(lambda: rig.status()["progress"])
    assert other.call("status", str(rig.folder))["version"] == NEWER
    row = status._status(asked(rig), str(rig.folder))
    assert row["state"] == "faulty" and f"n0: the agent of this run speaks version {NEWER}" in row["reason"]
    started = next(event for event in events_of(rig.folder) if event["event"] == "started")
    with pytest.raises(wire.OtherVersion) as caught:
        AttemptState(("n0",), 1).step(AgentEvent("n0", started))
    assert "nexa stop" in caught.value.hint and "the nexa that began it" in caught.value.hint
    assert rig.call("status", str(rig.folder))["state"] == "running"  # whoever looked has ended nothing
    stopped = rig.stop()
    assert (stopped["state"], stopped["left"]) == ("stopped", [])


def test_neither_takes_a_spec_of_the_other(rig: Rig, newer: Path) -> None:
    for agent, version in ((rig, NEWER), (Rig(rig.folder, newer), VERSION)):
        message = {"spec": agent.spec(SLEEP, version=version), "secrets": {}}
        answer = agent.call("start", str(rig.folder), message=message, check=False)
        assert f"was told of an attempt in version {version}" in answer["error"]
    assert events_of(rig.folder) == []


def test_one_that_does_not_say_its_version_is_of_the_last_that_did_not(rig: Rig) -> None:
    rig.start("pass", world=1)
    rig.ended()
    path = rig.folder / "agent.jsonl"
    path.write_text(path.read_text().replace(f', "version": {VERSION}', ""))
    assert rig.status()["version"] == UNSAID
    assert "version" not in until(lambda: events_of(rig.folder))[0]
