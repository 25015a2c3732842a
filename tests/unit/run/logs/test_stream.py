"""The stream of logs and events: no ssh, frames from memory; and the pipe to a real program."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest

from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run.logs import follower as module
from nexa_dist.run.logs import items as waiting
from nexa_dist.run.logs.follower import Follower, How
from nexa_dist.run.logs.items import AgentEvent, Ended, Item, Items, Line, Note, Quiet, Through
from nexa_dist.run.logs.mirror import Mirror, marks, sizes
from nexa_dist.run.logs.stream import follow
from nexa_dist.run.runner import Result, Runner, Stream
from nexa_dist.run.ssh.connections import Link, Ssh

ROOT = Path(__file__).parents[4]
NODE = Node("n0", "10.0.0.1", 2)
CLUSTER = Cluster("c", "static", (NODE,), Layout("python3", "~/s", "~/h", "~/d"))
END = b'{"end": {"state": "completed"}}\n{"through": true}\n'
LOG = "rank_1/attempt_1.log"


class Streams:
    """A runner whose streams are made by `make` from the message that begins them."""

    def __init__(self, make: Callable[[dict[str, Any]], BinaryIO]) -> None:
        self.make = make
        self.messages: list[dict[str, Any]] = []
        self.sent: list[bytes] = []
        self.ended = 0

    def run(self, argv: Sequence[str], **more: Any) -> Result:
        raise AssertionError(f"unplanned: {argv}")

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        self.messages.append(json.loads(stdin))
        return Stream(self.make(self.messages[-1]), self._end, self.sent.append)

    def _end(self) -> None:
        self.ended += 1


def link_over(runner: Streams) -> Link:
    return Link(Ssh(cast(Runner, runner), CLUSTER, "/s"), NODE, "/home/u")


def frame(source: str, offset: int, data: bytes) -> bytes:
    return json.dumps({"src": source, "off": offset, "len": len(data)}).encode() + b"\n" + data


def served(files: dict[str, bytes], offsets: dict[str, int], sizes: Callable[[], int]) -> bytes:
    """What an agent sends to a reader that has `offsets`, in frames of any size."""
    out = b'{"beat": 1, "state": "running"}\n'
    for name, data in files.items():
        at = offsets.get(name, 0)
        while at < len(data):
            size = sizes()
            out += frame(name, at, data[at : at + size])
            at += size
    return out + END


def serving(files: dict[str, bytes]) -> Streams:
    return Streams(lambda message: BytesIO(served(files, message["offsets"], lambda: 5)))


def all_of(out: Items) -> list[Item]:
    found = []
    while not out.empty():
        found.append(out.get_nowait())
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))


@pytest.mark.parametrize("seed", range(8))
def test_a_link_that_is_cut_at_any_byte_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    texts = [chance.randbytes(chance.randrange(60)).replace(b"\n", b"\r") for _ in range(200)]
    events = [{"event": "heartbeat", "at": float(i)} for i in range(40)]
    files = {
        LOG: b"".join(text + b"\n" for text in texts) + b"no newline",
        "agent.jsonl": b"".join(json.dumps(event).encode() + b"\n" for event in events),
        LOG + ".times": b"1.0 5\n",
    }
    cuts = 30

    def make(message: dict[str, Any]) -> BinaryIO:
        nonlocal cuts
        data = served(files, message["offsets"], lambda: chance.randrange(1, 400))
        cuts -= 1
        return BytesIO(data[: chance.randrange(len(data))] if cuts > 0 else data)

    runner, out = Streams(make), Items()
    Follower(link_over(runner), "/run", tmp_path, out).run()
    items = all_of(out)
    assert len(runner.messages) == runner.ended >= 2
    assert [item.text for item in items if isinstance(item, Line) and not item.passing] == [*texts, b"no newline"]
    assert [item.record for item in items if isinstance(item, AgentEvent)] == events
    assert isinstance(items[-1], Through) and sum(isinstance(item, Ended) for item in items) == 1
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


WRONG = {
    "a list": b"[]\n",
    "no JSON": b"Welcome to n0\n",
    "deep": b'{"end": ' + b"[" * 100_000 + b"\n",
    "out of the folder": b'{"src": "../../evil", "off": 0, "len": 1}\nx',
    "absolute": b'{"src": "/evil", "off": 0, "len": 1}\nx',
    "no rank": '{"src": "rank_\u00b2/x.log", "off": 0, "len": 1}\nx'.encode(),
    "half a character": b'{"src": "\\ud800.log", "off": 0, "len": 1}\nx',
    "a number of a file": b'{"src": 5, "off": 0, "len": 1}\nx',
    "before the beginning": b'{"src": "a.log", "off": -1, "len": 1}\nx',
    "behind everything": b'{"src": "a.log", "off": 1%s, "len": 1}\nx' % (b"0" * 30),
    "between two bytes": b'{"src": "a.log", "off": 1.5, "len": 1}\nx',
    "out of order": b'{"src": "a.log", "off": 7, "len": 1}\nx',
    "a word": b'{"src": "a.log", "off": "0", "len": 1}\nx',
    "too long": b'{"src": "a.log", "off": 0, "len": 99999999999}\nx',
    "a line without an end": b'{"src": "' + b"a" * (2 << 20),
    "an end of five": b'{"end": 5}\n',
    "an end without a state": b'{"end": {}}\n',
    "a rank beyond all": b'{"end": {"state": "failed", "ranks": [{"rank": 1e99, "code": 1, "signal": 0}]}}\n',
    "bytes": b"\xff\xfe{\n",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_frame_that_makes_no_sense_is_told_once_and_then_the_node_is_at_fault(tmp_path: Path, wrong: bytes) -> None:
    runner, out = Streams(lambda _: BytesIO(wrong)), Items()
    Follower(link_over(runner), "/run", tmp_path / "mirror", out).run()
    assert len(runner.messages) == runner.ended == module.FAULTS
    items = all_of(out)
    assert [type(item) for item in items if not isinstance(item, Quiet)] == [Note, Ended]
    assert isinstance(items[0], Note) and "makes no sense" in items[0].text
    assert isinstance(items[-1], Ended) and items[-1].status["state"] == "faulty"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_after_a_frame_that_made_no_sense_the_link_is_made_anew(tmp_path: Path) -> None:
    answers = [WRONG["a list"], b"", frame("a.log", 0, b"one\n")[:-2], frame("a.log", 0, b"one\n") + END]
    out = Items()
    Follower(link_over(Streams(lambda _: BytesIO(answers.pop(0)))), "/run", tmp_path, out).run()
    assert [item.text for item in all_of(out) if isinstance(item, Line)] == [b"one"]


def test_an_event_that_makes_no_sense_is_counted_kept_told_once_and_ends_nothing(tmp_path: Path) -> None:
    good = b'{"event": "rank_exit", "at": 5.0, "rank": 1, "code": 0, "signal": 9, "more": [[]]}'
    lines = [b"5", b"null", b'{"no": "event"}', b'{"event": "rank_exit", "at": 5}', b"[" * 50_000, b"\xff", b"", good]
    lines += [
        b'{"event": "hang", "at": 5, "ranks": [1e400], "stalled_s": 1}',
        b'{"event": "started", "at": 5, "att' + good,
    ]
    text = b"".join(line + b"\n" for line in lines)
    out = Items()
    runner = Streams(lambda _: BytesIO(frame("agent.jsonl", 0, text) + END))
    Follower(link_over(runner), "/run", tmp_path, out).run()
    items = all_of(out)
    told = {"event": "rank_exit", "at": 5.0, "rank": 1, "code": 0, "signal": 9}
    assert [item.record for item in items if isinstance(item, AgentEvent)] == [told, told]
    notes = [item.text for item in items if isinstance(item, Note)]
    assert len(notes) == 2 and "is passed over" in notes[0] and notes[1].startswith("7 lines")
    assert (tmp_path / "agent.jsonl").read_bytes() == text


def test_the_end_does_not_wait_for_the_logs(tmp_path: Path) -> None:
    early = b'{"end": {"state": "failed"}, "log_bytes": 9}\n'
    over = threading.Event()

    class Slow(BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            return line if line or over.wait(90) else b""

    stream = follow([link_over(Streams(lambda _: Slow(frame(LOG, 0, b"one\n") + early)))], {"n0": "/run"}, tmp_path)
    seen = [stream.next(90), stream.next(90)]
    assert isinstance(seen[0], Line) and isinstance(seen[1], Ended)
    assert [item for item in stream.rest(0.2) if item] == []
    assert stream.behind() == {"n0": 5}
    over.set()
    stream.close()


def test_a_progress_bar_is_shown_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATE_EVERY_S", 0.0)
    parts = [b"\r 1%", b"\r 2%\r 3%", b"\r 4%\n", b"next\n"]
    frames = b"".join(frame(LOG, sum(map(len, parts[:at])), part) for at, part in enumerate(parts))
    out = Items()
    Follower(link_over(Streams(lambda _: BytesIO(frames + END))), "/run", tmp_path, out).run()
    lines = [(item.text, item.passing) for item in all_of(out) if isinstance(item, Line)]
    assert lines == [(b" 1%", True), (b" 3%", True), (b"\r 1%\r 2%\r 3%\r 4%", False), (b"next", False)]


def test_a_slow_reader_misses_lines_but_no_event_and_holds_nobody_up(tmp_path: Path) -> None:
    """40 MB of lines while nobody takes any: all are in the mirror, few wait, and the events come through."""
    piece = b"".join(b"%07d %s\n" % (i, b"x" * 3000) for i in range(20))
    count = 40_000_000 // len(piece)
    event = b'{"event": "rank_exit", "at": 1, "rank": 1, "code": 1, "signal": 0}\n'

    class Endless(BytesIO):
        """Makes its frames when they are read: the test must not hold what the follower may not hold."""

        def __init__(self) -> None:
            super().__init__()
            self.at = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            self.at += 1
            if self.at > count + 1:
                return END[END.index(b"\n") + 1 :] if self.at > count + 2 else END[: END.index(b"\n") + 1]
            if self.at > count:
                return json.dumps({"src": "agent.jsonl", "off": 0, "len": len(event)}).encode() + b"\n"
            return json.dumps({"src": LOG, "off": (self.at - 1) * len(piece), "len": len(piece)}).encode() + b"\n"

        def read(self, size: int | None = -1, /) -> bytes:
            return piece if self.at <= count else event

    out = Items()
    tracemalloc.start()
    Follower(link_over(Streams(lambda _: Endless())), "/run", tmp_path, out).run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000
    items = all_of(out)
    shown = sum(isinstance(item, Line) for item in items)
    assert (tmp_path / LOG).stat().st_size == count * len(piece)
    assert [item.record["rank"] for item in items if isinstance(item, AgentEvent)] == [1]
    assert 0 < shown < count * 20
    assert [item.text for item in items if isinstance(item, Note)] == [
        f"{count * 20 - shown} lines came too fast to show; nexa logs has them"
    ]


def test_a_line_without_end_comes_in_pieces_and_is_not_held(tmp_path: Path) -> None:
    mirror, pieces = Mirror(tmp_path, {}), 0
    tracemalloc.start()
    for at in range(0, 30_000_000, 60_000):
        mirror.store(LOG, at, b"x" * 60_000)
        pieces += len(mirror.split(LOG, b"x" * 60_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert pieces == 30_000_000 // 65536
    assert mirror.flush() == [(LOG, b"x" * (30_000_000 % 65536))]


def test_the_mirror_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / "b.log").write_bytes(b"whole\nhal")
    (tmp_path / "long.log").write_bytes(b"x" * 100_000)
    assert marks(tmp_path) == {"b.log": 6, "long.log": 100_000}
    mirror = Mirror(tmp_path, marks(tmp_path))
    assert mirror.store("b.log", 6, b"half\n") == ""
    assert mirror.split("b.log", b"half\n") == [b"half"]
    assert (tmp_path / "b.log").read_bytes() == b"whole\nhalf\n"
    assert mirror.seen["b.log"] == 11


def test_a_tail_that_is_known_is_neither_shown_nor_written_again(tmp_path: Path) -> None:
    data = b"whole\nno newline"
    for text, shown in ((data, [b"whole", b"no newline"]), (data, []), (data + b"!", [b"no newline!"])):
        out = Items()
        Follower(link_over(serving({LOG: text})), "/run", tmp_path, out).run()
        assert [item.text for item in all_of(out) if isinstance(item, Line)] == shown
        assert (tmp_path / LOG).read_bytes() == text
        if not shown:
            assert (tmp_path / LOG).stat().st_mtime == 1000.0
        os.utime(tmp_path / LOG, (1000.0, 1000.0))


def test_without_room_the_mirror_stays_a_beginning_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "rank_1").write_text("a file where a folder should be")
    answers = [frame(LOG, 0, b"one\n") + frame(LOG, 4, b"two\n") + frame("a.log", 0, b"three\n") + END]
    out = Items()
    Follower(link_over(Streams(lambda _: BytesIO(answers.pop()))), "/run", tmp_path, out).run()
    items = all_of(out)
    assert [item.text for item in items if isinstance(item, Line)] == [b"one", b"two", b"three"]
    assert sum("cannot be kept here" in item.text for item in items if isinstance(item, Note)) == 1
    mirror = Mirror(tmp_path, {})
    (tmp_path / "rank_1").unlink()
    mirror.broken.add(LOG)
    mirror.store(LOG, 4, b"two\n")
    assert not (tmp_path / LOG).exists()  # behind a gap: the next reader brings both


def test_a_machine_that_replaced_another_begins_its_own_files(tmp_path: Path) -> None:
    for name, text in (("agent.jsonl", b'{"event": "old"}\n'), ("agent.err", b"old words\n"), ("rank_0.log", b"1\n")):
        (tmp_path / name).write_bytes(text)
    answers = [frame("agent.jsonl", 0, b'{"event": "heartbeat", "at": 1.0}\n') + frame("agent.err", 0, b"new\n") + END]
    runner, out = Streams(lambda _: BytesIO(answers.pop())), Items()
    Follower(link_over(runner), "/run", tmp_path, out, How(replay=True)).run()
    assert runner.messages[0]["offsets"]["rank_0.log"] == 2
    assert "agent.err" not in runner.messages[0]["offsets"]
    assert [item.record for item in all_of(out) if isinstance(item, AgentEvent)] == [{"event": "heartbeat", "at": 1.0}]
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert kept["agent.err"] == b"new\n" and kept["agent.1.err"] == b"old words\n"
    assert kept["agent.1.jsonl"] == b'{"event": "old"}\n' and kept["rank_0.log"] == b"1\n"
    answers.append(frame("agent.err", 0, b"new\nmore\n") + END)
    Follower(link_over(runner), "/run", tmp_path, out, How(replay=True)).run()
    assert sorted(p.name for p in tmp_path.glob("agent*err")) == ["agent.1.err", "agent.err"]


def test_a_file_that_gets_another_name_while_we_look_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.err").write_bytes(b"words\n")
    names = ("agent.jsonl", "agent.err")  # another reader has just put the first one aside
    monkeypatch.setattr(Path, "rglob", lambda folder, _: iter([folder / name for name in names]))
    assert sizes(tmp_path) == {tmp_path / "agent.err": 6}
    assert marks(tmp_path) == {"agent.err": 6}
    assert Mirror(tmp_path, {"agent.jsonl": 3, "agent.err": 6}).had == {"agent.err": 6}


class Silent(BytesIO):
    """A connection that says nothing until it is ended."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.over = threading.Event(), threading.Event()

    def readline(self, size: int | None = -1, /) -> bytes:
        self.asked.set()
        self.over.wait(90)
        return b""


