"""nexa completion: what a shell needs to complete verbs, options, runs, clusters and nodes."""

from __future__ import annotations

import argparse

from nexa_dist.errors import EXIT_OK
from nexa_dist.ui import terminal


def completion(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    terminal.out(shellcode(["nexa"], shell=args.shell).strip())
    return EXIT_OK
