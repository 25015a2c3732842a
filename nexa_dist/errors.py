"""Errors a user can act on: what happened, where, what to do next, and the exit code it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUDGET = 3
EXIT_STILL_RUNNING = 4
"""Something may still be running or billed."""
EXIT_INTERRUPTED = 130


class Leave(KeyboardInterrupt):
    """We are to go (SIGTERM, SIGHUP). Unlike Ctrl-C nobody is there to be asked what is to become of a run."""


class NexaError(Exception):
    """An expected failure. The command line prints it without a traceback and exits with `code`."""

    code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code


class NoNodes(NexaError):
    """Nobody gives nodes for a run any more: asking again is of no use."""


class UsageError(NexaError):
    """The command line or the workspace is wrong; nothing was done."""

    code = EXIT_USAGE


@dataclass(frozen=True)
class Problem:
    """One fault of a config file. `line` is 1-based, 0 when it belongs to no line (`--set`)."""

    file: str
    line: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        at = f"{self.path}: " if self.path else ""
        tail = f" (hint: {self.hint})" if self.hint else ""
        return f"{where}: {at}{self.message}{tail}"


class ConfigError(NexaError):
    """Every problem of one config file at once."""

    code = EXIT_USAGE

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


class StillRunning(NexaError):
    """The verb could not prove that nothing is left running or billed."""

    code = EXIT_STILL_RUNNING
