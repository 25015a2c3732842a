"""Group test, of how fast the nodes reach each other: latency and all-reduce bandwidth of the group, and each pair of
nodes by itself.

One program a node, started by `nexa diag` over ssh: `python -m nexa_dist.remote.group_test '{plan}'`, or with these
lines on its standard input, since a node needs only torch for it. Once torch is imported, which takes from a second to
a minute, it waits for one more byte: all nodes start together, and only then does `limit_s` count. It forks one process
for each rank (one a node with gloo, one a GPU with NCCL). Standard input is its life line: when it ends, the program
ends, whatever the ranks wait for. It prints lines of JSON: where it is, and on the first node the result, or an error.

Bus bandwidth is 2 (n-1)/n x bytes / seconds for n ranks: what every rank's wire carries in a ring, whatever n is (the
definition of nccl-tests, its doc/PERFORMANCE.md). A pair's figure is what one node sends to the other, on all GPUs at
once, in Gbit/s. Each is the best of a few tries: a wire is as fast as it ever was. A busy CPU is no slow wire either:
`at_most` is what a pair would have if no thread of its two ends had ever waited for a CPU, the waits of all added up.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

Tables = list[list[list[float | None]]]
"""Gbit/s from each node (row) to each (column): as measured, and at most."""
FIRST_BYTES = 1 << 16
MOST_BYTES = {"gloo": 1 << 24, "nccl": 1 << 28}
PR_SET_PDEATHSIG = 1
AT_LEAST = 0.1
"""Part of a transfer's time that is the wire's, whatever the waits for a CPU add up to: those of threads overlap."""
AGAIN = 0.6
"""Below this part of the median a pair is measured once more, with nobody else on the wire."""


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """A tournament: in each round every node meets one other, and after `nodes` - 1 rounds each has met all (one more
    round, with one node idle in each, when they are odd)."""
    ring = [*range(nodes), *([-1] if nodes % 2 else [])]
    made = []
    for _ in range(len(ring) - 1):
        pairs = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        made.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return made


class Rank:
    """One rank at work. `plan`: nodes, node (index), nproc, backend, address, port, limit_s, op_s (seconds that a
    measurement may take), floor_gbps (less is measured again)."""

    def __init__(self, plan: dict[str, Any], local: int) -> None:
        import torch
        import torch.distributed

        dist: Any = torch.distributed  # its types leave the store out
        self.torch, self.dist, self.plan, self.local = torch, dist, plan, local
        self.until = time.monotonic() + plan["limit_s"] * 0.8
        self.node, self.nproc, self.op_s = plan["node"], plan["nproc"], plan["op_s"]
        self.rank, self.world = self.node * self.nproc + local, len(plan["nodes"]) * self.nproc
        self.cuda = plan["backend"] == "nccl"
        self.device = torch.device("cuda", local) if self.cuda else torch.device("cpu")
        if self.cuda:
            self.log = nccl_log()
            torch.cuda.set_device(self.device)
        torch.set_num_threads(1)
        limit = timedelta(seconds=plan["limit_s"])
        store = dist.TCPStore(
            plan["address"], plan["port"], self.world, self.rank == 0, timeout=limit, wait_for_workers=False
        )
        self.say("met")  # who does not come as far cannot reach the first node
        dist.init_process_group(plan["backend"], store=store, rank=self.rank, world_size=self.world, timeout=limit)

    def measure(self) -> dict[str, Any] | None:
        """The result, on rank 0."""
        began = time.monotonic()
        latency = self.latency_s()
        self.say("all-reduce")
        size, seconds = self.all_reduce()
        busbw = 2 * (self.world - 1) / self.world * size / seconds
        made: dict[str, Any] = {
            "backend": self.plan["backend"], "ranks": self.world, "latency_us": round(latency * 1e6, 1),
            "bytes": size, "busbw_gb_s": round(busbw / 1e9, 4),
        }  # fmt: skip
        self.say("pairs")
        (made["matrix"], made["at_most"]), made["rounds_left"] = self.matrix()
        made["transport"] = transport(self.log) if self.cuda else ""
        made["seconds"] = round(time.monotonic() - began, 3)
        self.dist.barrier()
        return made if self.rank == 0 else None

    def say(self, stage: str) -> None:
        if self.local == 0:
            tell({"stage": stage})

    def sync(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def zeros(self, size: int) -> Any:
        return self.torch.zeros(size // 4, dtype=self.torch.float32, device=self.device)

    def agreed(self, value: float) -> float:
        """The largest of all ranks' values: what follows is decided alike everywhere."""
        shared = self.torch.tensor([value], dtype=self.torch.float64, device=self.device)
        self.dist.all_reduce(shared, op=self.dist.ReduceOp.MAX)
        return float(shared.item())

    def timed(self, act: Callable[[], Any]) -> float:
        began = time.perf_counter()
        act()
        self.sync()
        return time.perf_counter() - began

    def latency_s(self) -> float:
        """Median of small all-reduces; the first ones make the connections."""
        small = self.zeros(8)
        first = self.agreed(min(self.timed(lambda: self.dist.all_reduce(small)) for _ in range(3)))
        times = [self.timed(lambda: self.dist.all_reduce(small)) for _ in range(tries(first, self.op_s, 50))]
        return statistics.median(times)

    def all_reduce(self) -> tuple[int, float]:
        """Bytes and seconds of the largest all-reduce that fits into the time."""
        size, most = FIRST_BYTES, MOST_BYTES[self.plan["backend"]]
        while (seconds := self.reduced(size)) < self.op_s / 4 and size < most:
            size *= 4
        return size, min(seconds, *(self.reduced(size) for _ in range(tries(seconds, self.op_s, 8))))

    def reduced(self, size: int) -> float:
        """Seconds of one all-reduce, on the slowest rank."""
        data = self.zeros(size)
        return self.agreed(self.timed(lambda: self.dist.all_reduce(data)))

    def matrix(self) -> tuple[Tables, int]:
        """The tables, and how many rounds there was no time for."""
        schedule = rounds(len(self.plan["nodes"]))
        done = 0
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for pairs in schedule:
            if self.agreed(float(time.monotonic() > self.until)):
                break
            done += 1
            for pair in pairs:
                found |= self.both_ways(*pair)
        tables = self.gathered(found)
        self.say("slow pairs again")
        for _ in range(2):
            self.measure_again(tables)
        return tables, len(schedule) - done

    def measure_again(self, tables: Tables) -> None:
        """Measure again what looked slow, which may have had to share a CPU or a wire: one pair at a time, and the
        better figure counts."""
        for a, b in suspects(tables[0], self.plan["floor_gbps"]):
            if self.agreed(float(time.monotonic() > self.until)):
                return
            again = self.gathered(self.both_ways(a, b))
            for table, better in zip(tables, again, strict=True):
                for row, column in ((a, b), (b, a)):
                    table[row][column] = max(table[row][column] or 0.0, better[row][column] or 0.0)

    def both_ways(self, a: int, b: int) -> dict[tuple[int, int], tuple[float, float]]:
        """Figures of what this rank sent in the pair of nodes; none where it is in neither."""
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for source, sink in ((a, b), (b, a)):
            if self.node == source:
                found[source, sink] = self.sent(sink * self.nproc + self.local)
            elif self.node == sink:
                self.received(source * self.nproc + self.local)
        return found

    def sent(self, peer: int) -> tuple[float, float]:
        """Gbit/s to a rank, and at most, in transfers that grow until one takes a good part of the time."""
        size, best, most, left = FIRST_BYTES, 0.0, 0.0, 0
        sizes = self.torch.zeros(1, dtype=self.torch.int64, device=self.device)
        told = self.torch.zeros_like(sizes)
        growing = True
        while growing or left:
            data = self.zeros(size)
            sizes[0] = size
            self.dist.send(sizes, peer)
            self.dist.recv(told, peer)  # it waits for us from here on
            self.sync()
            waited = cpu_wait_ns()
            seconds = self.timed(partial(self.carried, data, told, peer))
            waited = cpu_wait_ns() - waited + int(told.item())
            if growing and seconds < self.op_s / 4 and size < MOST_BYTES[self.plan["backend"]]:
                size *= 4
                continue
            gbit = size * 8 / 1e9
            best = max(best, gbit / seconds)
            most = max(most, best, gbit / max(seconds - waited / 1e9, AT_LEAST * seconds))
            left = tries(seconds, self.op_s, 4) if growing else left - 1
            growing = False
        sizes[0] = 0
        self.dist.send(sizes, peer)
        self.sync()
        return best, most

    def carried(self, data: Any, told: Any, peer: int) -> None:
        """There, and the word that it is there: how long it had to wait for a CPU, in ns."""
        self.dist.send(data, peer)
        self.dist.recv(told, peer)

    def received(self, peer: int) -> None:
        sizes = self.torch.zeros(1, dtype=self.torch.int64, device=self.device)
        while True:
            self.dist.recv(sizes, peer)
            size = int(sizes.item())
            if not size:
                return
            data = self.zeros(size)
            self.dist.send(sizes, peer)
            waited = cpu_wait_ns()
            self.dist.recv(data, peer)
            self.sync()
            sizes[0] = cpu_wait_ns() - waited
            self.dist.send(sizes, peer)

    def gathered(self, found: dict[tuple[int, int], tuple[float, float]]) -> Tables:
        """The tables on every rank: the GPUs of a pair of nodes send at once, so their figures add up."""
        count = len(self.plan["nodes"])
        both = self.torch.zeros(2, count, count, dtype=self.torch.float64, device=self.device)
        for (row, column), figures in found.items():
            for which, gbps in enumerate(figures):
                both[which, row, column] = gbps
        self.dist.all_reduce(both)
        return [[[round(gbps, 4) or None for gbps in row] for row in table] for table in both.tolist()]


