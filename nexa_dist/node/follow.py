"""The command `follow`: logs and events, framed, from byte offsets, for as long as there is somebody to read them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import Any, BinaryIO

from . import contact
from .base import POLL_S, boot_clock
from .control import status
from .record import Record

CHUNK_BYTES = 65536
BEAT_S = 1.0
ABANDONED_S = 60.0
"""A controller that used to write and was not heard for so long: its connection hangs, and it has another one."""
FINAL = ("completed", "failed", "stopped", "lost", "absent")


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
                self.seat = contact.take_seat(self.run_dir)
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
                self._close()

    def _close(self) -> None:
        self.open = False
        if self.seat is not None:
            os.close(self.seat)
            self.seat = None

    @property
    def abandoned(self) -> bool:
        return self.open and self.heard and boot_clock() - self.last > ABANDONED_S


def follow(run_dir: str, fd: int = 0, out: BinaryIO | None = None) -> None:
    """Frames on stdout: a JSON header line {"src", "off", "len"}, then `len` bytes of that file.

    `{"beat": t, "state"}` shows every second that the link lives; `{"end": status}` is the last. Reading goes on from
    the offsets that the reader has, so a dropped link loses and repeats nothing.
    """
    door, out, record = Door(fd, run_dir), out or sys.stdout.buffer, Record(run_dir)
    message = door.message()
    offsets, once, beat = dict(message.get("offsets", {})), bool(message.get("once")), 0.0
    while not door.abandoned:
        state = record.read().state()["state"] if once or boot_clock() - beat > BEAT_S else None
        moved = drain(run_dir, offsets, out)
        if state and not moved and (once or state in FINAL):
            out.write(json.dumps({"end": status(run_dir, record=record)}).encode() + b"\n")
            out.flush()
            return
        if state:
            beat = boot_clock()
            out.write(json.dumps({"beat": time.time(), "state": state}).encode() + b"\n")
        out.flush()
        door.wait(0 if moved else POLL_S)


def log_files(run_dir: str) -> list[str]:
    """Relative paths of every log with its time index, of agent.jsonl and agent.err, sorted."""
    found = []
    for name in os.listdir(run_dir) if os.path.isdir(run_dir) else []:
        if name.startswith("rank_"):
            inside = os.listdir(os.path.join(run_dir, name))
            found += [os.path.join(name, log) for log in inside if log.endswith((".log", ".log.times"))]
        elif name.endswith((".log", ".log.times", ".jsonl")) or name == "agent.err":
            found.append(name)
    return sorted(found)


def drain(run_dir: str, offsets: dict[str, int], out: BinaryIO) -> bool:
    """One chunk of every file that has more. Whether there was anything."""
    moved = False
    for name in log_files(run_dir):
        try:
            with open(os.path.join(run_dir, name), "rb") as file:
                file.seek(offsets.get(name, 0))
                data = file.read(CHUNK_BYTES)
        except OSError:
            continue
        if data:
            out.write(json.dumps({"src": name, "off": offsets.get(name, 0), "len": len(data)}).encode() + b"\n" + data)
            offsets[name] = offsets.get(name, 0) + len(data)
            moved = True
    return moved
