"""nexa run: checks on every node, rank plan, code, then one agent per node, started together."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster
from nexa_dist.node.protocol import Reason, Spec
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify.targets import for_nodes
from nexa_dist.ops.runs.agent_spec import Job, code_folder, secrets
from nexa_dist.ops.runs.code import of_now, send
from nexa_dist.ops.work.bring import Brought, bring
from nexa_dist.plan import told
from nexa_dist.plan.money.cost import cost_usd
from nexa_dist.plan.ranks import RankPlan, assign_ranks, split_endpoint
from nexa_dist.plan.runs import preflight
from nexa_dist.plan.runs.layer import PYPROJECT, layer_of
from nexa_dist.plan.runs.notification import deadline_key, near
from nexa_dist.plan.runs.torchrun import Place
from nexa_dist.run import files, git
from nexa_dist.run.code import archive
from nexa_dist.run.logs.stream import fetch
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.ssh.connections import Connecting, Link, Ssh, by_node, on_all
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact

if TYPE_CHECKING:
    from nexa_dist.ops.work.origin import Origin

BEFORE = "before every node had started"
NOT_STARTED = "could not be started"
FOUND = ("cpus", "gpus", "torch")
FORGET_S = 10.0
"""Seconds for a node that falls silent while a launch is refused; what was begun there ends by itself after 120 s."""


@dataclass(frozen=True)
class Prepared:
    """Everything decided; nothing started. `specs` by node name is what each agent gets."""

    links: tuple[Link, ...]
    plan: RankPlan
    specs: dict[str, Spec]
    places: dict[str, Place]
    archives: tuple[archive.Code, ...]
    """The project and our package."""
    have: dict[str, tuple[str, ...]]
    """Folders of code that are there, by node."""
    attempt: Attempt
    """Record of the attempt, to be written to run.json."""
    brought: Brought
    secrets: Mapping[str, str] = dataclasses.field(repr=False)
    notify: Sequence[Mapping[str, str]] = dataclasses.field(default=(), repr=False)
    """Webhooks that the nodes may tell of the run, with their addresses."""


def check(
    ctx: Context,
    cluster: Cluster,
    links: Sequence[Link],
    more: Mapping[str, Mapping[str, Any]],
    ranks: Mapping[str, int],
) -> tuple[dict[str, dict[str, Any]], preflight.Verdict]:
    """Every node is asked, all at once. `more` is what `probe` is told beside the usual, by node name; `ranks` how many
    each one gets. Raises NexaError with all that is wrong."""
    host, port = split_endpoint(cluster.rdzv)
    first = cluster.nodes[0]

    def ask(link: Link) -> dict[str, Any]:
        peers = [node.peer_address for node in cluster.nodes if node.name != link.node.name]
        message: dict[str, Any] = {"python": link.python, "peers": peers, "scratch": link.path(cluster.layout.scratch)}
        message |= more[link.node.name]
        if link.node.name == first.name:
            message |= {"listen": host or first.peer_address, "port": port}
        return link.call("probe", message=message, timeout_s=90)

    answers = by_node(links, ask)
    pythons = {name: asked.get("python", cluster.layout.python) for name, asked in more.items()}
    verdict = preflight.judge(cluster, answers, time.time(), ranks, pythons)
    for warning in verdict.warnings:
        ctx.say(f"warning: {warning}")
    if verdict.faults:
        raise NexaError("the nodes are not ready:\n" + "\n".join(verdict.faults), hint="nothing was started")
    return answers, verdict


def prepare(
    ctx: Context,
    ssh: Ssh,
    config: TrainConfig,
    run_id: str,
    attempt: int,
    resume: tuple[int, dict[str, str]] | None,
    *,
    codes: tuple[archive.Code, archive.Code] | None = None,
    project: archive.Archive | None = None,
    seconds_left: float | None = None,
    kept: Path | None = None,
    links: Connecting,
) -> Prepared:
    """The plan of one attempt. `resume` is the step and, by node name, its verified checkpoint there.

    `codes` are the project and our package as an earlier attempt had them, instead of those of this moment;
    `project` alone, and what its environment is made from, as they were when a queue got the run.
    `seconds_left` of the run's max_hours; without it all of them are. `kept` is the folder of the run for `bring`.
    `links` are asked for when everything else is known. A dry run begins nothing on the nodes.
    """
    draft = assign_ranks(ssh.cluster, 0, config.nproc_per_node)
    again = codes is not None
    if codes is None:
        codes = (project, archive.package()) if project else of_now(ctx, config)
    refuse_packages(ctx, ssh.cluster, config)
    layer = layer_of(config, *archive.look(codes[0], PYPROJECT))
    if config.image and layer:
        layer = None
        ctx.say("warning: the project is not installed in an image: what it imports is there, or in its top folder")
    hidden = secrets(ctx, config)
    linked = links()
    brought = bring(ctx, linked, config, kept, hidden, again=again, project=project)
    job = Job(config, run_id, attempt, *codes, resume, hidden, brought, layer)
    asked = time.time()
    more: dict[str, dict[str, Any]] = {}
    for link, node in zip(linked, draft.nodes, strict=True):
        more[link.node.name] = {"have": [code_folder(link, code) for code in codes]}
        if not ctx.dry:  # which makes no environment
            more[link.node.name]["python"] = job.base(link)
            if inside := job.interpreter(link):
                more[link.node.name] |= {"inside": inside, "python": f"python3 in {config.image}"}
        if config.keep_warm and not ctx.dry:
            more[link.node.name]["warm"] = job.preloading(draft, node, link)
    places = {link.node.name: job.place(link) for link in linked}
    with _forgotten_if_refused([link for link in linked if "warm" in more[link.node.name]], places):
        answers, verdict = check(ctx, ssh.cluster, linked, more, {node.node.name: node.nproc for node in draft.nodes})
    if seconds_left is None and config.max_hours:
        seconds_left = config.max_hours * 3600
    plan = dataclasses.replace(draft, rdzv_port=draft.rdzv_port or told.port(draft.nodes[0].node.name, verdict.port))
    specs: dict[str, Spec] = {}
    for link, node in zip(linked, plan.nodes, strict=True):
        name = link.node.name
        specs[name] = job.spec(plan, node, link, verdict.interfaces[name], answers[name], seconds_left)
    return Prepared(
        links=tuple(linked),
        plan=plan,
        specs=specs,
        places=places,
        archives=codes,
        have={name: tuple(answer["have"]) for name, answer in answers.items()},
        attempt=Attempt(
            attempt,
            "starting",
            asked,
            plan.world_size,
            f"{plan.rdzv_host}:{plan.rdzv_port}",
            resume[0] if resume else None,
            ranks={p.node.name: (p.first_rank, p.first_rank + p.nproc - 1) for p in plan.nodes},
            hardware={name: {key: said.get(key) for key in FOUND} for name, said in answers.items()},
            skew_s={name: round(answer["unix"] - asked, 2) for name, answer in answers.items()},
            commands={name: redact(list(spec["argv"])) for name, spec in specs.items()},
        ),
        secrets=hidden,
        brought=brought,
        notify=for_nodes(ctx, RunFolder(kept.parent)) if kept else (),
    )


def refuse_packages(ctx: Context, cluster: Cluster, config: TrainConfig) -> None:
    """Raises UsageError for `apt:` where the system is not ours to change."""
    file = ctx.workspace.cluster(cluster.name).path / "config.json"
    if not config.apt or cluster.traits.root:
        return
    if file.exists() and files.read_object(file).get("system_changes") is True:
        return
    cure = f"install them yourself: apt-get install {' '.join(config.apt)}"
    if not cluster.traits.one_machine:
        cure += "; or system_changes: true in the cluster's file, and nexa provision"
    raise UsageError(f"apt: the system of {cluster.name} ({cluster.provider}) is not nexa's to change", hint=cure)


@contextlib.contextmanager
def _forgotten_if_refused(links: Sequence[Link], places: Mapping[str, Place]) -> Iterator[None]:
    """Nothing that was begun on these nodes outlives a launch that does not take place."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(NexaError):
            on_all(links, lambda link: link.call("forget", places[link.node.name].run_dir, timeout_s=FORGET_S))
        raise


