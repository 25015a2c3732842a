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
    agent.pyz door FOLDER      (started by a job of Slurm's)         one node of an allocation: an sshd, and the notice
    agent.pyz go RUN_DIR                                             every node is prepared: start the ranks
    agent.pyz status RUN_DIR                                         state of the newest attempt
    agent.pyz allow RUN_DIR    < {"seconds"}                         how long the run's money lasts
    agent.pyz follow RUN_DIR   < {"offsets": {...}, "once": bool}    logs and events, framed, from byte offsets;
                                                                     then lines as signs of life
    agent.pyz stop RUN_DIR     < {"grace_s", "reason", "release"}    SIGTERM, grace for a checkpoint, SIGKILL
    agent.pyz tell -           < {"targets", "message"}              a test to each webhook, and what became of it
    agent.pyz wrote -          < {"runs": [...]}                     what runs have left here: files, checkpoints
    agent.pyz send DIR         < {"files": [...]}                    these files, framed, from byte offsets
    agent.pyz keep RUN_DIR     < {"seconds"}                         its outputs to the bucket
    agent.pyz kept RUN_DIR SECONDS (by the daemon)                   the same, as an event
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

Given = Callable[[list[str]], tuple[Any, ...]]
"""What a function gets of the words behind its command, and of standard input."""


def _folder(words: list[str]) -> tuple[str]:
    return (os.path.abspath(os.path.expanduser(words[0])) if words else "",)


def _message(_: list[str]) -> tuple[dict[str, Any]]:
    return (json.load(sys.stdin),)


def _both(words: list[str]) -> tuple[Any, ...]:
    return (*_folder(words), *_message(words))


ANSWERED: dict[str, tuple[str, Given]] = {
    "probe": ("probe.probe", _message),
    "diag": ("machine.diag.diag", _message),
    "forget": ("probe.forget", _folder),
    "unpack": ("code.unpack.unpack", lambda words: (*_folder(words), *words[1:3])),
    "whole": ("code.unpack.whole", _folder),
    "lacks": ("code.unpack.lacks", _both),
    "start": ("start.start", _both),
    "go": ("control.go", _folder),
    "status": ("control.status", _folder),
    "allow": ("control.allow", _both),
    "stop": ("control.stop", _both),
    "tell": ("watch.tell.tell", _message),
    "wrote": ("outputs.wrote", _message),
    "keep": ("keep.keep", _both),
}
"""Short commands, whose answer is JSON."""
SPOKEN: dict[str, tuple[str, Given]] = {
    "follow": ("follow.follow", _folder),
    "send": ("outputs.send", _folder),
    "hold": ("hold.hold", _folder),
    "door": ("machine.slurm_node.hold_door", _folder),
    "kept": ("keep.main", lambda words: (words[0], float(words[1]))),
    "setup": ("setup.main", lambda words: (words[0],)),
    "flight": ("watch.flight.main", lambda words: (words[0], int(words[1]))),
    "rank": ("rank.main", lambda words: (words[1:],)),
    "inside": ("machine.container.inside", lambda words: (words[1:],)),
    "warm": ("warm.server.serve", lambda words: (words[0], words[1], words[2:])),
}
"""Commands that say themselves what there is to say; they answer an exit code, or nothing."""


def main(argv: list[str]) -> int:
    """Runs one command; its answer is on stdout, `{"error": …}` and exit code 1 where it could not be done."""
    if argv == ["--version"]:
        print(VERSION)
        return 0
    os.umask(0o077)  # of what this and the ranks write, nothing is for other users of the machine
    name, words = (argv[0], argv[1:]) if argv else ("", [])
    if name in SPOKEN:
        try:
            return int(_call(*SPOKEN[name], words) or 0)
        except BrokenPipeError:
            if name not in ("follow", "send"):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would flush once more at its end
            return 0
    if name not in ANSWERED:
        print("usage: agent.pyz %s …" % "|".join((*ANSWERED, *SPOKEN)), file=sys.stderr)
        return 2
    try:
        answer = _call(*ANSWERED[name], words)
    except OSError as error:
        answer = {"error": "%s on this node: %s" % (name, error)}
    print(json.dumps(answer))
    return 1 if set(answer) == {"error"} else 0


def _call(place: str, given: Given, words: list[str]) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(__import__(module, globals(), None, [name], 1), name)(*given(words))
