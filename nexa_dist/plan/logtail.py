"""The end of a log, read: its last traceback, the exception, where the user's own code stood. Pure, on bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

TAIL_BYTES = 64 << 10
REGION_BYTES = 16 << 10
"""How much of a log without a traceback is searched."""
LINE_BYTES = 400
WORK = b"work"
"""Name of the folder that a run's code lies in."""
HEADER = b"Traceback (most recent call last):"
_NOISE = re.compile(rb"\x1b\[[0-9;?]{0,20}[A-Za-z]|^\[(?:rank|default)[0-9]{1,7}\]:[ ]?|\x00", re.MULTILINE)
_CHAINED = re.compile(rb"^(?:During handling of the above|The above exception was)|Original \Z", re.MULTILINE)
_FRAME = re.compile(
    rb'^ {0,12}File "(?P<path>[^"\n]{1,300})", line (?P<line>[0-9]{1,7})(?:,? in (?P<function>[^\n]{1,100}))?$',
    re.MULTILINE,
)
_RAISED = re.compile(rb"^(?P<name>[A-Za-z_][A-Za-z0-9_.]{0,120})(?::[ ](?P<message>[^\n]{0,400}))?$", re.MULTILINE)
_SYNTAX = re.compile(rb"^(?:SyntaxError|IndentationError|TabError): [^\n]{1,200}$", re.MULTILINE)
_LIBRARY = re.compile(rb"/(?:site|dist)-packages/|/lib(?:64)?/python[0-9.]{1,6}/|^<|/nexa_dist/")
_STACK = re.compile(
    rb"^(?:Current thread|Thread) 0x[0-9a-f]{1,16}(?: \[[^\]\n]{1,60}\])? \(most recent call first\):$", re.MULTILINE
)
_WORKER = re.compile(rb"/multiprocessing/|in _worker_loop")
_COLLECTIVE = re.compile(rb"/torch/distributed/")


@dataclass(frozen=True)
class Frame:
    """One line of a stack. `function` is empty for a syntax error."""

    path: bytes
    line: int
    function: bytes

    @property
    def own(self) -> bool:
        """Of the user's code, as far as its path tells."""
        return _LIBRARY.search(self.path) is None

    def __str__(self) -> str:
        path = self.path.rsplit(b"/%b/" % WORK, 1)[-1].decode(errors="replace")
        inside = f", in {self.function.decode(errors='replace')}" if self.function else ""
        return f"{path}:{self.line}{inside}"


def clean(tail: bytes) -> bytes:
    """The last TAIL_BYTES of a log without colours, torch's `[rank0]: ` and carriage returns."""
    text = tail[-TAIL_BYTES:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return _NOISE.sub(b"", text)


def last_traceback(text: bytes) -> bytes:
    """The last traceback with those that it was chained to, and all that follows; empty when there is none."""
    start = text.rfind(HEADER)
    if start < 0:
        found = _SYNTAX.search(text)
        return text if found else b""
    while (before := text.rfind(HEADER, 0, start)) >= 0 and _CHAINED.search(text, before, start):
        start = before
    return text[start:]


def raised(trace: bytes) -> str:
    """`KeyError: 'labels'`: the line that ends the last traceback."""
    start = trace.rfind(HEADER)
    found = _RAISED.search(trace, start + len(HEADER)) if start >= 0 else _SYNTAX.search(trace)
    return found.group().decode(errors="replace") if found else "an exception"


def place(trace: bytes) -> Frame | None:
    """The innermost frame of the user's own code in a traceback, else the innermost of all."""
    frames = [_frame(match) for match in _FRAME.finditer(trace)]
    if not frames:
        return None
    last = [_frame(match) for match in _FRAME.finditer(trace, max(0, trace.rfind(HEADER)))]
    own = [frame for frame in last if frame.own] or [frame for frame in frames if frame.own]
    return (own or frames)[-1]


def stack(text: bytes) -> tuple[Frame, ...]:
    """The frames of the main thread that faulthandler wrote last, innermost first. Empty when there are none."""
    heads = list(_STACK.finditer(text))
    if not heads:
        return ()
    ends = [*(head.start() for head in heads[1:]), len(text)]
    blocks = [(head.group(), text[head.end() : end]) for head, end in zip(heads, ends, strict=True)]
    choice = [block for head, block in blocks if head.startswith(b"Current")] or [blocks[-1][1]]
    block = next((b for b in choice if not _WORKER.search(b)), choice[0])
    return tuple(_frame(match) for match in _FRAME.finditer(block))


def waits_for_others(frames: tuple[Frame, ...]) -> bool:
    """Whether a stack stands in a collective."""
    return any(_COLLECTIVE.search(frame.path) for frame in frames[:4])


def standing(frames: tuple[Frame, ...]) -> Frame:
    """The innermost frame of the user's own code, else the innermost of all."""
    return next((frame for frame in frames if frame.own), frames[0])


def last_lines(text: bytes, count: int) -> tuple[bytes, ...]:
    """The last lines that say something, each cut to LINE_BYTES."""
    kept = [
        line[:LINE_BYTES] for line in text.split(b"\n") if line.strip() and not line.startswith(b"Extension modules:")
    ]
    return tuple(kept[-count:])


def _frame(match: re.Match[bytes]) -> Frame:
    return Frame(match["path"], int(match["line"]), match["function"] or b"")
