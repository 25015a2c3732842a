"""The outbox of a run: each message once for each target, whatever becomes of the controller and of the servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main
from nexa_dist.ops.notify.outbox import Marks, Outbox
from nexa_dist.ops.notify.targets import Target
from nexa_dist.plan.runs.notification import Subject
from nexa_dist.run import files
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder
from tests import small_workspace
from tests.webhooks import Server, serving

ABOUT = Subject("train_x", "lab", 2, 0.5, 1.8e9)
ENDED = ABOUT.ended("failed", "rank 1 on n1: exit code 1", "out of memory, password=hunter22")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "train_x")


def target(server: Server, path: str, **row: Any) -> Target:
    return Target({"url": server.url(path), **row}, server.url(path))


def outbox(run: RunFolder, *targets: Target, pauses_s: tuple[float, ...] = (0.0, 0.01, 0.01)) -> Outbox:
    return Outbox(run, targets, Runner(), pauses_s)


def all_but_one_know(box: Outbox) -> None:
    until = time.monotonic() + 20
    while len(box.unsent()) > 1 and time.monotonic() < until:
        time.sleep(0.01)


def test_a_message_is_sent_once_to_each_and_has_what_a_person_needs(server: Server, run: RunFolder) -> None:
    targets = target(server, "ok"), target(server, "ok/2")
    for _ in range(2):  # the second one is another controller
        box = outbox(run, *targets)
        box.put(ENDED)
        box.put(ENDED)
        box.close()
    assert (server.count("ok"), server.count("ok/2")) == (1, 1)
    [message] = server.wait("ok")
    wanted = {"event": "run_ended", "run": "train_x", "cause": "rank 1 on n1: exit code 1", "usd": 0.5}
    assert message.items() >= {**wanted, "next": "nexa why train_x", "attempt": 2, "state": "failed"}.items()
    assert "hunter22" not in json.dumps(message) and "***" in message["why"]


def test_one_that_hangs_delays_no_other_and_no_run_and_is_kept(server: Server, run: RunFolder) -> None:
    box = outbox(run, target(server, "hang"), target(server, "ok"))
    began = time.monotonic()
    box.put(ENDED)
    assert not box.marks.why  # nobody has waited for the one that hangs
    assert server.wait("ok") and server.wait("hang")
    all_but_one_know(box)
    box.close(wait_s=0.2)
    assert time.monotonic() - began < 20
    assert [letter.target.row["url"] for letter in box.unsent()] == [server.url("hang")]
    assert "are kept: nexa notify train_x sends them" in box.said[-1] and server.url("hang") not in box.said[-1]


def test_a_refusal_is_tried_again_within_bounds(server: Server, run: RunFolder) -> None:
    server.fail = 2
    box = outbox(run, target(server, "flaky"), target(server, "500"), target(server, "redirect"))
    box.put(ENDED)
    server.wait("flaky", 3)
    server.wait("500", 3)
    box.close()
    assert (server.count("flaky"), server.count("500"), server.count("redirect")) == (3, 3, 1)
    assert server.count("elsewhere") == 0
    assert {letter.target.url for letter in box.unsent()} == {server.url("500"), server.url("redirect")}
    assert "hgfe" not in (text := (run.path / "notify" / "log.jsonl").read_text()) and "abcdefgh1234" not in text


def test_a_busy_server_is_left_alone_as_long_as_it_says(server: Server, run: RunFolder) -> None:
    """Also by the other messages to it, until the command ends."""
    box = outbox(run, target(server, "busy/200"))
    box.put(ENDED)
    server.wait("busy/200")
    until = time.monotonic() + 20
    while not box._letters and time.monotonic() < until:
        time.sleep(0.01)
    assert 190 < box._letters[0].ready - time.monotonic() <= 200 and server.count("busy/200") == 1
    box.close()
    assert len(box.unsent()) == 1


def test_what_a_node_has_told_is_not_told_again_where_nodes_may_tell(server: Server, run: RunFolder) -> None:
    box = outbox(run, target(server, "ok", from_nodes=True), target(server, "ok/2"))
    box.put(ENDED, after_s=600)
    box.told_by_node(ENDED.key)
    box.close()
    assert (server.count("ok"), server.count("ok/2")) == (0, 1)
    assert not outbox(run, *box.targets).unsent()


def test_only_the_events_that_are_wanted_are_told(server: Server, run: RunFolder) -> None:
    box = outbox(run, target(server, "ok", events=["budget"]))
    box.put(ENDED)
    box.close()
    assert server.got == [] and box.unsent() == []


def test_without_targets_nothing_is_written(run: RunFolder) -> None:
    box = outbox(run)
    box.put(ENDED)
    box.close()
    assert not run.path.exists()


def test_a_command_gets_the_message_and_one_that_hangs_is_ended(run: RunFolder, tmp_path: Path) -> None:
    saves = Target({"command": ["tee", str(tmp_path / "got")]})
    waits = Target({"command": [sys.executable, "-c", f"import os,time;open({str(tmp_path / 'pid')!r},'w').write(str(os.getpid()));time.sleep(60)"]})  # fmt: skip # noqa: E501
    box = outbox(run, saves, waits)
    box.put(ENDED)
    until = time.monotonic() + 20
    files = tmp_path / "pid", tmp_path / "got"
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < until:
        time.sleep(0.02)
    all_but_one_know(box)
    box.close(wait_s=0.5)
    assert json.loads((tmp_path / "got").read_text())["event"] == "run_ended"
    assert [letter.target for letter in box.unsent()] == [waits]
    pid = (tmp_path / "pid").read_text()
    while Path("/proc", pid).exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path("/proc", pid).exists()


CONTROLLER = """
import sys, time
from pathlib import Path
import test_outbox as here
from nexa_dist.ops.notify.targets import Target
from nexa_dist.run.workspace import RunFolder
urls = sys.argv[2:]
box = here.outbox(RunFolder(Path(sys.argv[1])), *(Target({"url": url}, url) for url in urls))
box.put(here.ENDED)
time.sleep(60)
"""


def test_a_controller_that_is_killed_leaves_its_marks(server: Server, run: RunFolder) -> None:
    """One target has got the message, the other was still being told."""
    urls = [server.url("ok"), server.url("hang")]
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{CONTROLLER}",
         str(run.path), *urls]
    )  # fmt: skip
    try:
        assert server.wait("ok") and server.wait("hang")
        until = time.monotonic() + 20
        while not Marks.read(run).sent and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    targets = target(server, "ok"), Target({"url": urls[1]}, server.url("ok/late"))
    box = outbox(run, *targets)  # what was under way is told by the next one, without being asked
    box.put(ENDED)
    server.wait("ok/late")
    box.close()
    assert (server.count("ok"), server.count("ok/late")) == (1, 1)
    assert not box.unsent()


def test_two_commands_at_once_send_it_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    run = RunFolder(small_workspace.make(tmp_path) / "runs" / small_workspace.RUN)
    files.write_json(run.path / "notify" / "targets.json", [{"url": server.url("ok")}])
    files.append_json(run.path / "notify" / "log.jsonl", {"key": ENDED.key, "message": ENDED.to_json()})
    with files.locked(run.path / "notify" / "lock", "notify"):
        assert main(["notify", run.run_id]) == 1
    assert "notify is in use" in capsys.readouterr().err and server.count("ok") == 0
    assert main(["notify", run.run_id]) == 0 and server.count("ok") == 1
    assert main(["notify", run.run_id]) == 0 and server.count("ok") == 1
