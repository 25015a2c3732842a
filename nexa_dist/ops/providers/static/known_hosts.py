"""Host keys of the user's own hosts. Nothing is believed because a host says so: somebody vouches for every key, the
cluster's file, the user's known_hosts, or the user when asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.static.record import Record
from nexa_dist.plan.static import known_hosts as plan
from nexa_dist.plan.static.cluster import static_cluster
from nexa_dist.plan.static.known_hosts import ALGORITHMS, Adopted, HostKey
from nexa_dist.run import files
from nexa_dist.run.ssh import known_hosts as run
from nexa_dist.run.ssh.connections import Ssh, on_all
from nexa_dist.run.ssh.options import USER_FILES
from nexa_dist.run.workspace import ClusterFolder

NO = "do not log in there until you know why; if the host was made anew, give its key as host_key in the cluster's file"


def find(ctx: Context, config: ClusterConfig) -> list[Adopted]:
    """The key of every host, in node order; `by` is empty where nobody vouches for it yet. Nothing is written.

    A key that was adopted before stays, unless the file names another. Raises NexaError, with every host that does not
    answer or shows another key than it should.
    """
    folder = ctx.workspace.cluster(config.name)
    known = Record.of(folder).keys()
    users = static_cluster(config, PurePath("/"))
    given = {node.name: host.host_key or "" for node, host in zip(users.nodes, config.cluster, strict=True)}

    def one(node: Node) -> Adopted:
        _refuse_what_ssh_does_not_quote(ctx, users, folder, node)
        old, wanted = known.get(node.name), given[node.name]
        if old and old.address == f"{node.address}:{node.port}" and (not wanted or plan.fits(wanted, old.key)):
            return old
        ask = _Asked(ctx, config, node)
        return ask.named(wanted) if wanted else ask.known()

    found = on_all(users.nodes, one)
    if faults := plan.same_place([(one.node, one.key) for one in found]):
        raise NexaError("\n".join(faults), hint="name each host once in `cluster`")
    return found


def _refuse_what_ssh_does_not_quote(ctx: Context, users: Cluster, folder: ClusterFolder, node: Node) -> None:
    """Refuse a path that ssh does not quote: for a jump host ssh calls itself through a shell, with the path of its
    configuration as it is."""
    paths = (users.ssh_config, str(folder.path))
    if all(shlex.quote(path) == path for path in paths if path):
        return
    if run.settings(Ssh(ctx.runner, users, "/nonexistent"), node).get("proxyjump", "none") != "none":
        raise UsageError(
            f"{node.name} ({node.address}) is behind a jump host, and ssh then takes no path with spaces or quotes: "
            + " or ".join(path for path in paths if path),
            hint="move the workspace and ssh_config, or say ProxyCommand ssh -W %h:%p JUMP instead of ProxyJump",
        )


class _Asked:
    """One host, asked for its key."""

    def __init__(self, ctx: Context, config: ClusterConfig, node: Node) -> None:
        self.runner, self.node = ctx.runner, node
        self.cluster = static_cluster(config, PurePath("/"))

    def named(self, wanted: str) -> Adopted:
        """The key that the file names, if the host has it."""
        shown: list[HostKey] = []
        for kind in plan.kinds_to_ask(wanted):
            if line := run.shown(self.runner, self.cluster, self.node, ALGORITHMS[kind]):
                shown.append(HostKey.of_line(line))
                if plan.fits(wanted, shown[-1]):
                    return self._adopted(shown[-1], "the file")
        has = ", ".join(f"{key.kind} {key.fingerprint}" for key in shown) or "no key of that type"
        raise NexaError(f"{self._who} is not the host that the file names: it has {has}; host_key is {wanted}", hint=NO)

    def known(self) -> Adopted:
        """The key that it shows, and whether the user's own ssh knows it."""
        debug = run.judged(self.runner, self.cluster, self.node)
        state, kind, fingerprint = plan.verdict(debug.err.decode(errors="replace"))
        if not state:
            raise run.silent(self.node, debug)
        if state == "changed":
            raise NexaError(
                f"{self._who} shows the key {kind} {fingerprint}, which is not the one in your known_hosts", hint=NO
            )
        line = run.shown(self.runner, self.cluster, self.node, ALGORITHMS.get(kind, kind))
        key = HostKey.of_line(line) if line else None
        if key is None or key.fingerprint != fingerprint:
            raise NexaError(f"{self._who} showed two different keys within a second", hint=NO)
        return self._adopted(key, "known_hosts" if state == "known" else "")

    def _adopted(self, key: HostKey, by: plan.By) -> Adopted:
        return Adopted(self.node.name, f"{self.node.address}:{self.node.port}", key, by)

    @property
    def _who(self) -> str:
        return f"{self.node.name} ({self.node.address})"


def pin(folder: ClusterFolder, config: ClusterConfig, adopted: Sequence[Adopted]) -> None:
    """Pins the adopted keys for these hosts: in the cluster's folder, not in the user's ~/.ssh."""
    pinned = folder.ssh / "known_hosts"
    files.write_text(pinned, plan.known_hosts(one.key for one in adopted), 0o600)
    users = [config.ssh_config] if config.ssh_config else USER_FILES
    text = plan.ssh_config([host.host for host in config.cluster], str(pinned), users)
    files.write_text(folder.ssh_config, text, 0o600)
