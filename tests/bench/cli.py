"""CPU seconds of the command line against those of `python -c pass`, side by side: scripts/bench_cli [ROUNDS]

User and system time of the child process and its children (`nexa status` starts an ssh), the median of the rounds.
Every round runs every command once, in an order that moves on, so that a busy machine is the same for all of them. What
is promised stands beside each: nexa --help 6 ×, a verb that reads what nexa wrote 12 ×, nexa config 30 ×.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import small_workspace

REPO = Path(__file__).resolve().parents[2]
HELP, READING, CONFIG = 6.0, 12.0, 30.0
"""Times `python -c pass`, at most."""


def cpu_s(argv: list[str], cwd: str) -> float:
    """Seconds of user and system time that `argv` and its children took."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": ""}  # installed, it has its bytecode
    child = subprocess.Popen(argv, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"error: {' '.join(argv)} ended with exit {child.returncode}")
    return used.ru_utime + used.ru_stime


def commands() -> dict[str, tuple[list[str], float]]:
    """What is measured and what is promised of it (0: nothing), by its name. The first is what the others are compared
    with."""
    programs = Path(sys.prefix) / "bin"
    nexa = [str(programs / "nexa")] if (programs / "nexa").exists() else [sys.executable, "-m", "nexa_dist"]
    found = {
        "python -c pass": ([sys.executable, "-c", "pass"], 0.0),
        "nexa --help": ([*nexa, "--help"], HELP),
        **{f"nexa {name}": ([*nexa, *words], READING) for name, words in small_workspace.READING.items()},
        "nexa config local.yaml": ([*nexa, "config", str(REPO / "configs" / "dist" / "local.yaml")], CONFIG),
    }
    for peer in ("torchrun", "ansible"):
        if (programs / peer).exists():
            found[f"{peer} --help"] = ([str(programs / peer), "--help"], 0.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_cli", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=20)
    rounds = parser.parse_args().rounds
    measured = commands()
    names = list(measured)
    took: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as state, tempfile.TemporaryDirectory() as workspace:
        os.environ["XDG_STATE_HOME"] = state
        small_workspace.make(Path(workspace))
        for argv, _ in measured.values():
            cpu_s(argv, workspace)  # so that none pays for writing bytecode
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                took[name].append(cpu_s(measured[name][0], workspace))
    base = statistics.median(took[names[0]])
    print(f"median of {rounds} rounds; nexa is `{' '.join(measured['nexa --help'][0][:-1])}`")
    for name in names:
        median, promise = statistics.median(took[name]), measured[name][1]
        note = f"   (promise: {promise:g} ×)" if promise else ""
        print(f"{name:24} {median * 1000:8.1f} ms CPU {median / base:7.1f} ×{note}")


if __name__ == "__main__":
    main()
