"""The rubric, its score, and the figures of an evaluation."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy")
pytest.importorskip("httpx")
pytest.importorskip("pyarrow")

from pydantic import ValidationError  # noqa: E402

from nexa_dist.errors import NexaError  # noqa: E402
from nexa_dist.stages.eval import rubric, statistics, summary, tasks  # noqa: E402
from nexa_dist.stages.eval.config import EvalConfig, Judge  # noqa: E402
from nexa_dist.stages.eval.judge import Asked, Verdicts, judge_sha256  # noqa: E402

WEIGHTS = {name: weight for name, (weight, _) in rubric.CRITERIA.items()}
ENDPOINT = {"url": "http://127.0.0.1:1/v1", "model": "m"}


def judge(**keys: Any) -> Judge:
    return Judge.model_validate({"endpoint": ENDPOINT, **keys})


def test_the_score_is_the_weighted_sum_and_missing_where_a_criterion_is() -> None:
    scores = {"falsifiability": 1.0, "grounding": 0.5, "completeness": 0.0, "safety": 1.0, "novelty": 0.25}
    assert rubric.dss(scores, WEIGHTS) == pytest.approx(0.3 + 0.1 + 0.0 + 0.2 + 0.025)
    assert rubric.dss(dict.fromkeys(WEIGHTS, 1.0), WEIGHTS) == pytest.approx(1.0)
    for name in WEIGHTS:
        assert rubric.dss({**scores, name: None}, WEIGHTS) is None
    assert rubric.dss({}, WEIGHTS) is None


@pytest.mark.parametrize(
    ("said", "score"),
    [(0.8, 0.8), ("0.8", 0.8), (" 80 % ", 0.8), (1, 1.0), (0, 0.0), (8, None), (-0.1, None), ("high", None),
     (None, None), (True, None), (math.nan, None), ([0.5], None), ("1e400", None)],
)  # fmt: skip
def test_what_is_no_number_from_0_to_1_is_missing(said: Any, score: float | None) -> None:
    assert rubric.read({"safety": said}, ["safety"]) == {"safety": score}
    assert rubric.read(said, ["safety"]) == {"safety": None}


def test_both_orders_count_alike() -> None:
    names = ["a", "b"]
    assert rubric.merged([{"a": 0.2, "b": 1.0}, {"a": 0.4, "b": None}], names) == {"a": pytest.approx(0.3), "b": None}
    assert rubric.merged([], names) == {"a": None, "b": None}
    asked = Asked(judge())
    first, second = (asked.question(kind, {}, "q", "a") for kind in asked.kinds)
    assert asked.kinds == ["grade0", "grade1"] and first.json_schema and second.json_schema
    assert list(first.json_schema["properties"])[1:] == list(second.json_schema["properties"])[:0:-1] == list(WEIGHTS)
    text = [one.messages[-1]["content"] for one in (first, second)]
    assert text[0].index("- safety") < text[0].index("- novelty") and text[1].index("- safety") > text[1].index(
        "- novelty"
    )
    assert Asked(judge(swap=False, against="other")).kinds == ["grade0", "pair0"]
    with pytest.raises(NexaError, match="no other to compare with"):
        Asked(judge(against="other")).question("pair0", {"other": " "}, "q", "a")


def test_a_winner_is_one_in_both_orders() -> None:
    said = {
        "better": ("A", "B"), "worse": ("b", " a "), "place": ("A", "A"), "equal": ("tie", "tie"), "odd": ("C", "A"),
    }  # fmt: skip
    replies: dict[tuple[int | str, str], tuple[str, Any]] = {}
    for row, words in said.items():
        replies |= {(row, f"pair{order}"): ("ok", {"winner": word}) for order, word in enumerate(words)}
    replies |= {("half", "pair0"): ("ok", {"winner": "A"}), ("half", "pair1"): ("bad_json", None)}
    verdicts = Verdicts(judge(against="other"), replies)
    found = {row: verdicts.of(row)["winner"] for row in (*said, "half")}
    assert found == {"better": "answer", "worse": "other", "place": "tie", "equal": "tie", "odd": None, "half": None}
    assert verdicts.failures == {"half": ["bad_json"]}
    # better: A, then B; worse: b, a; place: A, A; odd: A in its second order; half: A
    assert verdicts.first_place() == {"first_wins": pytest.approx(6 / 8), "orders_agree": pytest.approx(3 / 5)}


def test_a_judge_is_named_by_all_that_its_replies_follow_from() -> None:
    same = judge_sha256(judge())
    assert judge_sha256(judge(endpoint={**ENDPOINT, "url": "http://127.0.0.1:2/v1", "concurrency": 2})) == same
    others = (
        {"swap": False}, {"system": "x"}, {"prompt": "{{ answer }}"}, {"endpoint": {**ENDPOINT, "model": "n"}},
        {"endpoint": {**ENDPOINT, "temperature": 0.0}}, {"meanings": {"safety": "x"}}, {"pair": "{{ a }}{{ b }}"},
        {"criteria": {"safety": 1.0}},
    )  # fmt: skip
    assert len({same, *(judge_sha256(judge(**keys)) for keys in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"criteria": {"safety": 0.5}}, "sum to 0.5, and not to 1"),
        ({"criteria": {"beauty": 1.0}}, "meanings does not say what beauty means"),
        ({"labels": {"beauty": "x"}}, "beauty is no criterion"),
        ({"criteria": {"dss": 1.0}, "meanings": {"dss": "x"}}, "is the name of the score"),
    ],
)
def test_a_rubric_that_cannot_be_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        judge(**keys)
    with pytest.raises(ValidationError, match="nothing is asked for"):
        EvalConfig.model_validate({"stage": "eval"})


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    chance, held = random.Random(3), 0
    for at in range(200):
        drawn = [chance.gauss(0.5, 0.2) for _ in range(40)]
        low, high = statistics.interval(drawn, seed=at) or (1.0, 0.0)
        assert low < sum(drawn) / 40 < high
        held += low <= 0.5 <= high
    assert 180 <= held <= 200, "95 % of 200 are 190"
    assert statistics.interval([0.5], 0) is None and statistics.interval([], 0) is None
    assert statistics.interval([0.1, 0.9, 0.4], 7) == statistics.interval([0.1, 0.9, 0.4], 7)
    assert statistics.described([0.5, None, 0.7], 0)["missing"] == 1


def test_agreement_with_people_is_told_and_a_coin_is_named_as_one() -> None:
    people = [at / 50 for at in range(50)]
    good = statistics.agreement([p**2 for p in people], people, 0)
    assert good["spearman"] == pytest.approx(1.0) and good["ordered_alike"] == 1.0 and not statistics.ranks_badly(good)
    chance = random.Random(1)
    coin = statistics.agreement([chance.random() for _ in people], people, 0)
    assert abs(coin["spearman"]) < 0.4 and statistics.ranks_badly(coin)
    same = statistics.agreement([0.5] * 50, people, 0)
    assert same["spearman"] is None and same["ordered_alike"] == 0.5 and statistics.ranks_badly(same)
    few = statistics.agreement([0.1, None, 0.3], [0.2, 0.1, None], 0)
    assert few["rows"] == 1 and few["ordered_alike"] is None and statistics.ranks_badly(few)
    # Average ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 4.5 / sqrt(4.5 · 5).
    ties = statistics.agreement([0.1, 0.2, 0.2, 0.3], [0.1, 0.3, 0.2, 0.4], 0)
    assert ties["spearman"] == pytest.approx(4.5 / math.sqrt(22.5)) and ties["ordered_alike"] == pytest.approx(5.5 / 6)


def test_perplexity_is_of_all_tokens_and_its_interval_of_rows() -> None:
    told = summary.perplexity([10.0, 1.0, 3.0], [10, 2, 3], 0)
    assert told["value"] == pytest.approx(math.exp(14 / 15)) and told["tokens"] == 15
    assert told["interval"][0] <= told["value"] <= told["interval"][1]
    assert summary.perplexity([0.0], [0], 0)["value"] is None


def test_lm_evals_results_are_read_and_what_lacks_is_named() -> None:
    told = {"results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.05,
                                     "exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": "N/A"},
                        "empty": {"alias": "empty"}}}  # fmt: skip
    assert tasks.read(told, ("arc_easy",)) == {
        "arc_easy": {"acc": {"value": 0.5, "stderr": 0.05}, "exact_match:strict-match": {"value": 0.1, "stderr": None}}
    }
    for odd in (told, {}, [], {"results": 3}):
        with pytest.raises(NexaError, match="no figure of empty"):
            tasks.read(odd, ("empty",))


def test_the_next_sample_has_more_of_what_is_weak() -> None:
    def of(rows: int, dss: float | None) -> dict[str, Any]:
        return {"rows": rows, "scores": {"dss": {"mean": dss}}}

    told = {**of(40, 0.5), "groups": {"topic": {"food": of(20, 0.8), "plant": of(10, 0.2), "rare": of(10, None),
                                                "(others)": of(5, 0.1)}}}  # fmt: skip
    made = summary.next_sample(told, "topic", 100)
    assert made == {"policy": "quota", "by": "topic", "quotas": {"food": 24, "plant": 47, "rare": 29}}
    assert sum(made["quotas"].values()) == 100, "4, 8 and 5 of 17, the largest remainders rounded up"
    done = {**of(2, 1.0), "groups": {"topic": {"a": of(1, 1.0), "b": of(1, 1.0)}}}
    assert summary.next_sample(done, "topic", 3)["quotas"] == {"a": 2, "b": 1}
    nats = {"rows": 2, "perplexity": {"nats_per_token": 2.0}}
    groups = {
        "a": {**nats, "perplexity": {"nats_per_token": 3.0}},
        "b": {**nats, "perplexity": {"nats_per_token": 1.0}},
    }
    assert summary.next_sample({**nats, "groups": {"t": groups}}, "t", 8)["quotas"] == {"a": 6, "b": 2}
