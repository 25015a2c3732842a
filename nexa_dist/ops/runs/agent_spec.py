"""Spec of an attempt for the agent of a node."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.node.protocol import VERSION, Spec
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.bring import Brought
from nexa_dist.ops.work.data import folders
from nexa_dist.plan.ranks import NodePlan, RankPlan
from nexa_dist.plan.runs import container, torchrun
from nexa_dist.plan.runs.layer import Layer
from nexa_dist.plan.runs.torchrun import Place
from nexa_dist.run import dotenv, git
from nexa_dist.run.code import archive
from nexa_dist.run.ssh.connections import Link
from nexa_dist.secrets import remember

SECRETS = ("WANDB_API_KEY", "HF_TOKEN")
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
GRACE_S = 25.0
"""Seconds for a checkpoint after SIGTERM; torchrun itself kills its workers after 30 s."""
NOTICE_GRACE_S = 90.0
"""Seconds for a checkpoint and its way to the durable store, of the 120 s of a spot notice."""
DURABLE_WAIT_S = NOTICE_GRACE_S - 20
"""Seconds that a rank that stops waits for the durable store; the rest of a notice's grace is for the checkpoint."""
VARIABLE = re.compile(r"\$\{(NEXA_\w+)\}|\$(NEXA_\w+)")


@dataclass(frozen=True)
class Job:
    """One attempt as it is wanted, before any node was asked."""

    config: TrainConfig
    run_id: str
    attempt: int
    project: archive.Code
    package: archive.Code
    resume: tuple[int, dict[str, str]] | None
    """The step and, by node name, its verified checkpoint there."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    brought: Brought = field(default_factory=Brought)
    layer: Layer | None = None

    def expanded(self, environment: dict[str, str]) -> TrainConfig:
        """The config with the values of a node in its arguments, where it says so. Raises UsageError for a name that
        no node has."""
        if not self.config.expand:
            return self.config

        def value(found: re.Match[str]) -> str:
            if (name := found[1] or found[2]) not in environment:
                known = ", ".join(sorted(key for key in environment if key.startswith("NEXA_")))
                raise UsageError(f"args: {found[0]}: there is no {name}", hint=f"expand: true knows {known}")
            return environment[name]

        return self.config.model_copy(update={"args": tuple(VARIABLE.sub(value, word) for word in self.config.args)})

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules of the warm interpreter, and with a minus what it does without; for the user's own scripts torch
        alone."""
        if self.config.backend is None:
            return ("torch",)
        row = BACKENDS[self.config.backend]
        return (*(f"-{package}" for package in row.without), *row.preload)

    def place(self, link: Link) -> Place:
        layout = link.ssh.cluster.layout
        scratch, shared = link.path(layout.scratch), link.path(layout.shared)
        return Place(
            python=f"{self.layer_folder(link)}/bin/python" if self.layer else self.base(link),
            agent=link.agent,
            scratch=scratch,
            shared=shared,
            durable=link.path(layout.durable),
            run_dir=link.run_dir(self.run_id),
            package=code_folder(link, self.package),
            code=code_folder(link, self.project),
        )

    def base(self, link: Link) -> str:
        """Interpreter of the environment, below the run's own layer."""
        return self.brought.pythons.get(link.node.name, link.python)

    def layer_folder(self, link: Link) -> str:
        return f"{link.run_dir(self.run_id)}/layer"

    def path(self, link: Link) -> list[str]:
        """Folders for the PATH of the run: programs of the layer and of the environment."""
        pythons = [self.place(link).python, self.base(link)]
        return list(dict.fromkeys(os.path.dirname(python) for python in pythons if python.startswith("/")))

    def setup(self, link: Link) -> dict[str, Any] | None:
        """Message to the agent's `setup`; None where there is nothing to do."""
        config, base = self.config, self.base(link)
        if not (config.apt or self.layer):
            return None
        requires = self.layer and self.layer.requires
        code = None if requires is None else self.project.hash
        data = sorted((name, row.get("sha256")) for name, row in self.brought.data.items())
        lines = [config.setup, config.apt, sorted(config.env.items()), base, self.project.hash, data, link.node.name]
        return {
            "apt": config.apt,
            "lines": config.setup,
            "key": _key(lines),
            "layer_key": _key([base, requires, code, link.node.name]),
            "python": base,
            "shared": self.place(link).shared,
            "layer": self.layer_folder(link) if self.layer else "",
            "requires": requires,
            "must": bool(self.layer and self.layer.must),
            "program": config.program,
        }

    def environment(
        self, plan: RankPlan, node: NodePlan, link: Link, interface: str, cpus: int, torch: str = ""
    ) -> dict[str, str]:
        place = self.place(link)
        return torchrun.environment(
            plan,
            node,
            place,
            run_id=self.run_id,
            attempt=self.attempt,
            interface=interface,
            cpus=cpus // _sharing(plan, link),
            user={**self.brought.env.get(node.node.name, {}), **_user_environment(self.config)},
            resume=(self.resume[1][node.node.name], self.resume[0]) if self.resume else None,
            bucket=bucket_environment(link.ssh.cluster, place.package),
            data=bool(self.brought.data),
            torch=torch,
        )

    def interpreter(self, link: Link) -> tuple[str, ...]:
        """Command line that ends with the interpreter of the ranks, where that is in an image; else empty."""
        host = self.brought.hosts.get(link.node.name)
        return container.argv(host, self.place(link), ()) if host else ()

    def preloading(self, plan: RankPlan, node: NodePlan, link: Link) -> dict[str, Any]:
        """Fields of `probe` that load the interpreter that the ranks of a node will be forked from. `plan` may lack the
        port, and nobody knows the node's interface and CPUs: the agent divides these by `nproc` itself."""
        place = self.place(link)
        env = self.environment(plan, node, link, "", 1)
        if "OMP_NUM_THREADS" not in self.config.env:
            del env["OMP_NUM_THREADS"]
        argv = (place.python, *torchrun.program(self.expanded(env), place).argv)
        spec: dict[str, Any] = {"argv": argv, "cwd": place.work, "env": env, "path": self.path(link)}
        spec |= {"nproc": node.nproc * _sharing(plan, link), "preload": self.preload}
        return {"run_dir": place.run_dir, "spec": spec, "secrets": self.secrets}

    def spec(
        self,
        plan: RankPlan,
        node: NodePlan,
        link: Link,
        interface: str,
        said: Mapping[str, Any],
        seconds_left: float | None,
    ) -> Spec:
        """Spec that the agent's `start` takes. `said` is its answer to `probe`."""
        env = self.environment(plan, node, link, interface, said["cpus"] or 1, said.get("torch") or "")
        config, place = self.expanded(env), self.place(link)
        what = torchrun.program(config, place)
        argv = torchrun.ranks_argv(plan, node, place, what, self.run_id, self.attempt, config.launcher)
        prepare = what.prepare or None
        if host := self.brought.hosts.get(node.node.name):
            name = f"nexa-{self.run_id}-{node.node.name}-{self.attempt}"
            names = {*env, *self.secrets}
            argv = container.launcher(host, place, argv, name=name, variables=names)
            prepare = prepare and container.launcher(host, place, prepare, name=f"{name}-prepare", variables=names)
        return {
            "version": VERSION,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "node": node.node.name,
            "launcher": config.launcher,
            "argv": argv,
            "container": container.for_agent(host, place) if host else None,
            "setup": self.setup(link),
            "prepare": prepare,
            "path": self.path(link),
            "env": env,
            "cwd": place.work,
            "code": place.code,
            "data": folders(place.shared, self.brought.data) or None,
            "outputs": {"named": config.outputs, "python": link.python} if link.ssh.cluster.bucket else None,
            "config": config.model_dump(mode="json") if config.backend else None,
            "grace_s": GRACE_S,
            "notice_grace_s": NOTICE_GRACE_S,
            "deadline_in_s": seconds_left,
            "hang_timeout_s": config.hang_timeout_s,
            "on_disconnect": config.on_disconnect,
            "spot": node.node.offer.endswith(" spot"),
            "keep_warm": config.keep_warm,
            "preload": self.preload,
            "first_rank": node.first_rank,
            "nproc": node.nproc,
            "world_size": plan.world_size,
            "node_rank": node.node_rank,
            "nnodes": len(plan.nodes),
            "master_addr": plan.rdzv_host,
            "master_port": plan.rdzv_port,
        }


