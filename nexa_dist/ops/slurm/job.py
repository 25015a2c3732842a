"""The two ends of an attempt, inside the job: what the batch script calls before and after the step of the ranks.

    python -m nexa_dist.ops.slurm.job begin RUN        0: every node's command is written, the step may begin;
                                                       66: the run is over
    python -m nexa_dist.ops.slurm.job end RUN NOTICED  75: another attempt on these nodes; else the job's exit code

No controller is there between the two: the agents end each other's ranks (node/hold.py), and Slurm ends the agents.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nexa_dist.errors import EXIT_OK, NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.slurm.attempt import Leader
from nexa_dist.plan.slurm.script import OVER
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.secrets import redact_text


def main(words: Sequence[str]) -> int:
    """One call; what is said goes to the job's output."""
    verb, path = words[0], Path(words[1])
    root = path.parents[1]

    def say(text: str) -> None:
        print(redact_text(text), file=sys.stderr, flush=True)

    leader = Leader(Context(Workspace(root, str(root)), Runner(), say), RunFolder(path), os.environ)
    try:
        if verb == "begin":
            return EXIT_OK if leader.begin() else OVER
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, which the ranks had too: the end is written first
        return leader.end(noticed=words[2] == "1")
    except NexaError as error:
        say(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
