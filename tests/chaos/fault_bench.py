"""Fault by fault: seconds to detect, seconds to resume, steps lost; ours beside torchrun alone: scripts/bench_faults.

Two nodes with two ranks each in an emulated region (root). Ours: `nexa run`. Beside it torchrun alone as users start
it: one ssh a host, c10d, `--max-restarts=3`, and (which it needs and we do not) a disk for checkpoints that both hosts
share. Detected: the first word of anybody about it. Resumed: the first step that counts after the fault. Lost: steps
that were done again. `–`: not in --watch-seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import acts, procs
from tests.chaos.acts import Impossible, Stage
from tests.chaos.bare import STEP, TELLS, Bare
from tests.chaos.controller import Controller
from tests.chaos.local_hosts import end_by_sigterm, wait
from tests.chaos.nemesis import Length, clean_up, started, write_training
from tests.chaos.record import HOST_FAULTS, Fault, Kind
from tests.chaos.rigs import RegionRig, rig
from tests.chaos.sampler import Sampler, current

AT_STEP = 12
NOTICED = ("rank_exit", "hang", "notice", "stopping", "ended")
WORDS: dict[Kind, str] = {
    "kill_rank": "rank killed (SIGKILL)",
    "kill_torchrun": "torchrun killed",
    "kill_agent": "node agent killed",
    "freeze_rank": "rank stopped (SIGSTOP), hang_timeout_s 30",
    "kill_host": "host dies, the cloud calls it running",
    "reclaim": "host taken without notice",
    "notice": "spot notice, 30 s ahead",
    "cut_short": "host cut off for 6 s",
    "cut_long": "host cut off for 60 s",
    "flip_bit": "newest checkpoint damaged, rank killed",
    "kill_supervisor": "controller killed, attach after 5 s",
    "sleep_laptop": "controller asleep for 20 s",
}
LASTS_S: dict[Kind, float] = {
    "notice": 30.0, "cut_short": 6.0, "cut_long": 60.0, "kill_supervisor": 5.0, "sleep_laptop": 20.0,
}  # fmt: skip
BARE: tuple[Kind, ...] = ("kill_rank", "kill_torchrun", "freeze_rank", "kill_host", "reclaim", "notice", "cut_short",
                          "cut_long", "flip_bit")  # fmt: skip
"""What can be done to torchrun alone; it has no agent and no controller."""


@dataclass
class Row:
    fault: Kind
    who: str
    detect_s: float | None = None
    resume_s: float | None = None
    lost: int | None = None
    note: str = ""
    said: list[str] = field(default_factory=list)
    """What torchrun alone said after the fault, for one who asks why it ended so."""

    def cells(self) -> str:
        if self.note and self.resume_s is None:
            return f"{number(self.detect_s)} | {self.note} | –"
        return f"{number(self.detect_s)} | {number(self.resume_s)} | {'–' if self.lost is None else self.lost}"


def number(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f}"


def ours(place: RegionRig, kind: Kind, length: Length, watch_s: float, launcher: str) -> Row:
    write_training(place, Length(**{**asdict(length), "launcher": launcher}))
    log, row = place.workspace / f"ours_{kind}.log", Row(kind, f"nexa, {launcher}")
    before = set((place.workspace / "runs").glob("train_*"))
    controller = Controller(place, log)
    controller.start("run", "train.yaml", "--cluster", "chaos")
    folder = wait(lambda: started(place, before), 90.0)
    if folder is None:
        controller.kill()
        raise RuntimeError(f"nexa run did not start:\n{log.read_text(errors='replace')[-2000:]}")
    with Sampler(place, folder.name) as sampler:
        stage = Stage(place, sampler, controller, folder.name)
        try:
            return hurt(stage, row, folder, watch_s)
        finally:
            clean_up(stage)


def hurt(stage: Stage, row: Row, folder: Path, watch_s: float) -> Row:
    """Does the row's fault to a run that trains, and fills in what came of it."""
    sampler, kind = stage.sampler, row.fault
    if not wait(lambda: sampler.steps.get(1, 0) >= AT_STEP, 120.0):
        row.note = "did not get to its step"
        return row
    fault = Fault(kind, AT_STEP, "n1", 2, LASTS_S.get(kind, 0.0), how="attach")
    if kind == "flip_bit":
        fault = Fault(kind, AT_STEP, "n0", 0)
    done = acts.act(stage, fault)
    wait(lambda: resumed_at(sampler, done.at_unix, done.step) is not None, watch_s)
    row.resume_s = since(resumed_at(sampler, done.at_unix, done.step), done.at_unix)
    told = [e["at"] for e in every(sampler) if e["event"] in NOTICED and e["at"] >= done.at_unix]
    record = json.loads((folder / "run.json").read_text())["attempts"]
    if len(record) > 1:
        row.detect_s = since(min([*told, record[0].get("ended_unix") or time.time()]), done.at_unix)
        row.lost = max(0, sampler.steps[1] - int(record[1].get("resume_step") or 0))
    else:
        row.lost = 0 if row.resume_s is not None else None
    row.note = "" if done.applied else done.note
    return row


