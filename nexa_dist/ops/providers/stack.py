"""Provider stack, the user's own Terraform stack in any folder, by the contract.

What is proven less than on aws is said where it matters: no sweep by tag stands behind an empty state, nobody but the
other nodes says whether a machine lives, and what ends the bill with nobody home is the stack's word.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.model import Cluster, Node
from nexa_dist.ops import ledger_file
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.contract import Made, Planned, Wish
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan import stack as planned
from nexa_dist.plan import told as checked
from nexa_dist.plan.health.lost import CloudWord
from nexa_dist.plan.made import in_environment
from nexa_dist.plan.static.cluster import OLDEST_PYTHON
from nexa_dist.plan.static.known_hosts import ALGORITHMS, HostKey, fits, kinds_to_ask
from nexa_dist.run import files, stack_sources
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh import connections, keys, known_hosts
from nexa_dist.run.terraform.settings import binary
from nexa_dist.run.terraform.stack import Terraform
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.shape import number, one_of, record, whole

TRIES = 3
RECORD = "stack.json"
"""Record in the cluster's folder, written before the first apply."""
SHAPE = record(
    {"deadline_unix": whole(1), "created_unix": number(1), "ends_with": one_of("power_off", "provider_limit", "api")}
)
ABOUT = (
    'command -v cloud-init >/dev/null && { cloud-init status --wait >/dev/null 2>&1 || [ "$?" != 1 ] || exit 96; }; '
    'exec "$1" -I -c "$2"'
)
TELL = 'import os, sys; print(os.path.expanduser("~"), sys.executable, "%d.%d" % sys.version_info[:2], sep="\\n")'
UNPROVEN = "no sweep by tag: what the stack made outside of its state is not looked for"


class Stack:
    """A cluster's stack: its sources, its Terraform, and what was written down of it."""

    def __init__(self, ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> None:
        self.ctx, self.folder, self.config, self.wish = ctx, folder, config, wish
        self.terraform = terraform_of(ctx, folder)
        known = recorded(folder) or {}
        now = ctx.now()
        self.created = float(known.get("created_unix", now))
        self.hours = min(
            config.max_hours or math.inf, wish.hours((config.price_usd_per_hour or 0.0) * (config.nodes or 0))
        )
        # One deadline for all, so that a second provision changes no node. One that is over has ended them.
        due = int(known.get("deadline_unix", 0))
        self.deadline = due if due > now else int(now + self.hours * 3600)

    def plan(self) -> dict[str, Any]:
        """Looks at the sources, prepares the copy, plans, and judges it. Nothing is made."""
        self.terraform.settle(self.ctx.detail, interrupt=False)
        if not (self.wish.lost and self.terraform.chdir.exists()):  # in the middle of a run the copy counts
            source = Path(self.config.stack or "")
            sources = stack_sources.read(source)
            stack_sources.refuse_unconsented(source, sources)
            self.known = planned.declared(stack_sources.top(sources))
            self._given("")
            stack_sources.copy(sources, source, self.terraform.chdir)
        self.known = planned.declared(stack_sources.top(stack_sources.read(self.terraform.chdir)))
        keys.ensure_cluster_keys(self.ctx.runner, self.folder.ssh, self.folder.name, ())
        public = (self.folder.ssh / "client.pub").read_text(encoding="ascii").strip()
        self.terraform.prepare(None, self._given(public))
        with self.ctx.phase("terraform: plan"):
            told = self.terraform.plan(self._addresses(self.wish.lost))
        self.ends_with = planned.judged(self.config, told, self.known)
        return told

    def _given(self, public_key: str) -> dict[str, Any]:
        workspace = our_tag(self.ctx)
        tags = planned.labels(self.folder.name, workspace.partition("@")[0], workspace)
        return planned.variables(self.config, self.known, public_key, tags, self.deadline)

    def _addresses(self, lost: Sequence[str]) -> list[str]:
        """Addresses of all that the state holds of these nodes: what hangs on their names."""
        found = []
        for name in lost:
            mine = [address for address in self.terraform.resources() if f'["{name}"]' in address]
            if not mine:
                raise NexaError(
                    f"nothing in the state of the stack {self.config.stack} hangs on the name {name}",
                    hint="make each node by for_each over var.node_names, so that one can be made anew alone",
                )
            found += mine
        return found

    def apply(self) -> list[dict[str, Any]]:
        """Exactly what was planned; the rows of output `nodes`."""
        ctx, folder = self.ctx, self.folder
        self.wish.begin()
        written = {"deadline_unix": self.deadline, "created_unix": self.created, "ends_with": self.ends_with}
        files.write_json(folder.path / RECORD, written)
        act = folder.journalled("create", nodes=self.config.node_names, replace=list(self.wish.lost))
        with ctx.phase(f"terraform: {self.config.nodes} nodes"), act:
            self.terraform.apply_plan(ctx.detail)
        return planned.nodes(self.config, self.terraform.outputs())


def terraform_of(ctx: Context, folder: ClusterFolder) -> Terraform:
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "stack")


