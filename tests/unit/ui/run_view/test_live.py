"""The views of a run: made events and a clock that is passed in."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from nexa_dist.ui.run_view import Kind, view
from nexa_dist.ui.run_view.panel import Drawn, panel
from nexa_dist.ui.run_view.state import State, sentence, span
from nexa_dist.ui.run_view.step_lines import read
from nexa_dist.ui.run_view.views import Silent

HOSTILE = b"\x1b]0;owned\x07red \x1b[31m\xff end"


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def made(kind: Kind, clock: Clock, shown: set[int] | None = None) -> Silent:
    return view(kind, State("train_x", 3.6, 1000.0), shown, clock)


def progress(steps: dict[str, int], at: float, **more: Any) -> dict[str, Any]:
    return {"event": "progress", "at": at, "steps": steps, **more}


def begin(shown: Silent | State, clock: Clock, attempt: int = 1) -> None:
    for node in ("n0", "n1"):
        for name in ("started", "prepared", "torchrun"):
            record = {"event": name, "attempt": attempt, "at": clock.at}
            shown.event(node, record, clock.at) if isinstance(shown, State) else shown.event(node, record)


def state_of(clock: Clock, number: int = 1) -> State:
    state = State("train_x", 3.6, 1000.0)
    state.attempt(number, ["n0", "n1"], 4, None, clock.at)
    begin(state, clock, number)
    return state


def test_the_step_is_what_every_rank_has_done_and_the_numbers_are_rank_0s() -> None:
    clock = Clock()
    state = state_of(clock)
    state.event("n1", progress({"2": 40, "3": 38}, 1009.0, of=240, loss=9.0), 1010.0)
    state.event("n0", progress({"0": 41, "1": 40}, 1010.0, of=240, loss=4.2, tokens_per_s=3200, saved=40), 1010.0)
    state.event("n1", progress({"2": 41, "3": 40}, 1012.0, of=240, loss=8.0), 1012.0)
    figures = state.figures(1036.0)
    assert (figures["step"], figures["of"], figures["loss"], figures["saved"]) == (40, 240, 4.2, 40)
    assert figures["durable"] is None
    assert figures["cost_usd"] == 0.036
    assert figures["eta_s"] == pytest.approx((240 - 40) * 3 / 2)
    assert state.rows["n1"].span() == "40–41"
    assert sentence(figures) == "step 40/240 loss 4.2 3200 tok/s, ETA 5 min, saved 40, 0.04 USD"


def test_what_an_earlier_attempt_left_changes_nothing() -> None:
    clock = Clock()
    state = State("train_x", 3.6, 1000.0)
    state.attempt(2, ["n0"], 2, 30, clock.at)
    for record in ({"event": "started", "attempt": 1}, progress({"0": 99}, 1.0), {"event": "ended", "state": "failed"}):
        assert not state.event("n0", record, clock.at)
    assert (state.step, state.rows["n0"].state) == (None, "starting")
    assert state.event("n0", {"event": "started", "attempt": 2}, clock.at)
    assert state.rows["n0"].state == "preparing"


def test_a_new_attempt_has_its_own_pace() -> None:
    clock = Clock()
    state = state_of(clock)
    for second, step in ((1000.0, 1), (1010.0, 2)):
        state.event("n0", progress({"0": step}, second, of=10), second)
    assert state.eta_s() == 80
    state.attempt(2, ["n0", "n1"], 4, 1, 1100.0)
    assert (state.eta_s(), state.step, state.last["of"]) == (None, None, 10)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"event": "rank_exit", "rank": 3, "code": 1, "signal": 0}, "rank 3: exit code 1"),
        ({"event": "rank_exit", "rank": 3, "code": 0, "signal": 9, "oom": True}, "rank 3: out of memory"),
        ({"event": "rank_exit", "rank": 3, "code": 0, "signal": 0}, "running"),
        ({"event": "hang", "ranks": [2, 3]}, "hangs: ranks 2, 3"),
        ({"event": "notice", "action": "terminate", "at_unix": 1110.0}, "spot notice: terminate in 110 s"),
        ({"event": "stopping", "reason": "deadline"}, "stopping: deadline"),
        ({"event": "ended", "state": "completed", "reason": ""}, "completed"),
        ({"event": "a word of a later version"}, "running"),
        ({"event": "progress", "steps": "none", "of": "many", "loss": [], "at": None}, "running"),
    ],
)
def test_the_state_of_a_node_in_words(record: dict[str, Any], said: str) -> None:
    clock = Clock()
    state = state_of(clock)
    assert state.event("n1", record, clock.at)
    assert state.rows["n1"].state == said


@pytest.mark.parametrize("kind", ["plain", "json"])
def test_a_straggler_is_named_once_after_three_reports_of_its_node(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    shown = made(kind, clock)
    shown.attempt(1, ["n0", "n1"], 4, None)
    begin(shown, clock)
    said = ""
    for step in range(5):
        shown.event("n0", progress({"0": step, "1": step}, clock.at, own_s={"0": 0.2, "1": 0.21}))
        shown.event("n1", progress({"2": step, "3": step}, clock.at, own_s={"2": 0.22, "3": 0.4, "x": 9, "4": "9"}))
        assert (shown.state.holds_up is None) == (step < 2)
        said += "".join(capsys.readouterr())
    words = "rank 3 (n1) takes 1.9 × the median's own time a step (0.40 s, the median 0.21 s); the others wait for it"
    if kind == "plain":
        assert [line for line in said.splitlines() if "rank 3" in line] == [words]
    else:
        events = [row for row in map(json.loads, said.splitlines()) if row["event"] == "straggler"]
        assert [(row["rank"], row["node"], row["words"]) for row in events] == [(3, "n1", words)]
    figures = shown.state.figures(clock.at)
    assert figures["own_s"] == {"0": 0.2, "1": 0.21, "2": 0.22, "3": 0.4}
    console = Console(file=io.StringIO(), width=200)
    console.print(panel(shown.state, clock.at, 10))
    assert words in console.file.getvalue() and "own 0.22–0.40 s" in console.file.getvalue()  # type: ignore[attr-defined]
    shown.event("n1", progress({"3": 6}, clock.at, own_s={"3": 0.24}))
    assert shown.state.figures(clock.at)["straggler"] is None


def test_plain_lines_come_in_time_and_by_progress(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = made("plain", clock)
    shown.attempt(1, ["n0", "n1"], 4, None)
    begin(shown, clock)
    for step in range(1, 101):
        clock.at += 0.5
        shown.event("n0", progress({"0": step}, clock.at, of=1000))
        shown.tick()
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert steps == [20, 40, 60, 80, 100]  # 10 s apart; 5 % would be 50 steps
    shown.event("n0", progress({"0": 160}, clock.at, of=1000))
    shown.tick()
    assert capsys.readouterr().err == ""  # not twice in one second
    clock.at += 1
    shown.tick()
    assert capsys.readouterr().err.startswith("step 160/1000")
    clock.at += 60
    shown.tick()
    shown.close()
    assert capsys.readouterr().err == ""  # nothing has changed


def test_plain_lines_of_ranks_and_silences(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = made("plain", clock, {0})
    shown.attempt(2, ["n0", "n1"], 4, 40, ["n1"])
    shown.line("n0", "rank_0/attempt_2.log", 0, HOSTILE)
    shown.line("n1", "rank_2/attempt_2.log", 2, b"not asked for")
    shown.line("n1", "prepare.attempt_2.log", None, b"making the environment")
    shown.line("n1", "torchrun.attempt_2.log", None, b"nobody reads this")
    for seconds in (1, 6, 7, 11, 13):
        shown.quiet("n1", seconds)
    shown.event("n1", {"event": "heartbeat"})
    shown.tick()
    assert capsys.readouterr().err.splitlines() == [
        "attempt 2: 4 ranks on n0, n1, from step 40, made anew: n1",
        "[n0:0] red � end",
        "[n1:prepare] making the environment",
        "warning: no word from n1 for 6 s; the run goes on there",
        "warning: no word from n1 for 13 s; the run goes on there",
        "n1 answers again after 13 s",
    ]


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = made("json", clock)
    shown.attempt(1, ["n0"], 2, None)
    shown.event("n0", {"event": "started", "attempt": 1, "at": 1.0})
    for _ in range(2):
        shown.event("n0", progress({"0": 7, "1": 7}, 2.0, of=10, loss=float("nan")))
    shown.event("n0", {"event": "heartbeat", "at": 3.0})
    shown.line("n0", "rank_1/attempt_1.log", 1, HOSTILE)
    shown.quiet("n0", 7.04)
    shown.note("\x1b[31mn0 is replaced")
    out, err = capsys.readouterr()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [row["event"] for row in rows] == ["attempt", "started", "progress", "line", "quiet", "note"]
    assert {row["run"] for row in rows} == {"train_x"}
    assert (rows[2]["step"], rows[2]["of"], rows[2]["loss"], rows[2]["at"]) == (7, 10, "nan", 2.0)
    assert (rows[3]["rank"], rows[3]["line"].endswith("\ufffd end")) == (1, True)
    assert (rows[4]["seconds"], rows[5]["text"]) == (7.0, "n0 is replaced")
    assert err == "" and "\x1b" not in out


def rendered(state: State, now: float, rows: int = 20) -> str:
    console = Console(record=True, width=100, height=30, file=io.StringIO())
    console.print(panel(state, now, rows))
    return console.export_text()


def test_the_panel_has_every_number_and_a_row_a_node() -> None:
    clock = Clock()
    state = state_of(clock)
    values = {"of": 240, "loss": 4.21, "tokens_per_s": 3200, "saved": 100, "durable": 80}
    state.event("n0", progress({"0": 119, "1": 119}, 1000.0, **values), 1000.0)
    state.event("n0", progress({"0": 120, "1": 121}, 1001.0, **values), 1001.0)
    state.quiet("n1", 12.0, 1016.0)
    text = rendered(state, 1016.0)
    for words in (
        "train_x  attempt 1, 4 ranks on 2 nodes",
        "step 120 of 240",
        "50%",
        "loss 4.2100  3,200 tok/s  ETA 2 min  elapsed 16 s  0.02 USD",
        "checkpoint: saved 100, durable 80",
    ):
        assert words in text
    rows = [line.strip("│ ").split() for line in text.splitlines() if line.startswith("│ n")]
    assert [" ".join(row) for row in rows] == [
        "n0 running step 120–121 heard 15 s ago",
        "n1 running, quiet 12 s heard 16 s ago",
    ]


def test_of_many_nodes_the_ill_ones_are_shown() -> None:
    state = State("train_x", 0.0, 0.0)
    state.attempt(1, [f"n{i}" for i in range(64)], 64, None, 0.0)
    for i in range(64):
        state.event(f"n{i}", {"event": "started", "attempt": 1}, 0.0)
        state.event(f"n{i}", {"event": "torchrun"}, 0.0)
    state.event("n50", {"event": "hang", "ranks": [50]}, 0.0)
    text = rendered(state, 1.0, rows=5)
    assert "hangs: ranks 50" in text
    assert "and 60 more nodes" in text
    assert len(text.splitlines()) == 10


def test_on_a_terminal_lines_scroll_above_and_a_flood_is_counted() -> None:
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30)
    shown = Drawn(State("train_x", 3.6, 1000.0), None, clock, console)
    shown.attempt(1, ["n0"], 2, None)
    try:
        clock.at += 1
        shown.line("n0", "rank_0/attempt_1.log", 0, HOSTILE)
        shown.tick()
        assert "[n0:0] red \ufffd end" in screen.getvalue()
        for i in range(5000):
            shown.line("n0", "rank_0/attempt_1.log", 0, b"flood %d" % i)
        shown.tick()
        assert "flood 4999" not in screen.getvalue()  # not before its time
        clock.at += 1
        shown.tick()
        assert "(4800 lines not shown here: nexa logs train_x has them)" in screen.getvalue()
        assert "flood 4999" in screen.getvalue() and "flood 4799" not in screen.getvalue()
        with shown.paused():
            size = len(screen.getvalue())
            clock.at += 1
            shown.tick()
            assert len(screen.getvalue()) == size  # a question stands there
    finally:
        shown.close()
        shown.close()
    assert "owned" not in screen.getvalue() and "\x1b[31m" not in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")


def test_without_a_terminal_auto_is_plain_and_none_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, expected in (("auto", "a word\n"), ("none", "")):
        shown = made(kind, Clock())  # type: ignore[arg-type]
        shown.note("a word")
        with shown.paused():
            shown.tick()
        shown.close()
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (float("inf"), "-"), (12.4, "12 s"), (180, "3 min"), (7500, "2 h 05 min")]
)
def test_a_span_of_seconds_is_said_in_two_units(seconds: float | None, said: str) -> None:
    assert span(seconds) == said


def test_a_progress_bar_is_shown_by_its_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    made = view("plain", State("r", 1.0, 0.0), None, lambda: 1.0)
    made.attempt(1, ["n0"], 1, None)
    made.line("n0", "rank_0/attempt_1.log", 0, b" 3%", True)
    made.line("n0", "rank_0/attempt_1.log", 0, b"\r 1%\r 3%\r 4%\r")
    assert capsys.readouterr().err == "[n0:0]  3%\n[n0:0]  4%\n"


@pytest.mark.parametrize(
    "line, found",
    [
        ("iter 550: loss 2.3012, time 81.5ms, mfu 4.1%", {"step": 550, "loss": 2.3012}),
        ("step 20/100 | loss: 4.5e-1 | lr 1e-3", {"step": 20, "of": 100, "loss": 0.45, "learning_rate": 1e-3}),
        ("step 9: train loss 1.5, val loss 2.75", {"step": 9, "loss": 1.5, "held_out": 2.75}),
        ("step 10/40 held-out loss 2.5000", {"step": 10, "of": 40, "held_out": 2.5}),
        (
            "step 5/40 loss 2.5 lr 1.250e-03 tok/s 900",
            {"step": 5, "of": 40, "loss": 2.5, "learning_rate": 1.25e-3, "tokens_per_s": 900},
        ),
        ("Iteration 7, training loss = nan", {"step": 7, "loss": None}),
        (
            "{'loss': 2.31, 'grad_norm': 1.2, 'learning_rate': 5e-05, 'epoch': 0.5}",
            {"loss": 2.31, "learning_rate": 5e-5},
        ),
        (" 12%|#2        | 12/100 [00:03<00:22,  3.99it/s]", {"step": 12, "of": 100}),
        (
            "Epoch 0:  50%|##   | 100/200 [00:10<00:10, 9.9it/s, v_num=0, train_loss=2.250]",
            {"step": 100, "of": 200, "loss": 2.25},
        ),
        ("Map: 100%|##########| 1000/1000 [00:01<00:00, 900 examples/s]", {}),
        ("first step of the plan", {}),
        ("model.safetensors:  42%|####  | 42/100 [00:01<00:01]", {}),
        ("loss_fn: CrossEntropyLoss()", {}),
        ("footsteps 5", {}),
    ],
)
def test_the_usual_lines_are_read(line: str, found: dict[str, float | None]) -> None:
    got = {key: None if value != value else value for key, value in read(line.encode()).items()}
    assert got == found


def test_what_is_read_from_lines_is_marked_and_never_beats_what_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = made("plain", clock, {0})
    shown.attempt(1, ["n0", "n1"], 4, None)
    begin(shown, clock)
    clock.at += 61
    shown.tick()
    assert "no step is reported" in capsys.readouterr().err
    shown.line("n0", "rank_0/stdout.log", 0, b"iter 550: loss 2.3")
    shown.line("n0", "rank_1/stdout.log", 1, b"iter 999: loss 9.9")
    clock.at += 11
    shown.tick()
    assert "step 550 loss 2.3 (read from its lines, not reported)" in capsys.readouterr().err
    shown.event("n0", progress({"0": 3, "1": 3}, 1.0, of=10, loss=1.0))
    clock.at += 11
    shown.tick()
    said = capsys.readouterr().err
    assert "step 3/10 loss 1" in said and "read from" not in said


def test_a_narrower_window_is_begun_anew() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, _environ={})
    drawn = Drawn(state_of(clock), None, clock, console)
    clock.at += 1
    drawn.tick()
    console.file = io.StringIO()
    console.width = 60
    clock.at += 1
    drawn.tick()
    said = console.file.getvalue()
    begun = said.rindex("\x1b[2J")
    assert "\u2500" * 59 not in said[begun:] and "\u256d" in said[begun:]
    drawn.close()
