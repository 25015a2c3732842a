from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexa_dist import wire
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.providers.table import of_folder
from nexa_dist.run import agent_file, files
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.ssh import connections
from nexa_dist.run.ssh.connections import LOOK, Link, Ssh, Unreachable, connect, connecting, on_all
from nexa_dist.run.ssh.keys import write_ssh_config
from nexa_dist.run.workspace import Workspace

NODES = (Node("n0", "10.0.0.1", 2), Node("n1", "::1", 2, port=2201, user="ubuntu"))
CLUSTER = Cluster("c", "static", NODES, Layout("python3", "~/s", "~/h", "~/d"))


def test_a_remote_command_is_quoted_once_and_the_host_is_no_option() -> None:
    runner = FakeRunner(Result((), 0))
    Ssh(runner, CLUSTER, "/tmp/s").run(NODES[1], ("echo", "a b", "$(touch x)", "-oProxyCommand=x"))
    argv = runner.calls[0].argv
    assert argv[-3:] == ("--", "::1", "echo 'a b' '$(touch x)' -oProxyCommand=x")
    assert "-p2201" in argv
    assert "-lubuntu" in argv
    assert "-oStrictHostKeyChecking=yes" in argv
    assert "-oKexAlgorithms=^curve25519-sha256" in argv


def test_a_link_is_made_in_one_trip_where_the_agent_is_there() -> None:
    runner = FakeRunner(Result((), 0, b"0\n/home/a b\n"))
    (link,) = connect(Ssh(runner, CLUSTER, "/tmp/s"), NODES[:1])
    assert link.home == "/home/a b"
    assert link.agent.startswith("/home/a b/h/agent/")
    assert len(runner.calls) == 1


def test_a_shell_that_talks_is_told_apart_from_an_answer() -> None:
    for said in (b"Welcome to gpu-7\n0\n/home/u\n", b"Welcome to gpu-7\n"):
        with pytest.raises(NexaError, match="its shell prints text of its own to every session: 'Welcome to gpu-7'"):
            connect(Ssh(FakeRunner(Result((), 0, said)), CLUSTER, "/tmp/s"), NODES[:1])


def test_a_missing_agent_is_sent() -> None:
    runner = FakeRunner(Result((), 0, b"1\n/home/u\n"), Result((), 0))
    (link,) = connect(Ssh(runner, CLUSTER, "/tmp/s"), NODES[:1])
    assert shlex.split(runner.calls[1].argv[-1])[-2:] == [link.agent, agent_file.sha256()]


def test_an_agent_that_is_not_ours_is_sent_again_and_then_the_node_is_at_fault() -> None:
    bad, good = Result((), connections.NOT_OURS), Result((), 0, b'{"ok": true}')
    runner = FakeRunner(bad, Result((), 0), good, bad, Result((), 0), bad)
    link = Link(Ssh(runner, CLUSTER, "/s"), NODES[0], "/home/u")
    assert link.call("go", "/run") == {}
    assert shlex.split(runner.calls[1].argv[-1])[-2:] == [link.agent, agent_file.sha256()]
    with pytest.raises(wire.Faulty, match="n0: its node agent makes no sense: it is not the file that was sent"):
        link.call("go", "/run")


@pytest.mark.parametrize("verb", ["probe", "diag", "start", "status", "stop"])
@pytest.mark.parametrize("said", [b"5", b"null", b"[]", b"{}", b'{"state": 5}', b"[" * 100_000, b"{" * 3_000_000])
def test_an_answer_that_makes_no_sense_names_the_node(verb: str, said: bytes) -> None:
    link = Link(Ssh(FakeRunner(Result((), 0, said)), CLUSTER, "/s"), NODES[0], "/home/u")
    with pytest.raises(wire.Faulty, match=f"^n0: its answer to {verb} makes no sense: "):
        link.call(verb)


