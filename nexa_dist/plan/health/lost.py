"""Verdict on silent nodes: lost or not. Pure: the same words at the same times give the same verdict.

Silence seen from one place says nothing of the other end. A node is lost when a second witness says so: the cloud, or
another node that we reach and that cannot reach it either. Where no node answers it is our own line first.

A partition closes no connection, and the end of a machine's processes closes all of them. So a node that hung up while
it spoke, that nothing comes back from, and with which no other node holds a connection, has ended what it ran. Its
machine may be rebooting: that one is lost by silence alone, as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

ASK_AFTER_S = 4.0
"""Silence for so long is looked into."""
CUT_AFTER_S = 30.0
"""Seconds after which a sign that may heal or flap (a cut between nodes, a status check) counts: a partition of 20 s
heals."""
ENDED_AFTER_S = 6.0
"""Silence of a node that hung up, after which it has ended what it ran: the other nodes' probes take so long."""
STEADY_S = 8.0
"""... and when it was said without a break for so long, by two looks at least."""
DOUBTFUL_S = 20.0
ALONE_S = 120.0
"""The same for a status check that fails or an instance that is forgotten: while another node answers, and while none
does, which is our own line first."""
FRESH_S = 30.0
"""An older word is none."""
HEARD_AFTER_S = 10.0
"""Silence that nobody has told of for so long is over."""
LOST_AFTER_S = 1800.0
"""`lost_after_s` where it is not set, while another node answers."""

CloudWord = Literal["", "off", "forgotten", "unwell", "runs", "works"]
"""`works`: seen at work by somebody who sees more than the cloud's books. `unwell`: a status check fails."""
PeerWord = Literal["", "mute", "reached", "up", "cut", "held"]
"""Word of a peer about a node. `mute`: the peer does not answer us itself. `reached`: we came through it to the node.
`up`: the machine answers it, be it that its sshd lets nobody in (refused, busy, restarted). `cut`: nothing comes back.
`held`: nothing comes back, but a connection between the two was not closed, or a new one is taken and not greeted. ""
where it cannot tell."""
Kind = Literal["here", "wait", "line", "ended", "lost"]


@dataclass(frozen=True)
class Verdict:
    """`line`: our own line is down, as far as can be told. `wait`: nobody can say that the node is dead. `ended`: what
    it ran is over, and its machine may come back."""

    kind: Kind
    why: str = ""


@dataclass
class Said:
    """One witness's word, and since when it says so without a break."""

    word: str
    since: float
    at: float
    why: str = ""


@dataclass
class Case:
    """Case of one node: all that is known of it. Times are seconds of one clock that only counts while we are awake."""

    quiet_since: float = 0.0
    told_at: float = float("-inf")
    over: bool = False
    """True when the node's agent is through: it says nothing more, whatever our line does."""
    hung_up: bool = False
    """Whether its end closed the connection while it spoke, and nothing came since."""
    cloud: Said | None = None
    peers: dict[str, Said] = field(default_factory=dict)

    def silent_s(self, now: float) -> float:
        return now - self.quiet_since if now - self.told_at <= HEARD_AFTER_S else 0.0

    def fresh(self, said: Said | None, now: float) -> str:
        """A word of this silence; an earlier one, or an old one, is none."""
        return said.word if said and now - said.at <= FRESH_S and said.at >= self.quiet_since else ""

    def steady_s(self, said: Said | None) -> float:
        """Seconds for which it was said without a break, of this silence."""
        return said.at - max(said.since, self.quiet_since) if said else 0.0


class Bench:
    """Takes what the witnesses say of the nodes of one run; `judge` says what follows."""

    def __init__(self, nodes: Sequence[str], lost_after_s: float | None = None) -> None:
        self.cases = {name: Case() for name in nodes}
        self.lost_after_s = lost_after_s
        self.alone_at = float("-inf")
        """Time at which no node answered, the last one: silence before that is our line's."""

    def quiet(self, node: str, seconds: float, now: float, hung_up: bool = False) -> None:
        """Our own line has had no word from it for so long."""
        case = self.cases[node]
        case.quiet_since, case.told_at, case.hung_up = now - seconds, now, hung_up

    def heard(self, node: str, over: bool = False) -> None:
        self.cases[node].told_at, self.cases[node].over = float("-inf"), over

    def cloud(self, node: str, word: CloudWord, why: str, now: float) -> None:
        self.cases[node].cloud = _said(self.cases[node].cloud, word, why, now)

    def peer(self, node: str, by: str, word: PeerWord, now: float) -> None:
        """`by` is another node, or "" for ourselves by a connection of its own."""
        before, held = self.cases[node].peers.get(by), word == "held"
        self.cases[node].peers[by] = _said(before, "cut" if held else word, word if held else "", now)

    def silent(self, now: float) -> list[str]:
        return [name for name, case in self.cases.items() if case.silent_s(now) > ASK_AFTER_S]

    def judge(self, node: str, now: float) -> Verdict:
        case = self.cases[node]
        silent_s = case.silent_s(now)
        if silent_s <= ASK_AFTER_S:
            return Verdict("here")
        quiet, cloud = f"no word for {silent_s:.0f} s", case.fresh(case.cloud, now)
        if cloud == "off" and case.cloud:
            return Verdict("lost", case.cloud.why)
        words = {by: word for by, said in case.peers.items() if (word := case.fresh(said, now))}
        if reached := [by for by, word in words.items() if word == "reached"]:
            return Verdict("wait", f"{quiet}, but {reached[0]} reaches it" if reached[0] else f"{quiet} until now")
        nothing = [by for by, word in words.items() if by and word == "cut"]
        cut = [by for by in nothing if case.steady_s(case.peers[by]) >= STEADY_S]
        others = [by for by, word in words.items() if by and word != "mute"]
        alone = not others and not self._answering(now)
        if silent_s > CUT_AFTER_S and cloud in ("unwell", "forgotten") and case.cloud:
            if case.steady_s(case.cloud) >= (ALONE_S if alone else DOUBTFUL_S):
                return Verdict("lost", f"{quiet}, and {case.cloud.why}")
        if silent_s > CUT_AFTER_S and cut and cut == others and "up" not in words.values() and cloud != "works":
            return Verdict("lost", f"{quiet}, and {', '.join(cut)} cannot reach it either")
        if case.hung_up and silent_s > ENDED_AFTER_S and cloud != "works" and nothing and nothing == others:
            if not any(case.peers[by].why for by in nothing):
                return Verdict("ended", f"it closed its connections, and {', '.join(nothing)} cannot reach it either")
        if alone:
            self.alone_at = now
            if self.lost_after_s and cloud and silent_s > self.lost_after_s:
                return Verdict("lost", f"{quiet}, which is longer than lost_after_s")
            return Verdict("line", f"{quiet}, and no other node answers us")
        if now - max(case.quiet_since, self.alone_at) > (self.lost_after_s or LOST_AFTER_S):
            return Verdict("lost", f"{quiet}, which is longer than lost_after_s")
        return Verdict("wait", f"{quiet}, and nobody says that it is dead")

    def _answering(self, now: float) -> bool:
        """Tell whether our line brings us to a node."""
        return any(not case.over and case.silent_s(now) <= ASK_AFTER_S for case in self.cases.values())


def _said(before: Said | None, word: str, why: str, now: float) -> Said:
    since = before.since if before and before.word == word and now - before.at <= FRESH_S else now
    return Said(word, since, now, why)