@pytest.mark.parametrize(("seconds", "hung_up"), [(0.5, True), (16.0, False)])
def test_who_closes_while_it_speaks_has_hung_up_until_it_speaks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, hung_up: bool
) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Closing(BytesIO):
        """Speaks once; the end of the connection comes `seconds` later."""

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(-1 if size is None else size)
            now[0] += 1.0 if line else seconds
            return line

    beat = b'{"beat": 1, "state": "running"}\n'
    answers: list[BinaryIO] = [Closing(beat), BytesIO(b""), BytesIO(END)]
    out = Items()
    follower = Follower(link_over(Streams(lambda _: answers.pop(0))), "/run", tmp_path, out)
    follower.run()
    assert [(q.seconds, q.hung_up) for q in all_of(out) if isinstance(q, Quiet)] == [(seconds, hung_up)] * 2
    assert not follower.hung_up


@pytest.mark.parametrize("contact", [True, False])
def test_a_silent_node_is_told_of_and_its_connection_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contact: bool
) -> None:
    now, silent = [100.0], Silent()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    answers: list[BinaryIO] = [silent, BytesIO(END)]

    class Ending(Streams):
        def _end(self) -> None:
            super()._end()
            silent.over.set()

    runner, out = Ending(lambda _: answers.pop(0)), Items()
    follower = Follower(link_over(runner), "/run", tmp_path, out, How(contact=contact))
    follower.pulse()  # nothing is there yet
    follower.start()
    assert silent.asked.wait(90)
    for now[0] in (103.0, 105.0, 116.0):
        follower.pulse()
    follower.join(90)
    items = all_of(out)
    assert {item.seconds for item in items if isinstance(item, Quiet)} == {5.0, 16.0}
    assert isinstance(items[-1], Through) and sum(isinstance(item, Ended) for item in items) == 1
    assert runner.sent == [b"\n"] * 3 * contact  # who only reads is no controller
    assert {message["contact"] for message in runner.messages} == {contact}


