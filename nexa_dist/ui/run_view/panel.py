"""The panel of a run on a terminal, with the lines of the chosen ranks above it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nexa_dist.ui import terminal
from nexa_dist.ui.run_view.state import UNREPORTED, Row, State, guess, span
from nexa_dist.ui.run_view.views import QUIET_S, Silent, labelled

REDRAW_EVERY_S = 0.25
LINES_A_REDRAW = 200
"""More than anybody can read; what is passed over is counted, and is in the logs."""
SHOWN_CHARACTERS = 2000
BARS = 4
"""Progress bars of ranks that are shown at once."""
FRAME_ROWS = 9
"""Lines of the panel that are not nodes."""


class Drawn(Silent):
    """A region at the foot of the terminal that is redrawn in place."""

    def __init__(
        self, state: State, shown: set[int] | None, now: Callable[[], float], console: Console | None = None
    ) -> None:
        super().__init__(state, shown, now)
        self.console = console or Console(stderr=True, highlight=False)
        self.waiting: deque[str] = deque(maxlen=LINES_A_REDRAW)
        self.came, self.drawn_at = 0, 0.0
        self.bars: dict[tuple[str, str], str] = {}
        """Text of each progress bar by now, by node and log."""
        self.live: Live | None = None
        self._open()

    def note(self, text: str) -> None:
        self._add(terminal.plain(text))

    def tick(self) -> None:
        if self.live and self.now() - self.drawn_at >= REDRAW_EVERY_S:
            self._draw()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.close()
        try:
            yield
        finally:
            self._open()

    def _line(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self.bars.pop((node, source), None)
        self._add(labelled(node, source, rank, text))

    def _passing(self, node: str, source: str, rank: int | None, text: bytes) -> None:
        self.bars[node, source] = labelled(node, source, rank, text)

    def _add(self, text: str) -> None:
        self.came += 1
        self.waiting.append(text)

    def _open(self) -> None:
        self.width = self.console.size.width
        self.live = Live(self._panel(), console=self.console, auto_refresh=False, vertical_overflow="crop")
        self.live.start()
        self.console.show_cursor(True)  # a kill -9 would leave the terminal without one

    def close(self) -> None:
        if self.live:
            self._draw()
            self.live.stop()
            self.live = None

    def _draw(self) -> None:
        if self.live is None:
            return
        if self.console.size.width < self.width:  # what was drawn is wrapped now, and nobody knows into how many rows
            self.live.stop()
            self.console.clear()
            self._open()
        self.drawn_at = self.now()
        lines = [Text(_cut(line)) for line in self.waiting]
        if missed := self.came - len(lines):
            lines.insert(0, Text(f"({missed} lines not shown here: nexa logs {self.state.run_id} has them)", "dim"))
        self.waiting.clear()
        self.came = 0
        self.live.update(self._panel())
        if lines:
            self.console.print(Group(*lines))
        self.live.refresh()

    def _panel(self) -> RenderableType:
        bars = list(self.bars.values())[-BARS:]
        shown = panel(self.state, self.now(), max(3, self.console.size.height - FRAME_ROWS - 2 - len(bars)))
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in bars), shown) if bars else shown


def _cut(line: str) -> str:
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}… ({len(line)} characters)"


def panel(state: State, now: float, rows: int) -> RenderableType:
    """The run at this moment, with at most `rows` nodes: first those that do not simply run."""
    figures = state.figures(now)
    title = f"{state.run_id}  attempt {state.number}, {state.world_size} ranks on {len(state.rows)} nodes"
    nodes = Table.grid(padding=(0, 2))
    for row in _rows(state, now, rows):
        nodes.add_row(*row)
    return Panel(Group(*_head(state, figures, now), nodes), title=Text(terminal.plain(title)))


def _head(state: State, figures: dict[str, Any], now: float) -> list[RenderableType]:
    found = state.holds_up
    slow = [Text(terminal.plain(found.words), "yellow")] if found else []
    return [_bar(figures, state.unreported(now)), _numbers(figures, state.resume_step), *slow]


def _bar(figures: dict[str, Any], unreported: bool) -> RenderableType:
    if figures["read"]:
        return Text(guess(figures["read"]))
    if unreported:
        return Text(UNREPORTED)
    step, of = figures["step"], figures["of"]
    line = Table.grid(padding=(0, 2))
    words = Text("no step yet" if step is None else f"step {step}" + (f" of {of:.0f}" if of is not None else ""))
    if step is None or not of:
        line.add_row(words)
    else:
        share = min(1.0, max(0.0, step / of))
        line.add_row(words, ProgressBar(total=1.0, completed=share, width=40), Text(f"{share:.0%}"))
    return line


def _numbers(figures: dict[str, Any], resume_step: int | None) -> RenderableType:
    loss, rate = figures["loss"], figures["tokens_per_s"]
    parts = [
        f"loss {'-' if loss is None else f'{loss:.4f}'}",
        f"{'-' if rate is None else f'{rate:,.0f}'} tok/s",
        f"ETA {span(figures['eta_s'])}",
        f"elapsed {span(figures['elapsed_s'])}",
        f"{figures['cost_usd']:.2f} USD",
    ]
    kept = [f"{word} {'-' if figures[word] is None else f'{figures[word]:.0f}'}" for word in ("saved", "durable")]
    resumed = "" if resume_step is None else f", resumed from step {resume_step}"
    return Group(Text("  ".join(parts)), Text(f"checkpoint: {', '.join(kept)}{resumed}"))


def _rows(state: State, now: float, room: int) -> list[tuple[Text, ...]]:
    def ill(item: tuple[str, Row]) -> bool:
        return item[1].state != "running" or item[1].quiet_since is not None

    named = list(state.rows.items())
    if len(named) > room:
        named = sorted(named, key=lambda item: not ill(item))[: room - 1]
    made = [_row(name, row, now) for name, row in sorted(named, key=lambda item: list(state.rows).index(item[0]))]
    if hidden := len(state.rows) - len(named):
        made.append((Text("…"), Text(f"and {hidden} more nodes"), Text(""), Text("")))
    return made


def _row(name: str, row: Row, now: float) -> tuple[Text, ...]:
    said, style = row.state, "green" if row.state == "running" else ""
    if row.quiet_since is not None and now - row.quiet_since >= QUIET_S:
        said, style = f"{row.state}, quiet {span(now - row.quiet_since)}", "yellow"
    own = sorted(row.own_s.values())
    each = "" if not own else f", own {own[0]:.2f} s" if own[0] == own[-1] else f", own {own[0]:.2f}–{own[-1]:.2f} s"
    steps = f"step {row.span()}{each}" if row.steps else ""
    return Text(name), Text(terminal.plain(said), style), Text(steps), Text(f"heard {span(now - row.heard)} ago", "dim")
