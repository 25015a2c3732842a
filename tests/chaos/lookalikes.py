"""Events that look like the death of a node, and some true deaths, in a simulated world: no process, no network.

    python -m tests.chaos.lookalikes --seeds 400

What decides is real: `plan/health/lost.py`, `ops/health/witness.py`, the watch's own state, `plan/runs/recovery.py`. A
schedule fails when a node that lives is given up, when an attempt that goes on is, or when a death is not found. Times
are simulated seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, get_args

from nexa_dist.errors import NexaError
from nexa_dist.model import End, Node
from nexa_dist.ops.health.witness import Question, Witnesses
from nexa_dist.ops.runs import watch
from nexa_dist.ops.runs.attempt_state import AttemptState
from nexa_dist.plan.runs.recovery import Nodes, Policy, decide
from nexa_dist.run.logs.items import Quiet
from nexa_dist.traits import TRAITS

Kind = Literal[
    "line", "line_one_way", "line_to_one", "between", "partition", "loss", "sshd_restart", "max_startups", "api_error",
    "api_slow", "check_flaps", "forgotten", "dns", "stopped", "rank_fails", "hang_up", "reboot",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
API: tuple[Kind, ...] = ("api_error", "api_slow", "dns")
LONGEST_S = {"partition": 20.0, "sshd_restart": 10.0, "check_flaps": 300.0, "max_startups": 120.0, "hang_up": 6.0,
             "reboot": 30.0}  # fmt: skip
Death = Literal["power", "shutdown"]
"""Power: nothing says that it is gone. Shutdown (also a container that is killed, a panic of a supervisor, a vendor's
ending by the system): the kernel of the machine closes the connections of the processes that end."""
FOUND_WITHIN_S = 45.0
LAST_LOOK_S = 7.0
"""A question by every way to a node that does not answer."""


@dataclass(frozen=True)
class Event:
    kind: Kind
    at: float
    until: float
    node: str
    other: str


@dataclass
class World:
    """What is true at every second of one schedule."""

    seed: int
    now: float = 0.0
    stopped_s: float = 0.0
    wall_jump_s: float = 0.0
    events: list[Event] = field(default_factory=list)
    nodes: tuple[Node, ...] = ()
    dead: str = ""
    died_at: float = float("inf")
    cloud_tells: bool = True
    death: Death = "power"
    talk: bool = True
    """Whether the ranks hold connections between the nodes: then a partition is seen to have closed none."""

    def __post_init__(self) -> None:
        chance = self.chance = random.Random(f"looks dead {self.seed}")
        self.nodes = tuple(Node(f"n{i}", f"198.51.100.{i}", 1) for i in range(chance.choice((1, 2, 2, 3, 4))))
        for index in range(chance.randint(1, 3)):
            # The first kind goes round with the seed, so that so many seeds cover every kind.
            kind = KINDS[self.seed % len(KINDS)] if index == 0 else chance.choice(KINDS)
            at = round(chance.uniform(10, 120))
            length = round(chance.uniform(5, LONGEST_S.get(kind, chance.choice((40, 150, 900)))))
            if kind == "between" and self.events:  # with our own cut of that node it is a partition, which has to heal
                length = min(length, 20)
            pair = chance.sample(self.nodes, 2) if len(self.nodes) > 1 else [self.nodes[0]] * 2
            self.events.append(Event(kind, at, at + length, pair[0].name, pair[1].name))
        # Two cuts of one node, one after the other, may be a partition that does not heal: then it is lost, rightly.
        self.events = (
            self.events[:1] if sum(e.kind in ("partition", "between") for e in self.events) > 1 else self.events
        )
        if self.seed % 4 == 3:
            self.events, self.dead = [], chance.choice(self.nodes).name
            self.died_at = round(chance.uniform(10, 60))
            self.cloud_tells = len(self.nodes) == 1 or chance.random() < 0.7
            self.death = chance.choice(get_args(Death))
        self.talk = chance.random() < 0.7

    def on(self, *kinds: Kind, node: str = "", pair: tuple[str, str] | None = None) -> bool:
        return any(
            e.kind in kinds and e.at <= self.now < e.until and (not node or e.node == node)
            and (pair is None or (e.node, e.other) == pair)
            for e in self.events
        )  # fmt: skip

    def lives(self, name: str) -> bool:
        return name != self.dead or self.now < self.died_at

    def ours(self, name: str, fresh: bool = True) -> str:
        """What comes of our own connection to a node."""
        if not self.lives(name) or self.on("line", "line_one_way"):
            return "cut"
        if self.on("line_to_one", "partition", "reboot", node=name):
            return "cut"
        if self.on("loss") and self.chance.random() < 0.5:
            return "cut"
        if fresh and self.on("dns"):
            return "cut"
        return "up" if fresh and self.on("sshd_restart", "max_startups", node=name) else "reached"

    def theirs(self, peer: str, name: str) -> str:
        """What comes of a connection to `name` from another node."""
        silence = "held" if self.talk else "cut"
        if not self.lives(name):
            return "cut" if self.death == "shutdown" else silence
        if self.on("reboot", node=name):
            return "cut"
        if self.on("partition", node=name) or self.on("partition", node=peer) or self.on("between", pair=(peer, name)):
            return silence
        return "up" if self.on("sshd_restart", "max_startups", node=name) else "reached"

    def over(self, name: str) -> bool:
        """Whether what the node ran has ended."""
        return not self.lives(name) or any(
            e.kind == "reboot" and e.node == name and e.at <= self.now for e in self.events
        )

    def hangs_up(self, name: str) -> bool:
        """Whether the connection that we have with it is closed now by its end, or in its name by something between."""
        closing = any(
            e.kind in ("hang_up", "reboot", "sshd_restart") and e.node == name and e.at <= self.now < e.at + 1
            for e in self.events
        )
        return closing or (name == self.dead and self.death == "shutdown" and self.now == self.died_at)

    def cloud(self, _ctx: Any, _cluster: Any, node: Node) -> tuple[str, str]:
        if not self.cloud_tells or self.on(*API, "line"):
            raise NexaError("the API does not answer")
        if not self.lives(node.name) and self.now >= self.died_at + 2:
            return "off", "its instance is terminated"
        if self.on("forgotten", node=node.name) and self.chance.random() < 0.5:
            return "forgotten", "its instance is unknown"
        if self.on("check_flaps", node=node.name) and self.chance.random() < 0.5:
            return "unwell", "its status check fails"
        return "runs", "its instance is running"


class Ways:
    """In the place of `run/ssh/ways.py`: an option is the name of the node that the way leads through."""

    def __init__(self, world: World) -> None:
        self.world = world

    def reach(self, ssh: Any, node: Node, *options: str) -> bool:
        if not options:
            return self.world.ours(node.name) == "reached"
        return self.world.ours(options[0]) == self.world.theirs(options[0], node.name) == "reached"

    def ask(self, ssh: Any, peer: Node, node: Node) -> str:
        word = self.world.theirs(peer.name, node.name) if self.world.ours(peer.name) == "reached" else "mute"
        return "up" if word == "reached" else word

    def joined(self, *_: Any) -> tuple[str, ...]:
        return ()

    def through(self, _ssh: Any, peer: Node, _node: Node) -> tuple[str, ...]:
        return (peer.name,)


class Simulated(Witnesses):
    """Looks take simulated time: longer where nothing comes back."""

    def __init__(self, world: World) -> None:
        ssh: Any = SimpleNamespace(routes={}, by=lambda node: None, cluster=SimpleNamespace(traits=TRAITS["aws"]))
        ssh.by = lambda _node: ssh
        context: Any = SimpleNamespace(detail=lambda _: None)
        super().__init__(context, ssh, world.nodes, lambda _: None, None)
        self.world, self.due = world, list[tuple[float, Callable[[], object]]]()
        self.now = lambda: world.now
        self.ways, self.machine_says = Ways(world), world.cloud  # type: ignore[assignment]

    def begin(self, question: Question) -> None:
        whom, by, name = question
        slow = 5.0 * self.world.on("api_slow") + 3.0 * self.world.on("line", "dns")
        if whom == "peer":  # two probes of 3 s, by a connection that is made first
            takes = 1 + 6 * (self.world.theirs(by, name) in ("cut", "held"))
        else:
            takes = 1 + slow if whom == "cloud" else 2 + slow + 10 * (self.world.ours(name) == "cut")
        self.due.append((self.world.now + takes, partial(self.ask, question)))

    def turn(self) -> None:
        now = self.world.now
        ready = [act for at, act in self.due if at <= now]
        self.due = [(at, act) for at, act in self.due if at > now]
        for act in ready:
            act()


@dataclass
class Told:
    """What came of one schedule."""

    seed: int
    events: list[str]
    wrong: list[str]
    found_s: float | None = None
    """Until the attempt was ended for it, and until its machine was given up."""
    lost_s: float | None = None
    who: str = ""
    nodes: int = 0


def run(seed: int) -> Told:
    world = World(seed)
    told = Told(seed, [f"{e.kind} {e.node} {e.at:.0f}-{e.until:.0f}" for e in world.events], [], nodes=len(world.nodes))
    if world.dead:
        told.events.append(f"death of {world.dead} at {world.died_at:.0f}")
    told.who = "the cloud" if world.cloud_tells else f"another node alone ({world.death})"
    Attempt(world, told).run()
    return told


class Attempt:
    """One attempt under the real watch, second by second."""

    def __init__(self, world: World, told: Told) -> None:
        self.world, self.told = world, told
        self.state = AttemptState(tuple(node.name for node in world.nodes))
        self.witnesses, self.awake = Simulated(world), watch._Awake(lambda: world.now)
        self.heard = {node.name: 0.0 for node in world.nodes}
        self.back_at = dict.fromkeys(self.heard, 0.0)
        """When a connection that broke is made anew."""
        self.hung_up = set[str]()
        self.view: Any = SimpleNamespace(quiet=lambda *_: None)

    def run(self) -> None:
        last = max([event.until for event in self.world.events], default=self.world.died_at) + 120
        while self.world.now < last:
            self.second()
            if self.state.ends:
                self.ended(list(self.state.ends))
                return
            if self.world.on("rank_fails"):
                self.between()
                return
        if self.world.dead:
            self.told.wrong.append(f"{self.world.dead} died and was not found")

    def second(self) -> None:
        stops = [e for e in self.world.events if e.kind == "stopped" and e.at <= self.world.now < e.until]
        self.world.now = max([self.world.now + 1, *(e.until for e in stops)])
        self.awake.turn()
        self.witnesses.turn()
        for name in self.heard:
            self.listen(name)

    def listen(self, name: str) -> None:
        """A word a second, by the usual way or by the one that was found; silence is told of every two seconds."""
        now, route = self.world.now, self.witnesses.ssh.routes.get(name, ())
        if now - self.heard[name] < 3 and self.world.hangs_up(name):
            self.hung_up.add(name)
            self.back_at[name] = now + 1
        broken = now < self.back_at[name]
        restarts = self.world.on("sshd_restart", node=name)
        node = self.witnesses.nodes[name]
        there = self.witnesses.ways.reach(self.witnesses.ssh, node, *route) if broken or route else (
            self.world.ours(name, fresh=restarts) == "reached")  # fmt: skip
        if there and not broken:
            self.heard[name] = now
            self.witnesses.heard(name)
            self.hung_up.discard(name)
            return
        self.back_at[name] = self.back_at[name] if there else now + 2
        silent_s, hung_up = now - self.heard[name], name in self.hung_up
        if (silent_s >= 4 and now % 2 == 0) or (hung_up and silent_s <= 1):
            watch._quiet(self.state, Quiet(name, silent_s, hung_up), self.view, self.awake, self.witnesses)

    def ended(self, names: list[str]) -> None:
        """The watch calls the attempt over. The machines of those that are not proven lost are waited for."""
        for name in names:
            if not self.world.over(name):
                self.told.wrong.append(f"{name} goes on and its attempt was ended: {self.state.ends[name]['reason']}")
        if self.world.dead in names:
            self.told.found_s = self.world.now - self.world.died_at
        doubtful = [name for name in names if name in self.state.doubtful]
        lost = [*(name for name in names if name not in doubtful), *self.settle(doubtful)]
        known = [self.witnesses.bench.cases[name].cloud for name in lost]
        self.world.now += 0 if all(said and said.word == "off" for said in known) else LAST_LOOK_S
        self.judge(sorted({*lost} - {*self.witnesses.last_word(lost)}))

    def between(self) -> None:
        """A rank failed, so the attempt is over; who does not answer now is waited for, as the supervisor does."""
        self.judge(self.settle([name for name in self.heard if self.world.ours(name) != "reached"]))

    def settle(self, silent: Sequence[str]) -> list[str]:
        self.witnesses.asking.clear()  # as new ones, which the supervisor takes
        self.witnesses.due.clear()

        def pause() -> bool:
            self.world.now += 1
            self.witnesses.turn()
            return self.world.now > 5000

        return self.witnesses.settle(silent, pause) if silent else []

    def judge(self, lost: Sequence[str]) -> None:
        """What the policy does with those that are called lost, held against what is true."""
        fit = tuple(name for name in self.heard if name not in lost)
        end = End("node" if lost else "rank", "it ended", ended_unix=self.world.now)
        decision = decide([end], Nodes(fit, tuple(lost), replaceable=True), Policy())
        ended = decision.nodes if decision.action == "replace" else ()
        for name in ended:
            if self.world.lives(name):
                why = self.state.ends.get(name, {}).get("reason")
                self.told.wrong.append(f"{name} lives and was ended at {self.world.now:.0f}: {why}")
            else:
                self.told.lost_s = self.world.now - self.world.died_at
        if self.world.dead and self.told.lost_s is None:
            self.told.wrong.append(f"{self.world.dead} died and was not found")
        elif self.told.found_s is not None and self.told.found_s > FOUND_WITHIN_S:
            self.told.wrong.append(f"found only after {self.told.found_s:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.lookalikes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args(argv)
    rows = [run(seed) for seed in range(asked.first, asked.first + asked.seeds)]
    for row in (row for row in rows if row.wrong):
        print(json.dumps({"seed": row.seed, "nodes": row.nodes, "events": row.events, "wrong": row.wrong}))
    for who in sorted({row.who for row in rows if row.found_s is not None}):
        found = [row.found_s for row in rows if row.found_s is not None and row.who == who]
        lost = [row.lost_s for row in rows if row.lost_s is not None and row.who == who]
        print(f"deaths that {who} tells of: {len(found)}, found after {statistics.median(found):.0f} s (median), "
              f"{max(found):.0f} s (worst); the machine given up after {statistics.median(lost):.0f} s, "
              f"{max(lost):.0f} s")  # fmt: skip
    alike = sum(not any("death" in event for event in row.events) for row in rows)
    bad = [row.seed for row in rows if row.wrong]
    print(f"{alike} schedules of what only looks dead, {len(rows) - alike} deaths; wrong: {bad or 0}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
