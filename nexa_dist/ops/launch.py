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
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
GRACE_S = 25.0
"""For a checkpoint after SIGTERM; torchrun itself kills its workers after 30 s."""
NOTICE_GRACE_S = 90.0
"""For a checkpoint and its way to the durable store, of the 120 s of a spot notice."""


@dataclass(frozen=True)
class Prepared:
    """Everything decided; nothing started. `specs` by node name is what each agent gets."""

    links: tuple[Link, ...]
    plan: RankPlan
    specs: dict[str, dict[str, Any]]
    places: dict[str, Place]
    archives: tuple[archive.Code, ...]
    """The project and our package."""
    hardware: dict[str, Any]
    """By node: CPUs, GPUs by name, torch."""
    skew_s: dict[str, float]
    """By node: how far its clock is ahead of ours."""
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
    ctx: Context,
    ssh: Ssh,
    config: TrainConfig,
    run_id: str,
    attempt: int,
    resume: tuple[int, dict[str, str]] | None,
    *,
    codes: tuple[archive.Code, archive.Code] | None = None,
    seconds_left: float | None = None,
) -> Prepared:
    """The plan of one attempt. `resume` is the step and, by node name, its verified checkpoint there.

    `codes` are the project and our package as an earlier attempt had them, instead of those of this moment.
    `seconds_left` of the run's max_hours; without it all of them are.
    """
    if codes is None:
        found = archive.project(ctx.runner, ctx.workspace.root)
        _check_script(config, ctx.workspace.root, found)
        codes = found, archive.package()
    project, package = codes
    asked = time.time()
    links, answers, verdict = check(ctx, ssh)
    if seconds_left is None and config.max_hours:
        seconds_left = config.max_hours * 3600
    plan = assign_ranks(ssh.cluster, verdict.port, config.nproc_per_node)
    places = {link.node.name: _place(link, run_id, project, package) for link in links}
    specs: dict[str, dict[str, Any]] = {}
    for node_plan in plan.nodes:
        name = node_plan.node.name
        place = places[name]
        what = command.program(config, place)
        specs[name] = {
            "version": 2,
            "run_id": run_id,
            "attempt": attempt,
            "node": name,
            "launcher": config.launcher,
            "argv": command.ranks_argv(plan, node_plan, place, what, run_id, attempt, config.launcher),
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
                bucket=bucket_environment(ssh.cluster, place.package),
            ),
            "cwd": place.work,
            "code": place.code,
            "config": config.model_dump(mode="json") if config.backend else None,
            "grace_s": GRACE_S,
            "notice_grace_s": NOTICE_GRACE_S,
            "deadline_in_s": seconds_left,
            "hang_timeout_s": config.hang_timeout_s,
            "on_disconnect": config.on_disconnect,
            "spot": node_plan.node.offer.endswith(" spot"),
            "keep_warm": config.launcher == "direct" and config.restarts_per_hour > 0,
            "first_rank": node_plan.first_rank,
            "nproc": node_plan.nproc,
            "world_size": plan.world_size,
            "node_rank": node_plan.node_rank,
            "nnodes": len(plan.nodes),
            "master_addr": plan.rdzv_host,
            "master_port": plan.rdzv_port,
        }
    hardware = {name: {key: answer[key] for key in ("cpus", "gpus", "torch")} for name, answer in answers.items()}
    skew_s = {name: round(answer["unix"] - asked, 2) for name, answer in answers.items()}
    step = resume[0] if resume else None
    return Prepared(tuple(links), plan, specs, places, (project, package), hardware, skew_s, step)


DURABLE_WAIT_S = NOTICE_GRACE_S - 20
"""How long a rank that stops waits for the durable store; the rest of a notice's grace is for the checkpoint."""


def bucket_environment(cluster: Cluster, package: str) -> dict[str, str]:
    """What run_sync.sh of the package on a node needs; an endpoint that we were given holds there too."""
    made = command.bucket_environment(cluster, f"{package}/{archive.SYNC}")
    return made | {name: os.environ[name] for name in ENDPOINTS if made and os.environ.get(name)}


def _user_environment(config: TrainConfig) -> dict[str, str]:
    wandb = "disabled" if config.wandb == "off" else config.wandb
    return {"NEXA_DURABLE_WAIT_S": f"{DURABLE_WAIT_S:.0f}", "WANDB_MODE": wandb, **config.env}


def _check_script(config: TrainConfig, root: Path, project: archive.Archive) -> None:
    if config.script and not Path(config.script).is_absolute():
        if os.path.normpath(config.script) not in project.names:
            there = "is ignored by git, so it is not sent" if (root / config.script).exists() else "does not exist"
            raise NexaError(f"script {config.script} {there} (in {root})", hint="paths are relative to this folder")


def _place(link: Link, run_id: str, project: archive.Code, package: archive.Code) -> Place:
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


def send(ctx: Context, links: Sequence[Link], archives: Sequence[archive.Code]) -> None:
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


def code_folder(link: Link, code: archive.Code) -> str:
    """Where this code lies on the node, by its hash."""
    return f"{link.path(link.ssh.cluster.layout.shared)}/code/{code.hash}"


def attempt_row(number: int, state: str, **more: Any) -> dict[str, Any]:
    """What run.json holds of one attempt from its beginning."""
    return {"attempt": number, "state": state, "started_unix": time.time(), **more}


def start(run: RunFolder, prepared: Prepared, record: dict[str, Any], attempt: int) -> None:
    """Writes down the attempt, then starts every agent. If one cannot be started, the others are stopped."""
    for code in prepared.archives:
        archive.keep(run.code, code)
    record["code_hash"], record["package_hash"] = (code.hash for code in prepared.archives)
    record["nodes"] |= {name: {"run_dir": place.run_dir} for name, place in prepared.places.items()}
    record["attempts"].append(
        attempt_row(
            attempt,
            "starting",
            world_size=prepared.plan.world_size,
            rdzv=f"{prepared.plan.rdzv_host}:{prepared.plan.rdzv_port}",
            resume_step=prepared.resume_step,
            ranks={p.node.name: [p.first_rank, p.first_rank + p.nproc - 1] for p in prepared.plan.nodes},
            hardware=prepared.hardware,
            skew_s=prepared.skew_s,
            commands={name: list(spec["argv"]) for name, spec in prepared.specs.items()},
        )
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
            "cause": f"an agent could not be started: {error}",
        }
        run.save(record)
        if unproven:
            raise StillRunning(f"{error}\nand not every node is proven clean: {unproven}") from error
        raise
    record["attempts"][-1]["state"] = "running"
    run.save(record)


def stop_all(
    links: Sequence[Link], record: dict[str, Any], reason: str, grace_s: float, *, release: bool = True
) -> list[dict[str, Any]]:
    """Stops the run on every node at once; answers what each agent proved. With `release` what waits there for
    another attempt ends too."""
    number = record["attempts"][-1]["attempt"] if record["attempts"] else 0
    message = {"grace_s": grace_s, "reason": reason, "release": release, "attempt": number}
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
