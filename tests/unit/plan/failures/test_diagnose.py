"""Which of several ranks failed first: composed attempts with times, exit codes and signals, one line a rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nexa_dist.node.protocol import Reason
from nexa_dist.plan.failures.diagnose import judge
from nexa_dist.plan.failures.evidence import Evidence, NodeEvidence, RankEvidence
from nexa_dist.plan.failures.known.signature import Exit


def raised(words: str, file: str = "/mnt/scratch/r/work/train.py", *after: str) -> bytes:
    lines = ["step 7 loss 2.1", "Traceback (most recent call last):", f'  File "{file}", line 45, in step', "    go()"]
    return "\n".join([*lines, words, *after, ""]).encode()


IN_COLLECTIVE = "/opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
QUIET = b"step 7 loss 2.1\n"
OOM = raised("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
TIMED_OUT = raised("RuntimeError: [../gloo/transport/tcp/buf.cc:81] Timed out waiting 60000ms for recv operation")
NCCL = raised("torch.distributed.DistBackendError: NCCL error in: a.cpp:1, unhandled system error", IN_COLLECTIVE)
NEW = "RuntimeError: {}"
WORDS = (
    "ring-allreduce: the stream to worker 3 was dropped",
    "rank 2 is gone",
    "the other side hung up: peer no longer there",
    "lost the session with the remote",
    "Connection to 10.0.0.12 refused",
    "process group was aborted",
    "[Rank 0] communicator 0x55 went away",
    "an actor died unexpectedly",
    "Neighbour 3 has disappeared",
    "the link to the other node broke",
)
CLASSES = ("ConnectionResetError: [Errno 104] Connection reset by peer", "BrokenPipeError: [Errno 32] Broken pipe")
CLASSES += (
    "lab.WorkerGone: 3",
    "lab.PeerWasLost",
    "EOFError",
    "torch.distributed.DistBackendError: no words of it",
    "mpi.RemoteError: 17",
)


def rank(number: int, at: float, end: str, tail: bytes = QUIET, step: int | None = 7) -> RankEvidence:
    """Rank N on node N // 2. `end`: an exit code, or `-9` for a signal."""
    code = int(end)
    made = Exit(at, max(code, 0), max(-code, 0), step)
    return RankEvidence(f"n{number // 2}", number, tail, made)


def attempt(*ranks: RankEvidence, **events: list[tuple[float, str, dict[str, Any]]]) -> Evidence:
    nodes = []
    for name in sorted({r.node for r in ranks} | set(events)):
        told = [{"event": kind, "at": at, **more} for at, kind, more in events.get(name, [])]
        ends = [] if any(e["event"] == "silence" for e in told) else [{"event": "ended", "at": 99.0, "state": "failed"}]
        ends = [{**end, "reason": "torchrun", "code": 1} for end in ends]
        told = [{"event": "started", "at": 1.0}, *(e for e in told if e["event"] != "silence"), *ends]
        nodes.append(NodeEvidence(name, tuple(told)))
    return Evidence(tuple(nodes), ranks, "failed")


def first(*ranks: RankEvidence, **events: list[tuple[float, str, dict[str, Any]]]) -> tuple[str, int | None, str]:
    verdict = judge(attempt(*ranks, **events))
    assert verdict.first is not None
    return (*verdict.first, verdict.name)


# -- time outweighs an exception that nobody knows ----------------------------------------------------------------


@pytest.mark.parametrize("words", ["the loss is not finite", "CUBLAS_STATUS_EXECUTION_FAILED", "kaboom"])
@pytest.mark.parametrize(
    ("end", "name"), [("3", "unknown"), ("1", "unknown"), ("-9", "killed"), ("-15", "terminated"), ("-11", "segfault")]
)
def test_an_earlier_end_without_a_word_comes_before_an_unknown_exception(end: str, name: str, words: str) -> None:
    late = rank(0, 11.0, "1", raised(NEW.format(words)))
    assert first(late, rank(2, 10.0, end)) == ("n1", 2, name)


