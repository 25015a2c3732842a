"""A seeded nemesis: hurts a deterministic training in every way it knows, then judges what came of it.

    python -m tests.chaos.nemesis --seeds 20 --first 1            two nodes of an emulated region (root)
    python -m tests.chaos.nemesis --local --seeds 5               two sshds of this machine, no host faults
    python -m tests.chaos.nemesis --seeds 1 --first 7 --faults notice,kill_rank --keep

One cluster serves all seeds. An unbroken run comes first: every hurt one must end with its weights, bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from nexa_dist.train import checkpoint
from tests.chaos import acts, plans
from tests.chaos.acts import Stage
from tests.chaos.check import attempts_of, faults_found, reached
from tests.chaos.controller import Controller
from tests.chaos.local_hosts import REPO, end_by_sigterm, wait
from tests.chaos.record import HOST_FAULTS, Act, Fault, Seen
from tests.chaos.rigs import CANARIES, Rig, rig
from tests.chaos.sampler import Sampler, current

TRAINING = REPO / "configs" / "train" / "own_script.yaml"
WEIGHTS = re.compile(r"\bweights ([0-9a-f]{64})\b")
START_LIMIT_S = 600.0
POLL_S = 0.1
READERS_LIMIT_S = 90.0


@dataclass(frozen=True)
class Length:
    """How long a training is, and how it is watched."""

    steps: int = 80
    save_every: int = 10
    step_s: float = 0.25
    hang_timeout_s: float = 30.0
    limit_s: float = 420.0
    launcher: str = "torchrun"


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse(argv)
    end_by_sigterm()
    length = Length(asked.steps, asked.save_every, asked.step_seconds, asked.hang_timeout, asked.limit, asked.launcher)
    try:
        kinds = plans.kinds_for(asked.local, [kind for kind in asked.faults.split(",") if kind])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder, rows, began = Path(tempfile.mkdtemp(prefix="nexa-nemesis-")), [], time.monotonic()
    try:
        with rig(asked.local, folder) as place:
            say(f"cluster up after {time.monotonic() - began:.0f} s")
            write_training(place, length)
            weights = unbroken(place, length)
            for seed in asked.only or range(asked.first, asked.first + asked.seeds):
                plan = plans.plan(seed, length.steps, kinds)
                rows.append(one(place, seed, plan, length, weights, folder))
                say(row_text(rows[-1]))
                if rows[-1]["wrong"]:
                    say(f"  repeat it: {repeat(asked, seed)}")
    finally:
        if asked.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return told(rows, asked.json, time.monotonic() - began)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.nemesis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="these seeds instead")
    parser.add_argument("--faults", default="", help=f"only these, of {', '.join(plans.KINDS)}")
    parser.add_argument("--local", action="store_true", help="a local cluster, without faults of hosts")
    parser.add_argument("--launcher", default=Length.launcher, choices=("torchrun", "direct"))
    parser.add_argument("--steps", type=int, default=Length.steps)
    parser.add_argument("--save-every", type=int, default=Length.save_every)
    parser.add_argument("--step-seconds", type=float, default=Length.step_s)
    parser.add_argument("--hang-timeout", type=float, default=Length.hang_timeout_s)
    parser.add_argument("--limit", type=float, default=Length.limit_s, help="seconds that one run may take")
    parser.add_argument("--keep", action="store_true", help="keep the workspace with all logs")
    parser.add_argument("--json", type=Path, help="write every seed's row to this file")
    return parser.parse_args(argv)


def repeat(asked: argparse.Namespace, seed: int) -> str:
    words = ["python", "-m", "tests.chaos.nemesis", "--seeds", "1", "--first", str(seed), "--keep"]
    words += ["--local"] * asked.local + (["--faults", asked.faults] if asked.faults else [])
    words += ["--launcher", asked.launcher, "--steps", str(asked.steps), "--save-every", str(asked.save_every)]
    return shlex.join([*words, "--step-seconds", str(asked.step_seconds), "--hang-timeout", str(asked.hang_timeout)])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_training(place: Rig, length: Length) -> None:
    """The example of the repository with arguments of our own, in the rig's workspace."""
    text = yaml.safe_load(TRAINING.read_text())
    script = REPO / text["script"]
    shutil.copy(script, place.workspace / script.name)
    args = ["--steps", length.steps, "--save-every", length.save_every, "--step-seconds", length.step_s]
    text |= {"name": "chaos", "script": script.name, "args": [str(word) for word in args]}
    text |= {"launcher": length.launcher, "hang_timeout_s": length.hang_timeout_s}
    (place.workspace / "train.yaml").write_text(json.dumps(text))


