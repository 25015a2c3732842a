"""Cuts the controller of a real run off, in every way that a proxy between it and the nodes' sshds can.

    python -m tests.chaos.cutoff --rounds 20

One run on two local nodes; their sshds talk to each other directly, and to the controller through a proxy each. Every
round is one event that looks like a death; none may end a node or an attempt. Then a node dies for real.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import selectors
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tests.chaos.controller import Controller
from tests.chaos.local_hosts import LocalHosts, end_by_sigterm, local_hosts, wait
from tests.chaos.rigs import LocalRig

Mode = Literal["pass", "drop", "to_node", "from_node", "lossy", "refuse"]
Event = Literal["line", "line_one_way", "line_to_one", "one_way_to_one", "lossy", "refused", "dropped_once", "stopped"]
EVENTS: tuple[Event, ...] = get_args(Event)
PLAIN_RANK = Path(__file__).parents[1] / "plain_rank.py"
CALM_S = 12.0
"""Between two rounds, for the followers to be back."""


class Proxy:
    """Between the controller and one sshd. What is dropped is lost: both ends keep their half of the connection."""

    def __init__(self, address: str, port: int) -> None:
        self.to, self.mode = (address, port), "pass"
        self.chance = random.Random(port)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self.listener.getsockname()[1])
        self.pairs: dict[socket.socket, socket.socket] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self.listener, selectors.EVENT_READ)
            while not self.over.is_set():
                for key, _ in ready.select(0.2):
                    if key.fileobj is self.listener:
                        self._accept(ready)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self.pairs:
                        self._move(ready, key.fileobj, key.data)
            for one in list(self.pairs):
                self._close(ready, one)

    def _accept(self, ready: selectors.BaseSelector) -> None:
        client, _ = self.listener.accept()
        if self.mode == "refuse":
            client.close()
            return
        try:
            server = socket.create_connection(self.to, timeout=5)
        except OSError:
            client.close()
            return
        self.pairs |= {client: server, server: client}
        ready.register(client, selectors.EVENT_READ, "to_node")
        ready.register(server, selectors.EVENT_READ, "from_node")

    def _move(self, ready: selectors.BaseSelector, one: socket.socket, way: str) -> None:
        try:
            data = one.recv(65536)
            stale = self.mode in ("drop", way) or (self.mode == "lossy" and self.chance.random() < 0.02)
            if data and stale:
                ready.unregister(one)  # no byte of it may come later: the stream has a hole, as a dead line has
            elif data:
                self.pairs[one].sendall(data)
            else:
                self._close(ready, one)
        except OSError:
            self._close(ready, one)

    def _close(self, ready: selectors.BaseSelector, one: socket.socket) -> None:
        for end in (one, self.pairs.pop(one, one)):
            self.pairs.pop(end, None)
            with contextlib.suppress(KeyError, ValueError):
                ready.unregister(end)
            end.close()

    def hang_up(self) -> None:
        for one in list(self.pairs):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        self.listener.close()


@dataclass
class Rig:
    cluster: LocalHosts
    controller: Controller
    proxies: dict[str, Proxy]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        found = max((self.cluster.root / "runs").glob("train_*/run.json"), default=None)
        return dict(json.loads(found.read_text())) if found else {"attempts": []}

    def said(self) -> str:
        return self.controller.log.read_text(errors="replace")

    def mode(self, mode: Mode, *names: str) -> None:
        for name in names or self.proxies:
            self.proxies[name].mode = mode

    def do(self, event: Event, node: str, seconds: float) -> None:
        if event == "stopped":
            self.controller.sleep(seconds)
            return
        if event == "dropped_once":
            self.proxies[node].hang_up()
            return
        modes: dict[str, tuple[Mode, tuple[str, ...]]] = {
            "line": ("drop", ()), "line_one_way": ("from_node", ()), "line_to_one": ("drop", (node,)),
            "one_way_to_one": ("to_node", (node,)), "lossy": ("lossy", ()), "refused": ("refuse", (node,)),
        }  # fmt: skip
        mode, names = modes[event]
        if event == "refused":  # as at MaxStartups: what is there is dropped, nothing new is let in
            self.proxies[node].mode = mode
            self.proxies[node].hang_up()
        self.mode(mode, *names)
        time.sleep(seconds)
        self.mode("pass")


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    with local_hosts(folder / "w", "cut", 2, 1) as cluster:
        shutil.copy(PLAIN_RANK, cluster.root)
        text = {"name": "cut", "script": PLAIN_RANK.name, "launcher": "direct", "args": ["--steps", "1000000"]}
        text["args"] += ["--until", str(cluster.root / "over"), "--save-every", "50"]  # type: ignore[operator]
        (cluster.root / "train.yaml").write_text(json.dumps(text))
        nodes = json.loads((cluster.folder / "cluster.json").read_text())["nodes"]
        proxies = {node["name"]: Proxy(node["address"], node["port"]) for node in nodes}
        config = cluster.ssh_config.read_text()
        for node in nodes:
            before = f"HostName {node['address']}\n    Port {node['port']}\n"
            config = config.replace(before, f"HostName 127.0.0.1\n    Port {proxies[node['name']].port}\n")
        cluster.ssh_config.write_text(config)
        made = Rig(cluster, Controller(LocalRig(cluster, cluster.root), folder / "log"), proxies)
        try:
            yield made
        finally:
            made.mode("pass")
            if made.controller.child:
                made.controller.kill()
            cluster.end_jobs()
            for proxy in proxies.values():
                proxy.close()


def one(made: Rig, event: Event, chance: random.Random) -> dict[str, Any]:
    """A round, and what is wrong after it."""
    node = chance.choice(made.cluster.nodes)
    seconds, before = round(chance.uniform(34, 48)), {n: made.cluster.daemon(n) for n in made.cluster.nodes}
    mark = len(made.said())
    made.do(event, node, seconds)
    time.sleep(CALM_S)
    attempts = made.record()["attempts"]
    said = [line for line in made.said()[mark:].splitlines() if "step " not in line]
    wrong = [f"{n} was ended" for n, pid in before.items() if made.cluster.daemon(n) != pid]
    wrong += [f"{len(attempts)} attempts"] * (len(attempts) != 1)
    wrong += ["the controller is gone"] * (not made.controller.runs())
    return {"event": event, "node": node, "seconds": seconds, "wrong": wrong, "said": said}


def death(made: Rig) -> float:
    """A node loses its power; the seconds until the controller says so."""
    began = time.monotonic()
    made.cluster.kill_host("n1")
    wait(lambda: "node n1: its machine is off" in made.said() or not made.controller.runs(), 120)
    return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cutoff", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=EVENTS, default=EVENTS, help="one after the other")
    asked = parser.parse_args(argv)
    end_by_sigterm()
    chance, folder = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="nexa-cutoff-"))
    try:
        with rig(folder) as made:
            made.controller.start("run", "train.yaml", "--cluster", "cut")
            if not wait(lambda: re.search(r"step", made.said()) or not made.controller.runs(), 300):
                raise RuntimeError(made.said())
            time.sleep(CALM_S)
            for number in range(asked.rounds):
                made.rounds.append(one(made, asked.ways[number % len(asked.ways)], chance))
                print(json.dumps(made.rounds[-1]), flush=True)
            found_s = death(made)
            (made.cluster.root / "over").touch()
            wait(lambda: not made.controller.runs(), 300)
            code, attempts = made.controller.code(), made.record()["attempts"]
            if code:
                print(made.said()[-4000:], file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bad = [row for row in made.rounds if row["wrong"]]
    result = {"rounds": len(made.rounds), "wrong": len(bad), "death_found_s": round(found_s, 1),
              "attempts": [row.get("cause", "") for row in attempts], "code": code}  # fmt: skip
    print(json.dumps(result))
    return 1 if bad or code or found_s > 45 else 0


if __name__ == "__main__":
    sys.exit(main())
