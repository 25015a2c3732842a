"""nexa snapshot: what every node has, the configs and the code, in one file that is named by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nexa_dist import remote
from nexa_dist.config.load import load_cluster, resolved
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan.runs.snapshot import VERSION, digest
from nexa_dist.run import bundle, files, git
from nexa_dist.run.code import archive
from nexa_dist.run.ssh.connections import Link, by_node, connect, session
from nexa_dist.run.ssh.program import run_program
from nexa_dist.secrets import redact_text
from nexa_dist.shape import record, rows, shown, table, text

PINS = ("configs/pins.yaml", "docker/lock/train.txt", "docker/cuda_torch.txt")
"""Files of ours that decide what a bootstrap installs."""
VERSIONS = ("packages", "freeze")
_VERSIONS = table(text(200), text(200), 20_000)
FACTS = record(
    {
        **dict.fromkeys(("system", "kernel", "machine", "driver", "python"), text(200)),
        "gpus": rows(text(200), 64),
        **dict.fromkeys(VERSIONS, _VERSIONS),
    }
)
FILE = record({"version": lambda value: value, "sha256": text(64, "[0-9a-f]{64}"), "nodes": table(text(64), FACTS, 64)})


def take(ctx: Context, cluster: Cluster) -> dict[str, Any]:
    """The cluster as it is now; every node has to answer. Nothing in it is a secret."""

    def facts(link: Link) -> dict[str, Any]:
        said = run_program(link, remote.SNAPSHOT.read_bytes(), {}, FACTS, reads=True)
        # By their shape alone: a package may well be called libsecret.
        hidden = {key: {name: redact_text(version) for name, version in said[key].items()} for key in VERSIONS}
        return {**said, **hidden}

    with session(ctx.runner, cluster) as ssh:
        nodes = by_node(connect(ssh), facts)
    project = archive.project(ctx.runner, ctx.workspace.root)
    sent = {file.name: file.content for file in project.files}
    config = ctx.workspace.cluster(cluster.name).path / "config.json"
    ours = {name: hashlib.sha256((bundle.root() / name).read_bytes()).hexdigest() for name in PINS}
    found = {
        "version": VERSION,
        "cluster": {
            "name": cluster.name, "provider": cluster.provider, "region": cluster.region, "env_hash": cluster.env_hash,
        },
        "config": resolved(load_cluster(config)) if config.exists() else {},
        "pins": ours,
        "code": {
            "project": project.hash,
            "package": archive.package().hash,
            "git_commit": git.commit(ctx.runner, ctx.workspace.root, sent),
        },
        "nodes": nodes,
    }  # fmt: skip
    return {**found, "sha256": digest(found), "at_unix": round(ctx.now(), 3)}


def keep(ctx: Context, cluster: Cluster, snapshot: dict[str, Any]) -> Path:
    """Stores the snapshot by its name; the runs that begin on a provisioned cluster from now on refer to it."""
    path = folder(ctx) / f"{snapshot['sha256'][:16]}.json"
    files.write_json(path, snapshot)
    place = ctx.workspace.cluster(cluster.name)
    if place.json.exists():
        files.write_json(place.newest_snapshot, {key: snapshot[key] for key in ("sha256", "at_unix")})
    return path


def folder(ctx: Context) -> Path:
    return ctx.workspace.root / ".nexa" / "snapshots"


def read(ctx: Context, named: str) -> dict[str, Any]:
    """A snapshot by its file, or by (the beginning of) its name. Raises UsageError, also when it was changed."""
    kept = [path for path in folder(ctx).glob("*.json") if len(named) >= 4 and path.stem.startswith(named[:16])]
    path = Path(named) if Path(named).is_file() else kept[0] if len(kept) == 1 else None
    if path is None:
        known = ", ".join(sorted(path.stem for path in folder(ctx).glob("*.json"))[:10]) or "none"
        raise UsageError(f"there is no snapshot {named!r}", hint=f"a file that nexa snapshot -o wrote; kept: {known}")
    try:
        found = files.read_object(path)
        if "version" in found and found["version"] != VERSION:
            told = f"{path} is a snapshot of version {shown(found['version'])}, and this nexa reads {VERSION}"
            raise UsageError(told, hint="read it with the nexa that wrote it, or take another one")
        files.read_shape(path, FILE)
    except NexaError as error:  # 1 would be the exit code of a difference
        raise UsageError(str(error), hint=error.hint or "take another one: nexa snapshot") from None
    if digest(found) != found["sha256"]:
        raise UsageError(f"{path} is not as nexa snapshot wrote it", hint="take another one: nexa snapshot")
    return found