def unbroken(place: Rig, length: Length) -> str:
    """The weights of a run that nobody hurts. Raises RuntimeError when even that fails."""
    seen, log, _ = run(place, 0, (), length, "")
    found = set(seen.final_weights)
    if seen.exit_code != 0 or len(found) != 1:
        raise RuntimeError(f"the unbroken run ended with {seen.exit_code}, weights {found}:\n{log[-3000:]}")
    seen = replace(seen, weights=found.pop())
    if wrong := faults_found(seen):
        raise RuntimeError(f"the unbroken run: {'; '.join(wrong)}\n{log[-3000:]}")
    return seen.weights


def one(place: Rig, seed: int, plan: tuple[Fault, ...], length: Length, weights: str, folder: Path) -> dict[str, Any]:
    """One seed, judged. Leaves the cluster whole for the next."""
    began = time.monotonic()
    seen, log, sampler = run(place, seed, plan, length, weights)
    seconds = round(time.monotonic() - began, 1)
    wrong = faults_found(seen)
    if wrong:
        (folder / f"seed_{seed}.json").write_text(json.dumps(asdict(seen), indent=1, default=str))
        say(log[-4000:])
        say("\n".join(f"  {error}" for error in sampler.errors[-3:]))
    if wrong or {act.fault.kind for act in seen.acts} & HOST_FAULTS:
        place.mend()
    return {
        "seed": seed,
        "faults": [shown(act) for act in seen.acts],
        "attempts": [[row.get("state"), row.get("cause"), row.get("resume_step")] for row in attempts_of(seen)],
        "lost": lost(seen),
        "seconds": seconds,
        "wrong": wrong,
    }


def shown(act: Act) -> str:
    where = f" r{act.fault.rank}" if act.fault.kind in ("kill_rank", "freeze_rank") else f" {act.fault.node}"
    alone = act.fault.kind in ("kill_supervisor", "sleep_laptop")
    text = f"{act.fault.kind}{'' if alone else where}{f' {act.fault.seconds:g}s' if act.fault.seconds else ''}"
    return f"{text} @{act.step}" + ("" if act.applied else f" (not done: {act.note})")


def lost(seen: Seen) -> list[int]:
    """Steps lost at each restart."""
    attempts = attempts_of(seen)
    return [
        max(0, (reached(seen, int(before["attempt"])) or 0) - int(after.get("resume_step") or 0))
        for before, after in itertools.pairwise(attempts)
    ]


def run(place: Rig, seed: int, plan: tuple[Fault, ...], length: Length, weights: str) -> tuple[Seen, str, Sampler]:
    """Starts a training, does the plan to it, and gathers what is to be seen afterwards."""
    log = place.workspace / f"seed_{seed}.log"
    log.unlink(missing_ok=True)
    before = set((place.workspace / "runs").glob("train_*"))
    controller, end = Controller(place, log), time.monotonic() + length.limit_s
    controller.start("run", "train.yaml", "--cluster", "chaos")
    folder = wait(lambda: started(place, before) or not controller.runs(), START_LIMIT_S)
    if not isinstance(folder, Path):
        controller.kill()
        raise RuntimeError(f"the run did not start:\n{log.read_text(errors='replace')[-3000:]}")
    with Sampler(place, folder.name) as sampler:
        stage = Stage(place, sampler, controller, folder.name)
        done = perform(stage, plan, end)
        wait(lambda: not controller.runs(), max(0.0, end - time.monotonic()), POLL_S)
        code = controller.code()
        hosts = [host for host in place.hosts() if host.ident not in sampler.cut]
        left = {host.node: sampler.left(host) for host in hosts}
        # Its agent's `follow`, which learns of the end of its reader, may be on its way out.
        wait(lambda: not any(map(sampler.readers, hosts)), READERS_LIMIT_S)
        left = {host.node: (*left[host.node], *sampler.readers(host)) for host in hosts}
        ended_unix = time.time()
    seen = gather(stage, seed, length, weights, done, code, left)
    seen = replace(seen, ended_unix=ended_unix)
    clean_up(stage)
    return seen, log.read_text(errors="replace"), sampler


def started(place: Rig, before: set[Path]) -> Path | None:
    new = {path for path in (place.workspace / "runs").glob("train_*") if (path / "run.json").exists()} - before
    return next(iter(new), None)


def perform(stage: Stage, plan: tuple[Fault, ...], end: float) -> tuple[Act, ...]:
    """Each fault in its turn, once the training is where the plan says."""
    done: list[Act] = []
    for fault in plan:
        if fault.after_s and done:
            time.sleep(max(0.0, done[-1].at_unix + fault.after_s - time.time()))
        else:
            wait(partial(due_or_over, stage, fault, end), max(0.0, end - time.monotonic()), POLL_S)
        if over(stage, end):
            done.append(Act(fault, time.time(), 0, time.time(), applied=False, note="the run had ended"))
            continue
        done.append(acts.act(stage, fault))
    return tuple(done)