def recorded(folder: ClusterFolder) -> dict[str, Any] | None:
    """Record that was written before the first apply; None when there was none, or it is torn."""
    with contextlib.suppress(NexaError):
        if (folder.path / RECORD).exists():
            return dict(files.read_shape(folder.path / RECORD, SHAPE))
    return None


def make(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Made:
    stack = Stack(ctx, folder, config, wish)
    try:
        told = stack.plan()
        _, lines, alarm = planned.forecast(planned.planned_usd_per_hour(config, told), stack.hours, stack.ends_with)
        for line in (*lines, alarm):
            ctx.detail(line) if line else None
        rows = stack.apply()
    finally:
        stack.terraform.plan_file.unlink(missing_ok=True)  # it holds every variable, TF_VAR_… too
    made = planned.cluster(config, rows, stack.ends_with, str(folder.ssh_config), stack.created)
    with ctx.phase("ssh"), folder.journalled("ssh"):
        _pin(ctx, folder, config, made, {row["name"]: row["host_key"] for row in rows})
        about = _about(ctx, config, made)
    versions = {version for _, _, version in about.values()}
    if len(versions) > 1 or tuple(map(int, min(versions).split("."))) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise NexaError(f"the nodes have Python {', '.join(sorted(versions))}; one, of {oldest} or newer, is needed",
                        hint="another image, or python: in the cluster's file")  # fmt: skip
    return Made(
        in_environment(made, env_hash(versions.pop())),
        {name: home for name, (home, _, _) in about.items()},
        {"nexa_root": config.system_changes, "base_install": config.system_changes},
        {name: {"ansible_python_interpreter": python, "nexa_python": python} for name, (_, python, _) in about.items()},
    )


def _pin(ctx: Context, folder: ClusterFolder, config: ClusterConfig, made: Cluster, given: Mapping[str, str]) -> None:
    """Host keys as the stack says them, before the first login: a key as it is, a fingerprint by the key that fits."""
    place = folder.ssh / "host_keys"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    until = time.monotonic() + config.boot_timeout_s

    def one(node: Node) -> None:
        path, wanted = place / f"{node.name}.pub", given[node.name]
        if wanted.startswith("SHA256:"):
            words = files.read_text(path).split()
            if len(words) == 2 and fits(wanted, HostKey("", *words)):
                return
            wanted = _shown(ctx, made, node, wanted, until)
        files.write_text(path, wanted + "\n", 0o600)

    connections.on_all(made.nodes, one)
    keys.write_ssh_config(folder.ssh, made.nodes, {})


def _shown(ctx: Context, made: Cluster, node: Node, wanted: str, until: float) -> str:
    """The key of this fingerprint that the node shows, once it is up. Nothing is sent to it."""
    stranger = replace(made, provider="static", ssh_config="/dev/null")
    while True:
        try:
            for kind in kinds_to_ask(wanted):
                line = known_hosts.shown(ctx.runner, stranger, node, ALGORITHMS[kind])
                if line and fits(wanted, key := HostKey.of_line(line)):
                    return f"{key.kind} {key.blob}"
            break
        except connections.Unreachable:
            if time.monotonic() > until:
                raise
            ctx.sleep(1)
    raise NexaError(
        f"{node.name} ({node.address}) has no key of the fingerprint {wanted} that output `nodes` says",
        hint="do not use it until you know why: it may be another machine",
    )


def _about(ctx: Context, config: ClusterConfig, made: Cluster) -> dict[str, tuple[str, str, str]]:
    """Home, interpreter and Python version of each node, once it answers and cloud-init has ended there."""
    until = time.monotonic() + config.boot_timeout_s

    def ask(node: Node) -> tuple[str, str, str]:
        command = ("sh", "-c", ABOUT, "sh", config.python, TELL)
        while True:
            try:
                done = ssh.run(node, command, timeout_s=config.boot_timeout_s)
                break
            except connections.Unreachable as error:
                if time.monotonic() > until or "host key" in str(error):
                    raise
                ctx.sleep(1)
        if done.code:
            what = "cloud-init failed" if done.code == 96 else f"its {config.python}"
            raise CommandFailed(f"{node.name}: {what}", done, hint="another image, or python: in the cluster's file")
        home, python, version = [*done.out.decode(errors="replace").rstrip("\n").split("\n"), "", "", ""][:3]
        return (
            checked.path(node.name, "home folder", home),
            checked.path(node.name, "interpreter", python),
            checked.python(node.name, version),
        )

    with connections.session(ctx.runner, made) as ssh:
        return connections.by_node(made.nodes, ask)


def plan(ctx: Context, folder: ClusterFolder, config: ClusterConfig, wish: Wish) -> Planned:
    stack = Stack(ctx, folder, config, wish)
    try:
        told = stack.plan()
    finally:
        stack.terraform.plan_file.unlink(missing_ok=True)
    usd = planned.planned_usd_per_hour(config, told)
    report, lines, alarm = planned.forecast(usd, stack.hours, stack.ends_with)
    return Planned(stack.terraform, told, report=report, lines=tuple(lines), alarm=alarm)


def says(ctx: Context, cluster: Cluster, node: Node) -> tuple[CloudWord, str]:
    """Say nothing: a state file knows what was made, not what lives."""
    return "", ""


def usage(ctx: Context, folder: ClusterFolder) -> float:
    """Record usage by our own clock; a machine that ends by itself has done so at its deadline, by the stack's word."""
    known, now = recorded(folder), ctx.now()
    if known and known["ends_with"] != "api" and now > known["deadline_unix"]:
        for period in ledger_file.open_periods(folder):
            if period.start_unix < known["deadline_unix"]:
                at = float(known["deadline_unix"])
                ledger_file.stop(folder, period, at, "its deadline, by the stack's word", "clock")
    return now


def destroy(ctx: Context, folder: ClusterFolder, scope: Any = None) -> dict[str, Any]:
    """terraform destroy, until the state is empty: that is the proof, and all of it."""
    terraform = terraform_of(ctx, folder)
    nodes, destroyed = _told_nodes(folder), list[str]()
    if terraform.chdir.exists():
        terraform.settle(ctx.detail, interrupt=True)
        with ctx.phase("terraform: destroy"), folder.journalled("terraform destroy"):
            try:
                destroyed = terraform.resources()
                for attempt in range(TRIES if destroyed else 0):
                    try:
                        terraform.destroy(ctx.detail)
                        break
                    except NexaError as error:
                        if attempt == TRIES - 1:
                            raise
                        ctx.detail(f"try {attempt + 1} of {TRIES} failed, again: {error}")
            except NexaError as error:
                hint = f"{error.hint or 'run nexa teardown again'}; the state is {terraform.state}"
                raise StillRunning(f"not proven gone: {error}", hint=hint) from error
    left = terraform.resources() if folder.terraform.exists() else []
    return {"nodes": nodes, "destroyed": destroyed, "left": {"resources": left}, "not_proven": [UNPROVEN]}


def _told_nodes(folder: ClusterFolder) -> list[dict[str, Any]]:
    with contextlib.suppress(NexaError):
        made = folder.load() if folder.json.exists() else None
        return [{"name": n.name, "address": n.address, "port": n.port} for n in made.nodes] if made else []
    return []


def proof(receipt: Mapping[str, Any]) -> str:
    return f"{len(receipt['destroyed'])} resources destroyed, Terraform's state is empty ({UNPROVEN})"
