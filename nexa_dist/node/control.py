"""The commands `go`, `status`, `allow` and `stop`."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from .machine import container
from .machine.processes import kill_run, remove_tmp, run_processes
from .oslib import PAID, ROOM, alive, boot_clock, fail, newest_attempt, read_json, write_json
from .protocol import Reason
from .record import Record


def go(run_dir: str) -> dict[str, Any]:
    write_json(os.path.join(run_dir, "go.attempt_%d" % newest_attempt(run_dir)), {"at": time.time()})
    return {"ok": True}


def status(run_dir: str, *, released: bool = False, record: Record | None = None) -> dict[str, Any]:
    """The newest attempt. With `released` the warm interpreter counts among the processes, else it is named apart."""
    record = record or Record(run_dir)
    record.read()
    return {
        **record.state(),
        "attempt": record.attempt,
        "version": record.version,
        "processes": run_processes(run_dir, warm=released),
        "ranks": record.exits,
        "progress": record.progress,
        "notice": record.notice,
        "warm": _warm_pid(run_dir),
        "last_event_unix": record.last_unix,
    }


def allow(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    """The run's money lasts for {"seconds"} from here on. Its agent ends it then, also when nobody is there to say so;
    the next attempt begins without such an end."""
    if os.path.isdir(run_dir):
        write_json(os.path.join(run_dir, PAID), boot_clock() + float(message["seconds"]))
    return {"ok": True}


def _warm_pid(run_dir: str) -> int | None:
    if not os.path.exists(os.path.join(run_dir, "warm.json")):
        return None
    from .warm import client as warm_client

    return warm_client.pid(run_dir)


def stop(run_dir: str, message: dict[str, Any]) -> dict[str, Any]:
    """Ends the newest attempt and proves it: the answer's `left` are the pids that are still there.

    `message`: {"grace_s": for a checkpoint, "reason", "release": the warm interpreter ends too (default true),
    "attempt": the one that is meant, if it may not have reached this node yet}.
    """
    from .start import end_agent, lock

    release = bool(message.get("release", True))
    grace_s = float(message.get("grace_s", 15))
    order = {"grace_s": grace_s, "reason": message.get("reason", Reason.STOPPED), "release": release}
    if not os.path.isdir(run_dir):
        return {**status(run_dir), "ended": 0, "left": []}
    with lock(run_dir):  # a `start` that is under way is through, so that we see what it started
        attempt = max(newest_attempt(run_dir), int(message.get("attempt", 0)))
        if attempt:
            _leave_order(run_dir, attempt, order)
    before = len(run_processes(run_dir, warm=release))
    holder = read_json(os.path.join(run_dir, "agent.pid"))
    if alive(holder):
        end_agent(holder, grace_s + 15)
    if release:
        from .watch.watcher import release_warm

        release_warm(run_dir)
    _, left = kill_run(run_dir, warm=release)
    remove_tmp(run_dir)
    if stays := container.remove(run_dir):
        fail("a container of the run cannot be removed: %s" % stays)
    return {**status(run_dir, released=release), "ended": before, "left": left}


def _leave_order(run_dir: str, attempt: int, order: dict[str, Any]) -> None:
    """Leave the order for the agent, which reads it when it gets our signal. A full disk must not keep a run from being
    stopped: the agent then gives the grace of its spec."""
    path = os.path.join(run_dir, "stop.attempt_%d" % attempt)
    try:
        write_json(path, order)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(run_dir, ROOM))
            write_json(path, order)
