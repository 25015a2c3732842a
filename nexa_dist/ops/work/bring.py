"""Bringing of a lab's work (data, environment, setup) to a run, made ready on every node before its ranks are
planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.ops import light
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.data import bring_data
from nexa_dist.plan.runs.container import PYTHON, Host
from nexa_dist.run.code.archive import Archive
from nexa_dist.run.ssh.connections import Link


@dataclass(frozen=True)
class Brought:
    """Work that is ready on the nodes."""

    pythons: Mapping[str, str] = field(default_factory=dict)
    """Interpreter of the ranks by node name; without one, that of the cluster."""
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Variables that the ranks get beside the usual, by node name."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """The environment, as the manifest names it."""
    hosts: Mapping[str, Host] = field(default_factory=dict)
    """Container engine by node name, where the ranks run in an image."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Each of `data:`, as the manifest names it."""


def bring(
    ctx: Context,
    links: Sequence[Link],
    config: TrainConfig,
    kept: Path | None,
    hidden: Mapping[str, str],
    *,
    again: bool,
    project: Archive | None = None,
) -> Brought:
    """Makes ready what `config` asks for; quick when all of it is there. Called before every attempt: `kept` is a
    folder of the run here, for what a later attempt needs of this one; None in a dry run, which changes nothing.
    `again`: the inputs are those of the attempt before, as they lie in `kept`, and not the user's files of now.
    `hidden` are the secrets of the run. `project`: files for the environment are those of this code."""
    made = Brought(environment=light.told(links[0].ssh.cluster))
    if config.image:
        from nexa_dist.ops.work import image

        hosts, told = image.make_ready(ctx, links, config, kept)
        made = Brought(dict.fromkeys(hosts, PYTHON), environment=told, hosts=hosts)
    elif config.environment != "light":
        from nexa_dist.ops.work import environment  # a run in light is launched sooner without it

        made = Brought(*environment.make_ready(ctx, links, config, hidden, kept, again=again, project=project))
    return replace(made, data=bring_data(ctx, links, config, kept, again=again))