def secrets(ctx: Context, config: TrainConfig) -> dict[str, str]:
    """Secrets of our own environment, and those that train.yaml names also from `.env`. They travel on standard input
    alone, and nothing that we write has them. Raises UsageError when one is missing."""
    found = {name: os.environ[name] for name in SECRETS if os.environ.get(name)}
    if config.secrets:
        root = ctx.workspace.root
        kept = dotenv.named(root, config.secrets, lambda: git.tracks(ctx.runner, root, dotenv.NAME) != "")
        found |= {name: value for name in config.secrets if (value := os.environ.get(name) or kept.get(name))}
        if missing := [name for name in config.secrets if name not in found]:
            where = f"neither in the environment nor in {root / dotenv.NAME}"
            # Not "secrets: NAME", which is hidden as a secret that somebody wrote down.
            raise UsageError(
                f"secrets names {', '.join(missing)}, which is {where}", hint="set it there, or take it out of secrets:"
            )
        ctx.say(f"the nodes get these secrets of yours: {', '.join(config.secrets)}")
    remember(found.values())
    return found


def _key(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def code_folder(link: Link, code: archive.Code) -> str:
    """Folder of this code on the node, named by its hash."""
    return f"{link.path(link.ssh.cluster.layout.shared)}/code/{code.hash}"


def bucket_environment(cluster: Cluster, package: str) -> dict[str, str]:
    """Variables that run_sync.sh of the package on a node needs; an endpoint that we were given holds there too."""
    made = torchrun.bucket_environment(cluster, f"{package}/{archive.SYNC}")
    return made | {name: os.environ[name] for name in ENDPOINTS if made and os.environ.get(name)}


def _sharing(plan: RankPlan, link: Link) -> int:
    """Nodes of the run on the CPUs of this node. Where each node's ranks had a thread for every CPU of the one machine,
    they would spin for each other: a step takes ten times the CPU time."""
    return len(plan.nodes) if link.ssh.cluster.traits.one_machine else 1


def _user_environment(config: TrainConfig) -> dict[str, str]:
    wandb = config.wandb if config.wandb in ("online", "offline") else "disabled"
    replicas = {} if config.replicas is None else {"NEXA_REPLICAS": str(config.replicas)}
    return {"NEXA_DURABLE_WAIT_S": f"{DURABLE_WAIT_S:.0f}", "WANDB_MODE": wandb, **replicas, **config.env}
