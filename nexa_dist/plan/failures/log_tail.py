"""The end of a log, read: its last traceback, the exception, where the user's own code stood. Pure, on bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

TAIL_BYTES = 64 << 10
REGION_BYTES = 16 << 10
"""Bytes of a log without a traceback that are searched."""
LINE_BYTES = 400
WORK = b"work"
"""Name of the folder that a run's code lies in."""
HEADER = b"Traceback (most recent call last):"
_NOISE = re.compile(rb"\x1b\[[0-9;?]{0,20}[A-Za-z]|^\[(?:rank|default)[0-9]{1,7}\]:[ ]?|\x00", re.MULTILINE)
_HEADER = re.compile(rb"Traceback \(most recent call last\):[ ]?$", re.MULTILINE)
_CHAINED = re.compile(rb"^(?:During handling of the above|The above exception was)|Original \Z", re.MULTILINE)
_HANDLING = re.compile(rb"^During handling of the above", re.MULTILINE)
_AFTERWARDS = re.compile(
    rb"^(?:Exception ignored in|Exception in thread |Error in atexit)[^\n]{0,300}\n\Z", re.MULTILINE
)
"""Stands before a traceback that ends nothing."""
_MISTAKE = re.compile(
    rb"(?:Key|Index|Type|Value|Name|UnboundLocal|Attribute|Assertion|ZeroDivision|Syntax|Indentation|Tab|Lookup|Recursion"
    rb"|NotImplemented|Import|ModuleNotFound|FileNotFound|Permission|FileExists|NotADirectory|IsADirectory)Error\Z"
)
"""Classes that a program raises on its own account, never for want of another process."""
_HANDLED = re.compile(
    rb"\b(?:halv|retry|skipp|recover|continu|reduc|lower)(?:ing|ed)\b|\btrying again\b|\bfall(?:ing|s)? ?back\b"
    rb"|\bwill (?:be )?retr|\bgoing on\b|\bresum(?:ing|ed)\b|\bignoring\b"
    rb"|\bcaught:? (?:an? )?(?:oom|cuda|error|exception|out of)\b"
    rb"|\b(?:smaller|half the) (?:micro)?batch|\busing the (?:cache|default)",
    re.IGNORECASE,
)
_PROGRESS = re.compile(
    rb"(?:step|epoch|iter|iteration|batch)['\" :=#\[(]{1,4}[0-9]|\bloss['\" :=]{1,4}[0-9]", re.IGNORECASE
)
_BAR = b"%|"
BARS = 3
"""So many lines of a progress bar are work; one or two are left by its end."""
_WHAT = re.compile(rb"what\(\):  [^\n]{1,400}")
_NO_WORK = (b" ", b"\t", b"wandb:", b"Exception ignored")
"""Beginnings of lines that are said after the end too, or that only quote code."""
MESSAGE_BYTES = 600
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
_RANKS = re.compile(rb"CheckpointException (?P<ranks>ranks:dict_keys\(\[[0-9, ]{1,200}\]\))")
_OF_RANK = re.compile(rb"^Traceback \(most recent call last\): \(RANK [0-9]{1,7}\)$", re.MULTILINE)
CRASHES = {
    b"Illegal instruction": 4, b"Aborted": 6, b"Bus error": 7, b"Floating point exception": 8, b"Killed": 9,
    b"Segmentation fault": 11,
}  # fmt: skip
CRASH_LINES = 60
"""faulthandler writes a stack behind its words."""
_CRASH = re.compile(
    rb"^(?:Fatal Python error: |[^\n:]{1,100}: line [0-9]{1,7}: {1,9}[0-9]{1,9} )?(" + b"|".join(CRASHES) + rb")"
    rb"(?: {1,30}\(core dumped\)| {6}|$)",
    re.MULTILINE,
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
        """True for a frame of the user's code, as far as its path tells."""
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
    """The last traceback with those that it was chained to, and all that follows; empty when there is none. One that
    tells of what went wrong in passing (a destructor, another thread) counts only when there is no other."""
    starts = [match.start() for match in _HEADER.finditer(text)]
    if not starts:
        return text if _SYNTAX.search(text) else b""
    end = len(text)
    while len(starts) > 1 and (passing := _AFTERWARDS.search(text, max(0, starts[-1] - 400), starts[-1])):
        end = passing.start()
        starts.pop()
    start = starts.pop()
    found = _raised(text, start, end)
    own_mistake = found is not None and mistake(found.group())
    while starts and _CHAINED.search(text, starts[-1], start):
        if own_mistake and _HANDLING.search(text, starts[-1], start):
            return text[start:end]  # what was being handled is not what it ended of
        start = starts.pop()
    return text[_without_frames(text, start) : end]


def _without_frames(text: bytes, start: int) -> int:
    """Find where the words begin of the exception that a traceback was chained to, which may have no traceback of its
    own."""
    if not _CHAINED.search(text, max(0, start - 100), start):
        return start
    return text.find(b"\n", max(0, start - 2 * MESSAGE_BYTES), start) + 1 if start > 2 * MESSAGE_BYTES else 0


def said(trace: bytes) -> bytes:
    """A traceback without the user's own frames: a line of their source may quote any words. A library's that stands
    there was carried out."""
    kept, inside = [], False
    for line in trace.split(b"\n"):
        frame = _FRAME.match(line)
        inside = _frame(frame).own if frame else inside and line.startswith(b"    ")
        if not inside:
            kept.append(line)
    return b"\n".join(kept)


def of_ranks(trace: bytes) -> tuple[str, bytes]:
    """Ranks, and the first one's own traceback, of an exception that tells what other ranks raised (torch's
    CheckpointException); empty for another exception."""
    told, head = _RANKS.search(trace), _OF_RANK.search(trace)
    if not told or not head:
        return "", b""
    after = _OF_RANK.search(trace, head.end())
    return told["ranks"].decode(), HEADER + trace[head.end() : after.start() if after else len(trace)]


def crash(text: bytes) -> int:
    """The signal that the last lines tell of in words: of a shell about its child, of faulthandler; 0 when of none."""
    found = _CRASH.findall(b"\n".join(last_lines(text, CRASH_LINES)))
    return CRASHES[found[-1]] if found else 0


def went_on(text: bytes) -> bool:
    """Tell whether these lines tell of work after what was said before them: that was handled."""
    lines = [line for line in text.split(b"\n") if not line.startswith(_NO_WORK)]
    said = [line for line in lines if _BAR not in line]
    return len(lines) - len(said) >= BARS or any(_HANDLED.search(line) or _PROGRESS.search(line) for line in said)


def handled(text: bytes, position: int) -> bool:
    """Tell whether what is said at a position was handled, in the words of its own line or by what came after it."""
    first, _, later = text[text.rfind(b"\n", 0, position) + 1 :].partition(b"\n")
    return bool(_HANDLED.search(first)) or went_on(later)


def message(trace: bytes) -> tuple[bytes, bytes]:
    """Message of the last traceback (the class and the words from there on), and what was said after that line; of a
    text without one the words of a C++ exception."""
    found = _raised(trace, _last_header(trace), len(trace)) or _WHAT.search(trace)
    if not found:
        return b"", b""
    return trace[found.start() : found.start() + MESSAGE_BYTES], trace[found.end() :]


def raised(trace: bytes) -> str:
    """`KeyError: 'labels'`: the line that ends the last traceback."""
    found = _raised(trace, _last_header(trace), len(trace))
    return found.group().decode(errors="replace") if found else "an exception"


def mistake(words: bytes) -> bool:
    """Tell whether a raised class is one for which no other process can be to blame."""
    return _MISTAKE.search(words.partition(b"\n")[0].partition(b":")[0]) is not None


def in_collective(trace: bytes) -> bool:
    """Tell whether the last traceback ends in torch's communication."""
    paths = [match["path"] for match in _FRAME.finditer(trace, max(0, _last_header(trace)))]
    return bool(paths and _COLLECTIVE.search(paths[-1]))


def _last_header(trace: bytes) -> int:
    return max((match.start() for match in _HEADER.finditer(trace)), default=-1)


def _raised(text: bytes, header: int, end: int) -> re.Match[bytes] | None:
    if header < 0:
        return _SYNTAX.search(text)
    return _RAISED.search(text, header + len(HEADER), end)


def place(trace: bytes) -> Frame | None:
    """The innermost frame of the user's own code in a traceback, else the innermost of all."""
    frames = [_frame(match) for match in _FRAME.finditer(trace)]
    if not frames:
        return None
    last = [_frame(match) for match in _FRAME.finditer(trace, max(0, _last_header(trace)))]
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
    """Tell whether a stack stands in a collective."""
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
