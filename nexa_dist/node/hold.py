"""The command `hold`: one attempt in the foreground, as the one task of a scheduler's step on this node.

Nothing outlives the step: the scheduler counts what the daemon of `start` would be, and ends it with the step. Whoever
began the step told every node's agent where its peers write, since no controller is there to stop the others.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from .attempt import Attempt
from .oslib import OF_STEP, event, fail, holder_of, read_json, write_json
from .protocol import VERSION, Event, Reason, Spec
from .start import begun, lock, make_ready


def hold(folder: str) -> int:
    """Run the attempt of FOLDER/<SLURM_NODEID>.json: {"run_dir", "spec", "secrets": names of variables}. 0 once its end
    is in agent.jsonl, whatever it was."""
    # The scheduler may signal at any moment; `Attempt.main` is the first that can say so.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    path = os.path.join(folder, "%s.json" % os.environ.get("SLURM_NODEID", "0"))
    told: dict[str, Any] = read_json(path) or fail("%s cannot be read" % path)
    run_dir, spec = told["run_dir"], told["spec"]
    secrets = {name: os.environ[name] for name in told["secrets"] if name in os.environ}
    spec["env"].update((name, os.environ[name]) for name in OF_STEP if name in os.environ)
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    with lock(run_dir):
        if begun(run_dir, spec["attempt"]):
            fail("attempt %d of this run was begun here before" % spec["attempt"])
        make_ready(run_dir, spec, go=True)
        _begin(run_dir, spec)
    Attempt(run_dir, spec, secrets).main()
    return 0


def _begin(run_dir: str, spec: Spec) -> None:
    """Write down who we are, and what a SIGTERM that nobody explains means: the scheduler's notice."""
    notice = {"reason": Reason.SCHEDULER, "grace_s": spec["notice_grace_s"], "release": True}
    write_json(os.path.join(run_dir, "stop.attempt_%d" % spec["attempt"]), notice)
    host = os.uname().nodename  # the folder is shared: who reads it may be on another machine
    write_json(os.path.join(run_dir, "agent.pid"), holder_of(os.getpid(), attempt=spec["attempt"], host=host))
    event(run_dir, Event.STARTED, pid=os.getpid(), attempt=spec["attempt"], node=spec["node"], version=VERSION)
