"""Asks hosts for their key through the user's own ssh (aliases, jump hosts, proxies), with nothing offered to them:
ssh-keyscan knows none of these. Until a key is adopted no login is tried.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from nexa_dist.model import Cluster, Node
from nexa_dist.run.runner import CommandFailed, Result, Runner
from nexa_dist.run.ssh.connections import Ssh, Unreachable
from nexa_dist.run.ssh.options import refusal
from nexa_dist.traits import TRAITS

NO_LOGIN = (
    "-oPreferredAuthentications=none",
    "-oControlMaster=no",
    "-oControlPath=none",
    "-oConnectTimeout=10",
)


def judged(runner: Runner, cluster: Cluster, node: Node) -> Result:
    """Ask the user's ssh about the host's key, at debug level. `cluster` has the user's own ssh_config."""
    return _ask(runner, cluster, node, "-oStrictHostKeyChecking=yes", "-oLogLevel=DEBUG1")


def shown(runner: Runner, cluster: Cluster, node: Node, algorithms: str) -> str:
    """The line of known_hosts for the key that the host shows; empty when it has none of these types. Raises
    Unreachable when it does not answer."""
    with tempfile.TemporaryDirectory(prefix="nexa-key-") as folder:
        file = Path(folder) / "known_hosts"
        asked = _ask(
            runner,
            cluster,
            node,
            "-oStrictHostKeyChecking=accept-new",  # into this file, which nothing else reads
            f"-oUserKnownHostsFile={file}",
            "-oGlobalKnownHostsFile=none",
            "-oHashKnownHosts=no",
            "-oCheckHostIP=no",
            f"-oHostKeyAlgorithms={algorithms}",
            "-oLogLevel=INFO",
        )
        line = file.read_text(encoding="ascii").strip() if file.exists() else ""
    if not line and b"no matching host key type" not in asked.err:
        raise silent(node, asked)
    return line


def settings(ssh: Ssh, node: Node) -> dict[str, str]:
    """Settings of the user's ssh for a host: `hostname` (the address behind his name for it), `proxyjump`, …"""
    told = ssh.runner.run(ssh.argv(node, "-G"), timeout_s=10)
    if told.code:
        raise CommandFailed(f"{node.name}: ssh -G", told)
    return dict(line.partition(" ")[::2] for line in told.out.decode(errors="replace").splitlines())


def silent(node: Node, asked: Result) -> Unreachable:
    lines = [line for line in asked.err.decode(errors="replace").splitlines() if not line.startswith("debug")]
    said, hint = refusal(replace(asked, out=b"", err="\n".join(lines).encode()), TRAITS["static"])
    said = said or f"ssh ended with exit code {asked.code}"
    return Unreachable(f"node {node.name} ({node.address}) shows no host key: {said}", hint=hint)


def _ask(runner: Runner, cluster: Cluster, node: Node, *options: str) -> Result:
    argv = Ssh(runner, cluster, "/nonexistent").argv(node, *NO_LOGIN, *options)
    return runner.run((*argv, "true"), timeout_s=60)
