"""Host keys of the user's own hosts: which one counts for a host, and the ssh_config that lets no other count."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Known = Literal["known", "unknown", "changed", ""]
"""The user's own ssh about the key that a host showed; empty when the host showed none."""
By = Literal["the file", "known_hosts", "asked", ""]
"""Voucher for a key; empty while nobody does."""

SERVER_KEY = re.compile(r"Server host (?:key|certificate): (\S+?)(?:-cert-v01@openssh\.com)? (SHA256:\S+?)(?:,|\s|$)")
ALGORITHMS: Mapping[str, str] = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "ssh-rsa": "rsa-sha2-512,rsa-sha2-256",
}
"""Algorithms that ssh is to ask for to be shown a key of a type. The first is the one that it would be shown by itself.
"""


@dataclass(frozen=True)
class HostKey:
    """A line of known_hosts. `place` is the name by which ssh looks the key up: an alias, a host or [host]:port."""

    place: str
    kind: str
    blob: str

    @classmethod
    def of_line(cls, line: str) -> HostKey:
        place, kind, blob = line.split()[:3]
        return cls(place, kind, blob)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)

    def __str__(self) -> str:
        return f"{self.place} {self.kind} {self.blob}"


@dataclass(frozen=True)
class Adopted:
    """The key that a node is to have, and who said so."""

    node: str
    address: str
    key: HostKey
    by: By

    @property
    def row(self) -> dict[str, str]:
        """Row of the key for a table."""
        return {
            "node": self.node,
            "host": self.address,
            "key": self.key.kind,
            "fingerprint": self.key.fingerprint,
            "known by": self.by or "nobody yet",
        }


def fingerprint(blob: str) -> str:
    """Fingerprint of a key given in base64, as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")


def fits(given: str, key: HostKey) -> bool:
    """Tell whether `given` (a fingerprint, or a key) of cluster.yaml is this key."""
    return given == key.fingerprint if given.startswith("SHA256:") else given == f"{key.kind} {key.blob}"


def kinds_to_ask(given: str) -> tuple[str, ...]:
    """Types of key of which one may be the `given` one: a fingerprint does not say of which it is."""
    kind = given.partition(" ")[0]
    return (kind,) if kind in ALGORITHMS else tuple(ALGORITHMS)


def verdict(debug: str) -> tuple[Known, str, str]:
    """Verdict of ssh at LogLevel DEBUG1 with strict checking: how it knows the key, the key's type and fingerprint."""
    shown = SERVER_KEY.search(debug)
    if not shown:
        return "", "", ""
    if "IDENTIFICATION HAS CHANGED" in debug or "REVOKED" in debug:
        return "changed", shown[1], shown[2]
    return ("unknown" if "Host key verification failed" in debug else "known"), shown[1], shown[2]


def same_place(keys: Iterable[tuple[str, HostKey]]) -> list[str]:
    """Faults: nodes that ssh takes for one and the same host."""
    seen: dict[str, str] = {}
    faults = []
    for node, key in keys:
        first = seen.setdefault(key.place, node)
        if first != node:
            faults.append(f"{node} is the same host as {first}: {key.place}")
    return faults


def known_hosts(keys: Iterable[HostKey]) -> str:
    return "".join(f"{key}\n" for key in keys)


def ssh_config(addresses: Sequence[str], pinned: str, user_files: Sequence[str]) -> str:
    """The adopted keys alone count for these hosts; all else (user, key, jump hosts) is as the user's files say.

    `pinned` is the path of known_hosts. The first value that ssh reads is the one that counts, and a jump host that is
    no node is checked as the user's files say.
    """
    lines = [
        "Host " + " ".join(dict.fromkeys(addresses)),
        f'    UserKnownHostsFile "{pinned}"',
        "    GlobalKnownHostsFile none",
        "    StrictHostKeyChecking yes",
        "    VerifyHostKeyDNS no",
        "    UpdateHostKeys no",
        "    CheckHostIP no",
        "Host *",
        *(f'    Include "{_literal(path)}"' for path in user_files),
        "    SendEnv -*",  # none of our variables, whatever the user's files send
    ]
    return "\n".join(lines) + "\n"


def _literal(path: str) -> str:
    """Include takes a pattern, in which `*`, `?` and `[` stand for themselves inside brackets."""
    return re.sub(r"([*?[])", r"[\1]", path)
