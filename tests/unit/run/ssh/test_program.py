"""A one-file program on a node: sent, heard while it works, ended with us. The node is this machine, without ssh."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run.runner import Runner, Stream
from nexa_dist.run.ssh import program
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.shape import record, text, whole

NODE = Node("n0", "10.0.0.1", 1)
ANSWER = record({"sum": whole()})


class Here(Runner):
    """What goes to a node runs here. As over ssh it is not signalled at the end: its input ends."""

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        child = subprocess.Popen(shlex.split(argv[-1]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        sink, out = child.stdin, child.stdout
        assert sink and out

        def send(data: bytes) -> None:
            with contextlib.suppress(OSError, ValueError):
                sink.write(data)
                sink.flush()

        def end() -> None:
            with contextlib.suppress(OSError):
                sink.close()
            child.wait(60)

        send(stdin)
        return Stream(out, end, send)


def link(folder: Path) -> Link:
    cluster = Cluster("c", "static", (NODE,), Layout("python3", "~/s", "~/h", "~/d"))
    return Link(Ssh(Here(), cluster, str(folder)), NODE, str(folder))


def test_it_is_heard_while_it_works_and_its_answer_is_shaped(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    source = b"def main(message, say):\n    say(say={'done': 1})\n    return {'sum': sum(message['of']), 'more': 1}\n"
    assert program.run_program(link(tmp_path), source, {"of": [1, 2]}, ANSWER, heard.append) == {"sum": 3}
    assert heard == [{"done": 1}]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("raise OSError('no room')", program.Refused, "n0: no room"),
        ("return {'sum': 'x'}", wire.Faulty, "makes no sense: sum"),
        ("print('hello'); return {}", wire.Faulty, "no JSON"),
        ("import os; os._exit(3)", NexaError, "fell silent"),
    ],
)
def test_a_node_program_that_fails_is_an_error_with_its_words(
    tmp_path: Path, body: str, kind: type[NexaError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        program.run_program(link(tmp_path), f"def main(message, say):\n    {body}\n".encode(), {}, ANSWER)


def test_silence_ends_it_and_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "pid"
    source = f"""
import subprocess
def main(message, say):
    child = subprocess.Popen(["sleep", "60"])
    open({str(mark)!r}, "w").write(str(child.pid))
    say(say=dict())
    say()
    child.wait()
""".encode()

    def heard(_: dict[str, Any]) -> None:
        monkeypatch.setattr(program, "SILENCE_S", 0.2)

    with pytest.raises(NexaError, match="said nothing for 0 s"):
        program.run_program(link(tmp_path), source, {}, record({"x": text()}), heard)
    until = time.monotonic() + 10
    while Path(f"/proc/{mark.read_text()}/cmdline").exists() and time.monotonic() < until:
        if not Path(f"/proc/{mark.read_text()}/cmdline").read_bytes():
            break  # ended, and nobody has asked for its exit code yet
        time.sleep(0.02)
    assert time.monotonic() < until


FED = b"""
def main(message, say, source):
    say(say={"lacks": 3})
    return {"sum": sum(source.read(3))}
"""


def test_it_is_fed_what_it_lacks_and_a_source_that_fails_ends_it(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    def feed(said: dict[str, Any]) -> list[bytes]:
        heard.append(said)
        return [b"\1", b"\2\3"]

    assert program.run_program(link(tmp_path), FED, {}, ANSWER, feed=feed) == {"sum": 6}
    assert heard == [{"lacks": 3}]

    def failing(_: dict[str, Any]) -> Iterator[bytes]:
        yield b"\1"
        raise NexaError("the file is gone")

    with pytest.raises(NexaError, match=r"^the file is gone$"):
        program.run_program(link(tmp_path), FED, {}, ANSWER, feed=failing)
