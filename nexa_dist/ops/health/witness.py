"""Asks who else can tell whether a silent node lives: the cloud, the other nodes, the node by another way.

Every question is asked from a thread of its own: a network that is down must not hold up who follows the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.model import Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.table import machine_says
from nexa_dist.plan.health.lost import ASK_AFTER_S, Bench, PeerWord, Verdict
from nexa_dist.run.ssh import ways
from nexa_dist.run.ssh.connections import Ssh, on_all

ASK_EVERY_S = 4.0
Question = tuple[str, str, str]
"""Whom (cloud, node, peer), which other node, and about which one."""
PEERS = 2
"""Other nodes that are asked at a time."""
ROUTES = Path("/proc/net/route")


class Witnesses:
    """Witnesses of the nodes of one attempt. `now` is a clock that is never set."""

    def __init__(
        self, ctx: Context, ssh: Ssh, nodes: Sequence[Node], say: Callable[[str], None], lost_after_s: float | None
    ) -> None:
        self.ctx, self.ssh, self.say = ctx, ssh, say
        self.nodes = {node.name: node for node in nodes}
        self.bench = Bench(list(self.nodes), lost_after_s)
        # Seams: tests put a simulated world in their place.
        self.now, self.ways, self.machine_says = time.monotonic, ways, machine_says
        self.asked: dict[Question, float] = {}
        self.asking: set[Question] = set()
        self.api = ""
        """Why the cloud could not be asked; empty when it answers, or was not asked."""
        self.notes: deque[str] = deque()
        """Notes for people, until the thread that talks to them takes them from there."""
        self.said: dict[str, str] = {}
        """Last word about each node, by name."""
        self.tried: set[str] = set()
        """Nodes that were looked into at least once."""

    def quiet(self, name: str, seconds: float, hung_up: bool = False) -> Verdict:
        """Takes note of a silence, has it looked into, and answers what is known by now. Never waits."""
        now, every_s = self.now(), 0.0 if hung_up else ASK_EVERY_S
        self.bench.quiet(name, seconds, now, hung_up)
        others = (("peer", peer.name) for peer in self._peers(name))
        for whom, by in (("cloud", ""), ("node", ""), *others) if seconds > ASK_AFTER_S or hung_up else ():
            question = (whom, by, name)
            if question not in self.asking and now - self.asked.get(question, -ASK_EVERY_S) >= every_s:
                self.asked[question] = now
                self.asking.add(question)
                self.begin(question)
        verdict = self.bench.judge(name, now)
        self._tell(name, verdict)
        return verdict

    def heard(self, name: str, over: bool = False) -> None:
        self.bench.heard(name, over)
        if self.said.pop(name, "") == "line":
            self.said = {other: kind for other, kind in self.said.items() if kind != "line"}
            self.say("the line is back: asking the nodes what happened meanwhile")

    def begin(self, question: Question) -> None:
        threading.Thread(target=self.ask, args=(question,), daemon=True, name=f"witness-{question[2]}").start()

    def ask(self, question: Question) -> None:
        whom, by, name = question
        try:
            if whom == "cloud":
                self._ask_cloud(self.nodes[name])
            elif whom == "node":
                self.come(name)
            else:
                self.hear(name, self.nodes[by])
        finally:
            self.tried |= {name} if whom == "node" else set()
            self.asking.discard(question)

    def look(self, name: str) -> None:
        """One question to the node and to the others, and their answers waited for."""
        others = [threading.Thread(target=self.hear, args=(name, peer), daemon=True) for peer in self._peers(name)]
        for thread in others:
            thread.start()
        if not self.come(name):
            for thread in others:
                thread.join()

    def come(self, name: str) -> bool:
        """Whether the node is reached without another one; by the way that is found it is reached from now on."""
        node = self.nodes[name]
        for options in dict.fromkeys(((), self.ways.joined(self.ssh, node))):
            if self.ways.reach(self.ssh, node, *options):
                self.bench.peer(name, "", "reached", self.now())
                self._route(name, options)
                return True
        self.bench.peer(name, "", "", self.now())
        return False

    def hear(self, name: str, peer: Node) -> None:
        """Takes another node's word. Where the silent one answers that and not us, the way leads through it."""
        node, began = self.nodes[name], self.now()
        word: PeerWord = self.ways.ask(self.ssh, peer, node)
        self.bench.peer(name, peer.name, word, self.now())
        options = self.ways.through(self.ssh, peer, node)
        if word == "up" and self.ways.reach(self.ssh, node, *options) and not self.reached(name, began):
            self.bench.peer(name, peer.name, "reached", self.now())
            self._route(name, options, peer.name)

    def _route(self, name: str, options: tuple[str, ...], by: str = "") -> None:
        if self.ssh.routes.get(name, ()) != options:
            self.ssh.routes[name] = options
            way = f"through {by}" if by else "by another way" if options else "directly"
            self.notes.append(f"{name} is reached {way} from now on")

    def _ask_cloud(self, node: Node) -> None:
        try:
            word, why = self.machine_says(self.ctx, self.ssh.cluster, node)
            self.api = ""
        except NexaError as error:
            word, why, self.api = "", "", str(error)
        self.bench.cloud(node.name, word, why, self.now())

    def _peers(self, name: str) -> list[Node]:
        """Peers of a node, those that speak first; where none does, any: our own line is asked then."""
        silent = self.bench.silent(self.now())
        others = [node for other, node in self.nodes.items() if other != name]
        return sorted(others, key=lambda node: node.name in silent)[:PEERS]

    def _tell(self, name: str, verdict: Verdict) -> None:
        while self.notes:
            self.say(self.notes.popleft())
        if name not in self.tried or verdict.kind == self.said.get(name) or verdict.kind in ("here", "ended", "lost"):
            return
        first = "line" not in self.said.values()
        self.said[name] = verdict.kind
        if verdict.kind == "line" and first:
            self.say(
                f"no node answers: our own line first (tried: {self._line()}). "
                "The training goes on under its lease and deadline; nothing is ended"
            )
        elif verdict.kind == "wait":
            self.say(f"{name}: {verdict.why}; waiting")

    def _line(self) -> str:
        """Say in words what was tried."""
        cloud = self.ssh.cluster.traits.witness
        words = [f"{cloud} {f'does not answer: {self.api}' if self.api else 'answers'}"] if cloud else []
        try:
            lines = ROUTES.read_text().splitlines()[1:]
            there = any(line.split()[1] == "00000000" for line in lines)
            words.append(f"the default route is {'there' if there else 'gone'}")
        except (OSError, IndexError):  # not Linux
            pass
        now = self.now()
        for name, case in self.bench.cases.items():
            words.append(f"{name} silent for {case.silent_s(now):.0f} s")
        return ", ".join(words)

    def reached(self, name: str, since: float) -> bool:
        """Tell whether the node answered a question that was put after `since`, by whatever way."""
        peers = list(self.bench.cases[name].peers.values())
        return any(said.word == "reached" and said.at >= since for said in peers)

    def last_word(self, names: Sequence[str]) -> list[str]:
        """Nodes that answer after all: before nodes are ended they are asked once more by every way."""

        def ask(name: str) -> str:
            since = self.now()
            self._ask_cloud(self.nodes[name])
            said = self.bench.cases[name].cloud
            if said and said.word == "off":
                return ""
            self.look(name)
            return name if self.reached(name, since) else ""

        return [name for name in on_all(list(names), ask) if name] if names else []

    def settle(self, names: Sequence[str], pause: Callable[[], bool]) -> list[str]:
        """Until each of these nodes, which do not answer, does so or is proven lost; answers the lost ones. `pause`
        waits a little, and says whether there is nothing to wait for any more: then the rest counts as lost."""
        since, waiting, lost = self.now(), set(names), list[str]()
        for name in self.nodes:
            self.bench.heard(name, over=True)
        while waiting:
            for name in sorted(waiting):
                if self.quiet(name, ASK_AFTER_S + self.now() - since + 0.1).kind == "lost":
                    lost.append(name)
                elif self.reached(name, since):
                    self.heard(name)
            waiting -= {*lost, *(name for name in waiting if self.reached(name, since))}
            if waiting and pause():
                break
        return sorted({*lost, *waiting})