def cpu_wait_ns() -> int:
    """Nanoseconds in which the threads of this process could have run and had no CPU, all together so far; 0 where
    Linux does not say (the second figure of schedstat, in its Documentation/scheduler/sched-stats)."""
    waited = 0
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/schedstat") as file:
            waited += int(file.read().split()[1])
    return waited


def tries(seconds: float, budget_s: float, most: int) -> int:
    """Count of times that something which takes `seconds` fits the budget, once at least."""
    return max(1, min(most, int(budget_s / max(seconds, 1e-7))))


def suspects(table: list[list[float | None]], floor_gbps: float) -> list[tuple[int, int]]:
    """Pairs of nodes to be measured again, the slowest first; as many as there are nodes at most."""
    known = [value for row in table for value in row if value]
    if not known:
        return []
    limit = max(AGAIN * statistics.median_high(known), floor_gbps)
    slow: dict[tuple[int, int], float] = {}
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if value and value < limit:
                pair = (min(row, column), max(row, column))
                slow[pair] = min(value, slow.get(pair, value))
    return sorted(slow, key=lambda pair: slow[pair])[: len(table)]


def nccl_log() -> int:
    """Open the file in which NCCL writes what it uses: memory of this process, so that no file is left."""
    log = os.memfd_create("nccl")
    os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET", "NCCL_DEBUG_FILE": f"/proc/self/fd/{log}"}
    return log