@pytest.mark.parametrize("end", ["3", "-9", "-11", "-6"])
def test_and_a_later_one_after_it(end: str) -> None:
    early = rank(0, 10.0, "1", raised("KeyError: 'labels'"))
    assert first(early, rank(2, 11.0, end)) == ("n0", 0, "python_exception")


def test_among_failures_of_their_own_the_earliest_counts_known_or_not() -> None:
    unknown, known = raised(NEW.format("kaboom")), OOM
    assert first(rank(0, 10.0, "1", unknown), rank(2, 11.0, "1", known)) == ("n0", 0, "python_exception")
    assert first(rank(0, 11.0, "1", unknown), rank(2, 10.0, "1", known)) == ("n1", 2, "cuda_oom")
    assert first(rank(0, 10.0, "-9"), rank(2, 11.0, "1", known)) == ("n0", 0, "killed")


def test_eight_ranks_of_which_one_was_killed_and_the_others_each_say_it_in_their_own_words() -> None:
    others = [rank(n, 10.2 + n / 100, "1", raised(NEW.format(words))) for n, words in enumerate(WORDS) if n != 5]
    assert first(rank(5, 10.0, "-9"), *others) == ("n2", 5, "killed")


def test_the_kernel_ended_one_and_torchrun_ended_its_neighbour() -> None:
    out = RankEvidence("n1", 2, QUIET, Exit(10.0, 0, 9, 7, oom=True))
    follower = rank(0, 10.4, "1", raised(NEW.format("what an odd thing")))
    assert first(out, rank(3, 10.1, "-15"), follower) == ("n1", 2, "host_oom")


# -- 'lost its peer' in any wording outweighs nothing -------------------------------------------------------------


@pytest.mark.parametrize("words", [*(NEW.format(text) for text in WORDS), *CLASSES])
@pytest.mark.parametrize(
    ("end", "tail", "name"),
    [("1", raised("KeyError: 'labels'"), "python_exception"), ("3", QUIET, "unknown"), ("-9", QUIET, "killed")],
)
def test_who_lost_a_peer_is_not_first_even_when_it_ended_first(words: str, end: str, tail: bytes, name: str) -> None:
    assert first(rank(0, 10.0, "1", raised(words)), rank(2, 10.5, end, tail)) == ("n1", 2, name)


@pytest.mark.parametrize("words", ["TimeoutError: barrier", NEW.format("worker 1 did not answer within 30 s")])
def test_nor_is_who_waited_in_vain(words: str) -> None:
    culprit = rank(2, 40.0, "1", raised("KeyError: 'labels'"))
    assert first(rank(0, 10.0, "1", raised(words)), culprit) == ("n1", 2, "python_exception")


@pytest.mark.parametrize("end", ["3", "-9"])
def test_an_exception_out_of_a_collective_is_no_cause_beside_another_end(end: str) -> None:
    inside = rank(0, 10.0, "1", raised(NEW.format("[enforce fail] x == y"), IN_COLLECTIVE))
    assert first(inside, rank(2, 10.5, end))[:2] == ("n1", 2)


def test_a_connection_to_a_service_is_no_peer() -> None:
    words = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='data.example.org', port=443): reset by peer"
    assert first(rank(0, 10.0, "1", raised(words)), rank(2, 10.5, "-9")) == ("n0", 0, "python_exception")


def test_alone_it_is_named_with_its_own_words() -> None:
    verdict = judge(attempt(rank(0, 10.0, "1", raised(NEW.format(WORDS[0])))))
    assert (verdict.first, verdict.name) == (("n0", 0), "peer_lost")
    assert WORDS[0] in verdict.words


def test_a_rank_whose_words_name_another_one_is_not_first() -> None:
    words = "torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys([2])"
    ranks = [rank(n, 10.0 + n / 10, "1", raised(words)) for n in range(3)]
    assert first(*ranks) == ("n1", 2, "distributed_checkpoint")


