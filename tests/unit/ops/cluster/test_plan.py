"""A saved plan: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import EXIT_BUDGET, NexaError, UsageError
from nexa_dist.ops.cluster import plan
from nexa_dist.ops.cluster.plan import changes, load, offline, preview, refuse_moved_price, save
from nexa_dist.ops.providers.aws import capacity, price_cache
from nexa_dist.ops.providers.aws.gang import Saved, offer_file
from nexa_dist.ops.providers.scope_file import scope_file
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws import prices
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run import files
from nexa_dist.verbs.cluster.status import status
from tests.unit.cloud_server import HOME, Desk, config, scope

CHOSEN = Candidate("g6e.12xlarge", "us-east-1b", "spot", 4, 4.0, "offer 1 of the file")
OTHER = Candidate("g5.12xlarge", "us-east-1a", "on_demand", 4, 9.0)
KEYS: dict[str, Any] = {
    "owner": "ann",
    "offers": [{"type": "g6e.12xlarge", "zone": "us-east-1b"}, {"type": "g5.12xlarge"}],
    "market": "spot_then_on_demand",
    "wait_for_capacity_minutes": 30.0,
}


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked: it may have everything."""
    monkeypatch.setattr(plan.aws_limits, "refuse_impossible", lambda *_: [])
    monkeypatch.setattr(plan.aws_limits, "within", lambda _, __, rows: (rows, [], []))


def saved(desk: Desk, **where: Any) -> Path:
    path = desk.root / "plan.bin"
    made = scope(**{"workspace": our_tag(desk.ctx), **where})
    save(path, config(**KEYS), made, CHOSEN, {"zones": ["us-east-1b"]}, b"\x00PK\xff")
    return path


def test_a_saved_plan_loads_as_it_was_saved(desk: Desk) -> None:
    path = saved(desk)
    told, made = load(desk.ctx, path)
    assert told == config(**KEYS)
    assert made.scope == scope(workspace=our_tag(desk.ctx))
    assert (made.candidate, made.variables, made.plan) == (CHOSEN, {"zones": ["us-east-1b"]}, b"\x00PK\xff")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_plan_of_another_workspace_is_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match="made in workspace bob@desk/2") as caught:
        load(desk.ctx, saved(desk, workspace="bob@desk/2"))
    assert "plan again here" in caught.value.hint


def test_every_torn_plan_is_refused(desk: Desk) -> None:
    path = saved(desk)
    text = path.read_text()
    for length in range(0, len(text) - 1, 97):
        path.write_text(text[:length])
        with pytest.raises(UsageError, match="no plan of this version"):
            load(desk.ctx, path)


@pytest.mark.parametrize(
    "change",
    [
        {"nexa_plan": 2},
        {"nexa_plan": None},
        {"site": {}},
        {"site": {**asdict(scope()), "expires_unix": "soon"}},
        {"candidate": {**asdict(CHOSEN), "market": "auction"}},
        {"config": {"name": "c"}},
        {"variables": 1},
        {"terraform_plan": "not base64!"},
    ],
)
def test_a_changed_plan_is_refused(desk: Desk, change: dict[str, Any]) -> None:
    path = saved(desk)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match="no plan of this version"):
        load(desk.ctx, path)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"PK\x03\x04\xff", b"\xff\xfe"])
def test_another_file_is_no_plan(desk: Desk, content: bytes) -> None:
    path = desk.root / "plan.bin"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no plan of this version"):
        load(desk.ctx, path)
    with pytest.raises(UsageError, match="No such file"):
        load(desk.ctx, desk.root / "none")


def test_changes_are_named_by_what_happens() -> None:
    actions = {
        "a": ["create"],
        "b": ["delete", "create"],
        "c": ["no-op"],
        "d": ["read"],
        "e": ["update"],
        "f": ["delete"],
    }
    planned = {"resource_changes": [{"address": key, "change": {"actions": told}} for key, told in actions.items()]}
    assert changes(planned) == {"create": ["a"], "replace": ["b"], "update": ["e"], "delete": ["f"]}
    assert changes({}) == {}


def test_a_preview_says_the_first_price_and_the_worst(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "open_scope", lambda *_: scope())
    monkeypatch.setattr(capacity, "survey", lambda *_: ([(CHOSEN, "why"), (OTHER, "")], ["left"]))
    seen = preview(desk.ctx, config(max_hours=6.0))
    assert seen and seen.chosen == CHOSEN
    around = 2 * (200 * 0.08 / 730 + 0.005)
    assert (seen.usd_per_hour, seen.rates.around) == (8.0, pytest.approx(around))
    assert seen.bill.worst_usd == pytest.approx((2 * 9.0 + around + 2 * 0.09) * (6 + 1 / 60))
    told = json.loads(json.dumps(seen.to_json()))
    assert told["worst_usd"] == round(seen.bill.worst_usd, 4)
    assert told["offers"][0]["usd_per_gpu_hour"] == 1.0 and told["left_out"] == ["left"]


