"""The command `follow`: logs and events, framed, from byte offsets, for as long as there is somebody to read them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import time
from typing import Any, BinaryIO

from .control import status
from .oslib import POLL_S, boot_clock, read_at, say
from .protocol import FINAL
from .record import Record
from .watch import controller_lease

CHUNK_BYTES = 65536
BEAT_S = 1.0
ABANDONED_S = 60.0
"""A controller that used to write and was not heard for so long: its connection hangs, and it has another one."""
EVENTS = "agent.jsonl"
MOST_LOGS = 4096
RANK_FOLDER = re.compile(r"rank_(?:0|[1-9][0-9]{0,6})")
LOG = re.compile(r"(?:rank_[0-9]+/)?[^/.\x00-\x1f\x7f-\x9f\ud800-\udfff][^/\x00-\x1f\x7f-\x9f\ud800-\udfff]*")


class Door:
    """Our standard input: one line with what is asked for, then signs of life, each a line of its own."""

    def __init__(self, fd: int, run_dir: str) -> None:
        self.fd, self.run_dir, self.open, self.heard = fd, run_dir, True, False
        self.last = boot_clock()
        self.seat: int | None = None

    def message(self) -> dict[str, Any]:
        text = b""
        while b"\n" not in text:
            data = os.read(self.fd, 4096)
            if not data:
                self.open = False
                break
            text += data
        found = dict(json.loads(text.split(b"\n")[0] or b"{}"))
        if self.open and not found.get("once") and found.get("contact", True):
            with contextlib.suppress(OSError):
                self.seat = controller_lease.take_seat(self.run_dir)
        return found

    def wait(self, timeout_s: float) -> None:
        """Waits at most so long, and takes in what comes."""
        if not self.open:
            time.sleep(timeout_s)
        elif select.select([self.fd], [], [], timeout_s)[0]:
            if os.read(self.fd, 4096):
                self.heard, self.last = True, boot_clock()
                if self.seat is not None:
                    os.utime(self.seat)
            else:
                self.open = False
                if self.seat is not None:
                    os.close(self.seat)
                    self.seat = None

    @property
    def abandoned(self) -> bool:
        return self.open and self.heard and boot_clock() - self.last > ABANDONED_S


def follow(run_dir: str, fd: int = 0, out: BinaryIO | None = None) -> None:
    """Frames on stdout: a JSON header line {"src", "off", "len"}, then `len` bytes of that file.

    `{"beat": t, "state"}` shows every second that the link lives; `{"end": status, "log_bytes"}` comes as soon as the
    attempt has ended and its events are told, `{"through": true}` when the logs are. Reading goes on from the offsets
    that the reader has, so a dropped link loses and repeats nothing.
    """
    door, out, record = Door(fd, run_dir), out or sys.stdout.buffer, Record(run_dir)
    message = door.message()
    offsets, once, beat, told = dict(message.get("offsets", {})), bool(message.get("once")), 0.0, False
    looked = -1
    while not door.abandoned:
        events = offsets.get(EVENTS, 0)  # each may be the attempt's last
        look = once or events != looked or boot_clock() - beat > BEAT_S
        state, looked = record.read().state()["state"] if look else None, events
        if state in FINAL and not told:
            while drain_one(run_dir, EVENTS, offsets, out):
                continue
            told = end(run_dir, record, out)
        moved = sum(drain_one(run_dir, name, offsets, out) for name in log_files(run_dir))
        if not moved and (told or (once and state)):
            told = told or end(run_dir, record, out)
            say(out, {"through": True})
            out.flush()
            return
        if state:
            beat = boot_clock()
            say(out, {"beat": time.time(), "state": state})
        out.flush()
        door.wait(0 if moved else POLL_S)


def end(run_dir: str, record: Record, out: BinaryIO) -> bool:
    """Send the attempt's state and the bytes of all its logs; always True, the last message of a stream."""
    sizes = 0
    for name in log_files(run_dir):
        with contextlib.suppress(OSError):
            sizes += os.stat(os.path.join(run_dir, name)).st_size
    say(out, {"end": status(run_dir, record=record), "log_bytes": sizes})
    return True


def log_files(run_dir: str) -> list[str]:
    """Relative paths of every log with its time index, of agent.jsonl and agent.err, sorted; agent.jsonl is the first.

    No more than the controller takes, and none whose name it does not: ranks may make what files they like.
    """
    found = []
    for name in os.listdir(run_dir) if os.path.isdir(run_dir) else []:
        if RANK_FOLDER.fullmatch(name):
            with contextlib.suppress(OSError):
                inside = os.listdir(os.path.join(run_dir, name))
                found += [os.path.join(name, log) for log in inside if log.endswith((".log", ".log.times"))]
        elif name.endswith((".log", ".log.times", ".jsonl")) or name == "agent.err":
            found.append(name)
    fit = (name for name in found if LOG.fullmatch(name) and len(name) <= 255)
    return sorted(fit, key=lambda name: (name != EVENTS, name))[:MOST_LOGS]


def drain_one(run_dir: str, name: str, offsets: dict[str, int], out: BinaryIO) -> bool:
    """Send one chunk of a file; True when there was more of it."""
    data, at = read_at(os.path.join(run_dir, name), offsets.get(name, 0), CHUNK_BYTES), offsets.get(name, 0)
    if data:
        say(out, {"src": name, "off": at, "len": len(data)})
        out.write(data)
        offsets[name] = at + len(data)
    return bool(data)
