#!/usr/bin/env python3
"""nexa slurm submit of this checkout, without installing it: scripts/submit_slurm.py TRAIN.yaml [OPTIONS]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nexa_dist.cli import main

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    try:
        sys.exit(main(["slurm", "submit", *sys.argv[1:]]))
    except ModuleNotFoundError as error:
        cure = "scripts/setup controller; .venv/bin/python scripts/submit_slurm.py …"
        sys.exit(f"error: {sys.executable} has no {error.name}\nhint: {cure}")