def test_a_preview_says_what_the_account_may_not_have_and_what_was_not_looked_at(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "open_scope", lambda *_: scope())
    monkeypatch.setattr(capacity, "survey", lambda *_: ([(CHOSEN, "why"), (OTHER, "")], ["left"]))
    monkeypatch.setattr(plan.aws_limits, "refuse_impossible", lambda *_: ["VPCs"])
    monkeypatch.setattr(plan.aws_limits, "within", lambda _, __, rows: (rows[1:], ["short"], ["quota"]))
    seen = preview(desk.ctx, config(max_hours=6.0))
    assert seen and (seen.chosen, seen.dropped, seen.not_asked) == (OTHER, ("short", "left"), ("VPCs", "quota"))


def test_who_rents_is_asked_until_the_cluster_is_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that failed leaves an offer behind; the next one may cost something else."""
    monkeypatch.setattr(plan, "open_scope", lambda *_: scope())
    monkeypatch.setattr(capacity, "survey", lambda *_: ([(CHOSEN, "why")], []))
    folder = desk.ctx.workspace.cluster("c")
    assert preview(desk.ctx, config()) is not None
    files.write_json(scope_file(folder), scope().to_json())
    files.write_json(offer_file(folder), asdict(OTHER))
    assert preview(desk.ctx, config()) is not None
    files.write_json(folder.json, {})
    assert preview(desk.ctx, config()) is None


def test_a_budget_that_buys_no_boot_is_refused_before_anything_is_made(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "open_scope", lambda *_: scope())
    monkeypatch.setattr(capacity, "survey", lambda *_: ([(CHOSEN, "why")], []))
    with pytest.raises(NexaError, match="used up before the nodes have booted") as caught:
        preview(desk.ctx, config(budget_usd=0.5))
    assert caught.value.code == EXIT_BUDGET


@pytest.mark.parametrize(
    ("now", "said"),
    [(CHOSEN, ""), (replace(CHOSEN, usd_per_hour=4.3), ""), (replace(CHOSEN, usd_per_hour=4.5), "now 4.5000"),
     (OTHER, "cannot be had: it is offered no more")],
)  # fmt: skip
def test_a_saved_plan_whose_price_has_moved_is_refused(
    now: Candidate, said: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "survey", lambda *_: ([(now, "why")], []))
    then = Saved(scope(), CHOSEN, {}, b"")
    if not said:
        refuse_moved_price(desk.ctx, config(), then)
        return
    with pytest.raises(NexaError, match=said):
        refuse_moved_price(desk.ctx, config(), then)


def test_offline_the_book_alone_is_asked(desk: Desk) -> None:
    seen = offline(desk.ctx, config(offers=[{"type": "g6e.12xlarge"}, {"type": "x9.none"}], market="spot"))
    listed = prices.on_demand("g6e.12xlarge", HOME)
    assert listed and [candidate.usd_per_hour for candidate, _ in seen.offers] == [listed]
    assert "on-demand price taken" in seen.offers[0][1]
    assert seen.dropped[0].startswith("x9.none")
    with pytest.raises(NexaError, match="knows none of the offers"):
        offline(desk.ctx, config(offers=[{"type": "x9.none"}]))


def test_offline_the_spot_prices_asked_last_are_taken_and_their_age_is_told(desk: Desk) -> None:
    wanted = config(offers=[{"type": "g6e.12xlarge"}], market="spot")
    price_cache.keep(desk.ctx, HOME, {("g6e.12xlarge", f"{HOME}b"): 3.0, ("g6e.12xlarge", f"{HOME}c"): 2.5})
    desk.slept.append(7200.0)
    price_cache.keep(desk.ctx, HOME, {("g6e.12xlarge", f"{HOME}c"): 2.75})
    seen = offline(desk.ctx, wanted)
    assert [(c.zone, c.usd_per_hour) for c, _ in seen.offers] == [(f"{HOME}c", 2.75), (f"{HOME}b", 3.0)]
    assert seen.offers[0][1].endswith("spot price of 2.0 h ago")
    assert seen.to_json()["offers"][0]["on_demand_usd_per_hour"] == prices.on_demand("g6e.12xlarge", HOME)
    (desk.ctx.workspace.root / ".nexa/prices" / f"{HOME}.json").write_text('{"a b": 3, "c d": ["x", 1]}')
    assert price_cache.kept(desk.ctx, HOME) == ({}, 0.0)


@pytest.mark.parametrize(("left", "state"), [("ssh/client", "planned"), ("journal.jsonl", "unfinished")])
def test_status_after_a_mere_plan(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: str, state: str
) -> None:
    """Keys and sources are what a plan leaves; of more something may exist."""
    files.write_text(desk.ctx.workspace.cluster("c").path / left, "")
    monkeypatch.setattr("nexa_dist.verbs.cluster.status.context", lambda **_: desk.ctx)
    assert status(argparse.Namespace(cluster=None, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["clusters"] == [{"cluster": "c", "state": state, "nodes": []}]
    status(argparse.Namespace(cluster=None, json=False))
    assert (f"{state}: nothing was made" if state == "planned" else "nexa teardown") in "".join(capsys.readouterr())
