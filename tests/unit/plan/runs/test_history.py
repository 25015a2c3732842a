"""Figures of a run over its steps, from the events of its nodes and the lines of its first rank."""

from __future__ import annotations

import math

from nexa_dist.plan.runs.history import of_events, of_lines, thinned
from nexa_dist.ui.run_view.step_lines import read


def test_a_figure_is_of_the_step_with_which_it_was_first_told() -> None:
    def told(at: float, step: int, **figures: float) -> dict[str, object]:
        return {"event": "progress", "at": at, "steps": {"0": step, "1": 99}, "of": 50.0, **figures}

    found = of_events([
        {"event": "started", "attempt": 1, "at": 1.0},
        told(2.0, 5, loss=4.0, learning_rate=0.1),
        told(3.0, 9, loss=4.0, learning_rate=0.1),
        {"event": "notice", "at": 3.5, "at_unix": 120.0},
        {"event": "progress", "at": 4.0, "steps": {"1": 9}, "loss": 77.0},
        told(5.0, 12, loss=3.0, held_out=3.5),
        {"event": "started", "attempt": 2, "at": 6.0},
        told(7.0, 10, loss=3.2),
    ])  # fmt: skip
    assert found[1].points["loss"] == [(5, 4.0), (12, 3.0)]
    assert found[1].points["learning_rate"] == [(5, 0.1), (9, 0.1)]
    assert (found[1].points["held_out"], found[1].of) == ([(12, 3.5)], 50.0)
    assert found[2].points["loss"] == [(10, 3.2)]
    [notice] = found[1].notices
    assert (notice["acts_unix"], found[1].step_at(notice["seen_unix"]), found[1].step_at(1.5)) == (120.0, 9, None)


def test_lines_of_our_own_backend_and_of_bars_and_what_has_no_step() -> None:
    lines = [
        b"loss 9.9 before any step",
        b"step 5/40 loss 4.5000 lr 2.250e-04 tok/s 900",
        b"step 5/40 held-out loss 4.6000",
        b"\r 10%|#  | 6/60 [00:01<00:09]\r 15%|#  | 9/60 [00:01<00:09]\r{'loss': nan, 'learning_rate': 5e-05}",
        b" 15%|#  | 9/60 [00:02<00:08, loss=2.0]",
        b"step 99999999999 and a bar of " + b"9" * 400 + b"%",
        b" 1%|#  | " + b"9" * 400 + b"/60 [0, loss=1.0]",
    ]
    found = of_lines(lines, read)
    assert found["learning_rate"] == [(5, 2.25e-4), (9, 5e-5)]
    assert (found["held_out"], found["tokens_per_s"]) == ([(5, 4.6)], [(5, 900.0)])
    assert found["loss"] == [(5, 4.5), (9, 2.0), (99999999999, 1.0)]
    assert math.isnan(of_lines(lines[:4], read)["loss"][-1][1])
    assert of_lines([b"nothing"], read) == {}


def test_thinned_points_keep_every_spike_and_their_order() -> None:
    points = [(step, 1.0) for step in range(10_000)]
    points[5_000], points[7_777] = (5_000, 100.0), (7_777, -5.0)
    thin = thinned(points, 1500)
    assert len(thin) <= 1500 and thin == sorted(thin)
    assert {(5_000, 100.0), (7_777, -5.0)} <= set(thin)
    assert thinned(points[:1500], 1500) == points[:1500]
