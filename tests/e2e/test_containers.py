"""Runs in containers of a real engine, on two nodes, from the command line to the manifest."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import engines
from tests.e2e.conftest import Lab, runs, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long("a container engine, and a root for its image"),
]

REDUCE = f"""
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(total)
mark, data = open("{engines.MARK}").read().strip(), os.listdir(os.environ["NEXA_DATA"])
print(mark, "sum", total.item(), os.environ["MINE"], data)
open("made-%d.txt" % dist.get_rank(), "w").write("by a rank")
dist.destroy_process_group()
"""
SAVES = """
import os, signal, sys, time
from nexa_dist.train.progress import report
stop = []
signal.signal(15, lambda *_: stop.append(1))
print("attempt", os.environ["NEXA_ATTEMPT"], flush=True)
for step in range(6000):
    report(step)
    if stop:
        print("saved at", step, flush=True)
        sys.exit(0)
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def engine(lab: Lab) -> Iterator[Path]:
    """podman, with an image whose python3 is that of the nodes' environment: it lies in the shared folder."""
    python = json.loads((lab.root / ".nexa" / "clusters" / "lab" / "cluster.json").read_text())["layout"]["python"]
    with engines.podman_somewhere(os.path.dirname(python)) as program:
        yield program


def boxed(lab: Lab, engine: Path, name: str, text: str, **more: object) -> str:
    return lab.script(name, text, image=engines.IMAGE, engine=str(engine), **more)


def nothing_is_left(lab: Lab, engine: Path) -> None:
    assert engines.containers(engine) == [] and lab.processes() == []


def test_ranks_of_two_nodes_sum_and_what_they_made_comes_home(lab: Lab, engine: Path) -> None:
    lab.write("words/a.txt", "a")
    train = boxed(lab, engine, "sum", REDUCE, env={"MINE": "a 'b'"}, data={"words": "words"}, outputs=["made-*.txt"])
    lab.nexa("run", train, "--rank", "all")
    for rank, node in ((0, "n0"), (1, "n0"), (2, "n1"), (3, "n1")):
        assert lab.log(rank, node).splitlines()[-1] == "an image of the tests' sum 15.0 a 'b' ['words']"
    assert len(list((lab.newest() / "outputs").rglob("made-*.txt"))) == 4
    environment = lab.manifest()["environment"]
    assert environment["image"] == engines.IMAGE and set(environment["ids"]) == {"podman"}
    assert lab.manifest()["status"] == "completed"
    nothing_is_left(lab, engine)


def test_a_backend_trains_in_them_and_a_stopped_run_goes_on(lab: Lab, engine: Path) -> None:
    """Prepared once a node in a container of its own; the loss falls; the checkpoint of a stopped run is taken up."""
    config = {
        "name": "small", "backend": "hf", "image": engines.IMAGE, "engine": str(engine), "wandb": "off",
        "model": {"vocab_size": 512, "hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 128},
        "dataset": {"source": "python-stdlib", "sequence_length": 64, "min_mb": 1},
        "trainer": {"steps": 400, "batch_size": 4, "save_every": 20, "log_every": 10},
    }  # fmt: skip
    before = runs(lab)
    running = lab.begin("run", lab.write("small.yaml", json.dumps(config)))
    until(lambda: (runs(lab) > before and "step 40/" in lab.log(0, "n0")) or running.poll() is not None, "steps")
    assert running.poll() is None, running.communicate()[1]
    assert len(engines.containers(engine)) == 2
    lab.nexa("stop", lab.newest().name)
    running.communicate(timeout=120)
    nothing_is_left(lab, engine)
    lab.nexa("run", "--resume", lab.newest().name)
    manifest = lab.manifest()
    assert manifest["status"] == "completed" and len(manifest["attempts"]) == 2
    nothing_is_left(lab, engine)


def test_a_killed_rank_starts_again_and_a_killed_controller_leaves_what_a_stop_ends(lab: Lab, engine: Path) -> None:
    before = runs(lab)
    train = boxed(lab, engine, "waits", SAVES, restarts_per_hour=3)
    running = lab.begin("run", train)
    until(lambda: runs(lab) > before and lab.log(3, "n1"), "ranks", 300)
    events = (lab.newest() / "logs" / "n1" / "agent.jsonl").read_text().splitlines()
    pid = next(row["pid"] for row in map(json.loads, events) if row["event"] == "rank_start")
    os.kill(pid, signal.SIGKILL)
    until(lambda: lab.log(3, "n1", attempt=2), "a second attempt", 300)
    until(lambda: len(engines.containers(engine)) == 2, "one container a node")
    running.kill()
    running.communicate()
    assert len(engines.containers(engine)) == 2, "the nodes go on without a controller"
    lab.nexa("stop", lab.newest().name)
    nothing_is_left(lab, engine)
    lab.nexa("logs", lab.newest().name)
    assert "saved at" in lab.log(0, "n0", attempt=2)


def test_a_node_without_an_engine_or_an_image_is_named_before_anything_starts(lab: Lab, engine: Path) -> None:
    before = runs(lab)
    train = boxed(lab, engine, "none", "pass")
    said = lab.nexa("run", train, "--set", "engine=/nonexistent/podman", code=1).stderr
    assert "no container engine for image: /nonexistent/podman is not installed" in said
    assert "apt-get install podman" in said
    said = lab.nexa("run", train, "--image", "localhost/nobody/has:1", code=1).stderr
    assert "image localhost/nobody/has:1 cannot be had" in said
    said = lab.nexa("run", train, "--dry-run").stdout
    assert "torch.distributed.run" in said and "--network=host" in said
    assert not [path for path in (lab.root / "runs").glob("*none*") if (path / "run.json").exists()], before
    nothing_is_left(lab, engine)
