"""A test message to webhooks from every node of a cluster, as its agents would send one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.node.webhook import Answer
from nexa_dist.ops.context import Context
from nexa_dist.ops.notify.targets import Target, to_node
from nexa_dist.run.ssh.connections import connect, on_all, session
from nexa_dist.secrets import redact_text

TELL_S = 30.0
"""Seconds for a node's answer: its tries are made at once, and each has webhook.TIMEOUT_S."""


def send(
    ctx: Context, cluster: Cluster, targets: Sequence[Target], message: dict[str, Any]
) -> list[tuple[str, list[Answer]]]:
    """Name of each node, and what became of the message to each target from there. A node that does not answer has told
    nobody."""

    def one(node: Node) -> tuple[str, list[Answer]]:
        own = {**message, "id": f"{message['id']}:{node.name}", "from": node.name}
        own["text"] = f"{message['text']}, from {node.name} too"
        try:
            [link] = connect(ssh, [node])
            asked = {"targets": [to_node(target) for target in targets], "message": own}
            told = link.call("tell", "-", message=asked, timeout_s=TELL_S)["told"]
            if len(told) != len(targets):
                raise NexaError(f"{node.name} told of {len(told)} webhooks, and was asked for {len(targets)}")
        except NexaError as error:
            why = redact_text(str(error).splitlines()[0])
            return node.name, [Answer(False, True, why) for _ in targets]
        return node.name, [Answer(row["sent"], why=redact_text(row["why"])) for row in told]

    with session(ctx.runner, cluster) as ssh:
        return on_all(cluster.nodes, one)
