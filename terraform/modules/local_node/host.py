"""One machine of a local cluster: a real sshd on a loopback address, with its own home and process tree.

    host.py up            make the node's folder and switch it on     (settings: NEXA_LOCAL_* in the env)
    host.py down          end every process of it, remove its folder  (settings: the same)
    host.py run ROOT NODE the machine itself: parent of sshd and of all that its sessions leave behind
    host.py status ROOT   JSON list of {node, address, port, pid, on}
    host.py sweep ROOT    `down` for everything under ROOT; JSON list of {node, pids, port}

A process belongs to a node when it descends from the node's daemon, has NEXA_HOST=<root>/<node> in its
environment, or logs to the node's sshd.log. Standard library only, Python 3.9+, Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARKER, TMP = ".nexa-local-root", ".tmp"
UNFINISHED = MARKER + TMP
"""What is left of a marker whose writer was killed."""
NODE_NAME = re.compile(r"n(0|[1-9][0-9]{0,3})")
START_TIMEOUT_S = 60.0
GRACE_S = 2.0
"""Between TERM and KILL."""
KILL_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
DEADLINE_SH = Path(__file__).resolve().parent.parent / "aws_nodes" / "deadline.sh"
LIMITS = ("MAX_S", "LEASE_S", "IDLE_S")
"""When the node switches itself off, in seconds: after it was switched on, after the last sign of life of a controller,
after the last one of a run. 0 is never."""
NEVER_S = 315_360_000
SFTP_SERVERS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")

# Every session starts in the node's home, not in the home that the password file gives.
FORCE_COMMAND = (
    'exec /bin/sh -c \'cd && c="$SSH_ORIGINAL_COMMAND" && unset SSH_ORIGINAL_COMMAND OLDPWD && '
    'if [ -n "$c" ]; then exec "$SHELL" -c "$c"; else exec "$SHELL" -l; fi\''
)


class HostError(Exception):
    """An expected failure: what happened, and what to do about it."""


@dataclass(frozen=True)
class Settings:
    cluster: str
    node: str
    root: Path
    address: str
    port: int
    ssh_dir: Path
    limits: tuple[int, ...] = (0, 0, 0)

    @property
    def folder(self) -> Path:
        return self.root / self.node

    @classmethod
    def from_environment(cls) -> Settings:
        env = {key: os.environ.get("NEXA_LOCAL_" + key, "") for key in
               ("CLUSTER", "NODE", "ROOT", "ADDRESS", "PORT", "SSH_DIR")}  # fmt: skip
        limits = [os.environ.get("NEXA_LOCAL_" + key, "0") for key in LIMITS]
        if not NODE_NAME.fullmatch(env["NODE"]):
            raise HostError(f"not a node name: {env['NODE']!r}")
        if not re.fullmatch(r"127(\.\d{1,3}){3}", env["ADDRESS"]) or not env["PORT"].isdecimal():
            raise HostError(f"not a loopback address and port: {env['ADDRESS']!r} {env['PORT']!r}")
        if not all(re.fullmatch(r"[0-9]{1,10}", limit) for limit in limits):
            raise HostError(f"not whole numbers of seconds: {', '.join(limits)}")
        return cls(
            cluster=env["CLUSTER"],
            node=env["NODE"],
            root=checked_root(env["ROOT"]),
            address=env["ADDRESS"],
            port=int(env["PORT"]),
            ssh_dir=checked_root(env["SSH_DIR"]),
            limits=tuple(map(int, limits)),
        )


def checked_root(text: str) -> Path:
    if not text.startswith("/") or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise HostError(f"not an absolute path without control characters: {text!r}")
    path = Path(os.path.realpath(text))
    if len(path.parts) < 2:
        raise HostError("the root folder cannot be /")
    return path


# --- processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    parent: int
    start_ticks: int
    state: str


def processes() -> dict[int, Process]:
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                # The name may hold spaces and brackets: what follows the last bracket is regular.
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                table[int(entry)] = Process(int(fields[1]), int(fields[19]), fields[0])
    return {pid: process for pid, process in table.items() if process.state not in "ZX"}


def descendants(table: dict[int, Process], of: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    queue = list(children.get(of, ()))
    while queue:
        pid = queue.pop()
        found.add(pid)
        queue += children.get(pid, ())
    return found


def own_line(table: dict[int, Process]) -> set[int]:
    """This process and its ancestors: never ended, even when `down` is called from inside the node."""
    line, pid = set(), os.getpid()
    while pid in table and pid not in line:
        line.add(pid)
        pid = table[pid].parent
    return line


def belongs(pid: int, folder: Path) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if os.fsencode(f"NEXA_HOST={folder}") in file.read().split(b"\0"):
                return True
        # sshd writes its title over its environment, but keeps its log.
        return os.readlink(f"/proc/{pid}/fd/2").replace(" (deleted)", "") == str(folder / "sshd.log")
    except OSError:
        return False


def members(folder: Path, daemon: int | None = None) -> set[int]:
    """Every process of the node but this one. `daemon` is its parent of all, if it is known to live."""
    table = processes()
    roots = {pid for pid in table if belongs(pid, folder)} | ({daemon} if daemon in table else set())
    found = set(roots)
    for pid in roots:
        found |= descendants(table, pid)
    return found - own_line(table)


def end(find: Callable[[], set[int]]) -> set[int]:
    """TERM, a short grace, KILL, until `find` sees nothing. Returns the pids seen."""
    seen: set[int] = set()
    start = time.monotonic()
    while alive := find():
        waited_s = time.monotonic() - start
        if waited_s > GRACE_S + KILL_TIMEOUT_S:
            raise HostError(f"still alive after SIGKILL: pids {sorted(alive)}")
        for pid in alive:
            if waited_s > GRACE_S or pid not in seen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if waited_s > GRACE_S else signal.SIGTERM)
        seen |= alive
        time.sleep(0.05)
        reap()
    return seen


def reap() -> set[int]:
    gone = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            gone.add(pid)
    return gone


# --- the node's folder -------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + TMP)
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def root_lock(root: Path) -> Iterator[None]:
    """Keeps making and removing of the root apart. Held on the parent, since the root comes and goes."""
    handle = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_marker(root: Path) -> None:
    """Refuses a folder that is not a root of ours. A missing or empty one is fine."""
    if read_json(root / MARKER).get("made_by") == "nexacompute":
        return
    with contextlib.suppress(FileNotFoundError):  # looked at last: the end of another node may just remove it all
        if set(os.listdir(root)) <= {UNFINISHED}:
            return
        raise HostError(f"{root} is not a folder of local nodes ({MARKER} is missing); nothing was touched")


def make_folder(settings: Settings) -> None:
    root = settings.root
    root.parent.mkdir(parents=True, exist_ok=True)
    with root_lock(root):
        check_marker(root)
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.geteuid():
            raise HostError(f"{root} belongs to another user")
        owner = read_json(root / MARKER).get("cluster", settings.cluster)
        if owner != settings.cluster:
            raise HostError(f"{root} holds the nodes of cluster {owner}, not of {settings.cluster}")
        write_json(root / MARKER, {"made_by": "nexacompute", "cluster": settings.cluster})
        for name in ("", "home", "scratch"):
            (settings.folder / name).mkdir(mode=0o700, exist_ok=True)


def remove_folder(root: Path, node: str) -> None:
    if not root.parent.is_dir():
        return
    with root_lock(root):
        folder = root / node
        if folder.is_dir() and not folder.is_symlink():
            for path, names, files in os.walk(folder):  # a job may have left folders that nobody can enter
                if "tmp.json" in files:
                    remove_temporary(Path(path, "tmp.json"))
                for name in names:
                    child = Path(path, name)
                    if not child.is_symlink():
                        child.chmod(0o700)
            shutil.rmtree(folder)
        left = set(os.listdir(root)) if root.is_dir() else set()
        if left and left <= {MARKER, UNFINISHED}:
            for name in (UNFINISHED, MARKER):
                (root / name).unlink(missing_ok=True)
            root.rmdir()


def remove_temporary(note: Path) -> None:
    """What a run has in the real machine's /tmp, where its agent ended with this one: the agent's note says where."""
    with contextlib.suppress(OSError, ValueError):
        made = json.loads(note.read_text())
        if isinstance(made, str) and os.path.basename(made).startswith("nexa-run-"):
            shutil.rmtree(made, ignore_errors=True)


def daemon_pid(folder: Path) -> int | None:
    """The node's daemon if it lives; the start time and boot tell it from a later process of that pid."""
    record = read_json(folder / "daemon.json")
    process = processes().get(record.get("pid", -1))
    if process and (process.start_ticks, boot_id()) == (record.get("start_ticks"), record.get("boot_id")):
        return int(record["pid"])
    return None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# --- sshd --------------------------------------------------------------------------------------


