"""The nodes of an aws cluster: claimed, reconciled with what the cloud says exists, made as one gang, booted.

Terraform's state is a cache. The truth is the journal, written before every act, and the tags, asked of the cloud.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops import bucket, capacity, hostkeys, purse
from nexa_dist.ops.bootstrap import env_hash
from nexa_dist.ops.context import Context
from nexa_dist.ops.site import open_site, site_file, ssh_sources
from nexa_dist.ops.timeline import timeline
from nexa_dist.plan import aws as planned
from nexa_dist.plan.aws import Site
from nexa_dist.plan.estimate import rates_of
from nexa_dist.plan.offers import PREEMPTED, Candidate
from nexa_dist.run import attached, bundle, files, keys, leftovers, nodes
from nexa_dist.run.aws import Cloud
from nexa_dist.run.leftovers import Thing
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.terraform import Terraform, TerraformFailed, binary
from nexa_dist.run.workspace import ClusterFolder

CREATE_LIMIT_S = 900.0
"""Longest that one apply may take; the provider's own limits do not hold without capacity (issue 38133 of it)."""
ATTACHED = ("network interface", "volume", "key pair", "spot request")
"""What no state names: it comes and goes with an instance, or is the claim itself."""


def settle_s() -> float:
    """How long a new thing may stay out of the cloud's answers, in seconds. NEXA_SETTLE_S is for emulated clouds."""
    try:
        return float(os.environ.get("NEXA_SETTLE_S", "60"))
    except ValueError:
        raise NexaError("NEXA_SETTLE_S is no number of seconds") from None


class Held(NexaError):
    """Another workspace has claimed the cluster."""


@dataclass(frozen=True)
class Gang:
    """A cluster on its way: who it is for, what Terraform has, what the cloud has."""

    ctx: Context
    folder: ClusterFolder
    config: ClusterConfig
    site: Site
    terraform: Terraform

    def find(self) -> list[Thing]:
        return leftovers.find(self.site.region, self.site.owner, self.site.cluster)

    def variables(self, candidate: Candidate, zones: Iterable[str] = ()) -> dict[str, Any]:
        """Terraform's variables for one candidate. A zone once given a subnet keeps it."""
        before = files.read_json(self.terraform.variables)["zones"] if self.terraform.variables.exists() else []
        sources = ssh_sources(self.config)
        made = planned.tfvars(self.config, self.site, candidate, {*before, *zones}, str(self.folder.ssh), sources)
        # New nodes live for as long as the money does, also when nobody is there to tell them.
        rates, _ = rates_of(self.config, self.site.region, candidate, candidate.usd_per_hour)
        hours = purse.hours_allowed(self.folder, self.ctx.now(), rates.running, self.config.budget_usd)
        return {**made, "max_hours": min(made["max_hours"], round(hours, 4))}

    def end(self, what: Callable[[Thing], bool]) -> None:
        """Ends everything of the cluster that `what` picks. Raises NexaError with what did not go."""
        _, errors = leftovers.sweep(lambda: [t for t in self.find() if what(t)], self.ctx.detail, self.ctx.sleep)
        if errors:
            raise NexaError("could not be ended: " + "; ".join(errors), hint="nexa teardown ends the whole cluster")

    def end_all_but(self, kept: set[str]) -> None:
        """Ends every instance of the cluster whose id is not in `kept`."""
        self.end(lambda t: t.kind == "instance" and t.id not in kept)


def terraform_of(ctx: Context, folder: ClusterFolder, site: Site) -> Terraform:
    backend = dict(site.backend)
    if backend and any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        backend["use_path_style"] = "true"  # what answers there is seldom reached by a name for each bucket
    return Terraform(ctx.runner, binary(ctx.workspace.root), folder.terraform, "aws", backend)


def open_gang(ctx: Context, folder: ClusterFolder, config: ClusterConfig, site: Site | None = None) -> Gang:
    """Asks who and where, and makes the keys on this machine. Makes nothing in the cloud."""
    site = open_site(ctx, folder, config, site)
    keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, config.node_names)
    return Gang(ctx, folder, config, site, terraform_of(ctx, folder, site))


@dataclass(frozen=True)
class Saved:
    """A plan made earlier in this workspace, to be applied as it is."""

    site: Site
    candidate: Candidate
    variables: dict[str, Any]
    plan: bytes