def over(stage: Stage, end: float) -> bool:
    return time.monotonic() > end or not stage.controller.runs()


def due_or_over(stage: Stage, fault: Fault, end: float) -> bool:
    return due(stage, fault) or over(stage, end)


def due(stage: Stage, fault: Fault) -> bool:
    """The step was reached, and the newest attempt has done a step of its own."""
    steps = stage.sampler.steps
    newest = max((current(list(events)) for events in list(stage.sampler.events.values())), default=0)
    moved = newest in steps and steps[newest] > stage.sampler.first[newest]
    return moved and max(steps.values()) >= fault.at_step


def gather(
    stage: Stage, seed: int, length: Length, weights: str, done: tuple[Act, ...], code: int | None,
    left: dict[str, tuple[str, ...]],
) -> Seen:  # fmt: skip
    place, run_id = stage.rig, stage.run_id
    runs = place.workspace / "runs"
    logs = sorted((runs / run_id / "logs").glob("*/rank_0/attempt_*.log"))
    first = next((host for host in place.hosts() if host.node == "n0"), None)
    run_dir = first.run_dir(run_id) if first else Path("/nonexistent")
    return Seen(
        seed=seed,
        steps=length.steps,
        save_every=length.save_every,
        weights=weights,
        acts=done,
        exit_code=code,
        record=read(runs / run_id / "run.json") or {},
        manifest=read(runs / "manifests" / f"{run_id}.json"),
        result=read(run_dir / "result.json"),
        final_weights=tuple(found for path in logs for found in WEIGHTS.findall(path.read_text(errors="replace"))),
        checkpoint=newest_checkpoint(run_dir / "checkpoints"),
        samples=tuple(stage.sampler.samples),
        left=left,
        instances=place.instances(),
        nodes=place.nodes(),
        leaks=tuple(sorted(stage.sampler.leaks)) + leaks(place),
    )


def read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def newest_checkpoint(root: Path) -> dict[str, Any] | None:
    newest = max(root.glob("step_*"), default=None) if root.is_dir() else None
    if newest is None:
        return None
    if problems := checkpoint.verify(newest):
        return {"step": int(newest.name[5:]), "sha256": None, "problems": problems}
    return {"step": int(newest.name[5:]), "sha256": checkpoint.digest(newest), "problems": []}


def leaks(place: Rig) -> tuple[str, ...]:
    """Files of the workspace and of the nodes that hold a secret."""
    marks, found = [canary.encode() for canary in CANARIES.values()], []
    roots = [place.workspace, *(host.path(host.scratch) for host in place.hosts())]
    for path in (path for root in roots if root.is_dir() for path in root.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and any(mark in path.read_bytes() for mark in marks):
                found.append(str(path))
        except OSError:
            continue
    return tuple(found)


def clean_up(stage: Stage) -> None:
    """Nothing of this run may reach into the next seed."""
    stage.controller.kill()
    stop = stage.rig.begin("stop", stage.run_id, "--grace", "0", log=stage.controller.log)
    stop.wait(600)
    for host in stage.rig.hosts():
        folder = shlex.quote(f"{host.scratch}/{stage.run_id}/checkpoints")
        acts.inside(host, f"while umount {folder} 2>/dev/null; do :; done")


def row_text(row: dict[str, Any]) -> str:
    sign = "✗" if row["wrong"] else "✓"
    text = f"{sign} seed {row['seed']}: {', '.join(row['faults'])}: {len(row['attempts'])} attempts, "
    text += f"steps lost {row['lost']}, {row['seconds']:.0f} s"
    return "\n".join([text, *(f"    {fault}" for fault in row["wrong"])])


def told(rows: list[dict[str, Any]], file: Path | None, seconds: float) -> int:
    bad = [row["seed"] for row in rows if row["wrong"]]
    if file:
        file.write_text(json.dumps({"seconds": round(seconds, 1), "seeds": rows}, indent=1))
    print("| seed | faults @step | attempts | steps lost | seconds | result |\n|---|---|---|---|---|---|")
    for row in rows:
        result = "; ".join(row["wrong"]) or "survived"
        print(
            f"| {row['seed']} | {', '.join(row['faults'])} | {len(row['attempts'])} | "
            f"{', '.join(map(str, row['lost'])) or '–'} | {row['seconds']:.0f} | {result} |"
        )
    say(f"{len(rows) - len(bad)} of {len(rows)} seeds survived in {seconds:.0f} s" + (f"; not: {bad}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
