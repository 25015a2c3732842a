"""nexa leaderboard: what was evaluated, the best first, with cost beside score."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_OK
from nexa_dist.ops.leaderboard import gather
from nexa_dist.run import files
from nexa_dist.ui import terminal
from nexa_dist.ui.report import leaderboard as page
from nexa_dist.verbs._shared import context


def leaderboard(args: argparse.Namespace) -> int:
    ctx = context(acts=False)
    boards = gather(ctx)
    if args.name:
        boards = [board for board in boards if board["name"] == args.name]
    if args.json:
        terminal.emit(boards)
    elif not boards:
        terminal.say("nothing was evaluated yet: a stage.yaml with stage: eval does it")
    else:
        _show(boards)
    if args.html:
        path = Path(args.html)
        files.write_text(path, page.render(boards))
        terminal.say(f"{path}: {path.stat().st_size >> 10} KiB, one file, needs no network")
    return EXIT_OK


def _show(boards: list[dict[str, Any]]) -> None:
    for board in boards:
        judge = f", judged by {board['judge']}" if board["judge"] else ""
        terminal.say(f"{board['board']}{judge}; ranked by {board['by']}")
        names = [str(name) for name in board["figures"]]
        rows = [
            {"run": row["run"], **{name: page.words(row["figures"].get(name)) for name in names},
             "rows": row["rows"], "run_usd": page.money(row["run_usd"]), "eval_usd": page.money(row["eval_usd"]),
             "tokens_per_s": page.shown(row["tokens_per_s"])}
            for row in board["rows"]
        ]  # fmt: skip
        terminal.table(rows, ("run", *names, "rows", "run_usd", "eval_usd", "tokens_per_s"))
        for warning in board["warnings"]:
            terminal.say(f"warning: {warning}")