def find_sshd() -> str:
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if not found:
        raise HostError("sshd is not installed (hint: apt-get install -y openssh-server)")
    return found


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def sshd_config(settings: Settings, sshd: str) -> str:
    ssh_dir, folder = str(settings.ssh_dir), str(settings.folder)
    host_key, client_keys = f"{ssh_dir}/host_keys/{settings.node}", f"{ssh_dir}/client.pub".replace("%", "%%")
    lines = [
        f"ListenAddress {settings.address}",
        f"Port {settings.port}",
        f"HostKey {quoted(host_key)}",
        f"AuthorizedKeysFile {quoted(client_keys)}",
        "AuthenticationMethods publickey",
        "PermitRootLogin prohibit-password",
        f"UsePAM {'yes' if root_is_locked() else 'no'}",
        "StrictModes no",  # the folder may lie under /tmp; `up` checks owner and mode itself
        "PidFile none",
        f"VersionAddendum {greeting(settings)}",
        "PrintMotd no",
        "PrintLastLog no",
        "PermitUserRC no",
        "PermitUserEnvironment no",
        "UseDNS no",
        "X11Forwarding no",
        "AllowAgentForwarding no",
        "MaxStartups 200",
        "MaxSessions 200",
        f"SetEnv {quoted(f'HOME={folder}/home')} {quoted(f'NEXA_HOST={folder}')} "
        + quoted(f"NEXA_DEADLINE_DIR={folder}/due"),
        f"Subsystem sftp {sftp_server()}",
        f"ForceCommand {FORCE_COMMAND}",
    ]
    if re.fullmatch(r"[a-z_][a-z0-9_.-]*", getpass.getuser()):
        lines.append(f"AllowUsers {getpass.getuser()}")
    if sshd_version(sshd) >= (9, 8):
        lines.append("PerSourcePenalties no")  # every client comes from a loopback address
    return "\n".join(lines) + "\n"


