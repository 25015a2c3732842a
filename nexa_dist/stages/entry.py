"""One stage by hand, or one rank of it: `python -m nexa_dist.stages.NAME --config X [--input A] --output B`.

Exit codes: 0 done (or was done before), 1 failed, 2 bad usage or config, 3 a budget ended it, 143 stopped by SIGTERM or
Ctrl-C; after the last two the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from nexa_dist.config.load import load_train
from nexa_dist.errors import EXIT_BUDGET, EXIT_FAILED, EXIT_OK, EXIT_USAGE, NexaError, UsageError
from nexa_dist.stages.contract import Stage, StageConfig, StageEnv
from nexa_dist.stages.load import load_stage
from nexa_dist.stages.output import Output, Told, made
from nexa_dist.stages.references import find_root, resolve
from nexa_dist.stages.table import STAGES
from nexa_dist.train import progress

SAID_EVERY_S = 5.0


def main(stage: str, argv: Sequence[str] | None = None) -> int:
    options = _parser(stage).parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a spinning thread takes the core that the other one waits for
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if stage == "train":
            return _train(options)
        config = load_stage(options.config, options.overrides)
        if config.stage != stage:
            raise UsageError(f"{options.config} is of stage {config.stage}, and this is the program of {stage}")
        if rank:
            print(f"rank {rank}: {stage} is the work of rank 0 alone", flush=True)
            return EXIT_OK
        config = config.model_copy(update={"inputs": {**config.inputs, **said(config.inputs, options.inputs)}})
        inputs = given(config.inputs, said(config.inputs, options.inputs))
        return work(STAGES[stage], config, inputs, options.output, world_size)
    except NexaError as err:
        print(f"error: {err}", file=sys.stderr)
        if err.hint:
            print(f"hint: {err.hint}", file=sys.stderr)
        return err.code
    except ModuleNotFoundError as err:
        print(f"error: the stage {stage} needs the package {err.name}", file=sys.stderr)
        print('hint: uv pip install "nexacompute[train]"; nexa run has it in environment: light', file=sys.stderr)
        return EXIT_USAGE
    except OSError as err:
        print(f"error: {err.filename or options.output}: {err.strerror or err}", file=sys.stderr)
        return EXIT_FAILED


def work(stage: Stage, config: StageConfig, inputs: Mapping[str, Path], folder: Path, world_size: int = 1) -> int:
    """Do a stage, or what is left of it, in `folder`. Returns its exit code."""

    def do(output: Output) -> int:
        env = StageEnv(inputs, output.folder, 0, world_size, _stop_wish(), _Reporter(), output.note)
        _prepare(stage, config, env)
        return stage.run(config, env)

    code = made(Told.of(config, stage.format), inputs, folder, do)
    # A run would begin another attempt after 3, which its budget would end at once.
    return EXIT_USAGE if code == EXIT_BUDGET and "NEXA_RUN_ID" in os.environ else code


def _prepare(stage: Stage, config: StageConfig, env: StageEnv) -> None:
    """What is refused before the work is refused at each try: exit code 2, with which no run begins another attempt."""
    try:
        stage.prepare(config, env)
    except NexaError as error:
        error.code = EXIT_USAGE if error.code == EXIT_FAILED else error.code
        raise


def _train(options: argparse.Namespace) -> int:
    from nexa_dist.stages import train  # not for a stage that needs none of it

    named = said({}, options.inputs)
    inputs = given(named, named)
    told = train.told_of(load_train(options.config, [*options.overrides, *train.overrides_of(inputs)]), named)
    return train.work(options.config, options.overrides, inputs, options.output, told)


def said(named: Mapping[str, str], words: Sequence[str]) -> dict[str, str]:
    """Inputs of the command line by name; without a name the first one of the config is meant."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        found |= {name: place} if equals else {next(iter(named), "rows"): word}
    return found


def given(named: Mapping[str, str], first: Mapping[str, str]) -> dict[str, Path]:
    """The place of each input: as the command line says (`first`), as it was brought to this node, or as the config
    says. Raises NexaError for a version that is damaged, UsageError for what is not there."""
    data, root = os.environ.get("NEXA_DATA"), find_root()
    brought = {name: f"{data}/{name}" for name in named if data and os.path.exists(f"{data}/{name}")}
    wanted = {**named, **brought, **first}
    return {name: resolve(place, root, f"inputs.{name}").resolve() for name, place in wanted.items()}


def _stop_wish() -> Callable[[], bool]:
    """Whether somebody wants an end: a second Ctrl-C does not wait for it."""
    wished: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if wished and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        wished.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return lambda: bool(wished)


class _Reporter:
    """Lines on stdout now and then, and each call for the node agent."""

    def __init__(self) -> None:
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int | None = None, **figures: float | int | str) -> None:
        progress.report(done, total)
        now = time.monotonic()
        if done != total and now - self.said < SAID_EVERY_S:
            return
        self.said = now
        rate = done / max(now - self.began, 1e-3)
        more = "".join(f" {name} {value:.4g}" if isinstance(value, float) else f" {name} {value}"
                       for name, value in figures.items())  # fmt: skip
        print(f"row {done}{f'/{total}' if total is not None else ''} {rate:.1f} rows/s{more}", flush=True)


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m nexa_dist.stages.{stage}", description=f"The stage {stage}.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="stage.yaml")
    parser.add_argument(
        "--input", action="append", default=[], dest="inputs", metavar="[NAME=]PLACE",
        help="in place of an input of the config (without NAME the first): a path, data:NAME@v1, run:RUN",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of what comes out")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override, a.b=c"
    )
    return parser


def run_main(stage: str) -> None:
    """Ends the process as a program does. os._exit, since threads of torch can abort an ordinary exit."""
    status = main(stage)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
