"""nexa diag: every node is asked what it has, all of them are tried together, and what is wrong is named."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import gate
from nexa_dist.ops.health import group_test as health_group_test
from nexa_dist.plan.health import node_checks as verdicts
from nexa_dist.plan.health.expected import expected
from nexa_dist.plan.health.fault import OF_GROUP_TEST, Fault, failures
from nexa_dist.plan.health.slow_links import best_of, picture
from nexa_dist.plan.ranks import split_endpoint
from nexa_dist.run import agent_file, files
from nexa_dist.run.ssh.connections import Link, Ssh, connect, on_all, session
from nexa_dist.run.workspace import ClusterFolder

ANSWER_LIMIT_S = {False: 25.0, True: 50.0}
"""Seconds for one node's facts, short and deep."""
DOUBT_S = 20.0
"""Seconds after which a group that looks slow is tried again: what else a node does passes, a slow link stays."""


@dataclass(frozen=True)
class Report:
    """One diagnosis. `test` is what came of the group test, None where there was none; `why_not` says why."""

    cluster: Cluster
    at_unix: float
    deep: bool
    facts: Mapping[str, Mapping[str, Any]]
    findings: tuple[Fault, ...]
    test: Mapping[str, Any] | None
    why_not: str
    seconds: float

    @property
    def failures(self) -> list[Fault]:
        return failures(self.findings)

    def verdict(self) -> dict[str, Any]:
        """Report that is kept as the newest: without the facts."""
        return {
            "at_unix": round(self.at_unix, 3),
            "cluster": self.cluster.name,
            "ok": not self.failures,
            "deep": self.deep,
            "seconds": round(self.seconds, 2),
            "agent": agent_file.digest(),
            "env_hash": self.cluster.env_hash,
            "nodes": {node.name: gate.identity(node) for node in self.cluster.nodes},
            "findings": [finding.to_json() for finding in self.findings],
            "test": self.test,
            "test_skipped": self.why_not,
        }

    def to_json(self) -> dict[str, Any]:
        return {**self.verdict(), "facts": self.facts}

    def picture(self) -> str:
        """SVG of the pairs; "" when they were not measured."""
        matrix = (self.test or {}).get("matrix")
        if not matrix:
            return ""
        at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at_unix))
        return picture(f"{self.cluster.name}, {at}", [node.name for node in self.cluster.nodes], matrix)


def examine(
    ctx: Context, cluster: Cluster, *, deep: bool = False, efa: bool = False, run: str = "", why_not: str = ""
) -> Report:
    """Asks all nodes at once, then lets them talk to each other, unless `why_not` says why they should not, or `run` is
    using the nodes (and the port of their rendezvous)."""
    began, at = time.monotonic(), time.time()
    want = {node.name: expected(cluster, node, efa) for node in cluster.nodes}
    with session(ctx.runner, cluster) as ssh:
        answers = on_all(cluster.nodes, lambda node: _ask(ssh, node, deep, bool(run)))
        facts = {node.name: said for node, (_, said) in zip(cluster.nodes, answers, strict=True)}
        links = [link for link, _ in answers if link]
        why_not = f"{run} is using the nodes" if run else why_not or _no_test(cluster, facts)
        floor = min(each.floor_gbps for each in want.values())
        test: Mapping[str, Any] = (
            {} if why_not else health_group_test.try_group(ctx, links, facts, deep=deep, floor_gbps=floor)
        )
        found = tuple(verdicts.judge(cluster, facts, want, test or None))
        while (
            "matrix" in test
            and any(f.cause in OF_GROUP_TEST for f in failures(found))
            and time.monotonic() - began < DOUBT_S
        ):
            test = best_of(test, health_group_test.try_group(ctx, links, facts, deep=deep, floor_gbps=floor))
            found = tuple(verdicts.judge(cluster, facts, want, test))
    return Report(cluster, at, deep, facts, found, test or None, why_not, time.monotonic() - began)