def since(at: float | None, began: float) -> float | None:
    return None if at is None else max(0.0, at - began)


def every(sampler: Sampler) -> list[dict[str, Any]]:
    return sorted((event for events in sampler.events.values() for event in events), key=lambda e: float(e["at"]))


def resumed_at(sampler: Sampler, after_unix: float, step: int) -> float | None:
    """When the first new step was told: of a later attempt, or further in the same one."""
    found = []
    for events in list(sampler.events.values()):
        known: list[dict[str, Any]] = []
        for event in list(events):
            known.append(event)
            if event["event"] == "progress" and event.get("steps") and event["at"] > after_unix:
                attempt, told = current(known), max(event["steps"].values())
                if (attempt > 1 and told > sampler.first.get(attempt, told)) or (attempt == 1 and told > step + 4):
                    found.append(float(event["at"]))
    return min(found, default=None)


def alone(place: RegionRig, kind: Kind, length: Length, watch_s: float, turn: int) -> Row:
    """torchrun alone through the same fault."""
    row, job = Row(kind, "torchrun alone"), Bare(place, f"/opt/nexa/scratch/bare_{turn}")
    args = ["--steps", str(length.steps), "--save-every", str(length.save_every), "--step-seconds", str(length.step_s)]
    job.start(args, turn)
    try:
        if not wait(lambda: job.step() >= AT_STEP, 90.0):
            row.note = "did not get to its step"
            return row
        began, step = time.time(), job.step()
        hurt_alone(place, job, kind)
        end = began + watch_s
        wait(lambda: bare_resumed(job, began, step) or len(job.ended) == 2, end - time.time())
        noticed = [at for at, _, text in list(job.lines) if at >= began and any(w in text.lower() for w in TELLS)]
        row.detect_s = since(min([*noticed, *job.ended.values()], default=None), began)
        if found := bare_resumed(job, began, step):
            row.resume_s, row.lost = found[0] - began, found[1]
        elif len(job.ended) == 2:
            row.note = f"never: job over after {max(job.ended.values()) - began:.0f} s"
        else:
            row.note = f"never: hangs (watched {watch_s:.0f} s)"
        row.said = [f"{at - began:.1f} {node} {text}"[:300] for at, node, text in job.lines if at >= began][:200]
    finally:
        job.end()
    return row


