"""Ways to a node other than its address: over the network that joins the nodes, and through another node."""

from __future__ import annotations

import ipaddress
import shlex
from typing import Literal

from nexa_dist.errors import NexaError
from nexa_dist.model import Node
from nexa_dist.run.ssh.connections import Ssh

PeerWord = Literal["", "mute", "up", "cut", "held"]
"""Word of a peer about a node, as in plan/health/lost.py."""
CONNECT_S = 6
FRESH = ("ControlMaster=no", "ControlPath=none", f"ConnectTimeout={CONNECT_S}")
"""A connection that is shared may be as dead as what it is to prove."""
LIMIT_S = 12.0
ASK = """exec 2>&1
for probe in 1 2; do
  LC_ALL=C timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1" && echo taken && head -c 4 <&3' "$1" "$2" && exit
  [ "$?" != 124 ] || echo "timed out"
done
[ -r /proc/net/tcp ] && [ "$3" ] && ! cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q "$3:[0-9A-F]* 01 " ||
  echo held
exit 1
"""
"""Whether an sshd greets there, or bash's own words, and whether the kernel holds a connection with that address (01 is
ESTABLISHED): when the other end's processes end, their kernel closes all of theirs; a partition closes none."""
CUT = ("timed out", "no route", "unreachable")
UP = ("refused", "reset")
"""Words by which something answers there."""
HELD = ("taken", "held")


def reach(ssh: Ssh, node: Node, *options: str) -> bool:
    """Tell whether a connection of its own, with these ssh options, gets in by the key that is pinned."""
    try:
        return ssh.by(node, *FRESH, *options).run(node, ("true",), timeout_s=LIMIT_S).code == 0
    except NexaError:
        return False


def ask(ssh: Ssh, peer: Node, node: Node) -> PeerWord:
    """Ask a peer about a node. Only the peer's own words count: what is lost on the way to it says nothing."""
    command = ("sh", "-c", ASK, "sh", node.peer_address, str(node.port), in_proc(node.peer_address))
    try:
        answer = ssh.by(peer, *FRESH).run(peer, command, timeout_s=LIMIT_S)
    except NexaError:
        return "mute"
    said = answer.out.decode(errors="replace").lower()
    if answer.code == 0 or any(words in said for words in UP):
        return "up"
    if any(words in said for words in CUT):
        return "held" if any(words in said for words in HELD) else "cut"
    return ""


def in_proc(address: str) -> str:
    """The end of an address as /proc/net/tcp has it: words of 4 bytes, each backwards. "" for a name."""
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        return ""
    return "".join(packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4))


def joined(ssh: Ssh, node: Node) -> tuple[str, ...]:
    """Options for the way over the nodes' own network, which may reach us too (a mesh, a VPN); none where there is no
    other. Names of the user's own hosts are theirs to resolve."""
    if ssh.cluster.traits.users_ssh or node.peer_address == node.address:
        return ()
    return (f"HostName={node.peer_address}",)


def through(ssh: Ssh, peer: Node, node: Node) -> tuple[str, ...]:
    """Options for the way through another node."""
    host = f"[{node.peer_address}]" if ":" in node.peer_address else node.peer_address
    command = shlex.join(ssh.by(peer).argv(peer, *(f"-o{option}" for option in FRESH), "-W", f"{host}:{node.port}"))
    return (f"ProxyCommand={command.replace('%', '%%')}",)
