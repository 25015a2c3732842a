"""Shapes of all that may come from a node: each frame, event and answer has a shape here, with bounds. The rest is
refused.

A node's words are data of a stranger: a rank can write agent.jsonl, and who has a node has its agent too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.node.protocol import AT_WORK, FINAL, VERSION, Event
from nexa_dist.shape import (
    BEYOND,
    MOST,
    Check,
    NotJson,
    Strange,
    anything,
    flag,
    lenient,
    maybe,
    number,
    one_of,
    parsed,
    record,
    rows,
    shown,
    table,
    text,
    whole,
)  # fmt: skip

FRAME_BYTES = 1 << 20
"""Bytes of the largest frame, and of its message."""
EVENT_BYTES = 64 * 1024
ANSWER_BYTES = 2 << 20
SAID_BYTES = 8 << 20
"""Bytes that a command on a node may say; one that says more is ended."""
LATEST_UNIX = 4.2e9
MOST_RANKS = 1 << 20
MOST_LOGS = 10_000
"""Files of one run folder on one node."""
STATES = (*AT_WORK, *FINAL)


class Faulty(NexaError):
    """A node says what no agent of ours says: the node is at fault, and nothing of it is believed."""

    def __init__(self, node: str, what: str, why: object) -> None:
        super().__init__(
            f"{node}: {what} makes no sense: {why}",
            hint=f"nexa diag looks at {node}; nexa provision makes a node anew that is not what it should be",
        )


class OtherVersion(Faulty):
    """An agent of another version of nexa: what it says may mean something else."""

    def __init__(self, node: str, version: object) -> None:
        NexaError.__init__(
            self,
            f"{node}: the agent of this run speaks version {version}, and this nexa version {VERSION}",
            hint="follow it with the nexa that began it, or end it with nexa stop and go on with nexa run --resume",
        )


class Mute(Faulty):
    """Mute agent: its words are no JSON at all; a shell may have spoken instead of it, or before it."""


UNIX, SECONDS = number(0, LATEST_UNIX), number(0, 1e9)
RANK, PID, STEP = whole(0, MOST_RANKS), whole(1, 1 << 22), whole()
PIDS = rows(PID, 100_000)
WORDS, NAME = text(2000), text(200)
RANK_KEY = text(7, r"0|[1-9][0-9]{0,6}")
ADDRESS = text(60, r"[A-Za-z0-9.:%_-]*")
INTERFACE = text(15, r"[A-Za-z0-9_.:@-]*")
_PLAIN = r"/\x00-\x1f\x7f-\x9f\ud800-\udfff"
HOME = text(1000, rf"/[^{_PLAIN[1:]}]*")
SOURCE = text(255, rf"(?:rank_(?:0|[1-9][0-9]{{0,6}})/)?[^.{_PLAIN}][^{_PLAIN}]*")
"""The name of a log: in the run folder or in that of a rank."""
STEPS = table(RANK_KEY, maybe(STEP), 4096)
FIGURE = lenient(number())
LOSS = lenient(lambda value: value if isinstance(value, float) and value != value else number()(value))
"""A training that diverged tells `nan`."""

EXIT = {"rank": RANK, "code": whole(0, 1 << 31), "signal": whole(0, 64)}
EXIT_MAY = {"step": maybe(STEP), "oom": flag, "at": UNIX}
PROGRESS = {
    "of": FIGURE, "loss": LOSS, "held_out": FIGURE, "learning_rate": FIGURE, "tokens_per_s": FIGURE,
    "saved": lenient(STEP), "durable": lenient(STEP), "own_s": lenient(table(RANK_KEY, number(0, 1e6), 4096)),
}  # fmt: skip
SEQUENCE = whole(-1)
GROUPS = rows(record({
    "name": NAME, "desc": NAME, "op": NAME, "state": NAME, "sizes": NAME,
    **dict.fromkeys(("enqueued", "started", "completed", "seq"), SEQUENCE),
}), 64)  # fmt: skip
"""How far a rank is in the collectives of each of its process groups."""
NOTICE_MAY: dict[str, Check] = {"action": text(40), "at_unix": UNIX, "seen_unix": UNIX}

_EVENTS: dict[str, tuple[dict[str, Check], dict[str, Check]]] = {
    Event.STARTED: ({"attempt": whole(1)}, {"pid": PID, "node": NAME, "version": whole()}),
    Event.HEARTBEAT: ({}, {}),
    Event.SETUP: ({}, {"pid": PID}),
    Event.PREPARE: ({}, {"pid": PID}),
    Event.PREPARED: ({}, {"go": flag}),
    Event.TORCHRUN: ({}, {"pid": PID}),
    Event.RANK_START: ({"rank": RANK, "pid": PID}, {"warm": flag}),
    Event.RANK_EXIT: (EXIT, EXIT_MAY),
    Event.PROGRESS: ({"steps": STEPS}, PROGRESS),
    Event.HANG: (
        {"ranks": rows(RANK, 4096), "stalled_s": SECONDS},
        {"steps": STEPS, "states": table(RANK_KEY, text(10), 4096)},
    ),
    Event.KEPT: ({"files": whole(), "bytes": whole()}, {"later": whole(), "later_bytes": whole(), "why": WORDS}),
    Event.FLIGHT: ({"rank": RANK, "groups": GROUPS}, {}),
    Event.STOPPING: ({"reason": WORDS}, {"grace_s": SECONDS}),
    Event.NOTICE: ({}, NOTICE_MAY),
    Event.DUE: ({}, {"why": NAME, "acts_unix": UNIX, "seen_unix": UNIX}),
    Event.TOLD: ({"key": NAME, "sent": flag}, {"why": WORDS}),
    Event.IMDS: ({}, {"state": NAME, "why": WORDS}),
    Event.WARM: ({}, {"pid": maybe(PID), "why": WORDS, "ready_s": maybe(SECONDS)}),
    Event.ENDED: (
        {"state": one_of(*FINAL)},
        {"code": whole(0, 1 << 31), "reason": WORDS, "left": PIDS, "attempt": whole()},
    ),
}
_OF_EVENTS = {name: record({"at": UNIX, **needed}, {"event": NAME, **may}) for name, (needed, may) in _EVENTS.items()}

STATUS = record(
    {"state": one_of(*STATES)},
    {
        "code": whole(0, 1 << 31),
        "reason": WORDS,
        "left": PIDS,
        "attempt": whole(),
        "version": whole(),
        "processes": PIDS,
        "ranks": rows(record(EXIT, EXIT_MAY), 4096),
        "progress": maybe(record({"steps": STEPS}, {**PROGRESS, "at": UNIX})),
        "notice": maybe(record({"at": UNIX}, NOTICE_MAY)),
        "warm": maybe(PID),
        "last_event_unix": maybe(UNIX),
    },
)
PATHS = rows(text(4096), 10_000)
ROUTE = record({}, {"error": WORDS, "address": ADDRESS, "interface": INTERFACE, "peer": ADDRESS, "mtu": maybe(whole())})
RELEASE = maybe(text(100, r"[A-Za-z0-9.+_ -]*"))
_LISTENS: dict[str, Check] = {"port": whole(0, 65535), "port_error": WORDS, "test_port": whole(0, 65535)}
PROBE = record(
    {"free_bytes": whole(), "unix": UNIX, "have": PATHS, "cpus": maybe(whole(0, 1 << 20)), "gpus": rows(NAME, 1024)},
    {
        "torch": RELEASE, "python": RELEASE, "error": WORDS, "version": whole(),
        "peers": table(NAME, ROUTE, 4096),
        **_LISTENS,
    },
)  # fmt: skip
COUNT, KINDS = maybe(whole(-MOST)), table(text(20), maybe(text(100)), 100)
GPU = record(
    {"index": COUNT, "name": NAME, "driver": NAME, "celsius": COUNT, "ecc_uncorrected": COUNT, "clock_reasons": COUNT},
    {"memory_mib": COUNT, "bus": NAME},
)
DIAG = record(
    {
        "environment": record({}, {"error": WORDS, **dict.fromkeys(
            ("python", "torch", "cuda", "nccl", "transformers", "numpy"), RELEASE)}),
        "memory": record({"total": whole(), "available": whole()}),
        "disk": record({"free_bytes": maybe(whole())}, {"mib": whole(), "seconds": SECONDS, "error": WORDS}),
        "peers": table(NAME, ROUTE, 4096),
        "shm_bytes": maybe(whole()),
        "limits": record({"nofile": maybe(whole()), "memlock": maybe(whole())}),
        "cpu_throttled": whole(-MOST),
        "module": RELEASE,
        "pci_gpus": whole(0, 1024),
        "smi_code": whole(-1024, 1024),
        "smi_error": WORDS,
        "gpus": rows(GPU, 1024),
        "nvlink": table(text(6), record({"active": whole(), "inactive": whole()}), 1024),
        "nvswitches": whole(0, 1024),
        "fabric_manager": maybe(record({"version": RELEASE, "state": NAME})),
        "xid": maybe(rows(text(400), 100)),
        "efa": record({"devices": whole(0, 1024), "domains": maybe(whole(0, 4096))}),
        "received_unix": UNIX,
        "answered_unix": UNIX,
    },
    {
        "agent": NAME, "hostname": NAME, "kernel": NAME, "boot_unix": maybe(UNIX), "cpus": whole(), "load": number(),
        "seconds": SECONDS, **_LISTENS,
    },
)  # fmt: skip
FILES = rows(lenient(NAME), 100)
"""Names of files of the user's, which may be no text; those that are shown."""
MANY_FILES = 200_000
SHA256 = text(64, r"[0-9a-f]{64}")
INSIDE = text(1024, rf"(?!\.\.?/)(?!.*/\.\.?(?:/|\Z))(?!\.\.?\Z)[^{_PLAIN}]+(?:/[^{_PLAIN}]+)*")
"""A file's name below a folder, which it stays in here too."""
_WROTE = record(
    {
        "name": INSIDE,
        "path": INSIDE,
        "bytes": whole(),
        "mtime_ns": whole(0, BEYOND),
        "kind": one_of("outputs", "tracking", "other"),
    },
    {"kept": flag},
)
KEPT = record({"files": rows(
    record({"name": INSIDE, "path": INSIDE, "bytes": whole(), "mtime_ns": whole(0, BEYOND), "sha256": SHA256,
            "kind": one_of("outputs", "tracking")}), MANY_FILES)})  # fmt: skip
