"""Outputs of a run on their way to the bucket, which outlives the node.

    RUN_ID/outputs/<node>/<sha256>          a file, under its own hash
    RUN_ID/outputs/<node>/g<attempt>.json   which files there are; each of them was there before

The daemon does it when the ranks of an attempt have ended, the command `keep` when the controller asks. What was kept
stands in RUN_DIR/kept.json, so that no file goes twice. Nothing that goes wrong here is the run's fault: it is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from . import outputs
from .oslib import boot_clock, event, inherited, read_json, write_json
from .protocol import Event, Reason
from .watch.controller_lease import Contact

STAGE, MANIFEST = "kept.stage", "manifest.json"
MOST_BYTES = 10 << 30
BATCH_BYTES = 64 << 20
"""Files of one call of the aws command; a larger one has a call of its own. What time cuts off is never more."""
LONG_S, SHORT_S = 300.0, 60.0
"""Seconds at the end of a run; the short ones where its deadline, its money or its controller has ended it."""
STOP_S = 8.0
"""Seconds beyond the grace of a stop: whoever asked for it ends the agent 15 s after that (control.stop)."""
LEAVE_S = 5.0
"""Seconds before the cloud takes the machine."""
GOES_ON = (Reason.FAILURE, Reason.HANG, Reason.NOTICE, Reason.SUPERSEDED)
"""Reasons to end an attempt after which another one comes to this node; its files stay here meanwhile."""
SAID_BYTES = 500


def seconds(
    run_dir: str, state: str, reason: str, asked_at: float | None, grace_s: float, leaves_s: float | None
) -> float:
    """Seconds that the end of an attempt has for its outputs; 0 where they stay here. `asked_at` is the boot_clock() of
    a stop with `grace_s`, `leaves_s` the time until the machine goes."""
    if leaves_s is not None:
        return leaves_s - LEAVE_S
    if reason in GOES_ON or (state == "failed" and Contact(run_dir).followed()):
        return 0.0  # the controller decides whether another attempt comes, and asks for them when none does
    if asked_at is not None and os.path.exists(os.path.join(run_dir, "stop.attempt_%d" % _attempt(run_dir))):
        return asked_at + grace_s + STOP_S - boot_clock()
    return SHORT_S if reason else LONG_S


def _attempt(run_dir: str) -> int:
    return int(read_json(os.path.join(run_dir, "spec.json"), {}).get("attempt", 0))


def main(run_dir: str, limit_s: float) -> int:
    """Keep as a child of the daemon: the answer is an event."""
    event(run_dir, Event.KEPT, **keep(run_dir, {"seconds": limit_s}))
    return 0


def keep(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    """`message` is {"seconds"}. Answers how many files are in the bucket, {"files", "bytes"}, how many are not,
    {"later", "later_bytes"}, and `why`."""
    until = time.monotonic() + float(message["seconds"])
    spec = read_json(os.path.join(run_dir, "spec.json"), {})
    asked, env = spec.get("outputs"), spec.get("env", {})
    if not asked or not env.get("NEXA_SYNC"):
        return _told([], [], "")
    with _locked(run_dir) as ours:
        if not ours:
            return _told([], [], "another command brings them there")
        found, cut = outputs.files_of(run_dir, outputs.matcher(asked["named"]), until)
        rows = sorted((row for row in found if row["kind"] != "other"), key=lambda row: row["bytes"])
        kept = Kept(run_dir, spec)
        why = kept.bring(rows, until) or ("there is more than can be looked through" if cut else "")
        return _told(rows, [row for row in rows if not outputs.same(row, kept.there)], why)


def _told(rows: list[dict[str, Any]], later: list[dict[str, Any]], why: str) -> dict[str, Any]:
    left = sum(row["bytes"] for row in later)
    return {"files": len(rows) - len(later), "bytes": sum(row["bytes"] for row in rows) - left,
            "later": len(later), "later_bytes": left, "why": why}  # fmt: skip


@contextlib.contextmanager
def _locked(run_dir: str) -> Iterator[bool]:
    with open(os.path.join(run_dir, outputs.KEPT + ".lock"), "wb") as door:
        try:
            fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class Kept:
    """What of this node is in the bucket, by name; each batch that arrives is noted before the next one goes."""

    def __init__(self, run_dir: str, spec: dict[str, Any]) -> None:
        self.run_dir, self.spec, self.there = run_dir, spec, outputs.noted(run_dir)
        self.stage = os.path.join(run_dir, STAGE)
        self.missed = ""
        """Why the last of those that cannot be read did not come; they keep no other one here."""

    def bring(self, rows: list[dict[str, Any]], until: float) -> str:
        """Bring those that are not there yet, the small ones first. Answers why some did not come."""
        batch: list[dict[str, Any]] = []
        room, size = MOST_BYTES, 0
        for row in rows:
            room -= row["bytes"]
            if outputs.same(row, self.there) or room < 0:
                continue
            if batch and size + row["bytes"] > BATCH_BYTES:
                why = self._send(batch, until)
                if why:
                    return why
                batch, size = [], 0
            batch.append(row)
            size += row["bytes"]
        why = self._send(batch, until) if batch else ""
        return why or self.missed or ("they are more than %d GB" % (MOST_BYTES >> 30) if room < 0 else "")

    def _send(self, batch: list[dict[str, Any]], until: float) -> str:
        try:
            shutil.rmtree(self.stage, ignore_errors=True)
            os.mkdir(self.stage, 0o700)
            made: dict[str, dict[str, Any]] = {}
            for row in batch:
                if time.monotonic() >= until:
                    return "there was no time left for them"
                try:
                    made[row["name"]] = {**row, "sha256": self._put(row)}
                except OSError as error:
                    self.missed = "%s: %s" % (row["name"], error.strerror or error)
            if not made:
                return ""
            there = {**self.there, **made}
            node, attempt = self.spec["node"], self.spec["attempt"]
            named = {"node": node, "attempt": attempt, "files": sorted(there.values(), key=lambda row: row["name"])}
            write_json(os.path.join(self.stage, MANIFEST), named)
            why = self._sync(["keep", self.spec["run_id"], node, self.stage], until)
            if not why:
                # A program of the user's that lives on may have written to one meanwhile: that one is another by now.
                self.there = {name: row for name, row in there.items() if name not in made or self._unchanged(row)}
                write_json(os.path.join(self.run_dir, outputs.KEPT), self.there)
            return why
        except OSError as error:
            return "%s" % error
        finally:
            shutil.rmtree(self.stage, ignore_errors=True)

    def _put(self, row: dict[str, Any]) -> str:
        path, made = os.path.join(self.run_dir, row["path"]), hashlib.sha256()
        with open(path, "rb", opener=outputs.plain) as file:
            for data in iter(lambda: file.read(1 << 20), b""):
                made.update(data)
        with contextlib.suppress(FileExistsError):  # an equal file
            os.symlink(path, os.path.join(self.stage, made.hexdigest()))
        return made.hexdigest()

    def _unchanged(self, row: dict[str, Any]) -> bool:
        try:
            found = os.lstat(os.path.join(self.run_dir, row["path"]))
        except OSError:  # gone meanwhile
            return False
        return (found.st_size, max(0, found.st_mtime_ns)) == (row["bytes"], row["mtime_ns"])

    def _sync(self, words: list[str], until: float) -> str:
        """Call run_sync.sh. Answers why it did not do it: its last words, and before them those of the aws command."""
        env = {**inherited(self.spec.get("path", [])), **self.spec["env"]}
        env |= {"NEXA_PYTHON": self.spec["outputs"]["python"], "NEXA_ATTEMPT": str(self.spec["attempt"])}
        child = subprocess.Popen(
            ["bash", env["NEXA_SYNC"], *words], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            said = child.communicate(timeout=max(0.0, until - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return "there was no time left for them"
        if not child.returncode:
            return ""
        lines = (said.strip() or "exit code %d" % child.returncode).splitlines()[-2:]
        return ": ".join(line.replace("error: ", "") for line in reversed(lines))[:SAID_BYTES]
