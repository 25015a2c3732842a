"""Names the processes that hold the locks of apt and dpkg, on stderr. Exit 1 if there are any. Needs root."""

import fcntl
import os
import struct
import sys

LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


def holder(path):
    """Pid that keeps others from locking the file; 0 for nobody."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(file)
    kind, _, _, _, pid = struct.unpack(FLOCK, answer)
    return 0 if kind == fcntl.F_UNLCK else pid


def command(pid):
    """Its command line; the process may be gone, or another namespace's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return words[:200] or "of unknown command"


held = {}
for lock in LOCKS:
    held.setdefault(holder(lock), []).append(lock)
held.pop(0, None)
for pid, locks in held.items():
    print(f"apt is locked by pid {pid} ({command(pid)}): {', '.join(locks)}", file=sys.stderr)
sys.exit(bool(held))
