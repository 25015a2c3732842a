"""The process that is a region: `python -m tests.cloud.daemon FOLDER NAME TOKEN HOURS [PARENT]`, started by region.up.

It lives in a network namespace of its own with the API and all machines, and everything ends with it. Only the
loopback port that it writes into state.json is in the namespace of this machine; it leads to the API alone. The lock
on FOLDER/lock, inherited from its starter, tells that it lives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from tests.cloud import image, net
from tests.cloud.api import serve
from tests.cloud.host import Machines

TICK_S = 0.5


def main() -> int:
    folder, name, token, hours = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    parent = int(sys.argv[5]) if len(sys.argv) > 5 else None
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    layer = image.ensure()
    door = net.listen("127.0.0.1", 0)
    net.open_region()
    machines = Machines(folder, layer)
    server = serve(net.API, 80, machines)
    try:
        net.forward(door, (net.API, 80))
        port = door.getsockname()[1]
        temp = folder / ".state.json.new"
        temp.write_text(json.dumps({"name": name, "token": token, "pid": os.getpid(), "port": port}) + "\n")
        temp.rename(folder / "state.json")
        end = time.monotonic() + hours * 3600
        while not over.wait(TICK_S) and time.monotonic() < end and parent in (None, os.getppid()):
            pass
    finally:
        (folder / "state.json").unlink(missing_ok=True)
        door.close()
        server.close()
        machines.close()
        for part in ("hosts", "consoles"):
            shutil.rmtree(folder / part, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
