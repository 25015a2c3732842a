"""The machines of a gang, from their launch until they answer with pinned keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.light import env_hash
from nexa_dist.ops.providers.aws import capacity, rotate_host_keys
from nexa_dist.ops.providers.aws.gang import CREATE_LIMIT_S, Gang
from nexa_dist.plan import told as checked
from nexa_dist.plan.aws import scope as planned
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.plan.made import in_environment
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh import connections, keys
from nexa_dist.run.terraform.stack import TerraformFailed

PRIVATE = "whether this machine reaches private addresses of your subnets (VPN, peering, a machine within)"


def boot(gang: Gang, chosen: Candidate, kept: set[str]) -> tuple[Cluster, dict[str, str]]:
    """Waits until every node has booted. One that does not come is replaced once, then all but `kept` are given
    back: what lived before may hold the only checkpoint of a run."""
    ctx, folder = gang.ctx, gang.folder
    made = _cluster(gang, chosen)
    with ctx.phase("boot"), folder.journalled("boot"):
        silent = await_ssh(gang, made)
        # In a private network all of them at once are out of reach, not broken: others would cost and be so too.
        away = not gang.scope.given.public and len(silent) == len(made.nodes)
        _spare_the_proven(gang, made, silent)
        if silent and not away:
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
                f"{', '.join(silent)} did not answer over ssh within {gang.config.boot_timeout_s:.0f} s"
                + ("" if away else ", twice"),
                hint="what was made was given back; check ssh_from, and "
                + (PRIVATE if away else "the image's console output"),
            )
    with ctx.phase("ssh"), folder.journalled("ssh"):
        homes, python = _settled(gang, made)
        rotate_host_keys.rotate(ctx, folder, made)
    return in_environment(_cluster(gang, chosen), env_hash(python)), homes


def _spare_the_proven(gang: Gang, made: Cluster, silent: Sequence[str]) -> None:
    """A machine that answered before, and that the cloud calls alive, may be training: that we do not hear it may be
    our line's. Raises NexaError."""
    before = {node.instance_id for node in gang.folder.load().nodes} if gang.folder.json.exists() else set()
    doubtful = {node.name: node.instance_id for node in made.nodes if node.name in silent} if before else {}
    alive = {thing.id for thing in gang.find() if thing.alive} if doubtful else set()
    if spared := sorted(name for name, ident in doubtful.items() if ident in before & alive):
        raise NexaError(
            f"{', '.join(spared)} did not answer over ssh, and nobody says that they are dead: they are not ended",
            hint="is it this machine's own line, or ssh_from? Else nexa teardown ends the cluster",
        )


def await_ssh(gang: Gang, made: Cluster) -> list[str]:
    """Names of the nodes that do not answer within boot_timeout_s, or whose instance died."""
    began, limit = time.monotonic(), gang.config.boot_timeout_s
    dead: set[str] = set()

    def answers(node: Node) -> bool:
        while time.monotonic() - began < limit and node.instance_id not in dead:
            try:
                ssh.run(node, ("true",), timeout_s=20)
            except connections.Unreachable:
                time.sleep(1)
                continue
            gang.ctx.detail(f"{node.name} {node.instance_id} {node.address}: up after {time.monotonic() - began:.0f} s")
            return True
        return False

    with connections.session(gang.ctx.runner, made) as ssh, ThreadPoolExecutor(len(made.nodes)) as pool:
        waits = [pool.submit(answers, node) for node in made.nodes]
        looked = began
        while not all(wait.done() for wait in waits):
            time.sleep(0.1)
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                dead |= {t.id for t in gang.find("instance") if not t.alive}
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
        home, _, version = told.out.decode(errors="replace").rstrip("\n").partition("\n")
        return checked.path(node.name, "home folder", home), checked.python(node.name, version)

    with connections.session(gang.ctx.runner, made) as ssh:
        answers = connections.by_node(made.nodes, ask)
    versions = sorted({version for _, version in answers.values()})
    if len(versions) > 1:
        raise NexaError(f"the nodes have different Pythons: {', '.join(versions)}", hint="use one image for all")
    return {name: home for name, (home, _) in answers.items()}, versions[0]


def _cluster(gang: Gang, chosen: Candidate) -> Cluster:
    made = planned.cluster(
        gang.config,
        gang.scope,
        gang.terraform.outputs(),
        usd_per_hour=chosen.usd_per_hour,
        ssh_config=str(gang.folder.ssh_config),
    )
    keys.write_ssh_config(gang.folder.ssh, made.nodes)
    return made