def make(
    ctx: Context,
    folder: ClusterFolder,
    config: ClusterConfig,
    saved: Saved | None = None,
    lost: Sequence[str] = (),
) -> tuple[Cluster, dict[str, str]]:
    """The nodes, answering over ssh with their pinned keys; and their homes by name. Those in `lost` are ended first:
    an instance that cannot be reached may live, cost, and write."""
    gang = open_gang(ctx, folder, config, saved.site if saved else None)
    files.write_json(folder.path / "config.json", config.model_dump(mode="json", exclude_unset=True))
    files.write_json(site_file(folder), gang.site.to_json())  # before the first call that makes something
    gang.terraform.settle(ctx.detail, interrupt=False)
    with ctx.phase("claim"):
        killed = interrupted(folder)
        claim(gang)
        if lost:
            with folder.journalled("fence", nodes=list(lost)):
                gang.end(lambda t: t.kind == "instance" and t.tags.get(leftovers.NODE) in lost)
        kept = reconcile(gang, killed)
        bucket.ensure(ctx, gang.site)
    with ctx.phase(f"terraform: {config.nodes} nodes"):
        chosen = create(gang, kept, saved)
    still_ours(gang)
    return boot(gang, chosen, kept)


def interrupted(folder: ClusterFolder) -> bool:
    """Whether a command died between an intent and its outcome, and no gang was made whole since: something may exist
    that nobody saw."""
    rows = timeline(files.read_lines(folder.path / "journal.jsonl"))
    whole = [place for place, row in enumerate(rows, 1) if row["step"] == "create" and row["state"] == "done"]
    return any(row["state"] == "killed" for row in rows[whole[-1] if whole else 0 :])


def claim(gang: Gang) -> None:
    """Takes the cluster's name for this workspace. Raises Held when another one has it; then nothing was touched."""
    site = gang.site
    public = (gang.folder.ssh / "client.pub").read_text(encoding="ascii")
    with gang.folder.journalled("claim", region=site.region, account=site.account, owner=site.owner, name=site.name):
        holder = Cloud(site.region).claim(site.name, public, site.tags)
        holder = _holder(gang) if holder is None else holder
    _check_holder(gang, holder or {})


def _holder(gang: Gang) -> dict[str, str] | None:
    """Tags of the claim; None when there is none, also not after the time that the cloud may hide a new one."""
    cloud, until = Cloud(gang.site.region), gang.ctx.now() + settle_s()
    while (holder := cloud.holder(gang.site.name)) is None and gang.ctx.now() < until:
        gang.ctx.sleep(2.0)
    return holder


def _check_holder(gang: Gang, tags: dict[str, str]) -> None:
    holder = tags.get("nexa:workspace", "somebody whose key pair has no tags of nexa")
    if holder != gang.site.workspace:
        raise Held(
            f"cluster {gang.site.cluster} of owner {gang.site.owner} is held by {holder}",
            hint="work there; or end it from here: nexa teardown --cluster FILE, with the cluster's file",
        )


def still_ours(gang: Gang) -> None:
    """A teardown from elsewhere takes the claim away; what was made meanwhile would outlive its receipt."""
    holder = _holder(gang)
    if holder is None or holder.get("nexa:workspace") != gang.site.workspace:
        gang.end(lambda thing: thing.tags.get(leftovers.WORKSPACE) == gang.site.workspace)
        raise Held(
            f"cluster {gang.site.cluster} was torn down from elsewhere while it was made", hint="provision again"
        )


