"""nexa logs: the lines of every rank and of the set-up, of all attempts."""

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

SETUP = "setup"
"""Among the ranks of --rank: what was set up for them."""
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def logs(args: argparse.Namespace) -> int:
    ctx = context(acts=False)
    run = ctx.workspace.run(args.run)
    words = args.rank.split(",")
    of_ranks = ",".join(word for word in words if word != SETUP)
    wanted = Wanted(
        ranks(of_ranks) if of_ranks or SETUP not in words else set(),
        SETUP in words,
        args.node,
        args.attempt,
        pattern(args.grep),
        None if args.since is None else since(args.since, time.time()),
        tail(args.tail),
        timed=args.json,
    )
    mirrored.check(run, wanted)
    written = _json if args.json else _text
    try:
        for item in mirrored.logs(ctx, run, wanted, follow_on=args.follow):
            if item is None:
                terminal.flush()
            else:
                terminal.out_bytes(written(*item))
    except KeyboardInterrupt:
        if not args.follow:
            raise
        state = "goes on" if run.load().going_on else "has ended"
        terminal.say(f"{run.run_id} {state}")
        return EXIT_INTERRUPTED
    finally:
        terminal.flush()
    return EXIT_OK


def _text(log: Log, chunk: Chunk) -> bytes:
    """`[n0:3] line`: the bytes of the line as they are into a file or pipe, stripped of escapes on a terminal."""
    label = f"[{log.node}:{log.rank if log.rank is not None else log.source.split('.')[0]}] ".encode()
    return label + (b"\n" + label).join(chunk.lines) + b"\n"


def _json(log: Log, chunk: Chunk) -> bytes:
    """One object a line."""
    where = {"node": log.node, "rank": log.rank, "attempt": log.attempt, "source": log.source}
    rows = zip(chunk.lines, chunk.times, strict=True)
    made = [json.dumps({**where, "unix": unix, "line": text.decode(errors="replace")}) for text, unix in rows]
    return ("\n".join(made) + "\n").encode()


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
