"""The user's own hosts as a cluster: nothing was provisioned, so the file is all there is to know."""

from __future__ import annotations

from pathlib import PurePath

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan.ranks import endpoint


def static_cluster(config: ClusterConfig, folder: PurePath) -> Cluster:
    """`folder` is where the file lies: `ssh_config` is relative to it. Defaults lie in the user's home there."""
    nodes = tuple(
        Node(
            name=host.name or f"n{index}",
            address=host.host,
            gpus=host.gpus,
            port=host.port or 22,
            user=host.user or "",
            price_usd_per_hour=host.price_usd_per_hour or 0.0,
        )
        for index, host in enumerate(config.cluster or ())
    )
    layout = Layout(
        python=config.python or "python3",
        scratch=config.scratch or "~/.nexa/scratch",
        shared=config.shared or "~/.nexa/shared",
        durable=config.durable or "~/.nexa/durable",
    )
    return Cluster(
        name=config.name or "hosts",
        provider="static",
        nodes=nodes,
        layout=layout,
        ssh_config=str(folder / config.ssh_config) if config.ssh_config else "",
        rdzv=config.rdzv or endpoint(nodes[0], config.rdzv_port),
        rdzv_backend=config.rdzv_backend,
    )
