"""The clocks by which nodes switch themselves off, as far as a controller has a hand in them.

A node counts by its own clock since nobody may be there to tell it; a living controller renews the lease, and sets
another deadline when the budget allows more or less. Nodes of your own have no such clock.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nexa_dist.run.periodic import PeriodicTask
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh.connections import Link, Ssh, asked, by_node

TIMEOUT_S = 20.0
FOLDER = "d=${NEXA_DEADLINE_DIR:-/var/lib/nexa}; "
SIGN_SH = FOLDER + (
    '[ -e "$d/due_unix" ] || exit 0; for name; do touch -c "$d/$name" || exit; done; '
    'acts=$(cat "$d/acts_unix" 2>/dev/null) || exit 0; echo "$((acts - $(date +%s)))"'
)
EXTEND_SH = FOLDER + (
    '[ -e "$d/due_unix" ] || { echo "it has none" >&2; exit 1; }; '
    '[ -w "$d" ] && exec "$d/deadline" extend "$@"; exec sudo -n "$d/deadline" extend "$@"'
)


@dataclass(frozen=True)
class Signs:
    """Answers to a renewal of the lease, by node."""

    left_s: Mapping[str, int | None]
    """Seconds until the node switches itself off as things stand; None without a clock."""
    silent: Mapping[str, str]
    """Nodes whose lease was not renewed, and why."""


def renew_every_s(lease_s: float) -> float:
    """Renewal interval: a tenth of the lease, within 5 to 60 s, so that a few missed renewals do not let it expire."""
    return max(5.0, min(60.0, lease_s / 10))


def doors(ssh: Ssh) -> list[Link]:
    """Links for lease, busy mark and deadline, to nodes that may not have the agent yet."""
    return [Link(ssh, node, "") for node in ssh.cluster.nodes]


def renew(links: Sequence[Link], *, busy: bool = False) -> Signs:
    """Renews the lease of every node, all at once, in one short command each. `busy`: they are also in use, though no
    run is there to say so (a bootstrap). A node that cannot be told is no error: this is to be called again."""
    words = ("lease", "busy") if busy else ("lease",)

    def tell(link: Link) -> int | None:
        answer = link.ssh.run(link.node, ("sh", "-c", SIGN_SH, "sh", *words), timeout_s=TIMEOUT_S)
        said = answer.out.decode(errors="replace").strip()
        if answer.code or not re.fullmatch(r"(?:-?[0-9]{1,12})?", said):
            raise CommandFailed(f"{link.name}: renewing its lease", answer)
        return int(said) if said else None

    return Signs(*asked(links, tell))


@contextlib.contextmanager
def in_use(links: Sequence[Link], every_s: float = 20.0) -> Iterator[None]:
    """Renews lease and busy marks while the block runs (a bootstrap, an upload), so that it trips neither lease_minutes
    nor idle_minutes."""

    def tell() -> str:
        renew(links, busy=True)
        return ""

    task = PeriodicTask(tell, every_s)
    task.start()
    try:
        yield
    finally:
        task.close()


def rearm(links: Sequence[Link], due_unix: float, max_s: float | None = None) -> dict[str, int]:
    """Sets the deadline of every node; answers the one in force by node, which is earlier where `max_s` (seconds from
    its first boot; as it was if None) does not allow `due_unix`. Raises NexaError with every node that failed."""
    words = [str(max(1, int(at))) for at in (due_unix, max_s) if at is not None]

    def tell(link: Link) -> int:
        answer = link.ssh.run(link.node, ("sh", "-c", EXTEND_SH, "sh", *words), timeout_s=TIMEOUT_S)
        said = answer.out.decode(errors="replace").strip()
        if answer.code or not re.fullmatch(r"[0-9]{1,12}", said):
            raise CommandFailed(f"{link.name}: setting its deadline", answer)
        return int(said)

    return by_node(links, tell)
