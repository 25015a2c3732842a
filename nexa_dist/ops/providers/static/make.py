"""The user's own hosts as a cluster: looked at, and claimed.

What is added lies below the cluster's three folders, so the login user does it all; only `system_changes` (or a mesh)
asks for root.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from nexa_dist import remote, wire
from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Node, absolute
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.contract import Made, Wish
from nexa_dist.ops.providers.static import known_hosts as static_known_hosts
from nexa_dist.ops.providers.static.record import Host, Record
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan import told
from nexa_dist.plan.static.cluster import judge, settled, static_cluster
from nexa_dist.plan.static.known_hosts import Adopted
from nexa_dist.run import agent_file
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh import connections
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.run.ssh.known_hosts import settings
from nexa_dist.run.workspace import ClusterFolder

NO_PYTHON = 97
TMP = "/tmp/nexa-"  # noqa: S108  (with 128 random bits, and only until the bootstrap ends)
START = (
    'p=$1; case $p in "~/"*) p=$HOME/${p#??};; esac; '
    f'command -v "$p" >/dev/null || exit {NO_PYTHON}; exec "$p" -I -S -c "$2" "$3"'
)
READ = (
    "import json, sys; inside = {'__name__': 'footprint'}; given = sys.stdin.buffer; "
    "exec(compile(given.read(int(sys.argv[1])), 'footprint.py', 'exec'), inside); inside['main'](json.load(given))"
)


def make(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Made:
    """Adopts the keys, looks at every host, and claims the folders on it. Raises NexaError with all that is wrong,
    before anything is changed there."""
    users = static_cluster(config, PurePath("/"))
    record = _opened(ctx, folder, config, users, wish.adopted)
    reached = replace(users, ssh_config=str(folder.ssh_config))
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    with connections.session(ctx.runner, reached) as ssh:
        with ctx.phase(f"look at {len(reached.nodes)} hosts"):
            ask = {"act": "look", "folders": _folders(users), "find_links": wheels}
            looks = connections.by_node(reached.nodes, lambda node: call(ssh, node, config.python, ask))
        if faults := judge(looks, install=config.system_changes):
            raise NexaError(
                "the hosts are not ready:\n" + "\n".join(faults), hint="nothing was changed on them; mend this first"
            )
        for name, look in looks.items():
            told.path(name, "home folder", look["home"])
            told.path(name, "interpreter", look["python"])
            told.python(name, ".".join(map(str, look["version"][:2])))
        record = _seen(record, looks, _folders(users))
        addresses = {node.name: settings(ssh, node)["hostname"] for node in reached.nodes}
        made = settled(users, config, addresses, reached.ssh_config, env_hash(_python_of(looks)))
        made = replace(made, created_unix=folder.load().created_unix if folder.json.exists() else ctx.now())
        stale = record.tmp
        record = replace(
            record,
            tmp=TMP + secrets.token_hex(16),
            cluster=made.to_json(),
            envs=tuple({*record.envs, made.env_hash}),
            agents=tuple({*record.agents, agent_file.digest()}),
        )
        record.save(folder)
        with folder.journalled("claim", hosts=list(looks)):
            claims = {name: claim(record.id, name, host) for name, host in record.hosts.items()}
            connections.on_all(
                made.nodes, lambda node: call(ssh, node, config.python, {**claims[node.name], "tidy": stale})
            )
    return Made(
        cluster=made,
        homes={name: look["home"] for name, look in looks.items()},
        variables=_variables(ctx, config, record, wheels, looks),
        each={
            name: {"ansible_python_interpreter": look["python"], "nexa_python": look["python"]}
            for name, look in looks.items()
        },
    )


def _opened(
    ctx: Context, folder: ClusterFolder, config: ClusterConfig, users: Cluster, adopted: Sequence[Adopted]
) -> Record:
    """The record with these keys, saved and pinned. Raises UsageError when the file does not go on from it."""
    old = Record.of(folder)
    for name, host in old.claimed.items():
        now = next((node for node in users.nodes if node.name == name), None)
        if now is None or f"{now.address}:{now.port} {now.user}" != f"{host.adopted.address} {host.user}":
            raise UsageError(
                f"{name} ({host.adopted.address}) is provisioned, and the file does not list it so any more",
                hint="nexa teardown first, or put it back: what was added there would be left behind",
            )
        if _folders(users) != host.folders:
            raise UsageError(
                f"cluster {config.name} was provisioned with other folders: {', '.join(host.folders.values())}",
                hint="nexa teardown first, or put scratch, shared and durable back",
            )
    if unknown := [one.node for one in adopted if not one.by]:
        raise UsageError(f"nobody vouches for the host keys of {', '.join(unknown)}")
    hosts = {}
    for one, node in zip(adopted, users.nodes, strict=True):
        known = old.hosts.get(node.name)
        kept = known if known and node.name in old.claimed else Host(one, node.user)
        hosts[node.name] = replace(kept, adopted=one)
    record = replace(
        old,
        id=old.id or f"{our_tag(ctx)}.{config.name}".replace("/", "_"),
        hosts=hosts,
        cluster=old.cluster if old.claimed else users.to_json(),
        python=config.python,
        system_changes=old.system_changes or config.system_changes,
    )
    with folder.journalled("pin host keys", keys={one.node: f"{one.key.fingerprint} ({one.by})" for one in adopted}):
        record.save(folder)
        static_known_hosts.pin(folder, config, adopted)
    return record


def call(ssh: Ssh, node: Node, python: str, message: dict[str, Any], timeout_s: float = 120.0) -> dict[str, Any]:
    """One act of remote/footprint.py on a host. Raises NexaError in its words."""
    source = remote.FOOTPRINT.read_bytes()
    argv = ("sh", "-c", START, "sh", python, READ, str(len(source)))
    done = ssh.run(node, argv, source + json.dumps(message).encode(), timeout_s)
    who = f"{node.name} ({node.address})"
    if done.code == NO_PYTHON:
        raise NexaError(
            f"{who}: {python} is not there",
            hint="sudo apt-get install -y python3 python3-venv rsync, or name another with python: in the file",
        )
    if done.code:
        raise CommandFailed(f"{who}: {message['act']}", done)
    check = wire.failed_or(wire.CLAIMS[message["act"]])
    try:
        answer = dict(wire.said(node.name, f"its answer to {message['act']}", done.out, check))
    except wire.Mute:
        raise connections.talkative(node, done) from None
    if "error" in answer:
        raise NexaError(f"{who}: {answer['error']}")
    return answer


def _folders(cluster: Cluster) -> dict[str, str]:
    layout = cluster.layout
    return {"scratch": layout.scratch, "shared": layout.shared, "durable": layout.durable}


def _seen(record: Record, looks: dict[str, dict[str, Any]], folders: dict[str, str]) -> Record:
    """The record with what each host was like; of one that is claimed, what it was like then."""
    hosts = {}
    for name, host in record.hosts.items():
        look = looks[name]
        fresh = replace(
            host,
            home=look["home"],
            missing=tuple(look["missing"]),
            before={path: tuple(names) for path, names in look["before"].items()},
            folders=folders,
            claimed=True,
        )
        hosts[name] = host if host.claimed else fresh
    return replace(record, hosts=hosts)


def claim(ident: str, name: str, host: Host) -> dict[str, Any]:
    """The message by which a host is claimed, and given back."""
    folders = {kind: absolute(path, host.home) for kind, path in host.folders.items()}
    return {
        "act": "claim",
        "id": f"{ident}.{name}",
        "folders": folders,
        "missing": list(host.missing),
        "before": {path: list(names) for path, names in host.before.items()},
    }


def _python_of(looks: dict[str, dict[str, Any]]) -> str:
    """major.minor, which `judge` found to be the same everywhere."""
    major, minor, _ = next(iter(looks.values()))["version"]
    return f"{major}.{minor}"


def _variables(
    ctx: Context, config: ClusterConfig, record: Record, wheels: str, looks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    there = "://" in wheels or all(look["has_wheels"] for look in looks.values())
    if wheels and not there:
        ctx.detail("UV_FIND_LINKS names a folder that the hosts do not have: they use their own package index")
    return {
        "nexa_provider": "static",
        "nexa_root": config.system_changes,
        "base_install": config.system_changes,
        "ansible_remote_tmp": record.tmp,  # by itself Ansible leaves ~/.ansible behind
        **({"nexa_uv_find_links": wheels} if wheels and there else {}),
    }


@contextlib.contextmanager
def tidied(ctx: Context, folder: ClusterFolder, hosts: Made) -> Iterator[None]:
    """Removes Ansible's own files from the hosts when the block ends; what a killed one leaves goes the next time."""
    try:
        yield
    finally:
        record = Record.of(folder)
        ask = {"act": "tidy", "tidy": record.tmp}
        with connections.session(ctx.runner, hosts.cluster) as ssh, contextlib.suppress(NexaError):
            connections.on_all(hosts.cluster.nodes, lambda node: call(ssh, node, record.python, ask))