def reconcile(gang: Gang, killed: bool) -> set[str]:
    """Ends what carries our tags and is in no state; answers the ids of the living instances that are in it."""
    if killed:
        gang.ctx.detail(f"an earlier command was killed: waiting {settle_s():.0f} s for what it may have made")
        gang.ctx.sleep(settle_s())
    try:
        known = gang.terraform.ids()
    except CommandFailed as error:
        if gang.terraform.backend:  # out of reach is not torn: nothing that lives is ended for that
            raise
        gang.ctx.detail(f"the state cannot be read, so everything is made anew: {error.result.tail(1)}")
        gang.terraform.state.rename(gang.terraform.state.with_suffix(".torn"))
        known = set()
    found = gang.find()
    foreign = {t.tags.get(leftovers.WORKSPACE, "") for t in found if t.alive} - {gang.site.workspace}
    if foreign:
        raise Held(
            f"cluster {gang.site.cluster} has resources that {', '.join(sorted(foreign)) or 'nobody known'} made",
            hint="nexa teardown --cluster FILE ends them",
        )
    for thing in found:
        if thing.id in known and thing.row.get("StateReason", {}).get("Code", "").startswith("Server.SpotInstance"):
            gang.ctx.detail(f"{thing.id} ({thing.offer}) was taken back by the cloud")
            capacity.remember(gang.ctx, thing.offer, PREEMPTED)
    stray = {t.id for t in found if t.alive and t.kind not in ATTACHED and t.id not in known}
    _spare_the_whole(gang, stray)
    if stray:
        with gang.folder.journalled("reconcile", ended=sorted(stray)):
            gang.end(lambda thing: thing.id in stray)
    for line in attached.take_off(found, known):
        gang.ctx.detail(f"{line}: taken off, since no state knows it")
    return {t.id for t in leftovers.instances(found) if t.id in known}


def _spare_the_whole(gang: Gang, stray: set[str]) -> None:
    """A gang that was proven whole may be training: a state that was lost since is no reason to end it unasked."""
    if not gang.folder.json.exists():
        return
    living = sorted({node.instance_id for node in gang.folder.load().nodes} & stray)
    if living:
        raise NexaError(
            f"{', '.join(living)} of cluster {gang.site.cluster} are alive, and Terraform's state does not know them",
            hint=f"put the state back ({gang.terraform.state}), or end the cluster: nexa teardown",
        )


def create(gang: Gang, kept: set[str], saved: Saved | None = None) -> Candidate:
    """The whole gang from one candidate, or what is missing of the one that lives. Nothing of a failed try is left."""
    ctx, folder, terraform = gang.ctx, gang.folder, gang.terraform
    zones: list[str] = []

    def look() -> list[tuple[Candidate, str]]:
        if saved:
            return [(saved.candidate, "the saved plan")]
        if kept:
            return [(known_offer(folder), "the gang that is there")]
        with ctx.phase("capacity"), folder.journalled("capacity"):
            ordered, dropped = capacity.survey(ctx, gang.config, gang.site)
        for line in dropped:
            ctx.detail(f"left out: {line}")
        zones[:] = [candidate.zone for candidate, _ in ordered]
        cheapest = min((candidate for candidate, _ in ordered), key=lambda candidate: candidate.usd_per_hour)
        folder.ledger("offered", at=ctx.now(), offer=cheapest.title, usd_per_hour=cheapest.usd_per_hour)
        return ordered

    def attempt(candidate: Candidate) -> None:
        variables = saved.variables if saved else gang.variables(candidate, zones)
        files.write_json(offer_file(folder), asdict(candidate))
        with folder.journalled("create", offer=candidate.title, nodes=variables["node_names"]):
            terraform.prepare(bundle.root() / "terraform", variables)
            if saved:
                terraform.plan_file.write_bytes(saved.plan)
                terraform.apply_plan(ctx.detail, timeout_s=CREATE_LIMIT_S)
            else:
                capacity.patiently(ctx, lambda: terraform.apply(ctx.detail, timeout_s=CREATE_LIMIT_S))
        gang.end_all_but(terraform.ids())

    # A saved plan is good for one try: what the first one changed makes it stale.
    once = gang.config.model_copy(update={"wait_for_capacity_minutes": 0.0})
    wanted = once if saved else gang.config
    return capacity.search(ctx, wanted, look, attempt, release=lambda: gang.end_all_but(kept))


def offer_file(folder: ClusterFolder) -> Path:
    """What the gang of this folder was made of, or was to be; written before it is tried."""
    return folder.path / "offer.json"


def known_offer(folder: ClusterFolder) -> Candidate:
    try:
        return Candidate(**files.read_json(offer_file(folder)))
    except TypeError as error:
        raise NexaError(
            f"{offer_file(folder)} is damaged: {error}", hint="nexa teardown, then nexa provision"
        ) from None


