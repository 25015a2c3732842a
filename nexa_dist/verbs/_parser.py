"""Parser of the command line: help by groups of verbs, and the word that was meant."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from nexa_dist.errors import EXIT_USAGE

GROUPS = {
    "cluster": ("init", "config", "plan", "provision", "status", "ssh", "diag", "teardown", "sweep", "image",
                "snapshot", "trust", "notify", "completion"),
    "run": ("preflight", "run", "queue", "slurm", "attach", "stop", "runs", "logs", "why", "report"),
    "work": ("env", "pull", "serve", "promote", "leaderboard"),
    "money": ("cost", "budget", "timeline"),
    "pipeline": ("pipeline", "data", "lineage"),
}  # fmt: skip
"""The folder below verbs/ of each verb, and where `nexa --help` shows it."""


class Parser(argparse.ArgumentParser):
    """argparse that says which word was meant."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", wrong[2]) if wrong else re.findall(r"--[a-z][a-z-]*", self.format_help())
        words = [wrong[1]] if wrong else re.findall(r"--[\w-]+", message.partition("unrecognized arguments: ")[2])
        meant = [close for word in words for close in difflib.get_close_matches(word, known, 1)]
        if wrong:
            message = f"{'no verb' if ' VERB:' in message else message.split(':')[0] + ': no'} {wrong[1]!r}"
        hint = f"did you mean {', '.join(meant)}?" if meant else f"{self.prog} --help lists what there is"
        from nexa_dist.ui import terminal

        terminal.error(f"{self.prog}: {message}", hint)
        raise SystemExit(EXIT_USAGE)


class Top(Parser):
    """The parser of nexa itself; its help shows the verbs by group."""

    def format_help(self) -> str:
        verbs = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        shown = {action.dest: action for action in verbs._choices_actions}
        made = self._get_formatter()
        made.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        made.add_text(self.description)
        groups = {title: [shown[name] for name in names] for title, names in GROUPS.items()}
        for title, actions in {**groups, "options": [a for a in self._actions if a.option_strings]}.items():
            made.start_section(title)
            made.add_arguments(actions)
            made.end_section()
        made.add_text(self.epilog)
        return made.format_help()