"""A manifest of outputs in the bucket, which a node wrote."""
_FILES = whole(0, MANY_FILES)
SHARDS = record({"digest": SHA256, "attempt": whole(), "of": _FILES, "has": rows(_FILES, MANY_FILES), "bytes": whole()})
"""Which of all nodes' files of a sharded checkpoint one folder has."""
_KEPT = record(
    {"step": whole(0, 10**8 - 1), "path": text(4096), "sha256": SHA256, "bytes": whole(), "durable": flag},
    {"shards": SHARDS},
)
_LEFT = {"there": flag, "files": rows(_WROTE, MANY_FILES), "more": flag, "cut": flag, "checkpoints": rows(_KEPT, 1000)}
_ANSWERS: dict[str, Check] = {
    "probe": PROBE,
    "diag": DIAG,
    "forget": record({}),
    "unpack": record({}),
    "whole": record({"whole": flag}),
    "lacks": record({"lacks": rows(whole(0, MANY_FILES), MANY_FILES)}),
    "start": record({"pid": PID, "already": flag}, dict.fromkeys(("kept", "aside"), FILES)),
    "go": record({}),
    "allow": record({}),
    "status": STATUS,
    "stop": record({"state": one_of(*STATES), "ended": whole(), "left": PIDS}),
    "keep": record({"files": whole(), "bytes": whole(), "later": whole(), "later_bytes": whole(), "why": WORDS}),
    "tell": record({"told": rows(record({"sent": flag, "why": WORDS}), 100)}),
    "wrote": record({"runs": rows(record(_LEFT), 10_000)}),
}
_ERROR = record({"error": text(4096)})
STAY = record({"path": text(), "files": whole(), "bytes": whole(), "why": WORDS})
CLAIMS: dict[str, Check] = {
    "look": record(
        {
            "home": HOME,
            "user": NAME,
            "python": text(),
            "version": rows(whole(0, 1000), 3, 3),
            "missing": PATHS,
            "before": table(text(), PATHS, 1000),
            "lacks": rows(NAME, 100),
            "faults": rows(WORDS, 100),
            "account": NAME,
            "has_wheels": flag,
        }
    ),
    "tidy": record({"changed": flag}),
    "claim": record({"changed": flag}),
    "release": record({"removed": rows(text(), 100_000), "stays": rows(STAY, 1000), "processes": PIDS}),
}
"""Answers of remote/footprint.py."""
MATRIX = rows(rows(maybe(number(0, 1e9)), 4096), 4096)
GROUP = record(
    {},
    {
        "stage": NAME,
        "error": WORDS,
        "result": record(
            {
                "backend": NAME,
                "ranks": whole(),
                "latency_us": number(0, 1e12),
                "busbw_gb_s": number(0, 1e9),
                "matrix": MATRIX,
                "at_most": MATRIX,
                "rounds_left": whole(-MOST),
            },
            {"bytes": whole(), "transport": NAME, "seconds": SECONDS},
        ),
    },
)
"""A line of remote/group_test.py."""
# The last part is used on other nodes too.
CHECKPOINT = text(4096, r"/(?:[^\x00-\x1f\x7f]*/)?step_[0-9]{1,16}")
CHECKPOINTS = record(
    {
        "whole": rows(record({"path": CHECKPOINT, "step": STEP}, {"shards": SHARDS}), 10_000),
        "skipped": rows(record({"path": text(4096), "why": WORDS}, {"step": maybe(STEP)}), 10_000),
    }
)
IN_BUCKET = rows(record({"step": STEP}), 100_000)
SAVED = record({"step": STEP}, {"uri": text(4096), "path": text(4096), "sha256": SHA256})
FIGURES = anything(4, 1000)
RESULT = record(
    {},
    dict.fromkeys(("model", "wandb_run_id", "parallel"), maybe(text(500)))
    | dict.fromkeys(("dataset", "checkpoint", "eval_report"), maybe(table(NAME, FIGURES, 1000)))
    | {"sharding": maybe(table(NAME, anything(1, 10_000), 100))},
)
"""Result that rank 0 leaves of a run. A user's own script may write it."""


