"""A pipeline: which stages are done, by the hashes of what they follow from, and the others one after the other.

Nothing is kept of a pipeline but its versions: a stage is done when the registry has a version with the key of its
config and inputs. So a kill at any point leaves nothing to mend; the next run begins where that look ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nexa_dist.config.load import load_other, load_train
from nexa_dist.config.pipeline import PipelineConfig, StepConfig, is_pipeline
from nexa_dist.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConfigError,
    NexaError,
    Problem,
    UsageError,
)
from nexa_dist.ops.context import Context
from nexa_dist.ops.pipeline import gate
from nexa_dist.run import files
from nexa_dist.stages import train
from nexa_dist.stages.contract import EXIT_STOPPED
from nexa_dist.stages.load import load_stage, stage_of
from nexa_dist.stages.output import Told
from nexa_dist.stages.references import resolve
from nexa_dist.stages.registry import FOLDER, Registry, Version
from nexa_dist.stages.table import STAGES
from nexa_dist.stages.whole import MANIFEST, hashes, remove, tree_sha256

STOP_S = 60.0
"""Seconds that a stage has to end after SIGTERM: one row, or one checkpoint."""
Runs = Callable[["Step", Path], int]
"""Does a stage as a run of the cluster; its whole output is then in the folder. Returns the exit code."""


@dataclass(frozen=True)
class Step:
    """A stage of a pipeline as it stands."""

    name: str
    stage: str
    config: Path
    overrides: tuple[str, ...]
    where: str
    references: Mapping[str, str]
    """Each input as `data:NAME@vN/FOLDER` or a path; `stage:…` while that stage is not done."""
    key: str = ""
    """Empty while an input is not known yet."""
    version: Version | None = None
    """The version that it made; None when it has to be done."""
    waits: tuple[str, ...] = ()
    told: Told | None = field(default=None, repr=False)
    refused: tuple[str, ...] = ()
    """Scores of an evaluation that are not what the pipeline asks; nothing that reads it is begun."""

    @property
    def state(self) -> str:
        return "refused" if self.refused else "done" if self.version else "waits" if self.waits else "to do"

    def row(self, root: Path) -> dict[str, Any]:
        """What `nexa pipeline status` says of it."""
        of = self.version.provenance if self.version else {}
        half = bool(self.key) and work_folder(root, self.key).exists() and not self.version
        return {
            "stage": self.name,
            "kind": self.stage,
            "state": "half done" if half else self.state,
            "version": self.version.label if self.version else "",
            "inputs": dict(self.references),
            "seconds": of.get("seconds"),
            "usd": of.get("usd"),
            "key": self.key,
            **({"refused": list(self.refused)} if self.refused else {}),
        }


def load(path: Path) -> PipelineConfig:
    """The pipeline of a file; a stage.yaml or train.yaml is a pipeline of one. Raises ConfigError."""
    from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes

    document = parse_yaml(read_bytes(path), display_name(path))
    if is_pipeline(document.data):
        return load_other(path, PipelineConfig)
    config = load_stage(path) if stage_of(path) != "train" else load_train(path)
    return PipelineConfig.model_validate({"pipeline": config.name, "stages": {config.name: {"config": str(path)}}})


def look(root: Path, pipeline: PipelineConfig) -> list[Step]:
    """Every stage in order, with its version where that is done. Raises ConfigError with the faults of all files."""
    steps: dict[str, Step] = {}
    read: dict[str, str] = {}
    problems: list[Problem] = []
    for name in pipeline.order():
        try:
            steps[name] = _step(root, name, pipeline.stages[name], steps, read)
        except ConfigError as error:
            problems += error.problems
            steps[name] = Step(name, "", Path(pipeline.stages[name].config), (), "here", {})
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return list(steps.values())


def _step(root: Path, name: str, step: StepConfig, before: Mapping[str, Step], read: dict[str, str]) -> Step:
    """One of `look`; `read` has the hash of each input that others read too: a teacher is many gigabytes."""
    path, overrides = Path(step.config), (*step.set, f"name={name}")
    stage = stage_of(path)
    if (step.min or step.max) and stage != "eval":
        raise UsageError(f"{name}: min and max are asked of scores, and the stage {stage} has none", hint="stage: eval")
    if stage == "train":
        trained = load_train(path, [*overrides, *(f"data.{key}=later" for key in step.inputs)])
        inputs, told = dict(step.inputs), train.told_of(trained, step.inputs)
    else:
        config = load_stage(path, overrides)
        inputs = {**config.inputs, **step.inputs}
        told = Told.of(config, STAGES[stage].format)
    references, waits = dict[str, str](), []
    for key, of in inputs.items():
        other, _, within = of.removeprefix("stage:").partition("/")
        if not of.startswith("stage:"):
            references[key] = of
        elif other in before and (version := before[other].version) and not before[other].refused:
            references[key] = "/".join(filter(None, (f"data:{version.label}", within)))
        else:
            references[key] = of
            waits.append(other)
    made = Step(name, stage, path, overrides, step.where, references, waits=tuple(waits), told=told)
    if waits:
        return made
    registry = Registry(root)
    for key, of in references.items():
        if of not in read:
            read[of] = _sha256(registry, root, of, f"{name}.inputs.{key}")
    key = told.key({key: read[of] for key, of in references.items()})
    version = registry.by_key(name, key)
    return replace(made, key=key, version=version, refused=gate.faults(registry, version, step) if version else ())


def _sha256(registry: Registry, root: Path, reference: str, key: str) -> str:
    """Hash of an input: of a version as its manifest has it, without reading it; of a path as it is."""
    if not reference.startswith("data:"):
        return tree_sha256(hashes(resolve(reference, root, key).resolve()))
    named, _, within = reference.removeprefix("data:").partition("/")
    version = registry.find(named)
    if not within:
        return version.sha256
    known: dict[str, Any] = files.read_object(registry.path(version) / MANIFEST)["outputs"]["files"]
    if within in known:
        return tree_sha256({Path(within).name: known[within]})
    inside = {name.removeprefix(f"{within}/"): row for name, row in known.items() if name.startswith(f"{within}/")}
    inside.pop(MANIFEST, None)  # as hashes() has it: that of a checkpoint tells when it was made
    if not inside:
        raise NexaError(f"{key}: {version.label} has no {within}", hint=f"nexa data show {version.label}")
    return tree_sha256(inside)


def work_folder(root: Path, key: str) -> Path:
    return root / FOLDER / "work" / key[:32]


def run(ctx: Context, pipeline: PipelineConfig, runs: Runs) -> tuple[int, list[Step]]:
    """Do all that is not done. Returns the exit code, and the stages as they stand then."""
    root = ctx.workspace.root
    lock = root / FOLDER / f"pipeline-{pipeline.pipeline}.lock"
    with files.locked(lock, "pipeline run"):
        for name in pipeline.order():
            steps = look(root, pipeline)
            step = next(one for one in steps if one.name == name)
            if step.version:
                ctx.say(f"✓ {name}: {step.version.label}, done before")
                if _is_refused(ctx, step):
                    return EXIT_FAILED, steps
                continue
            spent = sum(cost for one in steps if one.version and (cost := one.version.provenance.get("usd")))
            if pipeline.budget_usd is not None and spent >= pipeline.budget_usd:
                ctx.say(f"✗ {name} is not begun: {spent:.2f} USD are spent, of {pipeline.budget_usd:.2f}")
                return EXIT_BUDGET, steps
            if code := _do(ctx, root, step, runs):
                return code, look(root, pipeline)
            if pipeline.stages[name].min or pipeline.stages[name].max:
                steps = look(root, pipeline)
                if _is_refused(ctx, next(one for one in steps if one.name == name)):
                    return EXIT_FAILED, steps
        steps = look(root, pipeline)
        if pipeline.promote:
            gate.promote(ctx, pipeline, {one.name: one.version for one in steps if one.version})
    return EXIT_OK, steps


def _is_refused(ctx: Context, step: Step) -> bool:
    """Whether the pipeline ends with this evaluation, which is then said."""
    for fault in step.refused:
        ctx.say(f"✗ {step.version.label if step.version else step.name}: {fault}; nothing behind it is begun")
    if step.refused:
        of = step.references.get("model", "its rows").removeprefix("data:")  # data:NAME@v1/… looks like a password
        ctx.say(f"hint: it follows from {of} (nexa lineage {step.name}). Change that, or min and max of {step.name}: "
                "the same command goes on from here")  # fmt: skip
    return bool(step.refused)


def _do(ctx: Context, root: Path, step: Step, runs: Runs) -> int:
    """Do one stage and register what it made. Returns its exit code."""
    registry, folder = Registry(root), work_folder(root, step.key)
    files.make_folder(folder)
    files.hide_from_git(root / FOLDER)
    ctx.say(f"▸ {step.name}: {step.stage}{' on the cluster' if step.where == 'cluster' else ''}")
    began = time.monotonic()
    if not (folder / MANIFEST).exists():
        code = runs(step, folder) if step.where == "cluster" else _here(root, step, folder)
        if code:
            ctx.say(f"✗ {step.name}: {_ended(code)} after {time.monotonic() - began:.1f} s; what is done stays")
            return code
    if version := registry.by_key(step.name, step.key):
        remove(folder)  # a run of the cluster has registered it
    else:
        version = registry.add(folder, {"inputs": dict(step.references), "pipeline_stage": step.name})
    if version.key != step.key:
        raise NexaError(f"{version.label} follows from other inputs than {step.name} has now", hint="run it again")
    rows = version.counts.get("rows", version.counts.get("step", ""))
    ctx.say(f"✓ {step.name}: {version.label} {rows} ({time.monotonic() - began:.1f} s)")
    return EXIT_OK


def _ended(code: int) -> str:
    words = {EXIT_STOPPED: "stopped", EXIT_BUDGET: "its budget ended it", EXIT_INTERRUPTED: "interrupted"}
    return words.get(code, f"failed with exit code {code}")


def argv_of(step: Step, folder: Path) -> list[str]:
    """The program of a stage on this machine."""
    words = [sys.executable, "-m", f"nexa_dist.stages.{step.stage}", "--config", str(step.config)]
    for name, reference in step.references.items():
        words += ["--input", f"{name}={reference}"]
    for override in step.overrides:
        words += ["--set", override]
    return [*words, "--output", str(folder)]


def _here(root: Path, step: Step, folder: Path) -> int:
    """Do a stage as a program of its own, which ends with us. What it prints is talk, and no data of ours."""
    until = time.monotonic() + STOP_S
    while files.held(folder / ".lock") and time.monotonic() < until:
        time.sleep(0.05)  # that of a nexa that was killed, which is ending
    argv, env = argv_of(step, folder), {**os.environ, "NEXA_WORKSPACE": str(root)}
    with subprocess.Popen(argv, stdout=sys.stderr.fileno(), env=env, preexec_fn=_dies_with_us) as child:
        try:
            return _code(child.wait())
        except BaseException:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


def _code(status: int) -> int:
    return status if status >= 0 else 128 - status


def _dies_with_us() -> None:
    """SIGTERM for the child when this process is gone, however it goes (prctl PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def total(steps: Sequence[Step]) -> dict[str, float]:
    """Seconds and USD of all stages that are done."""
    done = [one.version.provenance for one in steps if one.version]
    return {name: round(sum(float(one.get(name) or 0.0) for one in done), 4) for name in ("seconds", "usd")}
