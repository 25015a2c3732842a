"""The door: parse, one call, exit code. Verbs are imported when they are called, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence

from nexa_dist.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Leave, NexaError
from nexa_dist.verbs._arguments import parser
from nexa_dist.verbs._parser import GROUPS

FOLLOWING = ("run", "queue", "attach", "logs", "pipeline")
"""Verbs that show what goes on without them."""


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The command line as a person means it: `help VERB` too, and `ssh -- COMMAND` where the node is left out."""
    top, words = parser(), list(words)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if words[:1] == ["ssh"] and "--" in words:
        before = words[1 : words.index("--")]
        named = " ".join(word.partition("=")[0] for word in before[:1])
        if (named, len(before)) in (("", 0), ("--cluster", 2 - ("=" in "".join(before[:1])))):
            words = ["ssh", *before, "", *words[1 + len(before) :]]
    arguments, more = top.parse_known_args(words)
    if arguments.verb in ("run", "queue") and not any(word.startswith("-") for word in more):
        arguments.more += more  # argparse takes no file that stands behind an option
        return arguments
    if more:
        verb = next(action for action in top._actions if action.dest == "verb").choices
        dict(verb or {})[arguments.verb].error(f"unrecognized arguments: {' '.join(more)}")
    return arguments


def leave(number: int, _: object) -> None:
    """SIGTERM and SIGHUP unwind us as Ctrl-C does, but are no wish to end what runs on the nodes."""
    if number == signal.SIGHUP:  # the terminal is gone: what is still said must not fail
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(null, stream)
    raise Leave


def hear(verb: str) -> None:
    """Makes this process leave when it is told to. What nohup or a script ignores stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP) if verb in FOLLOWING else (signal.SIGTERM,):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of one command; the only place where an expected error becomes words."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what the next word may be
        from nexa_dist.verbs._completion import answer

        answer()
    words, program = list(sys.argv[1:] if argv is None else argv), []
    # argparse would take options of nexa for the script's, or the reverse
    if words[:1] in (["run"], ["queue"], ["slurm"]) and "--" in words:
        at = words.index("--")
        words, program = words[:at], words[at + 1 :]
    arguments = parsed(words)
    arguments.program = program
    hear(arguments.verb)
    return guarded(lambda: _call(arguments))


def _call(arguments: argparse.Namespace) -> int:
    import importlib

    group = next(name for name, verbs in GROUPS.items() if arguments.verb in verbs)
    module = importlib.import_module(f"nexa_dist.verbs.{group}.{arguments.verb}")
    return int(getattr(module, arguments.verb)(arguments))


def guarded(call: Callable[[], int]) -> int:
    """Runs a door's work: an expected error is said with its hint, never with a traceback."""
    from nexa_dist.ui import terminal

    try:
        return call()
    except NexaError as error:
        from nexa_dist.secrets import redact_text

        terminal.error(redact_text(str(error)), redact_text(error.hint))
        return error.code
    except KeyboardInterrupt:
        terminal.error("interrupted", "nexa status shows what is there; provision and teardown go on when repeated")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILED
    except OSError as error:  # a full disk, a folder without permission, a file where a folder should be
        terminal.error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        return EXIT_FAILED
    except UnicodeEncodeError as error:
        terminal.error(f"this terminal or argument cannot be encoded: {error}", "use a UTF-8 locale")
        return EXIT_USAGE
