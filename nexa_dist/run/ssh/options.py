"""What ssh is given by us and what it says: its options, a config file, a private folder, a refusal in plain words."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from collections.abc import Sequence

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh import consent
from nexa_dist.traits import Traits

SSH_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ControlMaster=auto",
    "ControlPersist=60",
    # What OpenSSH 9.0 to 9.8 would take first costs 0.1 s of CPU for every connection. The rest stays on offer.
    "KexAlgorithms=^curve25519-sha256",
    # The user's own settings count for how a host is reached (jump hosts, keys, the agent for the login). These would
    # change what a command does or answers there, take a port here, or lend a node what is ours.
    "RequestTTY=no",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "Tunnel=no",
    "LogLevel=ERROR",
)
USER_FILES = (f"{consent.home()}/.ssh/config", "/etc/ssh/ssh_config")
"""Files that ssh reads by itself, but not when it is given a file."""
_UNQUOTED = re.compile(r"[\"\\%$\x00-\x1f]")


def own_folder(path: str) -> None:
    """Makes a folder in /tmp, or finds it. Raises NexaError when it is not ours alone: its sockets are open logins."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    told = os.lstat(path)
    if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.geteuid() or told.st_mode & 0o077:
        raise NexaError(f"{path} was taken by somebody else meanwhile", hint="start the command again")


def ssh_config_of(user_files: Sequence[str]) -> str:
    """Config that says what these files say, but lets no variable of ours go along: `SendEnv` can only be taken back
    after it was given, so not on the command line."""
    if bad := next((path for path in user_files if _UNQUOTED.search(path)), ""):
        raise UsageError(f"{bad!r} is no path that ssh can be given", hint="name another ssh_config")
    include = [f'    Include "{glob.escape(path)}"' for path in user_files]
    return "\n".join(["Host *", *include, "    SendEnv -*"]) + "\n"


def refusal(result: Result, traits: Traits) -> tuple[str, str]:
    """Why there is no connection, and what to do. ssh's own words about a changed key begin with a command that would
    forget the pinned one: they are left out."""
    text = result.err.decode(errors="replace")
    if re.search(r"No \S+ host key is known for", text):
        return f"no host key of it is known here. ssh says: {result.tail(2)}", (
            "nexa provision adopts it; or log in once with ssh, and compare the key that it shows"
        )
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text or "verification failed" in text:
        shown = re.search(r"SHA256:[A-Za-z0-9+/]{43}", text)
        return (
            "the host key is not the pinned one, so it may be another machine; nothing was sent to it"
            + (f" (it shows {shown[0]})" if shown else "")
            + f". ssh says: {result.tail(1)}",
            f"do not connect until you know why; then: {traits.anew}",
        )
    return result.tail(3), ssh_hint(result)


def ssh_hint(result: Result) -> str:
    text = result.err.decode(errors="replace")
    if "Permission denied" in text:
        return "check the user and the key in ssh_config, or load the key with ssh-add"
    return "is the host up, and reachable from here?"
