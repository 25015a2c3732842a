"""The node agent: starts one attempt of a run on this node, owns its processes, keeps its logs.

Sent over SSH as one file. The daemon lives in a session of its own, so training survives a dropped connection; every
other command is short and answers with JSON. Each imports only what it needs.

    agent.pyz probe            < {"python", "peers", "port", …}      what this node can do
    agent.pyz diag             < {"python", "peers", "deep", …}      whether its parts are as they should be
    agent.pyz forget RUN_DIR                                         the launch was refused: what probe began ends
    agent.pyz unpack DIR [HASH] < tar.gz                             make DIR from an archive, whole or not at all
    agent.pyz unpack DIR HASH part < marks, tar.gz                   the same, with what other code here has already
    agent.pyz lacks DIR        < {"files"}                           which files no other code here has
    agent.pyz whole DIR                                              whether DIR holds what its name, a hash, says
    agent.pyz start RUN_DIR    < {"spec", "secrets", "go", "notify"} start the attempt (again: the same one)
    agent.pyz hold FOLDER                                            the attempt of FOLDER/<node's number>.json, as one
                                                                     step of a scheduler's job
    agent.pyz go RUN_DIR                                             every node is prepared: start the ranks
    agent.pyz status RUN_DIR                                         state of the newest attempt
    agent.pyz allow RUN_DIR    < {"seconds"}                         how long the run's money lasts
    agent.pyz follow RUN_DIR   < {"offsets": {...}, "once": bool}    logs and events, framed, from byte offsets;
                                                                     then lines as signs of life
    agent.pyz stop RUN_DIR     < {"grace_s", "reason", "release"}    SIGTERM, grace for a checkpoint, SIGKILL
    agent.pyz tell -           < {"targets", "message"}              a test to each webhook, and what became of it
    agent.pyz wrote -          < {"runs": [...]}                     what runs have left here: files, checkpoints
    agent.pyz send DIR         < {"files": [...]}                    these files, framed, from byte offsets
    agent.pyz keep RUN_DIR     < {"seconds"}                         its outputs to the bucket (by the daemon: SECONDS)
    agent.pyz setup RUN_DIR    (by the daemon)                       packages, layer and lines before the ranks
    agent.pyz flight RUN_DIR ATTEMPT (by the daemon)                 what the ranks dumped of their collectives
    agent.pyz rank -- ARGV     (started by torchrun)                 one rank: its log, its exit code, its end
    agent.pyz inside -- ARGV   (started by a container engine)       the launcher in a container, which ends with us
    agent.pyz warm RUN_DIR KEY MODULE…  (by probe or the daemon)     an interpreter that ranks are forked from

Secrets arrive on standard input and live in the memory and the environment of the run alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .protocol import VERSION


def main(argv: list[str]) -> int:
    """Runs one command; its answer is on stdout, `{"error": …}` and exit code 1 where it could not be done."""
    if argv == ["--version"]:
        print(VERSION)
        return 0
    os.umask(0o077)  # of what this and the ranks write, nothing is for other users of the machine
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name == "rank":
        from . import rank

        return rank.main(rest[1:])
    if name == "inside":
        from .machine import container

        return container.inside(rest[1:])
    if name == "setup":
        from . import setup

        return setup.main(rest[0])
    if name == "keep" and len(rest) == 2:
        from . import keep

        return keep.main(rest[0], float(rest[1]))
    if name == "flight":
        from .watch import flight

        return flight.main(rest[0], int(rest[1]))
    if name == "warm":
        from .warm import server as warm_server

        return warm_server.serve(rest[0], rest[1], rest[2:])
    target = os.path.abspath(os.path.expanduser(rest[0])) if rest else ""
    if name == "hold":
        from .hold import hold

        return hold(target)
    if name in ("follow", "send"):
        try:
            if name == "follow":
                from .follow import follow

                follow(target)
            else:
                from .outputs import send

                send(target)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would flush once more at its end
        return 0
    act = command(name, rest[1:])
    if act is None:
        print(
            "usage: agent.pyz "
            "probe|diag|forget|unpack|whole|lacks|start|hold|go|status|allow|follow|stop|tell|wrote|send|keep|rank …",
            file=sys.stderr,
        )
        return 2
    try:
        answer = act(target)
    except OSError as error:
        answer = {"error": "%s on this node: %s" % (name, error)}
    print(json.dumps(answer))
    return 1 if set(answer) == {"error"} else 0


def command(name: str, more: list[str]) -> Callable[[str], dict[str, Any]] | None:
    """Find the function of a short command: it gets its folder, the words after it and its standard input."""
    if name in ("probe", "forget"):
        from .probe import forget, probe

        return forget if name == "forget" else lambda _: probe(json.load(sys.stdin))
    if name == "diag":
        from .machine.diag import diag

        return lambda _: diag(json.load(sys.stdin))
    if name in ("unpack", "whole", "lacks"):
        from .code.unpack import lacks, unpack, whole

        if name == "lacks":
            return lambda folder: lacks(folder, json.load(sys.stdin))
        return whole if name == "whole" else lambda folder: unpack(folder, *more[:2])
    if name == "tell":
        from .watch.tell import tell

        return lambda _: tell(json.load(sys.stdin))
    if name == "wrote":
        from .outputs import wrote

        return lambda _: wrote(json.load(sys.stdin))
    if name == "keep":
        from .keep import keep as kept

        return lambda folder: kept(folder, json.load(sys.stdin))
    if name == "start":
        from .start import start

        return lambda folder: start(folder, json.load(sys.stdin))
    if name in ("go", "status", "allow", "stop"):
        from . import control

        if name in ("allow", "stop"):
            told = control.allow if name == "allow" else control.stop
            return lambda folder: told(folder, json.load(sys.stdin))
        return control.go if name == "go" else control.status
    return None