def test_native_code_that_lost_its_peer_is_not_first() -> None:
    tail = b"terminate called after throwing an instance of 'E'\n  what():  the stream to worker 2 was dropped\n"
    assert first(rank(0, 10.0, "-6", tail), rank(2, 10.5, "3")) == ("n1", 2, "unknown")


# -- setting up, leaving, stopping --------------------------------------------------------------------------------


def test_what_the_set_up_says_comes_before_a_later_exception_and_gives_way_to_a_known_cause() -> None:
    assert first(rank(0, 10.0, "1", NCCL), rank(2, 11.0, "1", raised(NEW.format("kaboom"))))[:2] == ("n0", 0)
    assert first(rank(0, 10.0, "1", NCCL), rank(2, 11.0, "1", OOM)) == ("n1", 2, "cuda_oom")
    assert first(rank(0, 11.0, "1", NCCL), rank(2, 10.0, "-9")) == ("n1", 2, "killed")


def test_a_rank_that_left_with_0_is_first_when_the_others_only_missed_it() -> None:
    gone = rank(2, 9.0, "0", QUIET, step=3)
    for tail in (TIMED_OUT, raised(NEW.format(WORDS[0])), raised(NEW.format("kaboom"))):
        assert first(gone, rank(0, 10.0, "1", tail)) == ("n1", 2, "left_early")


def test_a_rank_that_was_through_did_not_leave_early() -> None:
    through = rank(2, 9.0, "0", QUIET, step=7)
    assert first(through, rank(0, 10.0, "3")) == ("n0", 0, "unknown")
    assert first(through, rank(0, 10.0, "1", raised("KeyError: 'eval'"))) == ("n0", 0, "python_exception")
    assert first(rank(2, 9.0, "0", step=3), rank(0, 10.0, "1", raised("KeyError: 'x'")))[2] == "python_exception"


def test_what_a_rank_raises_when_it_is_stopped_for_another_is_not_first() -> None:
    stop = [(9.0, "stopping", {"reason": Reason.FAILURE, "grace_s": 5})]
    told = rank(0, 9.5, "1", raised(NEW.format("interrupted in the middle of a step")))
    assert first(told, rank(2, 10.0, "3"), n0=stop) == ("n1", 2, "unknown")


def test_a_known_cause_that_could_not_end_its_rank_is_found_where_others_killed_it() -> None:
    stop = [(70.0, "stopping", {"reason": Reason.FAILURE, "grace_s": 5})]
    stuck = rank(2, 75.0, "-9", OOM)
    assert first(rank(0, 65.0, "1", TIMED_OUT), stuck, n1=stop) == ("n1", 2, "cuda_oom")


def test_the_neighbours_that_torchrun_ended_are_not_first() -> None:
    ranks = [rank(0, 10.0, "1", raised("KeyError: 'x'")), rank(1, 10.1, "-15"), rank(2, 10.3, "1", TIMED_OUT)]
    verdict = judge(attempt(*ranks, rank(3, 10.4, "-15")))
    assert (verdict.first, verdict.name) == (("n0", 0), "python_exception")
    assert len(verdict.others) == 1 and "rank 2" in verdict.others[0]


CLOSED = raised("RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.11]:4711")


@pytest.mark.parametrize("end", ["-9", "3", "-6"])
@pytest.mark.parametrize("late", [-0.5, 0.05, 1.5])
def test_who_lost_its_neighbour_is_not_first_in_whatever_order_their_ends_were_written(end: str, late: float) -> None:
    assert first(rank(0, 10.0, "1", CLOSED), rank(1, 10.0 + late, end))[:2] == ("n0", 1)
    across = rank(2, 10.02, "1", CLOSED)
    assert first(rank(0, 10.0, "1", CLOSED), rank(1, 10.0 + late, end), across)[:2] == ("n0", 1)


