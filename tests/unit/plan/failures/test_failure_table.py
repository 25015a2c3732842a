"""Every signature by a real log, and that causes win over what follows from them. The logs: tests/cases/why."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from nexa_dist.node.protocol import Reason
from nexa_dist.ops.failures.why import collect
from nexa_dist.plan.failures import log_tail
from nexa_dist.plan.failures.diagnose import judge
from nexa_dist.plan.failures.evidence import Evidence, NodeEvidence, RankEvidence
from nexa_dist.plan.failures.known.signature import Exit, Phrase, Tier
from nexa_dist.plan.failures.table import BY_NAME, TABLE, as_markdown
from nexa_dist.run.record import Attempt
from nexa_dist.run.workspace import RunFolder
from nexa_dist.shape import of

ROOT = Path(__file__).parents[4]
FOLDER = ROOT / "tests" / "cases" / "why"
CASES = {path.parent.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*/case.json"))}


def tail_of(case: str, rank: int = 1) -> bytes:
    (path,) = (FOLDER / case / "logs").glob(f"*/rank_{rank}/attempt_1.log")
    return path.read_bytes()


def lost(at: float = 10.0) -> Exit:
    return Exit(at, 1, 0, 3)


def event(name: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "at": at, **fields}


def of_ranks(*ranks: RankEvidence, state: str = "failed", **events: tuple[dict[str, Any], ...]) -> Evidence:
    names = sorted({rank.node for rank in ranks} | set(events))
    done = (event("started", 1.0, attempt=1), event("ended", 99.0, state="failed", reason="torchrun", code=1))
    nodes = tuple(NodeEvidence(name, (done[0], *events.get(name, ()), done[1])) for name in names)
    return Evidence(nodes, ranks, state)


# -- the table and its cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_captured_log_gives_its_signature_and_the_rank_that_was_first(case: str) -> None:
    expect = CASES[case]["expect"]
    row = of(Attempt)({"started_unix": 0.0, "world_size": 1, "rdzv": "", **CASES[case]["attempt"]})
    verdict = judge(collect(RunFolder(FOLDER / case), row))
    node, rank = verdict.first or (None, None)
    assert (verdict.name, node, rank) == (expect["name"], expect["node"], expect["rank"])
    assert expect["words"] in verdict.words
    assert "{" not in verdict.words.replace(expect["words"], "")
    if rank is not None and verdict.name not in ("killed", "host_oom", "terminated", "left_early"):
        assert any(expect["line"].encode() in line for line in verdict.lines)


def test_every_signature_has_a_case_or_a_text_that_people_post() -> None:
    by_hand = {signature.name for signature in TABLE if any(isinstance(p, Phrase) for p in signature.logs)}
    assert {case["expect"]["name"] for case in CASES.values()} | by_hand >= set(BY_NAME)
    assert len(BY_NAME) == len(TABLE)


def test_every_case_says_where_it_comes_from() -> None:
    told = re.findall(r"^\| `([a-z0-9_]+)` \|", (FOLDER / "SOURCES.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(CASES)


def test_cases_hold_no_path_but_the_neutral_ones() -> None:
    path = re.compile(rb"(?:^|[ \"'(=])/([A-Za-z_]+)/", re.MULTILINE)
    found = {root for log in FOLDER.rglob("*.log") for root in path.findall(log.read_bytes())}
    assert found == {b"opt", b"srv", b"mnt", b"lib", b"__w", b"pytorch", b"tmp", b"dev"}


def test_the_page_is_the_table() -> None:
    page = (ROOT / "docs" / "WHY.md").read_text()
    again = "python -c 'from nexa_dist.plan.failures.table import as_markdown; print(as_markdown(), end=\"\")'"
    assert page.endswith(as_markdown()), f"docs/WHY.md: put what this prints behind its first words: {again}"
    assert again in page


# -- causes and what follows from them -----------------------------------------------------------------------


@pytest.mark.parametrize("case", ["gloo_closed", "nccl_remote", "gloo_timeout", "nccl_timeout", "gloo_refused"])
def test_a_cause_wins_over_what_follows_from_it_even_when_that_was_told_first(case: str) -> None:
    rank = CASES[case]["expect"]["rank"]
    follower = RankEvidence("n0", 0, tail_of(case, rank), lost(at=10.0))
    culprit = RankEvidence("n1", 1, tail_of("python_exception"), lost(at=30.0))
    verdict = judge(of_ranks(follower, culprit))
    assert (verdict.first, verdict.name) == (("n1", 1), "python_exception")
    assert len(verdict.others) == 1
    assert verdict.others[0].startswith("rank 0: ")


def test_what_follows_is_named_when_there_is_nothing_else() -> None:
    verdict = judge(of_ranks(RankEvidence("n0", 0, tail_of("gloo_closed"), lost())))
    assert (verdict.first, verdict.name) == (("n0", 0), "gloo_closed")


def test_among_equals_the_earliest_is_first_and_a_known_skew_counts() -> None:
    late = RankEvidence("n0", 0, tail_of("python_exception"), lost(at=12.0))
    early = RankEvidence("n1", 1, tail_of("file_missing"), lost(at=11.0))
    assert judge(of_ranks(late, early)).first == ("n1", 1)
    ahead = (NodeEvidence("n0", skew_s=5.0), NodeEvidence("n1"))
    assert judge(Evidence(ahead, (late, early))).first == ("n0", 0)


def test_what_ranks_do_after_somebody_stopped_them_is_no_cause() -> None:
    stop = (event("stopping", 20.0, reason="stopped by the user", grace_s=25),)
    after = RankEvidence("n0", 0, tail_of("python_exception"), lost(at=21.0))
    assert judge(of_ranks(after, n0=stop, state="stopped")).name == "stopped_by_user"
    before = RankEvidence("n0", 0, tail_of("python_exception"), lost(at=19.0))
    assert judge(of_ranks(before, n0=stop, state="stopped")).name == "python_exception"


@pytest.mark.parametrize("number", [6, 9, 15])
def test_ranks_that_were_ended_because_of_another_are_not_first(number: int) -> None:
    ended = [RankEvidence("n0", n, b"", Exit(10.0, 0, number)) for n in (0, 1)]
    stop = (event("stopping", 9.9, reason=Reason.FAILURE, grace_s=5),)
    culprit = RankEvidence("n1", 2, b"", Exit(10.5, 0, 11))
    verdict = judge(of_ranks(*ended, culprit, n0=stop))
    assert (verdict.first, verdict.name, verdict.others) == (("n1", 2), "segfault", ())


def test_sixty_four_ranks() -> None:
    closed, timed_out = tail_of("gloo_closed"), tail_of("nccl_timeout")
    ranks = [RankEvidence(f"n{n // 8}", n, closed if n % 2 else timed_out, lost(10.0 + n / 100)) for n in range(64)]
    ranks[41] = RankEvidence("n5", 41, tail_of("cuda_oom"), lost(at=10.9))
    ranks[42] = RankEvidence("n5", 42, b"", Exit(10.95, 0, 15))
    verdict = judge(of_ranks(*ranks))
    assert (verdict.first, verdict.name) == (("n5", 41), "cuda_oom")
    assert len(verdict.others) == 2
    assert verdict.others[0].startswith("ranks 0, 2, 4, 6, ")
    assert "42" not in verdict.others[0]


def test_a_timeout_points_at_the_rank_that_says_nothing() -> None:
    ranks = [RankEvidence("n0", n, tail_of("gloo_timeout", 0), lost(10.0 + n)) for n in (0, 1, 3)]
    verdict = judge(of_ranks(*ranks, RankEvidence("n1", 2, b"step 3\n")))
    assert (verdict.first, verdict.name) == (("n0", 0), "gloo_timeout")
    assert verdict.others[-1] == "rank 2: no error of their own; look there first"


# -- hang ------------------------------------------------------------------------------------------------------


def hung(steps: dict[str, int], states: dict[str, str] | None = None, *tails: bytes) -> Evidence:
    told = event("hang", 20.0, ranks=[], stalled_s=600.4, steps=steps, states=states or {})
    ranks = tuple(RankEvidence("n0", n, tail, Exit(20.1, 0, 6)) for n, tail in enumerate(tails))
    return of_ranks(*ranks, n0=(told,))


def test_of_a_hang_the_rank_that_is_behind_is_named() -> None:
    verdict = judge(hung({"0": 42, "1": 41}, None, tail_of("hang"), tail_of("hang", 0)))
    assert (verdict.first, verdict.name) == (("n0", 1), "hang")
    assert "no step for 600 s: rank 1 is at step 41 while others are at 42" in verdict.words


def test_of_a_hang_at_one_step_the_one_that_is_not_in_the_collective_is_named() -> None:
    verdict = judge(hung({"0": 3, "1": 3}, None, tail_of("hang", 0), tail_of("hang", 1)))
    assert verdict.first == ("n0", 1)
    assert "in wait_for_batch" in verdict.words


def test_of_a_hang_the_frozen_one_is_named() -> None:
    verdict = judge(hung({"0": 3, "1": 3}, {"0": "T", "1": "S"}, tail_of("hang", 0), tail_of("hang", 1)))
    assert verdict.first == ("n0", 0)
    assert "frozen" in verdict.words


# -- little, wrong and hostile evidence ----------------------------------------------------------------------


def test_without_logs_the_state_or_the_cause_is_the_diagnosis() -> None:
    assert judge(Evidence()).name == "unknown"
    assert judge(Evidence(state="completed")).words == "it completed"
    assert judge(Evidence(state="running")).words == "nothing has failed so far"
    assert judge(Evidence(cause="torch differs between nodes: n0 2.13.0, n1 2.12.1")).name == "version_mismatch"
    assert judge(Evidence(cause="node n1: no word for 62 s")).words == "node n1: no word for 62 s"


def test_empty_logs_leave_the_end_of_the_process() -> None:
    verdict = judge(of_ranks(RankEvidence("n0", 0, b"", Exit(10.0, 3, 0)), RankEvidence("n0", 1, b"", Exit(9.0, 0, 0))))
    assert (verdict.name, verdict.lines) == ("left_early", ())
    verdict = judge(of_ranks(RankEvidence("n0", 0, b"", Exit(10.0, 3, 0))))
    assert verdict.words == "it ended with exit code 3, and nothing in its log is known here"


def test_a_rank_that_still_runs_is_not_accused() -> None:
    running = RankEvidence("n0", 0, tail_of("python_exception"))
    assert judge(Evidence((NodeEvidence("n0"),), (running,), "running")).name == "running"


def test_an_exception_that_was_caught_is_not_the_end_of_a_killed_rank() -> None:
    tail = tail_of("python_exception") + b"going on without labels\n"
    assert judge(of_ranks(RankEvidence("n0", 0, tail, Exit(10.0, 0, 9, oom=True)))).name == "host_oom"
    assert judge(of_ranks(RankEvidence("n0", 0, tail, Exit(10.0, 3, 0)))).name == "unknown"


def test_an_earlier_exception_does_not_hide_the_last_one() -> None:
    tail = tail_of("cuda_oom") + b"trying again with half of it\n" + tail_of("python_exception")
    assert judge(of_ranks(RankEvidence("n0", 0, tail, lost()))).name == "python_exception"


@pytest.mark.parametrize("seed", range(8))
def test_hostile_bytes(seed: int) -> None:
    source = random.Random(seed)
    parts = [bytes(source.randbytes(400)), b"\xff\x1b]0;x\x07", b"\x00" * 50, log_tail.HEADER + b"\n", b"\r" * 9]
    parts += [tail_of("python_exception")[: source.randrange(400)], b'  File "', b'", line 9' * 3, b"x" * 70000]
    tail = b"".join(source.choices(parts, k=200))
    for end in (None, lost(), Exit(10.0, 0, 6), Exit(10.0, 0, 11), Exit(10.0, 2, 0)):
        verdict = judge(of_ranks(RankEvidence("n0", 0, tail, end)))
        assert len(verdict.words) < 1500
        assert all(len(line) <= log_tail.LINE_BYTES for line in verdict.lines)


# -- patterns are bounded --------------------------------------------------------------------------------------


def holds(item: tuple[Any, Any], byte: int) -> bool:
    """Whether one item of a parsed pattern matches a byte."""
    kind, value = item
    if kind is _constants.LITERAL:
        return bool(byte == value)
    if kind is _constants.NOT_LITERAL:
        return bool(byte != value)
    if kind is _constants.RANGE:
        return bool(value[0] <= byte <= value[1])
    if kind is _constants.CATEGORY:
        letter = {"DIGIT": rb"\d", "SPACE": rb"\s", "WORD": rb"\w"}[str(value).rsplit("_", 1)[1]]
        return re.match(letter, bytes([byte])) is not None
    assert kind is _constants.IN, kind
    negated = value[0][0] is _constants.NEGATE
    return any(holds(one, byte) for one in value[negated:]) != negated


END = (_constants.AT, _constants.AT_END)


def choices(parsed: Any, behind: tuple[Any, Any] = END) -> int:
    """In how many ways a pattern can go wrong at one place of a text before it gives up there: what backtracking
    multiplies. A repeat counts as one way when what comes `behind` it cannot be part of it, or when nothing comes."""
    ways, items = 1, [*parsed, behind]
    for (kind, value), following in itertools.pairwise(items):
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            low, high, inner = value
            assert high != _constants.MAXREPEAT, "a repeat without bound"
            if high == 1:
                ways *= 2 * choices(inner, following)
                continue
            assert len(inner) == 1, "a repeat within a repeat"
            edge = following[1] if following[0] is _constants.LITERAL else 10 if following[0] is _constants.AT else None
            stops = edge is not None and not holds(inner[0], edge)
            ways *= 1 if stops or following is END else high - low + 1
        elif kind is _constants.BRANCH:
            ways *= sum(choices(branch, following) for branch in value[1])
        elif kind is _constants.SUBPATTERN:
            ways *= choices(value[3], following)
    return ways


INNER = [value for value in vars(log_tail).values() if isinstance(value, re.Pattern)]
WORDS = [p for s in TABLE for p in (*s.logs, *s.near, *s.unless)]
PATTERNS = [*(p for p in WORDS if isinstance(p, re.Pattern)), *INNER]
"""Phrases are linear by their making: test_posted.py."""


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.pattern.decode(errors="replace")[:40])
def test_the_steps_of_a_pattern_are_bounded(pattern: re.Pattern[bytes]) -> None:
    assert choices(_parser.parse(pattern.pattern)) <= 1000


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (rb"(a+)+b", "bound"),
        (rb"a*b", "bound"),
        (rb"(?:ab){1,9}", "within"),
        (rb"a[^\n]{1,99}b[^\n]{1,99}c", ""),
    ],
)
def test_the_guard_refuses_what_it_should(bad: bytes, why: str) -> None:
    try:
        assert choices(_parser.parse(bad)) > 1000
        refused = ""
    except AssertionError as error:
        refused = str(error)
    assert why in refused
    assert bool(why) == bool(refused)


def test_only_the_end_of_a_log_is_read() -> None:
    tail = tail_of("cuda_oom") + b"\n" * (log_tail.TAIL_BYTES + 1)
    assert judge(of_ranks(RankEvidence("n0", 0, tail, lost()))).name == "unknown"


def test_tiers_are_used() -> None:
    assert {s.tier for s in TABLE} == set(Tier)
