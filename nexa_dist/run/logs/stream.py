"""Stream of logs and events from all nodes of an attempt, from a follower for each."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nexa_dist.run.logs.follower import ALL, Follower, How
from nexa_dist.run.logs.items import Ended, Item, Items, Quiet, Through
from nexa_dist.run.ssh.connections import Link

PULSE_S = 2.0
"""Interval of the keep-alive to each node."""
PATIENCE_S = 20.0
"""Seconds with a silent node where all of its logs are wanted at once."""
FETCH_S = 600.0
"""Seconds for logs that somebody asked for and waits for."""


def follow(links: Sequence[Link], run_dirs: dict[str, str], logs: Path, how: How = ALL) -> Stream:
    """Starts a follower for every node, which goes on where the mirror `logs` ends."""
    out = Items()
    followers = [Follower(link, run_dirs[link.node.name], logs / link.node.name, out, how) for link in links]
    for follower in followers:
        follower.start()
    return Stream(out, followers)


def fetch(links: Sequence[Link], run_dirs: dict[str, str], logs: Path, limit_s: float = FETCH_S) -> dict[str, str]:
    """Brings the mirror up to date; answers the nodes of which not all came, and why."""
    stream = follow(links, run_dirs, logs, How(once=True, lines=False, contact=False))
    waited, missing = {link.node.name for link in links}, dict[str, str]()
    until = time.monotonic() + limit_s
    try:
        while waited and time.monotonic() < until and (stream.alive or not stream.items.empty()):
            item = stream.next()
            if isinstance(item, Through):
                waited.discard(item.node)
            elif isinstance(item, Ended) and item.status["state"] == "faulty" and item.node in waited:
                waited.discard(item.node)
                missing[item.node] = item.status["reason"]
            elif isinstance(item, Quiet) and item.seconds > PATIENCE_S and item.node in waited:
                waited.discard(item.node)
                missing[item.node] = f"no word for {item.seconds:.0f} s"
    finally:
        stream.close()
    return missing | dict.fromkeys(waited, f"not all of it came within {limit_s:.0f} s")


class Stream:
    """Items of all nodes as they come."""

    def __init__(self, items: Items, followers: Sequence[Follower]) -> None:
        self.items, self.followers = items, followers
        self.closed = threading.Event()
        self.pulse = threading.Thread(target=self._pulse, daemon=True, name="pulse")
        self.pulse.start()

    def _pulse(self) -> None:
        last = time.monotonic()
        while not self.closed.wait(PULSE_S):
            now = time.monotonic()
            asleep, last = now - last > 2 * PULSE_S, now
            if not asleep:  # we were stopped for a while: first hear what the nodes said meanwhile
                for follower in self.followers:
                    follower.pulse()

    def early(self) -> set[str]:
        """The nodes that have not begun the attempt."""
        return {follower.link.node.name for follower in self.followers if follower.early}

    def speaking(self) -> list[str]:
        """The nodes that we hear just now."""
        now = time.monotonic()
        return [f.link.node.name for f in self.followers if now - f.last_word < PULSE_S and f.last_word > f.begun]

    def next(self, timeout_s: float = 1.0) -> Item | None:
        """The next item, or None when nothing came in time."""
        try:
            return self.items.get(timeout=timeout_s) if timeout_s else self.items.get_nowait()
        except queue.Empty:
            return None

    def rest(self, limit_s: float) -> Iterator[Item | None]:
        """Items until all logs are here, or the time is up; then `behind` tells what is not."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and self.alive:
            yield self.next(0.1)
        while (item := self.next(0)) is not None and time.monotonic() < until + 1:
            yield item

    @property
    def alive(self) -> bool:
        """True while more may come."""
        return any(follower.is_alive() for follower in self.followers)

    def behind(self) -> dict[str, int]:
        """Bytes of logs that are still on the nodes, by node; of 0 nobody knows how many."""
        return {f.link.node.name: f.behind for f in self.followers if not f.through}

    def close(self) -> None:
        """Ends the followers and their ssh."""
        self.closed.set()
        for follower in self.followers:
            follower.close()
        while any(thread.is_alive() for thread in (*self.followers, self.pulse)):
            self.next(0.1)  # one that waits for room in the queue must get it
