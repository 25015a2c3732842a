"""One machine of a local cluster: a real sshd on a loopback address, with its own home and process tree.

    host.py up            make the node's folder and switch it on     (settings: NEXA_LOCAL_* in the env)
    host.py down          end every process of it, remove its folder  (settings: the same)
    host.py run ROOT NODE the machine itself: parent of sshd and of all that its sessions leave behind
    host.py status ROOT   JSON list of {node, address, port, pid, on}
    host.py sweep ROOT    `down` for everything under ROOT; JSON list of {node, pids, port}

Which processes are a node's: processes.py. Its settings and folder: folder.py. Its sshd: sshd.py. All of it standard
library, Python 3.9+, Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Terraform calls it with -I, so that nothing of the caller's is imported: not from his folder, not from PYTHONPATH.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
sys.dont_write_bytecode = True  # nothing is left beside the sources

from folder import (
    NODE_NAME,
    Settings,
    check_marker,
    checked_root,
    daemon_pid,
    make_folder,
    read_json,
    remove_folder,
    write_json,
)
from processes import GRACE_S, HostError, boot_id, descendants, end, members, processes, reap
from sshd import answers, check_keys, check_port, find_sshd, greeting, sshd_config

START_TIMEOUT_S = 60.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
DEADLINE_SH = Path(__file__).resolve().parents[2] / "shared" / "deadline.sh"
NEVER_S = 315_360_000


def up(settings: Settings) -> str:
    """Idempotent: a node that is on with the same settings is left alone."""
    os.umask(0o077)
    check_keys(settings)
    sshd = find_sshd()
    config = sshd_config(settings, sshd)
    make_folder(settings)
    folder = settings.folder
    settings_sha256 = hashlib.sha256((sshd + config).encode()).hexdigest()
    where = f"{settings.node} is on at {settings.address}:{settings.port}"
    pid = daemon_pid(folder)
    same = read_json(folder / "daemon.json").get("settings_sha256") == settings_sha256
    if pid and same and answers(settings.address, settings.port, greeting(settings)):
        return f"{where} (pid {pid}, was already)"
    end(lambda: members(folder, pid))
    check_port(settings.address, settings.port)
    (folder / "sshd_config").write_text(config)
    arm(settings)
    record = {key: value for key, value in asdict(settings).items() if key in ("cluster", "address", "port")}
    record |= {"sshd": sshd, "settings_sha256": settings_sha256, "greeting": greeting(settings)}
    write_json(folder / "node.json", record)
    try:
        return f"{where} (pid {start(settings)})"
    except BaseException:  # Terraform runs no destroy step for a node whose start failed or was interrupted
        end(lambda: members(folder))
        raise


def arm(settings: Settings) -> None:
    """The files of the clock that every cloud node has too; without a limit there is none."""
    folder, (max_s, lease_s, idle_s) = settings.folder / "due", settings.limits
    shutil.rmtree(folder, ignore_errors=True)
    if not any(settings.limits):
        return
    (folder / "bin").mkdir(parents=True)
    # The only programs it finds: it must never come to the real machine's poweroff.
    for name in ("date", "stat", "sleep", "mv"):
        found = shutil.which(name)
        if not found:
            raise HostError(f"{name} is not on PATH")
        (folder / "bin" / name).symlink_to(os.path.abspath(found))
    shutil.copy(DEADLINE_SH, folder / "deadline")
    (folder / "deadline").chmod(0o700)
    now = int(time.time())
    for name in ("lease", "busy"):
        (folder / name).touch()
    (folder / "limits").write_text(f"{max_s or NEVER_S} {lease_s} {idle_s} {now}\n")
    (folder / "due_unix").write_text(f"{now + (max_s or NEVER_S)}\n")


def watch(folder: Path, preexec: Callable[[], None]) -> int | None:
    """Starts the node's clock, if it has one, whose poweroff ends this process. Returns its pid."""
    due = folder / "due"
    if not (due / "due_unix").exists():
        return None
    (due / "bin" / "poweroff").write_text(f"#!/bin/sh\nkill -TERM {os.getpid()}\n")
    (due / "bin" / "poweroff").chmod(0o700)
    environment = {**os.environ, "PATH": "./bin", "NEXA_DEADLINE_DIR": str(due), "NEXA_DEADLINE_TICK_S": "5"}
    argv = ["/bin/sh", str(due / "deadline"), "watch"]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment, cwd=due, preexec_fn=preexec).pid


