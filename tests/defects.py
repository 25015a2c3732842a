"""Puts defects into a copy of the product, one at a time, and says whether the tests notice: scripts/defects [WORD…]

The defects are listed in tests/defects.yaml, each with the tests that have to fail; WORD picks those whose name or
file contains it. Exit 1 if one goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("defects.yaml")
LIMIT_S = 900


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    old: str
    """Text that stands in the file once."""
    new: str
    noticed_by: str
    """A file or a test of pytest."""


def defects() -> list[Defect]:
    return [Defect(**row) for row in yaml.safe_load(TABLE.read_text())]


def copied(folder: Path) -> None:
    """The files of the checkout that git knows or would take."""
    argv = ["git", "-C", str(REPO), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPO / name).read_bytes())
            (folder / name).chmod((REPO / name).stat().st_mode)


def noticed(defect: Defect, folder: Path) -> str:
    """The first test that fails in the copy with this defect; empty when none does. Raises RuntimeError when they could
    not be run."""
    path = folder / defect.file
    whole = path.read_text()
    if whole.count(defect.old) != 1:
        raise RuntimeError(f"{defect.file}: {defect.old!r} stands there {whole.count(defect.old)} times")
    path.write_text(whole.replace(defect.old, defect.new))
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-m", "not long", defect.noticed_by],
            cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        path.write_text(whole)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest {defect.noticed_by}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0] if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/defects", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    words = parser.parse_args().words
    unnoticed = 0
    picked = [d for d in defects() if not words or any(word in d.name or word in d.file for word in words)]
    if not picked:
        parser.error(f"no defect has {' or '.join(words)} in its name or file: see tests/defects.yaml")
    with tempfile.TemporaryDirectory(prefix="nexa-defects-") as name:
        folder = Path(name)
        copied(folder)
        for defect in picked:
            by = noticed(defect, folder)
            unnoticed += not by
            print(f"{'✓' if by else '✗'} {defect.name}: {by or 'not noticed by ' + defect.noticed_by}", flush=True)
    print(f"{len(picked) - unnoticed} of {len(picked)} noticed", file=sys.stderr)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