def _ask(ssh: Ssh, node: Node, deep: bool, busy: bool) -> tuple[Link | None, dict[str, Any]]:
    """The node's facts and its clock against ours, or only {"error"}."""
    cluster = ssh.cluster
    try:
        link = connect(ssh, [node])[0]
        message: dict[str, Any] = {
            "python": link.python, "scratch": link.path(cluster.layout.scratch), "deep": deep,
            "sudo": cluster.traits.root,
            "peers": [other.peer_address for other in cluster.nodes if other.name != node.name],
        }  # fmt: skip
        if node.name == cluster.nodes[0].name and not busy:
            host, port = split_endpoint(cluster.rdzv)
            message |= {"listen": host or node.peer_address, "port": port}
        sent = time.time()
        said = link.call("diag", message=message, timeout_s=ANSWER_LIMIT_S[deep])
        got = time.time()
    except NexaError as error:
        return None, {"error": str(error)}
    # As in NTP: the way there and the way back are taken to be as long as each other.
    ahead = (said["received_unix"] - sent + said["answered_unix"] - got) / 2
    doubt = max(0.0, (got - sent) - (said["answered_unix"] - said["received_unix"])) / 2
    return link, {**said, "skew_s": round(ahead, 4), "skew_error_s": round(doubt, 4)}


def _no_test(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Why the nodes cannot be tried together; "" when they can."""
    if len(cluster.nodes) < 2:
        return "there is one node"
    for name, said in facts.items():
        if "error" in said:
            return f"{name} does not answer"
        if not said["environment"].get("torch"):
            return f"{name} has no torch"
        if any(route.get("error") for route in said["peers"].values()):
            return f"{name} has no route to the others"
    if not facts[cluster.nodes[0].name].get("test_port"):
        return f"{cluster.nodes[0].name} has no free port"
    return ""


def keep(folder: ClusterFolder, report: Report, **more: Any) -> Path:
    """The newest verdict, all facts, and the picture beside them. Answers the report's path. `more` goes into both."""
    before, verdict = gate.newest(folder), report.verdict()
    if before and report.test is None and before.get("nodes") == verdict["nodes"]:  # nobody looked, so it still holds
        verdict["findings"] += [f for f in before["findings"] if f["cause"] in OF_GROUP_TEST]
        verdict["ok"] = all(finding["severity"] != "fail" for finding in verdict["findings"])
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(report.at_unix))
    path = folder.path / "diag" / f"{stamp}.json"
    files.write_json(path, {**report.to_json(), **more})
    if drawn := report.picture():
        files.write_text(path.with_suffix(".svg"), drawn)
    files.write_json(gate.path_of(folder), {**verdict, "report": path.name, **more})
    return path


def wanted_depth(folder: ClusterFolder, deep: bool) -> bool:
    """A failure that only the deep checks can see is not made good by short ones."""
    before = gate.newest(folder)
    return deep or bool(before and before.get("deep") and not before.get("ok"))


def lines(report: Report) -> Sequence[str]:
    """Lines of the report for people, below a phase."""
    said = []
    for node in report.cluster.nodes:
        facts = report.facts[node.name]
        if "error" not in facts:
            environment, free = facts["environment"], (facts["disk"]["free_bytes"] or 0) >> 30
            gpus = f"{len(facts['gpus'])} GPUs, " if facts["gpus"] else ""
            said.append(
                f"{node.name} {node.address}:{node.port}: {gpus}python {environment.get('python')}, "
                f"torch {environment.get('torch')}, {free} GiB free"
            )
    if report.test and "busbw_gb_s" in report.test:
        test = report.test
        said.append(
            f"all-reduce over {test['ranks']} ranks ({test['backend']}): {test['busbw_gb_s']:.3g} GB/s bus bandwidth, "
            f"{test['latency_us']:.0f} µs latency"
        )
    said += [f"{finding.severity}: {finding.words}" for finding in report.findings]
    return said
