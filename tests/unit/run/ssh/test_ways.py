"""Other ways to a node, and what is read from what ssh says of them."""

from __future__ import annotations

import shlex
import socket
import subprocess
from typing import Any

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh import ways
from nexa_dist.run.ssh.connections import Ssh

N0 = Node("n0", "198.51.100.1", 1, private_address="10.0.0.1")
N1 = Node("n1", "198.51.100.2", 1, port=2222, private_address="10.0.0.2")
CLUSTER = Cluster("c", "aws", (N0, N1), Layout("p", "s", "s", "d"), ssh_config="/w/a 100% sure/ssh_config")


class Said:
    """A runner whose program ends with one code and these words."""

    def __init__(self, code: int, words: str) -> None:
        self.code, self.words, self.argv = code, words, tuple[str, ...]()

    def run(self, argv: Any, **_: Any) -> Result:
        self.argv = tuple(argv)
        out, err = (b"", self.words.encode()) if self.code == 255 else (self.words.encode(), b"")
        return Result(self.argv, self.code, out, err)


def ssh_that(code: int = 0, words: str = "") -> tuple[Ssh, Said]:
    runner = Said(code, words)
    return Ssh(runner, CLUSTER, "/run/s"), runner  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "words", "word"),
    [
        (0, "SSH-", "up"),
        (0, "", "up"),  # closed without a greeting, as at MaxStartups
        (1, "bash: connect: Connection refused\nbash: line 1: /dev/tcp/10.0.0.2/2222: Connection refused", "up"),
        (1, "head: error reading 'standard input': Connection reset by peer", "up"),
        (1, "bash: connect: No route to host", "cut"),
        (1, "bash: connect: Connection timed out", "cut"),
        (1, "timed out", "cut"),
        (1, "bash: connect: Connection timed out\nheld", "held"),
        (1, "taken\ntimed out\ntaken\ntimed out", "held"),
        (1, "timed out\nbash: connect: Connection refused", "up"),
        (127, "sh: 1: timeout: not found", ""),
        (255, "ssh: connect to host 198.51.100.1 port 22: Connection timed out", "mute"),
        (255, "Connection refused", "mute"),
    ],
)
def test_what_another_node_says(code: int, words: str, word: str) -> None:
    ssh, runner = ssh_that(code, words)
    assert ways.ask(ssh, N0, N1) == word
    assert runner.argv[-2] == "n0" and runner.argv[-1].endswith("10.0.0.2 2222 0200000A")


def test_another_node_is_really_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        asked = subprocess.Popen(("sh", "-c", ways.ASK, "sh", "127.0.0.1", port, ""), stdout=subprocess.PIPE)
        listener.settimeout(20)
        listener.accept()[0].sendall(b"SSH-2.0-x\r\n")
        assert asked.communicate(timeout=20) == (b"taken\nSSH-", None) and asked.returncode == 0
        short = ("sh", "-c", ways.ASK.replace("timeout 3", "timeout 0.2"), "sh", "127.0.0.1", port, "")
        silent = subprocess.run(short, capture_output=True, timeout=20)
        assert (silent.returncode, silent.stdout) == (1, b"taken\ntimed out\n" * 2 + b"held\n")
    refused = subprocess.run(("sh", "-c", ways.ASK, "sh", "127.0.0.1", port, ""), capture_output=True, timeout=20)
    assert refused.returncode == 1 and b"refused" in refused.stdout


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_that_the_other_end_closed_is_held_no_more(family: socket.AddressFamily) -> None:
    """As /proc/net/tcp tells it. 127.0.0.9 is the node; over IPv6 it is written as an address that is mapped."""
    with socket.create_server(("127.0.0.9", 0)) as listener, socket.socket(family) as ours:
        port = listener.getsockname()[1]
        ours.connect(("127.0.0.9" if family == socket.AF_INET else "::ffff:127.0.0.9", port))
        theirs, _ = listener.accept()
        listener.close()
        asked = ("sh", "-c", ways.ASK, "sh", "127.0.0.9", str(port), ways.in_proc("127.0.0.9"))
        assert subprocess.run(asked, capture_output=True, timeout=20).stdout.endswith(b"held\n")
        theirs.close()
        assert b"held" not in subprocess.run(asked, capture_output=True, timeout=20).stdout


def test_an_address_as_the_kernel_writes_it() -> None:
    assert ways.in_proc("198.51.100.2") == "026433C6"
    assert ways.in_proc("fd00::1:2") == "000000FD000000000000000002000100"
    assert ways.in_proc("n1.lan") == ""


def test_a_probe_never_uses_a_connection_that_is_shared() -> None:
    ssh, runner = ssh_that()
    assert ways.reach(ssh, N1)
    first = {option.partition("=")[0]: option for option in reversed(runner.argv) if option.startswith("-o")}
    assert first["-oControlMaster"] == "-oControlMaster=no"
    assert first["-oControlPath"] == "-oControlPath=none"
    assert first["-oStrictHostKeyChecking"] == "-oStrictHostKeyChecking=yes"
    assert not ways.reach(ssh_that(255, "Connection timed out")[0], N1)


def test_the_way_through_another_node_leads_to_the_private_address_by_the_pinned_keys() -> None:
    ssh, _ = ssh_that()
    (option,) = ways.through(ssh, N0, N1)
    name, _, command = option.partition("=")
    words = shlex.split(command.replace("%%", "%"))
    assert name == "ProxyCommand" and "%" not in command.replace("%%", "")
    assert words[:3] == ["ssh", "-F", "/w/a 100% sure/ssh_config"]
    assert words[words.index("-W") + 1] == "10.0.0.2:2222" and words[-2:] == ["--", "n0"]
    assert "-oStrictHostKeyChecking=yes" in words
    ssh.routes["n0"] = ways.through(ssh, N1, N0)
    assert ways.through(ssh, N0, N1) == (option,)  # never through each other


def test_a_route_holds_for_its_node_alone_and_shares_no_connection_with_the_usual_way() -> None:
    ssh, _ = ssh_that()
    usual = ssh.argv(N1)
    ssh.routes["n1"] = ways.joined(ssh, N1)
    assert "-oHostName=10.0.0.2" in ssh.argv(N1) and "-oControlPath=/run/s/v%C" in ssh.argv(N1)
    assert "-oHostName=10.0.0.2" not in ssh.argv(N0)
    del ssh.routes["n1"]
    assert ssh.argv(N1) == usual