def boot(gang: Gang, chosen: Candidate, kept: set[str]) -> tuple[Cluster, dict[str, str]]:
    """Waits until every node has booted. One that does not come is replaced once, then all but `kept` are given
    back: what lived before may hold the only checkpoint of a run."""
    ctx, folder = gang.ctx, gang.folder
    made = _cluster(gang, chosen)
    with ctx.phase("boot"), folder.journalled("boot"):
        silent = await_ssh(gang, made)
        if silent:
            ctx.detail(f"made anew, since they do not answer: {', '.join(silent)}")
            for name in silent:  # another key: what answers with the old one from now on is not our node
                keys.forget_host_key(folder.ssh, name)
            keys.ensure_cluster_keys(ctx.runner, folder.ssh, folder.name, gang.config.node_names)
            gone = [f'module.nodes.aws_instance.node["{name}"]' for name in silent]
            try:
                with folder.journalled("create", offer=chosen.title, nodes=silent):
                    capacity.patiently(
                        ctx, lambda: gang.terraform.apply(ctx.detail, replace=gone, timeout_s=CREATE_LIMIT_S)
                    )
            except TerraformFailed:
                ctx.detail("they cannot be made anew, so what was made is given back")
                gang.end_all_but(kept)
                raise
            made = _cluster(gang, chosen)
            silent = await_ssh(gang, made)
        if silent:
            gang.end_all_but(kept)
            raise NexaError(
                f"{', '.join(silent)} did not answer over ssh within {gang.config.boot_timeout_s:.0f} s, twice",
                hint="what was made was given back; check ssh_from, and the image's console output",
            )
    with ctx.phase("ssh"), folder.journalled("ssh"):
        homes, python = _settled(gang, made)
        hostkeys.rotate(ctx, folder, made)
    made = _cluster(gang, chosen, python)
    return made, homes


def await_ssh(gang: Gang, made: Cluster) -> list[str]:
    """Names of the nodes that do not answer within boot_timeout_s, or whose instance died."""
    began, limit = time.monotonic(), gang.config.boot_timeout_s
    dead: set[str] = set()

    def answers(node: Node) -> bool:
        while time.monotonic() - began < limit and node.instance_id not in dead:
            try:
                ssh.run(node, ("true",), timeout_s=20)
            except nodes.Unreachable:
                time.sleep(1)
                continue
            gang.ctx.detail(f"{node.name} {node.instance_id} {node.address}: up after {time.monotonic() - began:.0f} s")
            return True
        return False

    with nodes.session(gang.ctx.runner, made) as ssh, ThreadPoolExecutor(len(made.nodes)) as pool:
        waits = [pool.submit(answers, node) for node in made.nodes]
        looked = began
        while not all(wait.done() for wait in waits):
            time.sleep(0.1)
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                dead |= {t.id for t in gang.find() if t.kind == "instance" and not t.alive}
        return [node.name for node, wait in zip(made.nodes, waits, strict=True) if not wait.result()]


def _settled(gang: Gang, made: Cluster) -> tuple[dict[str, str], str]:
    """Homes by name and the Python of all nodes, once cloud-init has ended on each."""

    def ask(node: Node) -> tuple[str, str]:
        done = ssh.run(node, ("cloud-init", "status", "--wait"), timeout_s=gang.config.boot_timeout_s)
        if done.code == 1:
            raise CommandFailed(
                f"{node.name}: cloud-init", done, hint="nexa ssh NODE -- sudo cat /var/log/cloud-init.log"
            )
        script = 'import os, sys; print(os.path.expanduser("~"), "%d.%d" % sys.version_info[:2], sep="\\n")'
        told = ssh.run(node, (planned.NODE_PYTHON, "-I", "-c", script))
        if told.code:
            raise CommandFailed(
                f"{node.name}: {planned.NODE_PYTHON}", told, hint="the image needs Python 3.11 or newer"
            )
        home, version = told.out.decode().splitlines()
        return home, version

    with nodes.session(gang.ctx.runner, made) as ssh:
        answers = nodes.on_all(made.nodes, ask)
    versions = sorted({version for _, version in answers})
    if len(versions) > 1:
        raise NexaError(f"the nodes have different Pythons: {', '.join(versions)}", hint="use one image for all")
    return {node.name: home for node, (home, _) in zip(made.nodes, answers, strict=True)}, versions[0]


def _cluster(gang: Gang, chosen: Candidate, python: str = "") -> Cluster:
    made = planned.cluster(
        gang.config,
        gang.site,
        gang.terraform.outputs(),
        usd_per_hour=chosen.usd_per_hour,
        ssh_config=str(gang.folder.ssh_config),
        env_hash=env_hash(python) if python else "",
    )
    keys.write_ssh_config(gang.folder.ssh, made.nodes)
    return made
