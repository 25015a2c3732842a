"""A node's sshd: its configuration, its keys, its port, and who answers there. Standard library, Python 3.9+."""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from folder import Settings
from processes import HostError, processes

SFTP_SERVERS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")

# Every session starts in the node's home, not in the home that the password file gives.
FORCE_COMMAND = (
    'exec /bin/sh -c \'cd && c="$SSH_ORIGINAL_COMMAND" && unset SSH_ORIGINAL_COMMAND OLDPWD && '
    'if [ -n "$c" ]; then exec "$SHELL" -c "$c"; else exec "$SHELL" -l; fi\''
)


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
