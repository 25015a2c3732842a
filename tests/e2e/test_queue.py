"""A grid on a real cluster whose controller is killed in the middle: another goes on, and each run takes place once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab, kill, runs, until

SWEEP = """
import os, sys, time
from pathlib import Path
from nexa_dist.train import progress
rate, seed, folder = float(sys.argv[2]), int(sys.argv[4]), Path(sys.argv[5])
if os.environ["RANK"] == "0":
    with (folder / "began").open("a") as file:
        file.write(f"{rate} {seed}\\n")
while seed == 1 and not (folder / "go").exists():
    time.sleep(0.05)
progress.report(1, 1, loss=rate + seed)
"""
LONG = pytest.mark.long("the same with twice as many runs")


@pytest.mark.parametrize("rates", [["0.5"], pytest.param(["0.5", "0.25"], marks=LONG)])
def test_a_queue_whose_controller_is_killed_goes_on_and_runs_each_once(
    clean: Lab, tmp_path: Path, rates: list[str]
) -> None:
    before = runs(clean)
    args = ["--rate", "1", "--seed", "0", str(tmp_path)]
    train = clean.script("sweep", SWEEP, args=args, launcher="direct")
    grid = ["--grid", f"args.1={','.join(rates)}", "--grid", "args.3=0,1,2"]
    child = clean.begin("run", train, *grid)
    began = tmp_path / "began"
    until(lambda: began.exists() and len(began.read_text().splitlines()) == 2, "the second run is going on")
    busy = clean.nexa("run", train, code=2)
    assert "the queue of cluster lab is at work" in busy.stderr
    kill(child.pid)
    child.communicate()
    clean.script("sweep", SWEEP, args=["changed"])  # what is queued stays as it was
    rows = clean.json("queue")
    assert [row["state"] for row in rows] == ["done", "running"] + ["waiting"] * (3 * len(rates) - 2)
    (tmp_path / "go").touch()
    done = clean.nexa("queue", "run", "--picture", "loss.svg")
    assert "going on with" in done.stderr
    rows = clean.json("queue")
    wanted = [(rate, seed) for rate in rates for seed in ("0", "1", "2")]
    assert [(*row["parameters"].values(), row["state"], row["loss"]) for row in rows] == [
        (rate, seed, "done", float(rate) + int(seed)) for rate, seed in wanted
    ]
    assert began.read_text().splitlines() == [f"{rate} {seed}" for rate, seed in wanted]
    assert runs(clean) == before + len(rows)
    for row, (rate, seed) in zip(rows, wanted, strict=True):
        manifest = json.loads((clean.root / "runs" / "manifests" / f"{row['run']}.json").read_text())
        assert {f"grid:args.1={rate}", f"grid:args.3={seed}"} <= set(manifest["tags"])
        assert len(manifest["attempts"]) == 1
        assert row["usd"] == pytest.approx(manifest["cost_usd"], abs=0.01)
    assert rows[2]["began_s"] < 60
    assert (clean.root / "loss.svg").read_text().count("<circle") == len(rows) * (2 if len(rates) > 1 else 1)


def test_two_runs_go_on_at_once_where_they_share_no_node(clean: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    files = {name: clean.plain(f"on-{name}", "--step-seconds", 0, "--hold", go, nodes=[name]) for name in ("n0", "n1")}
    before = runs(clean)
    first = clean.begin("run", files["n0"], "--rank", "all")
    until(lambda: runs(clean) > before and clean.log(1, "n0"), "the first run has its ranks")
    for shared in (files["n0"], clean.plain("on-all")):
        assert "is busy with" in clean.nexa("run", shared, code=2).stderr
    assert "has no node 'n2'" in clean.nexa("run", files["n0"], "--set", "nodes.0=n2", code=2).stderr
    second = clean.begin("run", files["n1"])
    until(lambda: runs(clean) > before + 1 and clean.log(1, "n1"), "the second run has its ranks beside it")
    active = {row["run"]: row["state"] for row in clean.json("runs") if "_on-" in row["run"]}
    assert list(active.values()) == ["running"] * 2
    go.touch()
    for child in (first, second):
        _, said = child.communicate(timeout=600)
        assert child.returncode == 0, said
    for name, run in zip(files, active, strict=True):
        manifest = json.loads((clean.root / "runs" / "manifests" / f"{run}.json").read_text())
        assert [(node["name"], node["ranks"]) for node in manifest["nodes"]] == [(name, [0, 1])]
        row = next(row for row in clean.json("cost")["runs"] if row["run"] == run)
        assert row["usd"] == pytest.approx(row["seconds"] / 3600 * 3.6, rel=0.02, abs=0.0001)  # of one node
