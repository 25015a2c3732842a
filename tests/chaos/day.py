"""A simulated day on spot nodes: how much of it is training that counts, and what takes the rest.

    scripts/simulated_day                          the table of checkpoint intervals, without notices and with
    scripts/simulated_day --replace-s 60 --notices 0.9 --intervals 150

Discrete events, no clock: each node is taken after an exponential time (mean `--mean-hours`), anew for each machine
that takes its place. Every end goes through the real decision, nexa_dist.plan.runs.recovery.decide, and its answer is
carried out with the durations below, so a day of 24 h takes about a millisecond and nothing else is scaled. The
durations are measured by scripts/bench_faults where a machine can tell them; how long a cloud takes to hand over a
new machine is the one that no emulation knows, and is an assumption here.

Useful time is steps that were never done again, times their length. Young (CACM 17(9), 1974) chooses an interval of
sqrt(2 C M) between checkpoints of cost C under a mean time M between interruptions; Daly (FGCS 22(3), 2006) refines it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nexa_dist.model import End
from nexa_dist.plan.runs.recovery import Nodes, Policy, decide

DAY_S = 86400.0
NOTICE_S = 120.0
"""What AWS announces before it takes a spot instance."""


@dataclass(frozen=True)
class Costs:
    """Durations in seconds."""

    step_s: float = 1.0
    save_s: float = 1.0
    """By which a checkpoint stops the training."""
    detect_s: float = 20.0
    """From a machine's end to the decision."""
    stop_s: float = 1.0
    """Until no process of the attempt is left on the others."""
    replace_s: float = 150.0
    """From the request to a machine that is bootstrapped and joined: the assumption."""
    spread_s: float = 3.0
    """Newest checkpoint to every node, verified."""
    launch_s: float = 8.0
    """From the start of the agents to the first step."""


@dataclass(frozen=True)
class World:
    """What the cloud does."""

    nodes: int = 4
    mean_hours: float = 6.0
    notices: float = 0.0
    """Share of the interruptions that are announced two minutes ahead."""
    refused: float = 0.1
    """Share of the requests for a machine that find no capacity."""


@dataclass
class Day:
    """One day: seconds by what they went to. `given_up` is the decision's word when it stopped the run."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    interruptions: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    given_up: str = ""

    def share(self) -> float:
        return self.seconds["useful"] / DAY_S


class Simulation:
    """One seeded day of one run that would go on for longer."""

    def __init__(self, seed: int, costs: Costs, world: World, every: int, policy: Policy) -> None:
        self.costs, self.world, self.every, self.policy = costs, world, every, policy
        self.chance = random.Random(f"day {seed}")
        self.names = tuple(f"n{index}" for index in range(world.nodes))
        self.taken_at = {name: self._life() for name in self.names}
        self.ends: list[End] = []
        self.now, self.saved, self.day = 0.0, 0, Day()

    def _life(self) -> float:
        return self.chance.expovariate(1 / (self.world.mean_hours * 3600))

    def run(self) -> Day:
        self._spend("launch", self.costs.launch_s)
        while self.now < DAY_S and not self.day.given_up:
            lost, end = self._attempt()
            if self.now >= DAY_S:
                break
            self.ends.append(end)
            self.day.interruptions += 1
            self._recover(lost)
        if self.day.given_up:
            self._spend("given up", DAY_S - self.now)
        return self.day

    def _spend(self, what: str, seconds: float) -> None:
        """Time passes, to the end of the day at most."""
        kept = max(0.0, min(seconds, DAY_S - self.now))
        self.day.seconds[what] += kept
        self.now += seconds

    def _attempt(self) -> tuple[str, End]:
        """Trains until a node is taken, or is announced to be, or the day is over."""
        began, first, costs = self.now, self.saved, self.costs
        node = min(self.taken_at, key=lambda name: self.taken_at[name])
        noticed = self.chance.random() < self.world.notices
        until = min(max(began, self.taken_at[node] - NOTICE_S * noticed), DAY_S)
        cycle = self.every * costs.step_s + costs.save_s
        whole, rest = divmod(until - began, cycle)
        part = min(self.every, int(rest / costs.step_s))
        steps, kept = int(whole) * self.every + part, int(whole) * self.every
        self.now = until
        over = until >= DAY_S
        self.day.seconds["saving"] += int(whole) * costs.save_s + max(0.0, rest - self.every * costs.step_s)
        if noticed and not over:  # SIGTERM: the step that runs is finished and saved
            self._spend("saving", costs.save_s + costs.step_s)
            kept = steps
        elif over:
            kept = steps
        self.saved = first + kept
        self.day.seconds["useful"] += kept * costs.step_s
        halves = (until - began) - int(whole) * cycle - part * costs.step_s
        self.day.seconds["steps done again"] += (steps - kept) * costs.step_s + max(0.0, min(halves, costs.step_s))
        kind, words = ("notice", f"spot notice for {node}") if noticed else ("node", f"{node} is gone")
        end = End(kind, words, node, -1, first, first + steps, began, self.now)  # type: ignore[arg-type]
        return node, end

    def _recover(self, node: str) -> None:
        """Carries out what the decision says until ranks run again."""
        costs, lost, refused, since = self.costs, {node}, "", self.now
        if self.ends[-1].kind == "node":
            self._spend("detection", costs.detect_s)
        self._spend("stopping", costs.stop_s)
        while self.now < DAY_S:
            lost |= {name for name in self.names if self.taken_at[name] <= self.now}
            fit = tuple(name for name in self.names if name not in lost)
            nodes = Nodes(fit, tuple(sorted(lost)), True, refused, self.now - since)
            verdict = decide(self.ends, nodes, self.policy)
            self.day.decisions[verdict.action] += 1
            self._spend("waiting for capacity" if verdict.action == "wait" else "pause", verdict.after_s)
            if verdict.action == "replace":
                if self.chance.random() < self.world.refused:
                    refused = "no capacity"
                else:
                    self._spend("new machines", costs.replace_s)
                    self.taken_at |= {name: self.now + self._life() for name in lost}
                    lost, refused = set(), ""
            elif verdict.action == "wait":
                refused = ""  # asked again
            elif verdict.action == "restart":
                self._spend("checkpoint to nodes", costs.spread_s)
                self._spend("launch", costs.launch_s)
                return
            else:
                self.day.given_up = verdict.why
                return


def days(number: int, costs: Costs, world: World, interval_s: float, policy: Policy) -> list[Day]:
    every = max(1, round(interval_s / costs.step_s))
    return [Simulation(seed, costs, world, every, policy).run() for seed in range(number)]


def young_s(costs: Costs, world: World) -> float:
    return math.sqrt(2 * costs.save_s * mean_between_s(world))


def daly_s(costs: Costs, world: World) -> float:
    """Daly's higher-order optimum of the time between checkpoints, for C < 2 M."""
    c, m = costs.save_s, mean_between_s(world)
    return math.sqrt(2 * c * m) * (1 + math.sqrt(c / (2 * m)) / 3 + c / (2 * m) / 9) - c


