"""Budgets on a local cluster with a price: refused, stopped in time, nodes given back; and what a failed run leaves."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import NO_TORCH, Lab, everything_of, runs, until

pytestmark = pytest.mark.e2e

USD_PER_HOUR = 72.0
RESERVED = USD_PER_HOUR * 180 / 3600
"""What a stop in order may need, by plan/money/budget.py."""
MORE_USD = 1.0
"""Fifty seconds: a busy machine takes long until a rank does its first step."""


@pytest.fixture
def priced(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    yield made
    made.nexa("teardown", "--cluster", "priced.yaml", "-y", "--keep-nothing")
    until(lambda: not everything_of(tmp_path), "nothing is left")


def provision(lab: Lab, **more: object) -> None:
    cluster = {
        "name": "priced",
        "provider": "local",
        "nodes": 1,
        "gpus_per_node": 2,
        "price_usd_per_hour": USD_PER_HOUR,
        **more,
    }
    lab.write("priced.yaml", json.dumps(cluster))
    lab.nexa("provision", "--cluster", "priced.yaml", "-y", timeout_s=900)


def is_there(lab: Lab) -> bool:
    return (lab.root / ".nexa" / "clusters" / "priced").exists()


def test_a_run_is_stopped_before_its_budget_ends_and_the_nodes_go(priced: Lab) -> None:
    provision(priced)
    train = priced.plain("steps", "--steps", 4000, budget_usd=0.5)
    said = priced.nexa("run", train, code=3).stderr
    assert "0.00 of 0.50 USD are spent, and at 72.00 USD/h the rest is needed to stop in order" in said
    assert runs(priced) == 0 and is_there(priced)

    train = priced.plain("steps", "--steps", 4000, budget_usd=round(RESERVED + MORE_USD, 2))
    said = priced.nexa("run", train, code=3).stderr
    manifest = priced.manifest()
    assert manifest["status"] == "stopped" and "budget of the run" in manifest["attempts"][-1]["cause"]
    assert manifest["attempts"][-1]["kind"] == "budget" and manifest["attempts"][-1]["last_step"] > 0
    assert manifest["cost_usd"] <= RESERVED + MORE_USD
    assert "stopping with a checkpoint" in said and "giving the nodes back (on_budget: teardown)" in said
    assert not is_there(priced)
    [receipt] = (priced.root / ".nexa" / "history").glob("*/receipt.json")
    told = json.loads(receipt.read_text())
    assert not any(told["left"].values()) and told["cost_usd"] > MORE_USD and told["waste"]["lines"]


@pytest.mark.long("variants of a budget and of on_failure")
def test_the_budget_of_a_cluster_is_shown_extended_and_kept_and_a_failed_run_takes_the_nodes(priced: Lab) -> None:
    began = time.time()
    provision(priced, budget_usd=50.0, on_failure="teardown")
    assert priced.json("budget")["budget_usd"] == 50.0
    assert priced.json("budget", "extend", "25")["budget_usd"] == 75.0
    priced.nexa("provision", "--cluster", "priced.yaml", "-y")
    told = priced.json("budget")
    assert told["budget_usd"] == 75.0 and told["usd_per_hour"] == USD_PER_HOUR
    assert 0 < told["spent_usd"] <= USD_PER_HOUR * (time.time() - began) / 3600 + 0.01
    assert "above 0" in priced.nexa("budget", "extend", "-5", code=2).stderr
    whole = (priced.root / "priced.yaml").read_text()
    priced.write("priced.yaml", whole.replace("50.0", "-1"))
    assert "budget_usd" in priced.nexa("provision", "--cluster", "priced.yaml", "-y", code=2).stderr
    priced.write("priced.yaml", whole)
    cost = priced.json("cost")
    assert cost["known_usd"] > 0 and cost["usd_per_hour"] == USD_PER_HOUR

    said = priced.nexa("run", priced.script("raising", "raise SystemExit(3)", **NO_TORCH), code=1).stderr
    assert "giving the nodes back (on_failure: teardown)" in said
    assert not is_there(priced)