def hurt_alone(place: RegionRig, job: Bare, kind: Kind) -> None:
    hosts = {host.node: host for host in place.hosts()}
    lost = hosts["n1"]
    ranks = job.ranks(lost)
    if not ranks:
        raise Impossible("no rank runs on n1")
    remedy: dict[str, Callable[[], None]] = {
        "kill_rank": lambda: os.kill(ranks[max(ranks)], signal.SIGKILL),
        "kill_torchrun": lambda: procs.send(job.torchrun(lost), signal.SIGKILL),
        "freeze_rank": lambda: os.kill(ranks[max(ranks)], signal.SIGSTOP),
        "kill_host": lambda: place.do("fail", lost),
        "reclaim": lambda: place.do("reclaim", lost),
        "notice": lambda: place.do("notice", lost, seconds=LASTS_S["notice"]),
    }
    if kind == "flip_bit":
        for host in hosts.values():  # of the one shared disk
            acts.flip_newest(host.path(f"{job.folder}/runs/own/checkpoints"))
        os.kill(next(job.ranks(host)[0] for host in hosts.values() if 0 in job.ranks(host)), signal.SIGKILL)
    elif kind in ("cut_short", "cut_long"):
        place.do("partition", lost)
        acts.later(LASTS_S[kind], lambda: place.do("heal", lost))
    else:
        remedy[kind]()


def bare_resumed(job: Bare, began: float, step: int) -> tuple[float, int] | None:
    """(when, steps lost) of the first step after a new start; or of a step well beyond, where nothing was restarted."""
    again, last = None, step
    for at, _, text in list(job.lines):
        if at < began:
            continue
        if text.startswith(("resuming from step", "starting fresh")):
            again = int(text.split()[-1]) if text.startswith("resuming") else 0
        elif text.startswith(STEP):
            told = int(text.split()[1].split("/")[0])
            if again is not None:
                return at, max(0, last - again)
            if told > step + 4:
                return at, 0
            last = max(last, told)
    return None


def measure(place: RegionRig, asked: argparse.Namespace, length: Length) -> list[Row]:
    rows: list[Row] = []
    for turn, kind in enumerate(kind for kind in WORDS if not asked.faults or kind in asked.faults.split(",")):
        for _ in range(asked.rounds):
            for who in asked.who.split(","):
                if who == "bare" and kind not in BARE:
                    continue
                try:
                    if who == "bare":
                        rows.append(alone(place, kind, length, asked.watch_seconds, len(rows) + 1))
                    else:
                        rows.append(ours(place, kind, length, asked.watch_seconds, who))
                except (Impossible, RuntimeError, OSError) as error:
                    rows.append(Row(kind, who, note=str(error)[-200:]))
                print(f"{turn + 1} {rows[-1].fault}, {rows[-1].who}: {rows[-1].cells()} {rows[-1].note}",
                      file=sys.stderr, flush=True)  # fmt: skip
                if kind in HOST_FAULTS:
                    place.mend()
    return rows


def table(rows: Sequence[Row]) -> str:
    whos = list(dict.fromkeys(row.who for row in rows))
    lines = ["| fault | " + " | ".join(f"{who}: detect s | resume s | steps lost" for who in whos) + " |"]
    lines.append("|---" * (1 + 3 * len(whos)) + "|")
    for kind, words in WORDS.items():
        if any(row.fault == kind for row in rows):
            cells = [middle([row for row in rows if (row.fault, row.who) == (kind, who)]) for who in whos]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def middle(rows: list[Row]) -> str:
    """The median of each column; the words of one that never resumed go before."""
    if not rows:
        return "n/a | n/a | n/a"
    if bad := [row for row in rows if row.resume_s is None]:
        return bad[0].cells()
    detect = [row.detect_s for row in rows if row.detect_s is not None]
    resume, lost = [row.resume_s or 0.0 for row in rows], [row.lost or 0 for row in rows]
    return Row(
        rows[0].fault, "", statistics.median(detect) if detect else None, statistics.median(resume), max(lost)
    ).cells()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench_faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", default="", help=f"of {', '.join(WORDS)}")
    parser.add_argument("--who", default="torchrun,bare", help="of torchrun, direct (ours by launcher), bare")
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many")
    parser.add_argument("--watch-seconds", type=float, default=180.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    end_by_sigterm()
    length, folder = Length(steps=4000), Path(tempfile.mkdtemp(prefix="nexa-faults-"))
    try:
        with rig(False, folder) as place:
            assert isinstance(place, RegionRig)
            rows = measure(place, asked, length)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