def sftp_server() -> str:
    paths = [f"{folder}/sftp-server" for folder in SFTP_SERVERS]
    return next((path for path in paths if os.access(path, os.X_OK)), "internal-sftp")


def sshd_version(sshd: str) -> tuple[int, int]:
    done = subprocess.run([sshd, "-V"], capture_output=True, text=True, errors="replace")
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", done.stderr + done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def root_is_locked() -> bool:
    """Without PAM sshd refuses a root whose password is locked (`!`), though no password is asked for."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text(errors="replace").splitlines():
            if line.startswith("root:!"):
                return True
    return False


def check_keys(settings: Settings) -> None:
    for name in (f"host_keys/{settings.node}", f"host_keys/{settings.node}.pub", "client.pub"):
        path = settings.ssh_dir / name
        if not path.is_file():
            raise HostError(f"{path} is missing: keys are made before the node")
        info = path.stat()
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise HostError(f"{path} can be written by others (hint: chmod go-w)")


def check_port(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise HostError(f"cannot listen on {address}:{port}: {error.strerror}") from None
            raise HostError(f"{address}:{port} is taken by {listener(port)}") from None


def listener(port: int) -> str:
    """Who listens on the port, as far as this user may see."""
    wanted = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    wanted.add(f"socket:[{fields[9]}]")
    for pid in processes():
        with contextlib.suppress(OSError):
            if any(target(f"/proc/{pid}/fd/{name}") in wanted for name in os.listdir(f"/proc/{pid}/fd")):
                return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return "another process"


def target(link: str) -> str:
    """Where it points; empty when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def greeting(settings: Settings) -> str:
    """What this node's sshd says to everybody: another that got the port meanwhile is not the node."""
    host_key = settings.ssh_dir / "host_keys" / f"{settings.node}.pub"
    return "nexa-" + hashlib.sha256(host_key.read_bytes()).hexdigest()[:16]


def answers(address: str, port: int, greeting: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5) as connection:
        return connection.makefile("rb").readline(255).rstrip().endswith(greeting.encode())
    return False


# --- verbs -------------------------------------------------------------------------------------


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