def transport(log: int) -> str:
    """Transport that NCCL says it uses between nodes: Socket, IB, AWS Libfabric; "" where it says nothing."""
    text = os.pread(log, 1 << 20, 0).decode(errors="replace")
    named = [line.rpartition("Using network ")[2].strip() for line in text.splitlines() if "Using network " in line]
    return named[-1] if named else ""


def tell(line: dict[str, Any]) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())


def work(plan: dict[str, Any], local: int) -> NoReturn:
    """A rank from its first to its last moment."""
    code = 1
    try:
        rank = Rank(plan, local)
        rank.say("joined")
        made = rank.measure()
        if made:
            tell({"result": made})
        code = 0
    except Exception as error:  # whatever torch raises is told, and judged by who reads it
        tell({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:400] if str(error) else ''}"})
    finally:
        os._exit(code)


def main(argv: list[str]) -> int:
    """Starts the ranks of this node, and ends them: when one fails, when time is up, when nobody holds our input."""
    plan = json.loads(argv[0])
    gc.disable()  # looking for garbage is a tenth of that import, and no time may go to it between two measurements
    import torch.distributed  # noqa: F401  # once, before the forks

    tell({"stage": "imported"})
    if not os.read(0, 1):
        return 1
    until = time.monotonic() + plan["limit_s"]
    children, us = [], os.getpid()
    ended: list[int] = []
    # Noted and no more: what a handler raises is lost where it meets the functions that Python calls around a fork.
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    for local in range(plan["nproc"]):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != us:
                os._exit(1)  # it ended before we asked for that
            work(plan, local)
        children.append(pid)
    code, living = 0, set(children)
    try:
        while living and not code:
            if ended or (select.select([0], [], [], 0.05)[0] and not os.read(0, 1 << 16)):
                return 1
            for pid in list(living):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    living.discard(pid)
                    code = code or os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                tell({"error": f"not done within {plan['limit_s']:.0f} s"})
                return 1
        return 1 if code else 0
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        for pid in living:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ImportError, OSError) as error:
        tell({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
