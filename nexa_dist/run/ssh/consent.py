"""Programs that an ssh_config names (ProxyCommand, Match exec, …) are started by ssh before any host is reached.

The user's own files in ~/.ssh and /etc/ssh may name some; any other file only after `nexa trust FILE`, for as long as
its content stays the same.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pwd
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nexa_dist.errors import UsageError
from nexa_dist.run import files, trust

HARMLESS = frozenset(  # one word a line would be a page
    """
    addkeystoagent addressfamily batchmode bindaddress bindinterface canonicaldomains canonicalizefallbacklocal
    canonicalizehostname canonicalizemaxdots canonicalizepermittedcnames casignaturealgorithms certificatefile
    checkhostip ciphers clearallforwardings compression connectionattempts connecttimeout controlmaster controlpath
    controlpersist dynamicforward enableescapecommandline enablesshkeysign escapechar exitonforwardfailure
    fingerprinthash forkafterauthentication forwardagent forwardx11 forwardx11timeout forwardx11trusted gatewayports
    globalknownhostsfile gssapiauthentication gssapidelegatecredentials hashknownhosts host
    hostbasedacceptedalgorithms hostbasedauthentication hostkeyalgorithms hostkeyalias hostname identitiesonly
    identityagent identityfile ignoreunknown ipqos kbdinteractiveauthentication kexalgorithms localforward loglevel
    macs nohostauthenticationforlocalhost numberofpasswordprompts obscurekeystroketiming passwordauthentication
    permitlocalcommand permitremoteopen port preferredauthentications protocol proxyjump pubkeyacceptedalgorithms
    pubkeyacceptedkeytypes pubkeyauthentication rekeylimit remotecommand remoteforward requesttty requiredrsasize
    revokedhostkeys sendenv serveralivecountmax serveraliveinterval sessiontype setenv stdinnull streamlocalbindmask
    streamlocalbindunlink stricthostkeychecking syslogfacility tag tcpkeepalive tunnel tunneldevice updatehostkeys
    user userknownhostsfile verifyhostkeydns visualhostkey
    """.split()  # noqa: SIM905
)
"""Keywords that start nothing on this machine. Any other one, also one that a later ssh will bring, needs consent."""
DEPTH = 16
"""Depth of files that include files, as ssh has it."""
LARGEST = 1 << 20


@dataclass
class _Reading:
    """Findings in a file and in what it includes."""

    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    named: list[str] = field(default_factory=list)


def programs(path: str) -> tuple[list[str], str]:
    """`file:line: text` of everything that may start a program, and the hash under which consent is kept."""
    reading = _Reading()
    _read(Path(path), reading, 0)
    return reading.named, reading.digest.hexdigest()


def refuse_unconsented(path: str) -> None:
    """Raises Unconsented when this ssh_config names programs that the user was never asked about, and Foreign when it
    is of a cluster that was not made here."""
    trust.refuse_foreign_file(path)
    named, digest = programs(path)
    if named and not note(path, digest).exists():
        more = [f"and {len(named) - 5} more"] if len(named) > 5 else []
        raise Unconsented(
            "\n".join([f"{path} names what ssh would start on this machine:", *map(plain, named[:5]), *more]),
            hint=f"nexa trust {shlex.quote(path)} allows it until the file changes",
            question="may ssh start it?",
            allow=partial(keep, path, digest),
        )


def keep(path: str, digest: str) -> None:
    """Notes the user's word for this content of the path."""
    place = note(path, digest)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_text(place, f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {os.path.realpath(path)}\n", 0o600)


class Unconsented(UsageError):
    """Something would start programs on this machine, and the user was never asked about it: `question` asks, `allow`
    keeps the word for what was looked at."""

    def __init__(self, message: str, *, hint: str, allow: Callable[[], object], question: str = "may it?") -> None:
        super().__init__(message, hint=hint)
        self.question, self.allow = question, allow


def plain(line: str) -> str:
    """A line of somebody else's as people may see it: it can rewrite no terminal."""
    return line if line.isprintable() else ascii(line)


def note(path: str, digest: str) -> Path:
    """File that keeps the user's word for this content of the path."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + digest.encode()).hexdigest()
    return trust.state() / "allowed" / key


def home() -> str:
    """Folder in which ssh looks for the user's own files: not HOME."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container's user without a name, for whom ssh does nothing
        return str(Path.home())


def _is_users(path: Path) -> bool:
    """Tell whether this is one of the user's or the system's own files, which ssh reads without us; a link there
    counts."""
    homes = {str(Path.home()), home()}
    return ".." not in path.parts and path.is_relative_to("/etc/ssh") | any(
        path.is_relative_to(f"{home}/.ssh") for home in homes
    )


def _read(path: Path, reading: _Reading, depth: int) -> None:
    if _is_users(path):
        return
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError:  # ssh will not read it either
        return
    reading.digest.update(b"%d\0" % len(data) + data)
    if len(data) > LARGEST or depth > DEPTH:
        reading.named.append(f"{path}: too long, or included too deeply, to be looked through")
        return
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        text = line.strip(" \t\r\f")
        if not text or text.startswith("#"):
            continue
        keyword, rest = _keyword(text)
        included = _included(rest) if keyword == "include" else None
        for one in included or ():
            _read(one, reading, depth + 1)
        if included is None and not _starts_nothing(keyword, rest):
            reading.named.append(f"{path}:{number}: {text[:200]}")


def _starts_nothing(keyword: str, rest: str) -> bool:
    return keyword in HARMLESS or (keyword == "match" and "exec" not in re.sub(r"[\"'\\]", "", rest).lower())


def _keyword(text: str) -> tuple[str, str]:
    """The first word as ssh reads it: it may be quoted, and end at a space or `=`. One that is empty is not harmless:
    ssh goes on to the next."""
    if text.startswith('"'):
        keyword, _, rest = text[1:].partition('"')
        return keyword.lower(), rest
    end = next((at for at, char in enumerate(text) if char in ' \t\r="'), len(text))
    return text[:end].lower(), text[end:].lstrip(" \t\r=")


_PLAIN_PATTERN = re.compile(r'(?:[^"\'\\%$[\s]|\[[*?[]\]|"(?:[^"\\%$[]|\[[*?[]\])*"|\s)+')


def _included(patterns: str) -> list[Path] | None:
    """The files that an Include takes; None when ssh may read its patterns otherwise than we do."""
    if not _PLAIN_PATTERN.fullmatch(patterns):
        return None
    words = (os.path.join("~/.ssh", word) if word[0] not in "/~" else word for word in shlex.split(patterns) if word)
    return [Path(found) for w in words for found in sorted(glob.glob(os.path.expanduser(w), include_hidden=True))]
