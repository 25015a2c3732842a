"""A real run on two own hosts of which one shuts down, or is only cut off for 20 s; nobody but the other can tell.

    python -m tests.chaos.hung_up

The hosts are sshds in a network namespace of this program's own (root is needed), where no packet reaches a host to
which the route is taken away. Prints seconds from the event to the word that ended the rank on the other host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.hosts import Hosts, two_hosts
from tests.chaos.local_hosts import NEXA, end_by_sigterm, environment, wait
from tests.cloud.net import fresh, ip

CUT_S = 20.0
RANK = """
import os, socket, time
first, second = {addresses!r}  # the ranks hold a connection, as those of gloo do
if os.environ["RANK"] == "0":
    held = socket.create_server((first, 45111)).accept()
else:
    while True:
        try:
            held = socket.create_connection((first, 45111), source_address=(second, 0))
            break
        except OSError:
            time.sleep(0.2)
for step in range(100_000):
    print("tick", step, flush=True)
    time.sleep(1)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _told(folder: Path) -> list[dict[str, float]]:
    """What the agent of the node that stays was told and saw."""
    lines = (line for file in folder.glob("runs/*/logs/n0/agent.jsonl") for line in file.read_text().splitlines())
    return [row for row in map(json.loads, lines) if row["event"] in ("stopping", "rank_exit")]


def one(hosts: Hosts, shuts_down: bool) -> float | None:
    """Seconds until the attempt was ended; None when it was not."""
    folder, log = hosts.folder / f"w{shuts_down:d}", hosts.folder / f"log{shuts_down:d}"
    folder.mkdir()
    first, second = hosts.names
    addresses = (hosts.address(first), hosts.address(second))
    (folder / "rank.py").write_text(RANK.format(addresses=addresses))
    (folder / "t.yaml").write_text("script: rank.py\nlauncher: direct\nrestarts_per_hour: 0\n")
    config = hosts.write_static(sys.executable, 1)
    with log.open("w") as out:
        argv = [*NEXA, "run", "t.yaml", "--cluster", str(config)]
        run = subprocess.Popen(argv, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        if not wait(lambda: "tick 5" in log.read_text() or run.poll() is not None, 180) or run.poll() is not None:
            raise RuntimeError(log.read_text())
        began, began_unix = time.monotonic(), time.time()
        if shuts_down:
            doomed = hosts.members(second)
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait(lambda: not any(_runs(pid) for pid in doomed), 30)  # the network goes last
        ip(f"route add unreachable {addresses[1]}/32 table local")
        wait(lambda: run.poll() is not None or _told(folder), 60 if shuts_down else CUT_S)
        ip(f"route del unreachable {addresses[1]}/32 table local")
        if not shuts_down:
            wait(lambda: run.poll() is not None or _told(folder), 15)
        rows = _told(folder)
        print(log.read_text()[-1500:] if not rows and run.poll() is not None else "", end="", file=sys.stderr)
        return rows[0]["at"] - began_unix if rows else None if run.poll() is None else time.monotonic() - began
    finally:
        run.terminate()  # it only leaves
        run.wait(90)
        hosts.end_jobs()


def main() -> int:
    end_by_sigterm()
    fresh()
    found = {}
    with two_hosts() as hosts:
        for word, shuts_down in (("cut off for 20 s", False), ("shut down", True)):
            found[word] = one(hosts, shuts_down)
    print(json.dumps(found))
    return int(found["cut off for 20 s"] is not None or found["shut down"] is None)


if __name__ == "__main__":
    sys.exit(main())
