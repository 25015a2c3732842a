"""The nodes tried together: `remote/group_test.py` on each, over the shared connections, ended whatever happens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from nexa_dist import remote, wire
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.plan import told
from nexa_dist.plan.health.fault import ALL
from nexa_dist.run.runner import Stream
from nexa_dist.run.ssh.connections import Link
from nexa_dist.shape import Strange, parsed

START = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), 'group_test.py', 'exec'))"
"""The program comes on standard input, which stays open: when we end, or the connection, it ends too."""
IMPORT_S = 120.0
"""Seconds for torch to be imported on every node: a cold disk or a busy machine is no fault of the network."""
LIMIT_S = {False: 30.0, True: 50.0}
"""Seconds for the test itself, from then on."""
OP_S = {False: 0.15, True: 0.5}
"""Seconds that one measurement may take."""
STAGES = ("", "imported", "met", "joined", "all-reduce", "pairs", "slow pairs again")


class _Failed(Exception):
    """One node said that it cannot go on: the others would wait for it in vain."""


def try_group(
    ctx: Context, links: Sequence[Link], facts: Mapping[str, Mapping[str, Any]], *, deep: bool, floor_gbps: float
) -> dict[str, Any]:
    """The program's result, or {"errors": {node: words}}. `links` are all nodes in their order."""
    names = [link.node.name for link in links]
    gpus = min(len(facts[name]["gpus"]) if facts[name]["environment"].get("cuda") else 0 for name in names)
    port = told.port(names[0], facts[names[0]]["test_port"])
    plan = {
        "nodes": names, "nproc": gpus or 1, "backend": "nccl" if gpus else "gloo",
        "address": links[0].node.peer_address, "port": port, "limit_s": LIMIT_S[deep],
        "op_s": OP_S[deep], "floor_gbps": floor_gbps,
    }  # fmt: skip
    source = remote.GROUP_TEST.read_bytes()
    heard: dict[str, dict[str, Any]] = {name: {} for name in names}
    streams: list[Stream] = []

    def listen(name: str, last: str) -> None:
        """Reads what a node says, until it says that it has come to stage `last`, or all of it."""
        out = streams[names.index(name)].out
        for line in iter(lambda: out.readline(wire.FRAME_BYTES), b""):
            try:
                heard[name] |= parsed(line, wire.GROUP, wire.FRAME_BYTES)
            except Strange:
                continue  # a library that prints
            if "error" in heard[name]:
                raise _Failed
            if last and heard[name].get("stage") == last:
                return
        if heard[name].get("stage", "") not in STAGES:
            heard[name] = {"error": "it tells of what it does not do"}
        if heard[name].get("stage", "") not in STAGES[-2:]:
            heard[name]["error"] = "it ended without a word"
            raise _Failed

    def together(pool: ThreadPoolExecutor, last: str, limit_s: float) -> bool:
        reads = [pool.submit(listen, name, last) for name in names]
        done, late = wait(reads, timeout=limit_s, return_when=FIRST_EXCEPTION)
        failed = any(read.exception() for read in done)
        if late and failed:
            wait(late, timeout=1)  # the others may know more
        return not late and not failed

    with ThreadPoolExecutor(len(links)) as pool:
        try:
            for index, link in enumerate(links):
                argv = _argv(link, {**plan, "node": index}, interface(facts[link.node.name]), len(source))
                streams.append(ctx.runner.stream(argv, stdin=source))
            if together(pool, "imported", IMPORT_S):
                for stream in streams:
                    stream.send(b"\n")
                together(pool, "", LIMIT_S[deep] + 5)
        except OSError as error:
            raise NexaError(f"ssh could not be started: {error}") from error
        finally:
            for stream in streams:
                stream.end()
    result = next((said["result"] for said in heard.values() if "result" in said), None)
    tables = [] if result is None else [result["matrix"], result["at_most"]]
    if any(list(map(len, rows)) != [len(names)] * len(names) for rows in tables):
        return {"errors": {names[0]: "its figures are not those of these nodes"}}
    return dict(result) if result else {"errors": blamed(heard)}


def _argv(link: Link, plan: Mapping[str, Any], interface: str, size: int) -> tuple[str, ...]:
    settings = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if interface:
        settings |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    words = ("env", *(f"{name}={value}" for name, value in settings.items()))
    return (*link.ssh.argv(link.node), shlex.join((*words, link.python, "-c", START, str(size), json.dumps(plan))))


def interface(said: Mapping[str, Any]) -> str:
    """The one on the way to the other nodes; "" where there are several."""
    found = {route["interface"] for route in said["peers"].values() if route.get("interface")}
    return str(found.pop()) if len(found) == 1 else ""


def blamed(heard: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Nodes that kept the others waiting: those that came less far than another one. Where all came as far, those whose
    words are their own; and all of them where everyone says the same."""
    far = {name: STAGES.index(said.get("stage", "")) for name, said in heard.items()}
    words = {name: str(said.get("error", "no answer")) for name, said in heard.items()}
    behind = [name for name in heard if far[name] < max(far.values())]
    if behind:
        return {name: f"{words[name]} (after stage {STAGES[far[name]] or 'none'!r})" for name in behind}
    loud = {name: text for name, text in words.items() if "error" in heard[name]}
    if len(loud) < len(heard):
        return loud or {ALL: "no node answered in time"}
    return {ALL: f"{next(iter(loud.values()))} (after stage {STAGES[max(far.values())] or 'none'!r})"}
