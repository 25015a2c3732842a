"""logs."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from datetime import datetime

from nexa_dist.errors import EXIT_INTERRUPTED, EXIT_OK, NexaError, UsageError
from nexa_dist.ops.runs import logs as mirrored
from nexa_dist.ops.runs.logs import Log, Wanted
from nexa_dist.run.logs.reader import Chunk
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context, ranks

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def logs(args: argparse.Namespace) -> int:
    ctx = context(acts=False)
    run = ctx.workspace.run(args.run)
    wanted = Wanted(
        ranks(args.rank),
        args.node,
        args.attempt,
        pattern(args.grep),
        None if args.since is None else since(args.since, time.time()),
        tail(args.tail),
        timed=args.json,
    )
    mirrored.check(run, wanted)
    writer = _Json() if args.json else _Text()
    try:
        for item in mirrored.logs(ctx, run, wanted, follow_on=args.follow):
            if item is None:
                terminal.flush()
            else:
                writer.write(*item)
    except KeyboardInterrupt:
        if not args.follow:
            raise
        state = "goes on" if run.load().going_on else "has ended"
        terminal.say(f"{run.run_id} {state}")
        return EXIT_INTERRUPTED
    finally:
        writer.close()
    return EXIT_OK


class _Text:
    """`[n0:3] line`: the bytes of the line as they are into a file or pipe, stripped of escapes on a terminal."""

    def __init__(self) -> None:
        self.open: Log | None = None
        """The log whose last line has not ended yet."""

    def write(self, log: Log, chunk: Chunk) -> None:
        label = f"[{log.node}:{log.rank if log.rank is not None else log.source.split('.')[0]}] ".encode()
        goes_on = self.open == log and not chunk.begins
        if not goes_on:
            self._end_line()
        head = b"" if goes_on else label
        terminal.out_bytes(head + (b"\n" + label).join(chunk.lines) + (b"\n" if chunk.ends else b""))
        self.open = None if chunk.ends else log

    def close(self) -> None:
        self._end_line()
        terminal.flush()

    def _end_line(self) -> None:
        if self.open:
            terminal.out_bytes(b"\n")
            self.open = None


class _Json:
    """One object a line. A line that is too long comes in pieces, all but the last with `"more": true`."""

    def write(self, log: Log, chunk: Chunk) -> None:
        where = {"node": log.node, "rank": log.rank, "attempt": log.attempt, "source": log.source}
        rows = []
        for text, unix in zip(chunk.lines, chunk.times, strict=True):
            row = {**where, "unix": unix, "line": text.decode(errors="replace")}
            rows.append(json.dumps(row if chunk.ends else {**row, "more": True}) + "\n")
        terminal.out_bytes("".join(rows).encode())

    def close(self) -> None:
        terminal.flush()


def pattern(text: str | None) -> re.Pattern[bytes] | None:
    """Raises NexaError for a pattern that is none."""
    try:
        return re.compile(os.fsencode(text)) if text else None
    except re.error as error:
        raise NexaError(f"--grep {text!r} is no regular expression: {error}", code=2) from error


def since(text: str, now: float) -> float:
    """`5m`, `2h`, `30s`, `1d` before now, or an ISO time (local where it names no zone), as unix seconds."""
    if found := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhd])", text):
        return now - float(found[1]) * UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        hint = "such as 30s, 5m, 2h, 1d or 2026-01-31T12:00:00"
        raise UsageError(f"--since {text!r} is neither a span nor a time", hint=hint) from None


def tail(lines: int | None) -> int | None:
    if lines is not None and lines < 0:
        raise UsageError(f"--tail {lines} is less than no line")
    return lines
