"""A Runner that starts nothing: it records each program and answers from a table. The tests use it, and `--dry-run`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nexa_dist.errors import NexaError
from nexa_dist.run.runner import Result, Runner, Stream
from nexa_dist.run.ssh.connections import LOOK, PUT


@dataclass(frozen=True)
class Call:
    """A program that somebody wanted to start; `how` has the other arguments of `Runner.run`."""

    argv: tuple[str, ...]
    stdin: bytes | IO[bytes]
    how: Mapping[str, Any]


class FakeRunner(Runner):
    """Answers with the results that were `planned`, in order, then with `otherwise`; raises on anything else."""

    def __init__(self, *planned: Result, otherwise: Result | None = None) -> None:
        self.planned, self.otherwise, self.calls = list(planned), otherwise, list[Call]()

    def answer(self, call: Call) -> Result:
        """Answer of the program; a subclass has a table of its own."""
        done = self.planned.pop(0) if self.planned else self.otherwise
        assert done is not None, f"unplanned: {call.argv}"
        return done

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] = b"", **how: Any) -> Result:
        self.calls.append(Call(tuple(argv), stdin, how))
        return self.answer(self.calls[-1])

    def run_logged(self, argv: Sequence[str], log: Path, *, on_line: Callable[[str], None], **how: Any) -> Result:
        done = self.run(argv, **how)
        for line in done.out.decode(errors="replace").splitlines():
            on_line(line)
        return done

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        raise AssertionError(f"unplanned: {argv}")


READS = ("probe", "whole", "wrote", "reads", "train.checkpoint", LOOK, PUT, "-G", "-Oexit")
"""Words of an ssh command line by which it only asks: the agent, a module or program of ours, ssh itself. PUT brings a
node the agent that it lacks, since nothing else there can answer."""


class DryRunner(FakeRunner):
    """The runner of `--dry-run`: what only reads is started by `reads`; whatever else is wanted is refused."""

    def __init__(self, reads: Runner) -> None:
        super().__init__()
        self.reads = reads

    def answer(self, call: Call) -> Result:
        if only_reads(call.argv):
            return self.reads.run(call.argv, stdin=call.stdin, **call.how)
        raise NexaError(
            f"a dry run does not start: {shlex.join(call.argv)}", hint="this is a defect of nexa: report it"
        )

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        return self.reads.stream(argv, stdin=stdin) if only_reads(argv) else super().stream(argv)


def only_reads(argv: Sequence[str]) -> bool:
    """Tell whether a program changes nothing where it runs; git is asked through `run.git` alone, which only reads."""
    if argv[0] == "sbatch":
        return "--test-only" in argv
    if argv[0] in ("squeue", "sacct", "scontrol"):
        return argv[0] != "scontrol" or "show" in argv
    if argv[0] != "ssh":
        return argv[0] == "env" and "git" in argv
    return any(word.removeprefix("nexa_dist.") in READS for word in (*argv, *shlex.split(argv[-1])))
