"""Checks of what one node says and another is given. Each kind of value has one shape; what is not of it is the node's
fault.

docs/SECURITY.md lists them all, also those that Ansible's roles pass on.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nexa_dist.config.paths import bad_characters
from nexa_dist.errors import NexaError

TAILNET = ipaddress.IPv4Network("100.64.0.0/10")
MTUS = range(576, 65536)
"""From what every IPv4 host takes to what an interface can have. One node's is the mesh's on all of them."""
PORTS = range(1, 65536)
LAST_STEP = 10**8
"""A checkpoint's folder is named by eight digits."""
TEMPLATE = ("{{", "{%", "{#")
LONGEST_PATH = 4096


def refused(node: str, what: str, said: Any) -> NoReturn:
    """Raises NexaError; of what the node said only a short, printable part is shown."""
    raise NexaError(
        f"{node} says that its {what} is {ascii(said)[:80]}, which cannot be",
        hint="something on that node does not tell the truth: do not use it until you know why",
    )


def number(node: str, what: str, said: Any, among: range) -> int:
    """`said` as a number of the range; digits in a text count too."""
    if isinstance(said, str) and re.fullmatch(r"[0-9]{1,10}", said):
        said = int(said)
    if type(said) is not int or said not in among:
        refused(node, what, said)
    return int(said)


def mtu(node: str, said: Any) -> int:
    return number(node, "MTU", said, MTUS)


def port(node: str, said: Any) -> int:
    return number(node, "free port", said, PORTS)


def path(node: str, what: str, said: Any) -> str:
    """An absolute path: it comes into Ansible's inventory, which expands what it holds."""
    whole = isinstance(said, str) and said.startswith("/") and len(said) <= LONGEST_PATH
    return str(said) if whole and not bad_characters(said) else refused(node, what, said)


def python(node: str, said: str) -> str:
    """major.minor of an interpreter."""
    return said if re.fullmatch(r"3\.[0-9]{1,2}", said) else refused(node, "Python", said)


def host_key(node: str, said: str) -> str:
    """`type base64` of an ed25519 key, from the first line of its file."""
    key = " ".join(said.split()[:2])
    return key if re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]{68}", key) else refused(node, "host key", said)


def tailnet(said: Mapping[str, str]) -> dict[str, str]:
    """Addresses in the tailnet by node name: of the tailnet's range, and no two nodes with one."""
    found: dict[str, str] = {}
    for node, text in said.items():
        try:
            inside = ipaddress.IPv4Address(text) in TAILNET
        except ValueError:
            inside = False
        if not inside or text in found.values():
            refused(node, "address in the tailnet", text)
        found[node] = text
    return found


def checkpoints(node: str, said: Any, roots: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of {"step", "path", "shards"}: the step goes to every node, and by the path others name their copies and
    remove them, so it is the one that this step has below one of `roots`."""
    found: list[dict[str, Any]] = []
    for row in said if isinstance(said, list) else refused(node, "list of checkpoints", said):
        known = row if isinstance(row, dict) else {}
        step = number(node, "checkpoint's step", known.get("step"), range(LAST_STEP))
        if known.get("path") not in [posixpath.normpath(f"{root}/step_{step:08d}") for root in roots]:
            refused(node, f"checkpoint of step {step}", known.get("path"))
        part = {"shards": known["shards"]} if "shards" in known else {}
        found.append({"step": step, "path": known["path"], **part})
    return found


def no_template(values: Any, where: str = "") -> None:
    """Raises NexaError when a text in `values`, keys too, holds what Ansible would run on the controller."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            no_template(name, where)
            no_template(value, f"{where}.{name}" if where else str(name))
    elif isinstance(values, (list, tuple)):
        for value in values:
            no_template(value, where)
    elif isinstance(values, str) and any(mark in values for mark in TEMPLATE):
        raise NexaError(
            f"{where}: {ascii(values)[:80]} is a template that Ansible would run", hint="give a plain value"
        )