def test_the_end_of_the_reader_ends_a_follower_that_waits_for_room(tmp_path: Path) -> None:
    many = b"".join(b'{"event": "heartbeat", "at": %d}\n' % i for i in range(20_000))
    frames = b"".join(frame("agent.jsonl", at, many[at : at + 60_000]) for at in range(0, len(many), 60_000))
    stream = follow([link_over(Streams(lambda _: BytesIO(frames + END)))], {"n0": "/run"}, tmp_path)
    assert isinstance(stream.next(90), AgentEvent)
    until = time.monotonic() + 90
    while stream.items.waiting_bytes < waiting.WAITING_BYTES and time.monotonic() < until:
        time.sleep(0.005)
    assert stream.items.waiting_bytes <= waiting.WAITING_BYTES + 1000
    stream.close()
    assert not any(follower.is_alive() for follower in stream.followers)


def test_more_can_be_sent_to_a_running_program_and_its_input_ends_with_it() -> None:
    stream = Runner().stream(("cat",), stdin=b"first\n")
    assert stream.out.readline() == b"first\n"
    stream.send(b"second\n")
    assert stream.out.readline() == b"second\n"
    stream.end()
    stream.end()
    stream.send(b"nobody reads this")
    assert stream.out.read() == b""


def test_when_we_are_killed_the_program_learns_of_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom nexa_dist.run.runner import Runner\n"
        "s = Runner().stream(('sh', '-c', 'cat; touch ' + sys.argv[1]), stdin=b'here\\n')\n"
        "print(s.out.readline().decode(), end='', flush=True)\ntime.sleep(600)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "learnt")]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout and child.stdout.readline() == b"here\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    until = time.monotonic() + 90
    while not (tmp_path / "learnt").exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_node_that_has_not_begun_the_attempt_is_asked_again_until_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.001)
    absent = b'{"end": {"state": "absent", "attempt": 0}}\n'
    older = (
        frame("agent.jsonl", 0, b'{"event": "ended", "attempt": 1}\n') + b'{"end": {"state": "failed", "attempt": 1}}\n'
    )
    begun = b'{"beat": 1, "state": "running"}\n' + frame(LOG, 0, b"hello\n")
    begun += b'{"end": {"state": "completed", "attempt": 2}}\n{"through": true}\n'
    answers = [absent, absent, older, begun]
    runner, out = Streams(lambda _: BytesIO(answers.pop(0))), Items()
    follower = Follower(link_over(runner), "/r", tmp_path / "n0", out, How(attempt=2))
    follower.run()
    found = all_of(out)
    assert [item.text for item in found if isinstance(item, Line)] == [b"hello"]
    assert [item.status["state"] for item in found if isinstance(item, Ended)] == ["completed"]
    assert not answers and not follower.early
    assert not [item for item in found if isinstance(item, Quiet)]


@pytest.mark.parametrize("attempt", [None, 1])
def test_who_waits_for_no_attempt_is_told_that_nothing_is_there(tmp_path: Path, attempt: int | None) -> None:
    failed = b'{"end": {"state": "failed", "attempt": 1}}\n{"through": true}\n'
    runner, out = Streams(lambda _: BytesIO(failed)), Items()
    Follower(link_over(runner), "/r", tmp_path / "n0", out, How(attempt=attempt)).run()
    assert [item.status["state"] for item in all_of(out) if isinstance(item, Ended)] == ["failed"]


def test_the_patience_with_a_node_that_never_begins_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.001)
    monkeypatch.setattr(module, "BEGIN_S", 0.005)
    absent = b'{"end": {"state": "absent", "attempt": 0}}\n{"through": true}\n'
    runner, out = Streams(lambda _: BytesIO(absent)), Items()
    follower = Follower(link_over(runner), "/r", tmp_path / "n0", out, How(attempt=1))
    follower.run()
    assert [type(item) for item in all_of(out)] == [Ended, Through]
    assert follower.early and 5 <= len(runner.messages) <= 7