def failed_or(check: Check) -> Check:
    """Accepts also {"error": …}, of a program that says so without an exit code."""
    return lambda value: (_ERROR if isinstance(value, dict) and "error" in value else check)(value)


def answer(node: str, verb: str, out: bytes, failed: bool) -> dict[str, Any]:
    """Answer of the agent to `verb`. Raises NexaError in its own words where it could not do it (`failed`), Faulty
    OtherVersion, Faulty when it says what no agent says."""
    found = dict(said(node, f"its answer to {verb}", out, _ERROR if failed else _ANSWERS[verb]))
    if found.get("version", VERSION) != VERSION:
        raise OtherVersion(node, found["version"])
    return found


def said(node: str, what: str, out: bytes, check: Check, most_bytes: int = ANSWER_BYTES) -> Any:
    """The JSON that a program on a node printed. Raises Faulty."""
    try:
        return parsed(out, check, most_bytes)
    except NotJson as error:
        raise Mute(node, what, error) from None
    except Strange as error:
        raise Faulty(node, what, error) from None


def event(line: bytes) -> dict[str, Any]:
    """A line of agent.jsonl. Raises Strange."""
    cut = line[max(line.rfind(b'{"event": '), 0) :]  # behind one that a full disk cut off
    return dict(parsed(cut, _event, EVENT_BYTES))


