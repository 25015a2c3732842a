"""Runs a console script by its name: `python -m nexa_dist.train.console_script lab-train ARG…`.

The interpreter of the ranks finds its entry point, so it is the one of their environment, whatever PATH says.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points


def main(name: str) -> object:
    """What the script returns: an exit code, or words for standard error."""
    found = entry_points(group="console_scripts", name=name)
    if not found:
        print(f"{name} is no console script of the project or its environment", file=sys.stderr)
        return 2
    return next(iter(found)).load()()


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.exit(main(sys.argv[0]))  # type: ignore[arg-type]
