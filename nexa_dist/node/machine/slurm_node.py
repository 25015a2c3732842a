"""The command `door`: one node of an allocation, as the one task that a job of Slurm's has there.

FOLDER is the allocation's, on the file system that its nodes share. FOLDER/told.json: {"nodes": [names in the order of
the tasks], "ssh": folder of client.pub and host_keys/NAME, "come_by_s": seconds}. It starts an sshd as the job's user,
with the host key that was pinned beforehand and for the cluster's key alone, on a port that is free, and writes where
that is to FOLDER/node_<task>.json. What sessions start is below it, so in the job, and ends with it. Nobody comes
(FOLDER/claimed) in time: the node is given back. SIGTERM is Slurm's notice: it is written down for the agent, and once
nothing runs here any more the task ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from ..oslib import (
    KILL_WAIT_S,
    NOTICE,
    children_of,
    die_with_parent,
    fail,
    read_json,
    set_subreaper,
    start_time,
    write_json,
)
from ..probe import free_port
from .devices import read
from .processes import tree

START_S, TRIES = 20.0, 20
QUIET_S = 10.0
"""Seconds without any process but ours after the notice, until the node is given back: a controller whose connection
the signal has ended comes back for the last words."""
PASSED = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_JOB_ID")
"""Variables of the job that a session gets. Of others a library would conclude that Slurm starts the ranks."""
HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


class Holder:
    """The task: its sshd, its notice, and what is below it. `own` is a folder of this node's alone."""

    def __init__(self, folder: str, own: str) -> None:
        self.folder, self.own, self.place = folder, own, int(os.environ["SLURM_NODEID"])
        path = os.path.join(folder, "told.json")
        self.told: dict[str, Any] = read_json(path) or fail("%s cannot be read" % path)
        self.name = self.told["nodes"][self.place]
        self.notice = os.path.join(own, "notice.json")
        wait = re.search(r"^KillWait\s*=\s*(\d+)", asked("scontrol", "show", "config"), re.MULTILINE)
        self.kill_wait_s = int(wait[1]) if wait else KILL_WAIT_S
        write_json(self.notice, {"kill_wait_s": self.kill_wait_s})
        self.address, self.port = self.free_place()
        self.sshd: subprocess.Popen[bytes] | None = None
        self.noticed = False

    def hold(self) -> int:
        """Until the notice has come and nothing is left, or nobody came. Answers the exit code of the task."""
        began, quiet, starts = time.monotonic(), None, 0
        while True:
            if self.sshd is None or self.sshd.poll() is not None:  # a signal to the whole step ends it too
                starts += 1
                if starts > TRIES:
                    say("%s: sshd does not stay up" % self.name)
                    return 1
                self.start()
            heard = signal.sigtimedwait(HEARD, 0.5)
            if heard and heard.si_signo != signal.SIGCHLD:
                self.hear()
            reap(self.sshd)
            if not self.noticed and time.monotonic() - began > self.told["come_by_s"]:
                if not os.path.exists(os.path.join(self.folder, "claimed")):
                    say("%s: nobody came for %.0f s: given back" % (self.name, self.told["come_by_s"]))
                    return 0
                began = float("inf")
            busy = not self.noticed or descendants(doors=False)
            quiet = None if busy else quiet or time.monotonic()
            if quiet is not None and time.monotonic() - quiet > QUIET_S:
                return 0

    def start(self) -> None:
        """Start sshd and say where it is, once it listens. Another port, where this one was taken meanwhile."""
        program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
        if not program:
            raise SystemExit("sshd is not installed on %s" % socket.gethostname())
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        config = os.path.join(self.own, "sshd_config")
        with open(config, "w") as file:
            file.write(self.config())
        self.sshd = subprocess.Popen([program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, preexec_fn=child)
        until = time.monotonic() + START_S
        while self.sshd.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=5):
                place = {"host": socket.gethostname(), "address": self.address, "port": self.port}
                if os.environ.get("SLURMD_NODENAME"):
                    place["host"] = os.environ["SLURMD_NODENAME"]
                write_json(os.path.join(self.folder, "node_%d.json" % self.place), place)
                return
            time.sleep(0.05)
        if not os.path.exists(os.path.join(self.folder, "node_%d.json" % self.place)):
            self.address, self.port = self.free_place()

    def config(self) -> str:
        ssh = self.told["ssh"]
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        variables[NOTICE] = self.notice
        # A bash that takes itself for the first one below sshd reads ~/.bashrc for each command of ours. What that does
        # is the job's to do (`shell`), and where the home is slow, or a lock in it is held, every word waits.
        variables["SHLVL"] = "1"
        lines = [
            "ListenAddress %s" % self.address,
            "Port %d" % self.port,
            "HostKey %s" % quoted(os.path.join(ssh, "host_keys", self.name)),
            "AuthorizedKeysFile %s" % quoted(os.path.join(ssh, "client.pub").replace("%", "%%")),
            "AuthenticationMethods publickey",
            "PermitRootLogin prohibit-password",
            "UsePAM no",  # takes root
            "StrictModes no",  # who may write to the workspace may change the job too
            "PidFile none",
            "PrintMotd no",
            "PrintLastLog no",
            "PermitUserRC no",
            "PermitUserEnvironment no",
            "UseDNS no",
            "X11Forwarding no",
            "AllowAgentForwarding no",
            "MaxStartups 200",
            "MaxSessions 200",
            "Subsystem sftp internal-sftp",
            "SetEnv " + " ".join(quoted("%s=%s" % pair) for pair in sorted(variables.items()) if plain(pair[1])),
        ]
        return "\n".join(lines) + "\n"

    def free_place(self) -> tuple[str, int]:
        """The address that Slurm has for this node, where it is one of this machine's, else that of its name."""
        told = asked("scontrol", "-o", "show", "node", os.environ.get("SLURMD_NODENAME", ""))
        found = re.search(r"\bNodeAddr=(\S+)", told)
        for address in [*([found[1]] if found else []), socket.gethostname()]:
            with contextlib.suppress(OSError):
                resolved = socket.gethostbyname(address)
                port, _ = free_port(resolved, 0)
                if port:
                    return resolved, port
        raise SystemExit("no address and port of %s can be listened on" % socket.gethostname())

    def hear(self) -> None:
        """Write down the notice: why, and when the node is taken. A job that goes on has an end, be it a grace; from
        any other the node is taken after KillWait."""
        if self.noticed:
            return
        self.noticed, now = True, time.time()
        job: dict[str, str] = {}
        for _ in range(3):  # the signal that comes to every process of the step may come twice
            told = asked("scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"])
            job = {name: value for name, _, value in (word.partition("=") for word in told.split())}
            if "JobState" in job:
                break
        state, at, action = job.get("JobState", ""), now + self.kill_wait_s, "Slurm ends the job"
        if job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"):
            action = "Slurm preempts the job"
        elif state in ("RUNNING", "TIMEOUT"):
            action = "the job's time limit comes"
        if state == "RUNNING":
            with contextlib.suppress(ValueError, OverflowError):
                at = max(now, time.mktime(time.strptime(job.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S")))
        write_json(self.notice, {"kill_wait_s": self.kill_wait_s, "action": action, "at_unix": int(at)})
        say("%s: %s" % (self.name, action))


def asked(*argv: str) -> str:
    """What a program of Slurm's says; empty when it does not answer."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, preexec_fn=child)
        return done.stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""


def child() -> None:
    """Of a child: nothing blocked, and no door stays open when its parent is killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with_parent(os.getppid())


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def plain(text: str) -> bool:
    return text.isprintable() and '"' not in text and "\\" not in text


def descendants(doors: bool = True) -> set[int]:
    """Processes below this one: as their subreaper it is the parent of those whose own has ended. `doors`: sshd's too,
    of which a connection that is only kept open has no other."""
    found = set(tree(os.getpid())) - {os.getpid()}
    return found if doors else {pid for pid in found if not (read("/proc/%d/comm" % pid) or "sshd").startswith("sshd")}


def reap(sshd: subprocess.Popen[bytes] | None) -> None:
    """Take the end of every child that is not sshd, whose end is its starter's to see."""
    for pid in children_of(os.getpid()):
        if (sshd is None or pid != sshd.pid) and start_time(pid) is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_descendants() -> None:
    """SIGKILL to all that is below, until nothing is."""
    for _ in range(50):
        left = descendants()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        reap(None)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def hold_door(folder: str) -> int:
    """Let the cluster in, until the node is given back."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)  # they are waited for
    set_subreaper()
    own = tempfile.mkdtemp(prefix="nexa-node-")
    try:
        return Holder(folder, own).hold()
    finally:
        end_descendants()
        shutil.rmtree(own, ignore_errors=True)
