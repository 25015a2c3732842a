"""Views without a terminal: nothing, plain lines, JSON lines."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nexa_dist.node.protocol import Event
from nexa_dist.straggler import Straggler
from nexa_dist.ui import terminal
from nexa_dist.ui.run_view.state import UNREPORTED, State, sentence, span

PLAIN_EVERY_S = 10.0
PLAIN_SHARE = 0.05
"""A plain line comes at least at each such part of the whole, but not more than one a second."""
QUIET_S = 5.0


class Silent:
    """Keeps the state of a run and shows nothing; the base of every view. A view draws in `tick` or at once, and raises
    for nothing that a node sends."""

    def __init__(self, state: State, shown: set[int] | None, now: Callable[[], float]) -> None:
        self.state, self.shown, self.now = state, shown, now
        self.named: set[int] = set()
        """Stragglers of this attempt that were told of."""

    def attempt(
        self, number: int, nodes: Sequence[str], world_size: int, resume_step: int | None, replaced: Sequence[str] = ()
    ) -> None:
        """An attempt begins; `replaced` are nodes that were made anew for it."""
        self.state.attempt(number, nodes, world_size, resume_step, self.now())
        self.named.clear()
        for name in replaced:
            self.state.rows[name].state = "replaced"

    def line(self, node: str, source: str, rank: int | None, text: bytes, passing: bool = False) -> None:
        """A line of a log. Only ranks that are to be shown, `setup` and `prepare` are. `passing`: what a progress bar
        shows by now; on a terminal it is shown in place."""
        self.state.heard(node, self.now())
        self.state.line(rank, terminal.last_state(text))
        if (
            source.startswith((Event.SETUP, Event.PREPARE))
            if rank is None
            else self.shown is None or rank in self.shown
        ):
            (self._passing if passing else self._line)(node, source, rank, terminal.last_state(text))

    def event(self, node: str, record: Mapping[str, Any]) -> None:
        """A record of a node's agent.jsonl; those of earlier attempts are passed over."""
        if self.state.event(node, record, self.now()):
            self._event(node, record)
            found = self.state.holds_up
            if found and found.rank not in self.named:
                self.named.add(found.rank)
                self._straggler(found)

    def quiet(self, node: str, seconds: float) -> None:
        """The node has sent no word for so many seconds."""
        self.state.quiet(node, seconds, self.now())

    def note(self, text: str) -> None:
        """A line of talk."""

    def tick(self) -> None:
        """Called at each turn of the loop, at least once a second."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """While a question is asked at the terminal."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """The last state is drawn; the terminal is as it was. Safe to call twice."""

    def _line(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        pass

    def _passing(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self._line(node, source, rank, text)

    def _event(self, node: str, record: Mapping[str, Any]) -> None:
        pass

    def _straggler(self, found: Straggler) -> None:
        """A rank holds the others up; told once an attempt."""
        self.note(found.words)


class Plain(Silent):
    """One line each for what a person would want in the log of a batch job."""

    def __init__(self, state: State, shown: set[int] | None, now: Callable[[], float]) -> None:
        super().__init__(state, shown, now)
        self.told_at, self.told = now(), ""
        self.told_step = 0
        self.told_how = False
        self.told_quiet: dict[str, float] = {}

    def attempt(
        self, number: int, nodes: Sequence[str], world_size: int, resume_step: int | None, replaced: Sequence[str] = ()
    ) -> None:
        super().attempt(number, nodes, world_size, resume_step, replaced)
        self.told_quiet.clear()
        if number > 1:
            since = "from the beginning" if resume_step is None else f"from step {resume_step}"
            anew = f", made anew: {', '.join(replaced)}" if replaced else ""
            self.note(f"attempt {number}: {world_size} ranks on {', '.join(nodes)}, {since}{anew}")

    def note(self, text: str) -> None:
        terminal.say(text)

    def quiet(self, node: str, seconds: float) -> None:
        super().quiet(node, seconds)
        if seconds >= max(QUIET_S, 2 * self.told_quiet.get(node, 0.0)):
            self.told_quiet[node] = seconds
            self.note(f"warning: no word from {node} for {span(seconds)}; the run goes on there")

    def tick(self) -> None:
        self._back()
        now, step = self.now(), self.state.step
        if self.state.unreported(now) and not self.told_how:
            self.told_how = True
            self.note(UNREPORTED)
        if step is None and "step" in self.state.read and now - self.told_at >= PLAIN_EVERY_S:
            self._tell(now)
        if step is None or now - self.told_at < 1:
            return
        of = self.state.last.get("of")
        far = of is not None and abs(step - self.told_step) >= PLAIN_SHARE * of
        if far or now - self.told_at >= PLAIN_EVERY_S:
            self._tell(now)

    def close(self) -> None:
        if self.state.step is not None:
            self._tell(self.now())

    def _back(self) -> None:
        for node in [name for name in self.told_quiet if self.state.rows[name].quiet_since is None]:
            self.note(f"{node} answers again after {span(self.told_quiet.pop(node))}")

    def _tell(self, now: float) -> None:
        """The line of progress, unless it would say what was said."""
        figures = self.state.figures(now)
        key = f"{figures['attempt']} {figures['step']} {figures['saved']} {figures['durable']} {figures['read']}"
        if key != self.told:
            self.note(sentence(figures))
            self.told_at, self.told, self.told_step = now, key, self.state.step or 0

    def _line(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self.note(labelled(node, source, rank, text))


class Json(Silent):
    """One JSON object a line on stdout."""

    def __init__(self, state: State, shown: set[int] | None, now: Callable[[], float]) -> None:
        super().__init__(state, shown, now)
        self.told: dict[str, Any] = {}

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        terminal.emit_line({**finite(dict(fields)), "event": event, "run": self.state.run_id})

    def attempt(
        self, number: int, nodes: Sequence[str], world_size: int, resume_step: int | None, replaced: Sequence[str] = ()
    ) -> None:
        super().attempt(number, nodes, world_size, resume_step, replaced)
        fields = {"attempt": number, "nodes": list(nodes), "world_size": world_size, "resume_step": resume_step}
        self.emit("attempt", {**fields, "replaced": list(replaced)})

    def quiet(self, node: str, seconds: float) -> None:
        super().quiet(node, seconds)
        self.emit("quiet", {"node": node, "seconds": round(seconds, 1)})

    def note(self, text: str) -> None:
        self.emit("note", {"text": terminal.plain(text)})

    def _line(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self._emit_line(node, source, rank, text)

    def _passing(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self._emit_line(node, source, rank, text, passing=True)

    def _emit_line(self, node: str, source: str, rank: int | None, text: bytes, **more: bool) -> None:
        line = text.decode(errors="replace")
        self.emit("line", {"node": node, "source": source, "rank": rank, "line": line, **more})

    def _straggler(self, found: Straggler) -> None:
        self.emit("straggler", found.told)

    def _event(self, node: str, record: Mapping[str, Any]) -> None:
        name = record.get("event")
        if name == Event.PROGRESS:
            figures = finite(self.state.figures(self.now()))
            known = {key: value for key, value in figures.items() if key not in ("elapsed_s", "cost_usd", "eta_s")}
            if known != self.told:
                self.told = known
                self.emit("progress", {"at": record.get("at"), **figures})
        elif name != Event.HEARTBEAT:
            self.emit(str(name), {**record, "node": node})


def labelled(node: str, source: str, rank: int | None, text: bytes) -> str:
    """`[n0:3] text`, without what could rewrite a terminal."""
    return (
        f"[{node}:{source.partition('.')[0] if rank is None else rank}] {terminal.plain(text.decode(errors='replace'))}"
    )


def finite(value: Any) -> Any:
    """`nan` and `inf`, which JSON does not have, as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