def deliver(ctx: Context, prepared: Prepared) -> None:
    """The code of an attempt to every node. If that cannot be done, the launch is refused."""
    begun = [link for link in prepared.links if prepared.specs[link.node.name]["keep_warm"]]
    cluster, spec = prepared.links[0].ssh.cluster, prepared.specs[prepared.links[0].node.name]
    with _forgotten_if_refused(begun, prepared.places):
        if cluster.bucket:
            from nexa_dist.ops.providers.aws import bucket  # what talks to the cloud is slow to load

            bucket.before_attempt(ctx, cluster, spec["run_id"], spec["attempt"])
        send(ctx, prepared.links, prepared.archives, prepared.have)


def start(run: RunFolder, prepared: Prepared, record: Run, **known: Any) -> None:
    """Writes down the attempt, then starts every agent; its ranks begin at once unless something has to be prepared
    on all nodes before. If one cannot be started, the others are stopped. `known` is what else is written of an attempt
    that has begun."""
    run_dirs = {name: place.run_dir for name, place in prepared.places.items()}
    made = dataclasses.replace(prepared.attempt, started_unix=time.time())
    record.environment, record.data = dict(prepared.brought.environment), dict(prepared.brought.data)
    record.start(made, run_dirs, *(code.hash for code in prepared.archives))
    subject = to_agents(record)
    begun: list[Link] = []
    laid: dict[str, dict[str, list[str]]] = {}

    def begin(link: Link) -> None:
        name = link.node.name
        spec = prepared.specs[name]
        message = {"spec": spec, "secrets": prepared.secrets, "go": not (spec["setup"] or spec["prepare"])}
        if prepared.notify:
            message["notify"] = {**subject, "targets": prepared.notify}
        answer = link.call("start", run_dirs[name], message=message)
        begun.append(link)
        if found := {key: names for key in ("kept", "aside") if (names := list(filter(None, answer.get(key, ()))))}:
            laid[name] = found

    try:
        with ThreadPoolExecutor(1) as pool:
            keeping = pool.submit(_keep, run, prepared.archives)
            on_all(prepared.links, begin)
            keeping.result()
    except BaseException as error:
        by_us = isinstance(error, KeyboardInterrupt)
        cause = f"{Reason.STOPPED} {BEFORE}" if by_us else f"an agent {NOT_STARTED}: {error or type(error).__name__}"
        unproven = ""
        try:
            stop_all(prepared.links, record, Reason.STOPPED if by_us else "another node could not start", grace_s=0)
        except NexaError as fault:
            unproven = str(fault)
        with contextlib.suppress(OSError):  # their ranks may have said something already
            fetch(begun, run_dirs, run.logs)
        record.close("stopped" if by_us else "failed", cause)
        if unproven:
            raise StillRunning(f"{cause}\nand not every node is proven clean: {unproven}") from error
        raise
    record.started(laid={name: laid[name] for name in run_dirs if name in laid}, **known)  # in the nodes' order