@pytest.mark.parametrize(("folder", "there"), [("~/a b", "0"), ("~/torn", "1"), ("~/none", "1"), ("~", "1")])
def test_the_question_for_the_agent_expands_the_home_and_looks_into_it(tmp_path: Path, folder: str, there: str) -> None:
    (tmp_path / "a b").write_bytes(b"agent")
    (tmp_path / "torn").write_bytes(b"age")
    words = ("sh", "-c", LOOK, "sh", folder, hashlib.sha256(b"agent").hexdigest())
    asked = subprocess.run(
        words, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert asked.stdout == f"{there}\n{tmp_path}\n"


def test_links_are_made_meanwhile_and_their_faults_come_when_they_are_asked_for() -> None:
    runner = FakeRunner(Result((), 255, err=b"no route to host"))
    one = Cluster("c", "static", NODES[:1], CLUSTER.layout)
    with connecting(Ssh(runner, one, "/tmp/s")) as links, pytest.raises(Unreachable, match="no route"):
        links()


def test_a_changed_host_key_is_said_to_be_one() -> None:
    shown = "SHA256:" + "x" * 43
    banner = f"@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nThe key sent by the remote host is\n{shown}.\n"
    banner += '  ssh-keygen -f "/k" -R "n0"\nED25519 host key for n0 has changed\nHost key verification failed.'
    cures = {"local": "nexa teardown, then", "static": "put its new key into host_key", "aws": "needs no login"}
    for provider, then in cures.items():
        runner = FakeRunner(Result((), 255, err=banner.encode()))
        with pytest.raises(Unreachable) as caught:
            Ssh(runner, replace(CLUSTER, provider=provider), "/tmp/s").run(NODES[0], ("true",))
        said = str(caught.value)
        assert said.startswith(f"node n0 ({NODES[0].address}): the host key is not the pinned one") and shown in said
        assert "ssh-keygen" not in said and "verification failed" in said
        assert caught.value.hint.startswith("do not connect until you know why") and then in caught.value.hint


def test_a_host_whose_key_nobody_knows_is_no_changed_one() -> None:
    said = b"No ED25519 host key is known for n0 and you have requested strict checking.\nHost key verification failed."
    with pytest.raises(Unreachable, match=r"n0 .*: no host key of it is known here") as caught:
        Ssh(FakeRunner(Result((), 255, err=said)), CLUSTER, "/tmp/s").run(NODES[0], ("true",))
    assert "nexa provision adopts it" in caught.value.hint


def test_on_all_reports_every_failure() -> None:
    def act(node: Node) -> str:
        raise NexaError(f"{node.name} is ill")

    with pytest.raises(NexaError, match="n0 is ill\nn1 is ill"):
        on_all(NODES, act)


def test_ssh_config_pins_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    (folder / "host_keys").mkdir(parents=True)
    for node in NODES:
        (folder / "host_keys" / f"{node.name}.pub").write_text(f"ssh-ed25519 AAAA{node.name} comment\n")
    config = write_ssh_config(folder, NODES)
    assert (folder / "known_hosts").read_text() == "n0 ssh-ed25519 AAAAn0\nn1 ssh-ed25519 AAAAn1\n"
    shown = subprocess.run(("ssh", "-G", "-F", config, "n1"), capture_output=True, text=True, check=True).stdout
    values = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert values["hostname"] == "::1"
    assert values["stricthostkeychecking"] == "true"
    assert values["hostkeyalias"] == "n1"
    assert str(folder / "known_hosts") in values["userknownhostsfile"]
    assert config.stat().st_mode & 0o77 == 0


def test_runner_says_how_a_program_ended() -> None:
    run = Runner().run
    assert run(("/no/such",)).code == 127
    assert run((sys.executable, "-c", "import sys; sys.exit(3)")).code == 3
    assert run(("cat",), stdin=b"\xff\0").out == b"\xff\0"
    assert run(("sleep", "60"), timeout_s=0.1).code == 124


def test_the_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "lock"
    said = pytest.raises(NexaError, match=r"demo is in use: .* nexa provision pid \d+")
    with files.locked(path, "provision"), said, files.locked(path, "teardown"):
        pass
    with files.locked(path, "teardown"):
        pass


def test_who_only_looks_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        passing = SimpleNamespace(monotonic=time.monotonic, strftime=time.strftime, sleep=lambda _: looker.close())
        monkeypatch.setattr(files, "time", passing)
        with files.locked(path, "run"):
            assert files.held(path) and looker.closed
    assert not files.held(path)


def test_a_torn_journal_line_is_passed_over(tmp_path: Path) -> None:
    files.append_json(tmp_path / "j", {"a": 1})
    with (tmp_path / "j").open("a") as file:
        file.write('{"b": ')
    assert files.read_lines(tmp_path / "j") == [{"a": 1}]


def test_runs_are_found_by_a_part_of_their_name(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(UsageError, match="no run is known"):
        workspace.run()
    first, second = workspace.new_run("train", "a"), workspace.new_run("train", "a")
    for run in (first, second):
        files.write_json(run.json, {"attempts": []})
    assert first.run_id != second.run_id
    assert workspace.run().run_id == second.run_id
    assert workspace.run(first.run_id) == first
    with pytest.raises(UsageError, match="more than one run matches"):
        workspace.run("train")


@pytest.mark.parametrize(
    "make", [lambda p: p.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir], ids=["link", "pipe", "folder"]
)
def test_only_a_plain_file_is_read(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "log")
    with pytest.raises(OSError, match=r"no plain file|a folder"):
        files.opened(tmp_path / "log")
    assert files.tail(tmp_path / "log", 10) == b"" and files.read_lines(tmp_path / "log") == []


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/dev/zero"), Path.mkdir], ids=["link", "folder"])
def test_a_lock_that_is_no_file_is_held_beside_it(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "lock")
    second = files.locked(tmp_path / "lock", "run")
    with files.locked(tmp_path / "lock", "teardown"), pytest.raises(NexaError, match="is in use"), second:
        pass


@pytest.mark.parametrize("said", [[[]], {}, 5, "gcp"])
def test_a_provider_that_is_none_is_not_believed(said: object, tmp_path: Path) -> None:
    folder = Workspace(tmp_path).cluster("lab")
    files.write_json(folder.path / "config.json", {"provider": said})
    assert of_folder(folder, "unknown") == "unknown"