def test_nor_is_who_torchrun_ended_and_wrote_that_before() -> None:
    assert first(rank(0, 10.0, "-15"), rank(1, 10.05, "-9")) == ("n0", 1, "killed")
    assert first(rank(0, 10.0, "-15"), rank(1, 10.05, "1", raised("KeyError: 'x'")))[:2] == ("n0", 1)
    assert first(rank(0, 10.0, "-15"), rank(1, 40.0, "-9")) == ("n0", 0, "terminated")  # one that would not go


def test_a_rank_that_was_killed_while_its_agent_still_gave_it_time_was_killed_by_another() -> None:
    stop = [(10.2, "stopping", {"reason": Reason.FAILURE, "grace_s": 5})]
    peer = rank(0, 10.1, "1", CLOSED)
    assert first(peer, rank(2, 10.4, "-9"), n1=stop) == ("n1", 2, "killed")
    assert first(peer, rank(2, 15.3, "-9"), n1=stop)[:2] == ("n0", 0)


@pytest.mark.parametrize("through", [9.0, 10.8])
def test_a_rank_that_leaves_its_loop_early_is_not_the_network(through: float) -> None:
    others = [rank(n, 10.0 + n / 100, "1", CLOSED) for n in (0, 1, 3)]
    verdict = judge(attempt(*others, rank(2, through, "0")))
    assert (verdict.first, verdict.name) == (("n1", 2), "left_early")
    assert "network" not in verdict.fix


def test_a_rank_without_an_error_of_its_own_is_pointed_at() -> None:
    verdict = judge(attempt(rank(0, 10.0, "1", CLOSED), rank(1, 10.2, "-15")))
    assert verdict.others == ("rank 1: no error of their own; look there first",)


@pytest.mark.parametrize(
    ("reason", "name"), [("stopped by the user", "stopped_by_user"), ("deadline", "deadline"), ("budget", "budget")]
)
def test_nobody_is_blamed_for_what_somebody_wanted(reason: str, name: str) -> None:
    stop = [(9.9, "stopping", {"reason": reason, "grace_s": 25})]
    ranks = (rank(0, 10.0, "-15"), rank(1, 10.0, "143"), rank(2, 10.1, "1", CLOSED))
    verdict = judge(attempt(*ranks, n0=stop))
    assert (verdict.name, verdict.who, verdict.blamed) == (name, "", None)


@pytest.mark.parametrize("cause", ["an agent could not be started: n1: no space", "stopped by the user before every n"])
def test_nor_are_ranks_that_were_ended_because_another_node_could_not_start(cause: str) -> None:
    stop = [(9.9, "stopping", {"reason": "another node could not start", "grace_s": 0})]
    found = attempt(rank(0, 10.0, "-15"), rank(1, 10.1, "1", CLOSED), n0=stop)
    verdict = judge(dataclasses.replace(found, cause=cause))
    assert verdict.who == "" and "somebody other than nexa" not in verdict.words
    assert "no space" in verdict.words or verdict.name == "stopped_by_user"


def test_a_node_that_fell_silent_before_an_unknown_exception_is_first() -> None:
    seen = {"n1": [(100.0, "heartbeat", {}), (0.0, "silence", {})]}
    odd = rank(0, 103.0, "1", raised(NEW.format("kaboom")))
    assert first(odd, **seen) == ("n1", None, "node_gone")
    assert first(rank(0, 95.0, "1", raised(NEW.format("kaboom"))), **seen) == ("n0", 0, "python_exception")
    assert first(rank(0, 103.0, "-9"), **seen) == ("n0", 0, "killed")
    assert first(rank(0, 103.0, "1", OOM), **seen) == ("n0", 0, "cuda_oom")


def test_the_clock_of_a_node_that_is_ahead_is_set_right() -> None:
    ranks = (rank(0, 15.0, "-9"), rank(2, 11.0, "1", raised(NEW.format("kaboom"))))
    assert judge(Evidence((NodeEvidence("n0", skew_s=5.0), NodeEvidence("n1")), ranks)).first == ("n0", 0)
    assert judge(Evidence((NodeEvidence("n0"), NodeEvidence("n1")), ranks)).first == ("n1", 2)