def to_agents(record: Run) -> dict[str, Any]:
    """What the agents' own messages say of the run beside the attempt itself."""
    before = sum((row.ended_unix or row.started_unix) - row.started_unix for row in record.attempts)
    hours = record.config.get("max_hours") or 0
    return {
        "run": record.run_id, "cluster": record.cluster.name, "usd": cost_usd(record.cluster, before),
        "usd_per_hour": record.cluster.usd_per_hour, "near_s": near(hours * 3600),
        "deadline_key": deadline_key(record.by_hand),
    }  # fmt: skip


def _keep(run: RunFolder, archives: Sequence[archive.Code]) -> None:
    for code in archives:
        archive.keep(run.code, code)


def stop_all(
    links: Sequence[Link], record: Run, reason: str, grace_s: float, *, release: bool = True
) -> list[dict[str, Any]]:
    """Stops the run on every node at once; answers what each agent proved. With `release` what waits there for
    another attempt ends too."""
    number = record.last.attempt if record.attempts else 0
    message = {"grace_s": grace_s, "reason": reason, "release": release, "attempt": number}
    return on_all(
        links,
        lambda link: link.call("stop", record.run_dir(link.node.name), message=message, timeout_s=grace_s + 60),
    )


def commit(ctx: Context, config: TrainConfig, code: archive.Code) -> str | None:
    """The commit that the project's code is of; what `files:` adds is none of it."""
    also = tuple(word.rstrip("/") for word in config.files)
    files = code.files if isinstance(code, archive.Archive) else ()
    ours = {file.name: file.content for file in files if not any(f"{file.name}/".startswith(f"{a}/") for a in also)}
    return git.commit(ctx.runner, ctx.workspace.root, ours)


def new_record(
    ctx: Context,
    run: RunFolder,
    cluster: Cluster,
    config: TrainConfig,
    config_file: str,
    git_commit: str | None,
    origin: Origin | None = None,
) -> Run:
    """The record of a run before its first attempt. `origin` is the one that it is to be the same as."""
    newest = ctx.workspace.cluster(cluster.name).newest_snapshot
    record = Run(cluster, config.model_dump(mode="json"), {}, [], run.run_id, config_file=config_file,
                 git_commit=git_commit, created_unix=time.time(),
                 snapshot=files.read_object(newest) if newest.exists() else {},
                 reproduces=origin.told() if origin else {})  # fmt: skip
    record.path = run.json
    return record
