"""Answers a shell that completes a word of nexa's command line (`nexa completion`), by argcomplete. A Tab asks nobody
and reads names of files alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter, SuppressCompleter

from nexa_dist.run.workspace import Workspace
from nexa_dist.verbs._arguments import parser

Completer = Callable[..., list[str]]
YAML: Completer = FilesCompleter(("yaml", "yml"))


def answer() -> None:
    """Says what the word at the cursor may be, and ends the process."""
    top = parser()
    for action in _actions(top):
        if completer := COMPLETERS.get(str(action.metavar)):
            action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(top, always_complete_options=False, default_completer=SuppressCompleter())


def _actions(of: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in of._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)


def _runs(**_: Any) -> list[str]:
    return [run.run_id for run in reversed(Workspace.here().runs())]


def _clusters(**_: Any) -> list[str]:
    return [folder.name for folder in Workspace.here().clusters()]


def _nodes(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    named = getattr(parsed_args, "cluster", None)
    folders = [folder for folder in Workspace.here().clusters() if named in (None, "", folder.name)]
    return [node.name for folder in folders if folder.json.exists() for node in folder.load().nodes]


def _either(*several: Completer) -> Completer:
    return lambda **given: [word for one in several for word in one(**given)]


COMPLETERS: dict[str, Completer] = {
    "RUN": _runs,
    "RUN|ALIAS|DIR|stop|status|connect": _either(
        _runs, lambda **_: ["production", "staging", "status", "connect", "stop"]
    ),
    "NODE": _nodes,
    "CLUSTER": _clusters,
    "CLUSTER|RUN": _either(_clusters, _runs),
    "NAME|FILE": _either(_clusters, YAML),
    "FILE": YAML,
    "TRAIN.yaml": YAML,
}
"""Completers by what stands for the word in --help."""
