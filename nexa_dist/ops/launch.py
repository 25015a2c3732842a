"""nexa run: checks on every node, rank plan, code, then one agent per node, started together."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, StillRunning
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.plan import command, preflight
from nexa_dist.plan.command import Place
from nexa_dist.plan.ranks import RankPlan, assign_ranks, split_endpoint
from nexa_dist.run import archive
from nexa_dist.run.nodes import Link, Ssh, connect, on_all
from nexa_dist.run.workspace import RunFolder

SECRETS = ("WANDB_API_KEY", "HF_TOKEN")
GRACE_S = 25.0
"""For a checkpoint after SIGTERM; torchrun itself kills its workers after 30 s."""


@dataclass(frozen=True)
class Prepared:
    """Everything decided; nothing started. `specs` by node name is what each agent gets."""

    links: tuple[Link, ...]
    plan: RankPlan
    specs: dict[str, dict[str, Any]]
    places: dict[str, Place]
    archives: tuple[archive.Archive, ...]
    """The project and our package."""
    hardware: dict[str, Any]
    """By node: CPUs, GPUs by name, torch."""
    resume_step: int | None = None


def check(ctx: Context, ssh: Ssh) -> tuple[list[Link], dict[str, dict[str, Any]], preflight.Verdict]:
    """Every node is asked, all at once. Raises NexaError with all that is wrong."""
    cluster = ssh.cluster
    links = connect(ssh)
    host, port = split_endpoint(cluster.rdzv)
    first = cluster.nodes[0]

    def ask(link: Link) -> dict[str, Any]:
        peers = [node.peer_address for node in cluster.nodes if node.name != link.node.name]
        message: dict[str, Any] = {"python": link.python, "peers": peers, "scratch": link.path(cluster.layout.scratch)}
        if link.node.name == first.name:
            message |= {"listen": host or first.peer_address, "port": port}
        return link.call("probe", message=message, timeout_s=90)

    answers = {link.node.name: answer for link, answer in zip(links, on_all(links, ask), strict=True)}
    verdict = preflight.judge(cluster, answers, time.time())
    for warning in verdict.warnings:
        ctx.say(f"warning: {warning}")
    if verdict.faults:
        raise NexaError("the nodes are not ready:\n" + "\n".join(verdict.faults), hint="nothing was started")
    return links, answers, verdict


def prepare(
    ctx: Context, ssh: Ssh, config: TrainConfig, run_id: str, attempt: int, resume: tuple[int, dict[str, str]] | None
) -> Prepared:
    """The plan of one attempt. `resume` is the step and, by node name, its verified checkpoint there."""
    project, package = (archive.project(ctx.runner, ctx.workspace.root), archive.package())
    _check_script(config, ctx.workspace.root, project)
    links, answers, verdict = check(ctx, ssh)
    plan = assign_ranks(ssh.cluster, verdict.port, config.nproc_per_node)
    places = {link.node.name: _place(link, run_id, project, package) for link in links}
    specs: dict[str, dict[str, Any]] = {}
    for node_plan in plan.nodes:
        name = node_plan.node.name
        place = places[name]
        what = command.program(config, place)
        specs[name] = {
            "version": 1,
            "run_id": run_id,
            "attempt": attempt,
            "node": name,
            "argv": command.torchrun(plan, node_plan, place, what, run_id, attempt),
            "prepare": what.prepare or None,
            "env": command.environment(
                plan,
                node_plan,
                place,
                run_id=run_id,
                attempt=attempt,
                interface=verdict.interfaces[name],
                cpus=answers[name]["cpus"] or 1,
                user=_user_environment(config),
                resume=(resume[1][name], resume[0]) if resume else None,
            ),
            "cwd": place.work,
            "code": place.code,
            "config": config.model_dump(mode="json") if config.backend else None,
            "grace_s": GRACE_S,
            "deadline_in_s": config.max_hours * 3600 if config.max_hours else None,
        }
    hardware = {name: {key: answer[key] for key in ("cpus", "gpus", "torch")} for name, answer in answers.items()}
    return Prepared(tuple(links), plan, specs, places, (project, package), hardware, resume[0] if resume else None)


def _user_environment(config: TrainConfig) -> dict[str, str]:
    return {"WANDB_MODE": "disabled" if config.wandb == "off" else config.wandb, **config.env}


def _check_script(config: TrainConfig, root: Path, project: archive.Archive) -> None:
    if config.script and not Path(config.script).is_absolute():
        if os.path.normpath(config.script) not in project.names:
            there = "is ignored by git, so it is not sent" if (root / config.script).exists() else "does not exist"
            raise NexaError(f"script {config.script} {there} (in {root})", hint="paths are relative to this folder")


def _place(link: Link, run_id: str, project: archive.Archive, package: archive.Archive) -> Place:
    layout = link.ssh.cluster.layout
    scratch, shared = link.path(layout.scratch), link.path(layout.shared)
    return Place(
        python=link.python,
        agent=link.agent,
        scratch=scratch,
        shared=shared,
        durable=link.path(layout.durable),
        run_dir=f"{scratch}/{run_id}",
        package=code_folder(link, package),
        code=code_folder(link, project),
    )


def send(ctx: Context, links: Sequence[Link], archives: Sequence[archive.Archive]) -> None:
    """Code to every node at once. What a node has already is not sent again; what is sent is packed once."""
    packed: dict[str, bytes] = {}

    def to_node(link: Link) -> None:
        for code in archives:
            target = code_folder(link, code)
            if link.exists(target):
                continue
            if code.hash not in packed:
                packed[code.hash] = code.pack()
            link.unpack(target, packed[code.hash])
            ctx.detail(f"{link.node.name}: sent {max(1, len(packed[code.hash]) >> 10)} KiB of code")

    on_all(links, to_node)


def code_folder(link: Link, code: archive.Archive) -> str:
    """Where this code lies on the node, by its hash."""
    return f"{link.path(link.ssh.cluster.layout.shared)}/code/{code.hash}"


def start(run: RunFolder, prepared: Prepared, record: dict[str, Any], attempt: int) -> None:
    """Writes down the attempt, then starts every agent. If one cannot be started, the others are stopped."""
    record["code_hash"], record["package_hash"] = (code.hash for code in prepared.archives)
    record["nodes"] = {name: {"run_dir": place.run_dir} for name, place in prepared.places.items()}
    record["attempts"].append(
        {
            "attempt": attempt,
            "state": "starting",
            "started_unix": time.time(),
            "world_size": prepared.plan.world_size,
            "rdzv": f"{prepared.plan.rdzv_host}:{prepared.plan.rdzv_port}",
            "resume_step": prepared.resume_step,
            "ranks": {p.node.name: [p.first_rank, p.first_rank + p.nproc - 1] for p in prepared.plan.nodes},
            "hardware": prepared.hardware,
            "commands": {name: list(spec["argv"]) for name, spec in prepared.specs.items()},
        }
    )
    run.save(record)
    secrets = {name: os.environ[name] for name in SECRETS if os.environ.get(name)}

    def begin(link: Link) -> None:
        name = link.node.name
        message = {"spec": prepared.specs[name], "secrets": secrets}
        link.call("start", prepared.places[name].run_dir, message=message)

    try:
        on_all(prepared.links, begin)
    except BaseException as error:
        unproven = ""
        try:
            stop_all(prepared.links, record, "another node could not start", grace_s=0)
        except NexaError as fault:
            unproven = str(fault)
        record["attempts"][-1] |= {
            "state": "failed",
            "ended_unix": time.time(),
            "cause": "an agent could not be started",
        }
        run.save(record)
        if unproven:
            raise StillRunning(f"{error}\nand not every node is proven clean: {unproven}") from error
        raise
    record["attempts"][-1]["state"] = "running"
    run.save(record)


def stop_all(
    links: tuple[Link, ...] | list[Link], record: dict[str, Any], reason: str, grace_s: float
) -> list[dict[str, Any]]:
    """Stops the run on every node at once; answers what each agent proved."""
    message = {"grace_s": grace_s, "reason": reason}
    return on_all(
        links,
        lambda link: link.call(
            "stop", record["nodes"][link.node.name]["run_dir"], message=message, timeout_s=grace_s + 60
        ),
    )


def new_record(ctx: Context, run_id: str, cluster: Cluster, config: TrainConfig, config_file: str) -> dict[str, Any]:
    """What run.json holds before the first attempt."""
    commit = ctx.runner.run(("git", "-C", str(ctx.workspace.root), "rev-parse", "HEAD"))
    return {
        "version": 1,
        "run_id": run_id,
        "created_unix": time.time(),
        "config_file": config_file,
        "config": config.model_dump(mode="json"),
        "cluster": cluster.to_json(),
        "git_commit": commit.out.decode().strip() if commit.code == 0 else None,
        "nodes": {},
        "attempts": [],
    }
