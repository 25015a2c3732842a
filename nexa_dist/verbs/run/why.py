"""nexa why: which rank failed first, its last lines, the known cause and what to do."""

from __future__ import annotations

from argparse import Namespace as Arguments
from typing import Any

from nexa_dist.errors import EXIT_OK
from nexa_dist.ops.failures import why as asking
from nexa_dist.secrets import redact_text
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context


def why(args: Arguments) -> int:
    folder = context(acts=False).workspace.run(args.run)
    record = folder.load()
    story, others = asking.why(folder, record, args.attempt)
    if args.json:
        entries = [{"attempt": s.attempt, "state": s.state, "words": _shown(s.line)} for s in others]
        terminal.emit({"run": folder.run_id, **_told(story), "others": entries})
        return EXIT_OK
    count = len(record.attempts)
    terminal.out(f"{folder.run_id}: attempt {story.attempt} of {count} {story.state}{_at(story)}")
    terminal.out(_shown(_first(story)))
    for line in story.verdict.lines:
        terminal.out(f"  | {_text(line)}")
    for also in story.verdict.others:
        terminal.out(f"also {_shown(also)}")
    if story.verdict.fix:
        terminal.out(f"do: {_shown(story.verdict.fix)}")
    for other in others:
        terminal.out(f"attempt {other.attempt} {other.state}{_at(other)}: {_shown(other.line)}")
    return EXIT_OK


def _first(story: asking.Story) -> str:
    verdict = story.verdict
    if verdict.blamed is None:
        return verdict.words
    if verdict.name == "spot_notice":
        return story.line
    end = verdict.exit
    how = "" if end is None else f" (signal {end.signal})" if end.signal else f" (exit code {end.code})"
    return f"{verdict.who} failed first{how}: {verdict.words}"


def _at(story: asking.Story) -> str:
    return "" if story.step is None else f" at step {story.step}"


def _text(line: bytes) -> str:
    return _shown(line.decode(errors="replace"))


def _shown(text: str) -> str:
    return terminal.plain(redact_text(text))


def _told(story: asking.Story) -> dict[str, Any]:
    verdict = story.verdict
    node, rank = verdict.blamed or (None, None)
    end = verdict.exit
    return {
        "attempt": story.attempt,
        "state": story.state,
        "step": story.step,
        "name": verdict.name,
        "node": node,
        "rank": rank,
        "exit": None if end is None else {"code": end.code, "signal": end.signal, "oom": end.oom},
        "words": _shown(verdict.words),
        "fix": _shown(verdict.fix),
        "lines": [_text(line) for line in verdict.lines],
        "also": [_shown(line) for line in verdict.others],
        "cause": _shown(story.cause),
    }