def mean_between_s(world: World) -> float:
    return world.mean_hours * 3600 / world.nodes


def means(found: Sequence[Day]) -> dict[str, float]:
    """Share of the day by what it went to, the greatest first."""
    totals: dict[str, float] = defaultdict(float)
    for day in found:
        for name, seconds in day.seconds.items():
            totals[name] += seconds / DAY_S / len(found)
    return dict(sorted(((name, share) for name, share in totals.items() if share > 0), key=lambda row: -row[1]))


def report(costs: Costs, world: World, policy: Policy, intervals: Iterable[float], number: int) -> list[dict[str, Any]]:
    """Prints the table of intervals; answers its rows."""
    rows = []
    print(
        "| notices | checkpoint every | useful time | worst day of 100 | interruptions a day | what the rest went to |"
    )
    print("|---|---|---|---|---|---|")
    for share in dict.fromkeys((0.0, world.notices)):
        there = replace(world, notices=share)
        for interval in intervals:
            found = days(number, costs, there, interval, policy)
            useful = sorted(day.share() for day in found)
            parts = means(found)
            rest = ", ".join(f"{name} {part:.1%}" for name, part in parts.items() if name != "useful" and part >= 5e-4)
            worst = useful[min(len(useful) - 1, len(useful) // 100)]
            count = statistics.fmean(day.interruptions for day in found)
            first = f"| {share:.0%} | {interval:.0f} s | {statistics.fmean(useful):.3f} | {worst:.3f} | {count:.1f} |"
            print(f"{first} {rest} |")
            rows.append({
                "notices": share, "interval_s": interval, "useful": statistics.fmean(useful), "worst": worst,
                "parts": parts, "interruptions": count, "given_up": sum(bool(day.given_up) for day in found),
            })  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulated_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in (Costs(), World()):
        for name, value in asdict(kind).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--days", type=int, default=1000)
    parser.add_argument("--restarts-per-hour", type=int, default=Policy().restarts_per_hour)
    parser.add_argument("--wait-minutes", type=float, default=Policy().wait_s / 60)
    parser.add_argument("--intervals", default="", help="seconds between checkpoints, such as 60,150; else a sweep")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(notices=0.9)
    asked = vars(parser.parse_args(argv))
    costs = Costs(**{name: asked[name] for name in asdict(Costs())})
    world = World(**{name: asked[name] for name in asdict(World())})
    policy = Policy(asked["restarts_per_hour"], None, asked["wait_minutes"] * 60)
    best = young_s(costs, world)
    intervals = [float(word) for word in asked["intervals"].split(",") if word] or [
        round(best * factor) for factor in (0.25, 0.5, 1, 2, 4, 8)
    ]
    print(
        f"{world.nodes} nodes, each taken after {world.mean_hours:g} h on average: one interruption every "
        f"{mean_between_s(world) / 60:.0f} min. {asked['days']} days of 24 h.\n"
        f"seconds: {', '.join(f'{name[:-2]} {value:g}' for name, value in asdict(costs).items())}; "
        f"no capacity for {world.refused:.0%} of the requests\n"
        f"best interval between checkpoints: Young {best:.0f} s, Daly {daly_s(costs, world):.0f} s\n"
    )
    rows = report(costs, world, policy, intervals, asked["days"])
    if asked["json"]:
        asked["json"].write_text(json.dumps({"costs": asdict(costs), "world": asdict(world), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
