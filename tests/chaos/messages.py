"""What a hostile node may say, at random: frames, events and answers. No traceback, no hang, bounded memory.

`python -m tests.chaos.messages [--seed N] [--count N]`: no ssh and no node; a follower and the state of an attempt get
what a node would send, and so does every place that reads an answer.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.node.protocol import VERSION
from nexa_dist.ops.runs import checkpoints
from nexa_dist.ops.runs.attempt_state import AttemptState
from nexa_dist.ops.runs.status import progress_of
from nexa_dist.ops.work import results
from nexa_dist.plan.runs import preflight
from nexa_dist.run.logs import follower as following
from nexa_dist.run.logs.follower import Follower
from nexa_dist.run.logs.items import AgentEvent, Ended, Items, Line, Note, Quiet
from nexa_dist.run.record import Run
from nexa_dist.run.runner import Result, Runner, Stream
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.ui import run_view
from nexa_dist.ui.run_view.state import State
from tests.chaos.damage import ODD, WHOLE, Tally, replaced

NODE = Node("n0", "10.0.0.1", 2)
CLUSTER = Cluster("c", "static", (NODE,), Layout("python3", "~/s", "~/h", "~/d"))
SLOW_S = 60.0
MOST_GROWTH = 256 << 20
AT = {"at": 1_790_000_000.0}
EXIT = {**AT, "event": "rank_exit", "rank": 1, "code": 1, "signal": 0, "step": 7, "oom": False}
PROGRESS = {
    **AT,
    "event": "progress",
    "steps": {"0": 7, "1": None},
    "of": 9,
    "loss": 1.5,
    "tokens_per_s": 3.0,
    "saved": 5,
    "own_s": {"0": 0.25, "1": 0.5},
}
GROUP = {"name": "0", "desc": "default_pg", "op": "nccl:all_reduce", "state": "started", "sizes": "[[4]]"}
EVENTS: tuple[dict[str, Any], ...] = (
    {**AT, "event": "started", "attempt": 1, "pid": 7, "node": "n0", "version": VERSION},
    {**AT, "event": "heartbeat"},
    {**AT, "event": "prepared", "go": True},
    {**AT, "event": "torchrun", "pid": 8},
    {**AT, "event": "rank_start", "rank": 0, "pid": 9},
    PROGRESS,
    EXIT,
    {**AT, "event": "hang", "ranks": [0, 1], "stalled_s": 9.0, "steps": {"0": 1}, "states": {"0": "S"}},
    {**AT, "event": "flight", "rank": 0, "groups": [{**GROUP, "enqueued": 9, "started": 9, "completed": 8, "seq": 9}]},
    {**AT, "event": "stopping", "reason": "deadline", "grace_s": 5},
    {**AT, "event": "notice", "action": "terminate", "at_unix": 1_790_000_100, "seen_unix": 1_790_000_000.0},
    {**AT, "event": "due", "why": "lease", "acts_unix": 1_790_000_100.0, "seen_unix": 1_790_000_000.0},
    {**AT, "event": "ended", "state": "failed", "code": 1, "reason": "torchrun", "left": [], "attempt": 1},
)
STATUS = {
    "state": "failed", "code": 1, "reason": "torchrun", "left": [], "attempt": 1, "processes": [5], "ranks": [EXIT],
    "progress": PROGRESS, "notice": None, "warm": 7, "last_event_unix": 1_790_000_000.0,
}  # fmt: skip
PROBE = {
    "gpus": ["H100"], "torch": "2.13.0", "python": "3.11.7", "agent": "1", "hostname": "h", "cpus": 8, "home": "/root",
    "free_bytes": 1 << 40, "unix": 1_790_000_000.0, "have": ["/x"], "port": 4711, "port_error": "",
    "peers": {"10.0.0.2": {"address": "10.0.0.1", "interface": "eth0", "peer": "10.0.0.2"}},
}  # fmt: skip
WROTE = {
    "there": True, "more": False, "cut": False,
    "files": [{"name": "a/b", "path": "work/a/b", "bytes": 7, "mtime_ns": 1_790_000_000 * 10**9, "kind": "other"}],
    "checkpoints": [
        {"step": 7, "path": "/s/r/checkpoints/step_00000007", "sha256": "0" * 64, "bytes": 9, "durable": False,
         "shards": {"digest": "1" * 64, "attempt": 1, "of": 3, "has": [0, 2], "bytes": 27}}
    ],
}  # fmt: skip
STOP = {**STATUS, "ended": 3}
ANSWERS: dict[str, dict[str, Any]] = {
    "probe": PROBE, "status": STATUS, "stop": STOP, "start": {"pid": 7, "already": False}, "go": {"ok": True},
    "allow": {"ok": True}, "forget": {"left": []}, "unpack": {"path": "/x"}, "wrote": {"runs": [WROTE]},
}  # fmt: skip
CHECKPOINTS = {
    "whole": [
        {
            "path": "/s/r/checkpoints/step_00000007",
            "step": 7,
            "shards": {"digest": "1" * 64, "attempt": 1, "of": 3, "has": [0, 2], "bytes": 27},
        }
    ],
    "skipped": [{"path": "/s/r/checkpoints/step_00000009", "step": 9, "why": "torn"}],
}
RESULT = {
    "model": "m",
    "dataset": {"path": "p", "sha256": "0"},
    "checkpoint": {"step": 7},
    "eval_report": {"loss": 1.0},
}


class Node0:
    """A runner for which one node answers whatever it is given."""

    def __init__(self) -> None:
        self.out, self.code, self.sent = b"", 0, b""

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] = b"", **_: Any) -> Result:
        return Result(tuple(argv), self.code, self.out, b"")

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        return Stream(BytesIO(self.sent), lambda: None, lambda _: None)


def strange(chance: random.Random, good: Any) -> bytes:
    """A message that is nearly as it should be, or not at all."""
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(WHOLE)
    if kind < 0.2:
        data = bytearray(json.dumps(good).encode())
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    if kind < 0.25:
        return json.dumps(good).encode()[: chance.randrange(60)]
    changed = good
    for _ in range(chance.randrange(3)):
        changed = replaced(chance, changed)
    return json.dumps(changed).encode()


def frames(chance: random.Random, count: int) -> tuple[bytes, int]:
    """What one connection sends: mostly events and logs in order, with what no agent says among them."""
    out, offsets, said = [], dict[str, int](), 0
    while said < count:
        said += 1
        pick = chance.random()
        if pick < 0.6:
            name, data = "agent.jsonl", strange(chance, chance.choice(EVENTS)) + b"\n"
            if pick < 0.1:
                name, data = "rank_1/attempt_1.log", chance.randbytes(chance.randrange(2000))
            header = {"src": name, "off": offsets.get(name, 0), "len": len(data)}
            offsets[name] = offsets.get(name, 0) + len(data)
            out.append(json.dumps(header).encode() + b"\n" + data)
        elif pick < 0.9:
            out.append(b'{"beat": 1.0, "state": "running"}\n')
        elif pick < 0.98:
            header = {"src": chance.choice(("a.log", "rank_0/x.log", *map(str, ODD))), "off": 0, "len": 5}
            out.append(strange(chance, header) + b"\n12345")
        else:
            out.append(strange(chance, {"end": STATUS, "log_bytes": 9}) + b"\n")
    return b"".join(out), said


@dataclass
class Bench:
    """Everything that hears of a node, and one that says what it likes."""

    root: Path
    chance: random.Random
    runner: Node0 = field(default_factory=Node0)
    tally: Tally = field(default_factory=Tally)

    @property
    def link(self) -> Link:
        return Link(Ssh(cast(Runner, self.runner), CLUSTER, "/s"), NODE, "/home/u")

    def guarded(self, what: str, act: Callable[[], object]) -> None:
        """An error that names the node is an answer; anything else is a fault."""
        began = time.monotonic()
        try:
            act()
        except NexaError as error:
            if NODE.name not in str(error):
                self.tally.faults.append(f"{what}: it does not name the node: {error}")
        except Exception:
            self.tally.faults.append(f"{what}: {traceback.format_exc(limit=-5)}")
        took = time.monotonic() - began
        self.tally.slowest_s = max(self.tally.slowest_s, took)
        if took > SLOW_S:
            self.tally.faults.append(f"{what}: {took:.0f} s")

    def follow(self, count: int) -> None:
        """A connection's worth of frames, through the follower into the state of the attempt and what people see."""
        self.runner.sent, said = frames(self.chance, count)
        self.tally.rounds += said
        folder = self.root / f"mirror{self.tally.rounds}"
        out, state = Items(), AttemptState(("n0",), 1, {"n0": (0, 1)})
        view = run_view.view("none", State("r", 1.0, AT["at"]), None)
        view.attempt(1, ["n0"], 2, None)
        follower = Follower(self.link, "/run", folder, out)
        raised: list[str] = []

        def run() -> None:
            try:
                follower.run()
            except Exception:
                raised.append(traceback.format_exc(limit=-5))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        until = time.monotonic() + SLOW_S

        def hear() -> None:
            while (thread.is_alive() or not out.empty()) and time.monotonic() < until:
                try:
                    item = out.get(timeout=0.2)
                except queue.Empty:  # the thread is only slow
                    continue
                if isinstance(item, AgentEvent):
                    view.event("n0", item.record)
                elif isinstance(item, Line):
                    view.line("n0", item.source, item.rank, item.text)
                if not isinstance(item, (Note, Quiet)):
                    state.step(item)
                if isinstance(item, Ended):
                    view.tick()

        self.guarded(f"frames {self.runner.sent[:200]!r}", hear)
        self.guarded("the end", lambda: state.end([], None, 0.0, 1.0) if state.done else None)
        follower.close()
        thread.join(10)
        if thread.is_alive() or raised:
            self.tally.faults.append(f"the follower {raised or 'does not end'}")

    def answer(self) -> None:
        """One answer to a command, used as its caller uses it."""
        chance, link = self.chance, self.link
        self.tally.rounds += 1
        verb = chance.choice([*ANSWERS, "checkpoints", "result"])
        good = ANSWERS.get(verb) or (CHECKPOINTS if verb == "checkpoints" else RESULT)
        self.runner.out, self.runner.code = strange(chance, good), chance.choice((0, 0, 0, 1))
        record = Run(cast(Any, None), {}, {"n0": {"run_dir": "/run"}}, [], "r")

        def act() -> None:
            if verb == "checkpoints":
                checkpoints._verified(link, "/root")
            elif verb == "result":
                results.read_result(cast(Any, _Quiet()), [link], record)
            else:
                said = link.call(verb, "/run")
                if verb == "probe":
                    preflight.judge(CLUSTER, {"n0": said}, AT["at"])
                elif verb == "status":
                    progress_of({"n0": said})

        self.guarded(f"{verb} {self.runner.out[:300]!r}", act)


class _Quiet:
    """In place of a Context."""

    def say(self, text: str) -> None:
        pass


def rounds(root: Path, seed: int, count: int) -> Tally:
    bench = Bench(root, random.Random(f"messages {seed}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    pauses, following.BACKOFF_S = following.BACKOFF_S, (0.0,)
    try:
        while bench.tally.rounds < count:
            if bench.chance.random() < 0.05:
                bench.follow(60)
            else:
                bench.answer()
    finally:
        following.BACKOFF_S = pauses
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before > MOST_GROWTH:
        bench.tally.faults.append("too much memory")
    return bench.tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.messages", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nexa-messages-") as folder:
        tally = rounds(Path(folder), asked.seed, asked.count)
    for fault in tally.faults[:20]:
        print(fault)
    print(tally.line().replace("damaged files", "messages"))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