def start(settings: Settings) -> int:
    folder = settings.folder
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    # The machine gets none of the caller's environment: it may hold cloud credentials.
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = [sys.executable, "-I", os.path.abspath(__file__), "run", str(settings.root), settings.node]
    with open(folder / "sshd.log", "ab") as log:
        daemon = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "LANG": "C.UTF-8", "NEXA_HOST": str(folder)},
            cwd="/",
            start_new_session=True,
        )
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        if daemon.poll() is not None:
            break
        if daemon_pid(folder) == daemon.pid and answers(settings.address, settings.port, greeting(settings)):
            return daemon.pid
        time.sleep(0.02)
    tail = (folder / "sshd.log").read_text(errors="replace").strip().splitlines()[-5:]
    cause = " | ".join(tail) or f"no answer in {START_TIMEOUT_S} s"
    raise HostError(f"{settings.node} did not start: {cause}")


def run(root: Path, node: str) -> None:
    """The machine: ends when sshd ends, when its time is up, or on TERM, and leaves no descendant."""
    folder = root / node
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one daemon a node
    record = read_json(folder / "node.json")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise HostError(f"prctl: {os.strerror(ctypes.get_errno())}")
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    me = processes()[os.getpid()]
    identity = {"pid": os.getpid(), "start_ticks": me.start_ticks, "boot_id": boot_id()}
    write_json(folder / "daemon.json", {**identity, "settings_sha256": record["settings_sha256"]})
    os.umask(0o022)

    def child() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # No door stays open on a machine whose parent of all was killed.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    argv = [record["sshd"], "-D", "-e", "-f", str(folder / "sshd_config")]
    sshd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=child)
    clock = watch(folder, child)
    while signal.sigwait(signals) == signal.SIGCHLD:
        gone = reap()
        if sshd.pid in gone:
            break
        if clock in gone:
            time.sleep(1)
            clock = watch(folder, child)
    end(lambda: descendants(processes(), os.getpid()))


def down(root: Path, node: str) -> set[int]:
    """Idempotent. Also finds what a killed daemon left behind. Returns the pids that were ended."""
    check_marker(root)
    folder = root / node
    pid = daemon_pid(folder)
    ended = members(folder, pid)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + GRACE_S + 2
        while daemon_pid(folder) == pid and time.monotonic() < give_up:
            time.sleep(0.02)
            reap()
    ended |= end(lambda: members(folder, daemon_pid(folder)))
    remove_folder(root, node)
    return ended


def nodes_under(root: Path) -> list[str]:
    """Nodes with a folder, and nodes whose folder is gone but whose processes live."""
    found = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    for pid in processes():
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/environ", "rb") as file:
                entries = os.fsdecode(file.read()).split("\0")
            prefix = f"NEXA_HOST={root}/"
            found |= {entry[len(prefix) :] for entry in entries if entry.startswith(prefix)}
    return sorted((name for name in found if NODE_NAME.fullmatch(name)), key=lambda name: int(name[1:]))


def status(root: Path) -> list[dict[str, Any]]:
    rows = []
    for node in nodes_under(root):
        record, pid = read_json(root / node / "node.json"), daemon_pid(root / node)
        address, port = record.get("address", ""), record.get("port", 0)
        on = pid is not None and answers(address, port, record.get("greeting", ""))
        rows.append({"node": node, "address": address, "port": port, "pid": pid, "on": on})
    return rows


def sweep(root: Path) -> list[dict[str, Any]]:
    check_marker(root)
    rows = []
    for node in nodes_under(root):
        port = read_json(root / node / "node.json").get("port", 0)
        rows.append({"node": node, "pids": sorted(down(root, node)), "port": port})
    return rows


def main(argv: list[str]) -> int:
    try:
        if argv == ["up"]:
            print(up(Settings.from_environment()))
        elif argv == ["down"]:
            settings = Settings.from_environment()
            print(f"{settings.node} is off ({len(down(settings.root, settings.node))} processes ended)")
        elif len(argv) == 3 and argv[0] == "run" and NODE_NAME.fullmatch(argv[2]):
            run(checked_root(argv[1]), argv[2])
        elif len(argv) == 2 and argv[0] in ("status", "sweep"):
            print(json.dumps((status if argv[0] == "status" else sweep)(checked_root(argv[1]))))
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (HostError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