def events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Events in lines of agent.jsonl. What is none is passed over: a node wrote it."""
    for line in lines:
        with contextlib.suppress(Strange):
            yield event(line)


def _event(value: Any) -> dict[str, Any]:
    name = value.get("event") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in _OF_EVENTS:
        raise Strange(f"{shown(name)} is no event")
    return dict(_OF_EVENTS[name](value))


_DATA = record({"src": SOURCE, "off": whole(), "len": whole(0, FRAME_BYTES)})
_BEAT = record({"beat": number(), "state": one_of(*STATES)})
_END = record({"end": STATUS}, {"log_bytes": whole()})
_THROUGH = record({"through": flag})


_SENT = {
    "len": record({"at": whole(), "off": whole(), "len": whole(1, FRAME_BYTES)}),
    "sha256": record({"at": whole(), "bytes": whole(), "sha256": SHA256}),
    "same": record({"at": whole(), "same": flag}),
    "error": record({"at": whole(), "error": WORDS}),
    "through": _THROUGH,
}


def sent(line: bytes) -> dict[str, Any]:
    """The header of a frame of `send`. Raises Strange."""
    return dict(parsed(line, lambda value: _of_kind(value, _SENT), FRAME_BYTES))


def frame(line: bytes) -> dict[str, Any]:
    """The header of a frame: one with "len" has as many bytes behind it. Raises Strange."""
    return dict(parsed(line, _frame, FRAME_BYTES))


def _frame(value: Any) -> dict[str, Any]:
    return _of_kind(value, {"len": _DATA, "beat": _BEAT, "end": _END, "through": _THROUGH})


def _of_kind(value: Any, kinds: dict[str, Check]) -> dict[str, Any]:
    kind = next((kind for name, kind in kinds.items() if isinstance(value, dict) and name in value), None)
    if kind is None:
        raise Strange(f"{shown(value)} is no frame")
    return dict(kind(value))
