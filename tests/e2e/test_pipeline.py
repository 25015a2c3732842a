"""A pipeline on a real cluster: raw rows, a dataset, a training on two nodes with two ranks each, and its lineage."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.train import checkpoint
from tests.e2e.conftest import REPO, Lab, until
from tests.e2e.test_recovery import machine
from tests.teacher import Answer, completion, serving

pytestmark = pytest.mark.e2e
FILE, EVERY_S = "journal.jsonl", 30.0
"""Of nexa_dist/stages/teach/keeping.py, which needs what a controller may lack."""
STUDENT = {
    "backend": "hf", "nproc_per_node": 2, "wandb": "off", "restarts_per_hour": 0, "data": {"dataset": "./none"},
    "model": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
    "dataset": {"source": "examples", "path": "$NEXA_DATA/dataset", "sequence_length": 32},
    "trainer": {"steps": 30, "batch_size": 4, "learning_rate": 0.01, "save_every": 15},
}  # fmt: skip
PIPELINE = {
    "pipeline": "toy",
    "stages": {
        "rows": {"config": "rows.yaml", "where": "cluster"},
        "student": {"config": "student.yaml", "inputs": {"dataset": "stage:rows/train"}, "where": "cluster"},
    },
}


@pytest.mark.long("two runs with a training; unit/ops/pipeline has the chain, unit/stages how a stage becomes a run")
def test_rows_become_a_dataset_and_a_student_on_the_cluster(clean: Lab) -> None:
    chance = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    rows = [{"text": " ".join(chance.choices(words, k=20))} for _ in range(400)]
    clean.write("raw.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    clean.write("rows.yaml", "stage: data\ninputs: {rows: raw.jsonl}\nsplit: {}\n")
    clean.write("student.yaml", json.dumps(STUDENT))
    file = clean.write("chain.yaml", json.dumps(PIPELINE))
    clean.nexa("pipeline", "run", file, timeout_s=900)
    told = clean.json("pipeline", "status", file)
    assert [(row["stage"], row["state"], row["version"]) for row in told["stages"]] == [
        ("rows", "done", "rows@v1"), ("student", "done", "student@v1"),
    ]  # fmt: skip
    assert told["total"]["usd"] > 0
    manifests = [json.loads(path.read_text()) for path in sorted((clean.root / "runs/manifests").glob("*.json"))]
    known = {one["stage"]: one for one in manifests if one["config"]["name"] in ("rows", "student")}
    assert (known["data"]["status"], known["train"]["status"], len(known["train"]["nodes"])) == (
        "completed", "completed", 2,
    )  # fmt: skip
    assert known["data"]["nodes"][0]["ranks"] == [0, 0]
    report = known["train"]["eval_report"]
    assert report["train_loss_last"] < report["train_loss_first"] - 1
    again = clean.nexa("pipeline", "run", file)
    assert "✓ student: student@v1, done before" in again.stderr
    assert clean.nexa("data", "verify").returncode == 0
    tree = clean.json("lineage", "student")
    rows_of = tree["parents"]["dataset"]
    assert (rows_of["label"], list(rows_of["parents"])) == ("rows@v1", ["rows"])
    assert rows_of["parents"]["rows"]["label"] == "raw.jsonl"
    folder = Path(clean.json("data", "show", "student")["path"])
    assert (folder / "checkpoint" / "model.safetensors").exists()


@pytest.mark.long("a run that loses its node, 35 s of which pass until its answers are kept")
def test_a_teach_stage_that_loses_its_node_asks_nothing_twice_that_was_kept(clean: Lab) -> None:
    """Without a word: SIGKILL for all of the machine, at a moment when the store has some of the answers."""
    pytest.importorskip("httpx")
    pytest.importorskip("pyarrow")
    lost = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Answer:
        if number == 6:
            time.sleep(EVERY_S + 1)  # so that the next answer begins a checkpoint
        if number == 9 and not lost.is_set():
            lost.wait(300)
        return completion(f"answer to {body['messages'][-1]['content']}")

    def stores() -> set[Path]:
        return set((clean.root / ".nexa/durable").glob("*/checkpoints"))

    earlier = stores()  # of other runs in this lab

    def kept() -> set[str]:
        found = [checkpoint.newest_whole(place) for place in stores() - earlier]
        return {json.loads(line)["id"] for _, path in filter(None, found)
                for line in (path / FILE).read_text().splitlines()}  # fmt: skip

    clean.write("rows.jsonl", "".join(json.dumps({"term": f"t{n}"}) + "\n" for n in range(30)))
    with serving(answer) as server:
        clean.write("teach.yaml", json.dumps({
            "stage": "teach", "inputs": {"rows": "rows.jsonl"}, "id": "term", "prompt": "Define {{ term }}.",
            "endpoint": {"url": server.url, "model": "m", "concurrency": 1}, "environment": "light",
        }))  # fmt: skip
        child = clean.begin("run", "teach.yaml", stdout=subprocess.DEVNULL)
        until(lambda: len(server.asked) >= 10 and kept(), "answers in the store", 500)
        before, asked = kept(), len(server.asked)
        while left := machine(clean, "n0"):
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
        lost.set()
        _, said = child.communicate(timeout=900)
        assert child.returncode == 0, said
        again = {prompt[len("Define ") : -1] for prompt in server.prompts()[asked:]}
    assert len(before) >= 6 and not before & again
    assert len(before | again) == 30
    assert clean.json("data", "show", "teach")["counts"]["rows"] == 30


def smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct, from NEXA_SMOLLM2 (a folder that scripts/smollm2 made), else made here of its package."""
    if made := os.environ.get("NEXA_SMOLLM2"):
        shutil.copytree(made, folder)
        return
    for package in ("torch", "transformers", "gguf"):
        pytest.importorskip(package, reason=f"scripts/smollm2 needs {package}")
    done = subprocess.run([sys.executable, REPO / "scripts/smollm2", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"scripts/smollm2: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")


def glosses(count: int) -> str:
    """WordNet's, where Debian's package wordnet-base is; else rows of the same form."""
    if Path("/usr/share/wordnet/data.noun").exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([REPO / "scripts/wordnet_glosses", f"{folder}/rows.jsonl"], check=True)
            lines = Path(folder, "rows.jsonl").read_text().splitlines(keepends=True)
        return "".join(lines[:: max(1, len(lines) // count)])
    chance, topics = random.Random(5), {"plant": ["fern", "moss", "oak"], "animal": ["newt", "finch", "otter"]}
    like = ["small", "green", "heavy", "bright", "bitter", "soft", "rare", "common", "wild", "cold"]
    rows = []
    for number in range(count):
        topic = chance.choice(sorted(topics))
        term = f"{'-'.join(chance.sample(like, 2))} {chance.choice(topics[topic])}"
        definition = (
            f"a {topic} of kind {number} that is {chance.choice(like)} and lives in {chance.choice(like)} places"
        )
        rows.append({"id": number, "term": term, "topic": topic, "definition": definition,
                     "text": f"{term}: {definition}"})  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.long("SmolLM2-135M is served three times here and held by four ranks; unit/ops/pipeline has it in small")
def test_smollm2_teaches_a_student_on_two_nodes_that_is_judged_and_answers(clean: Lab) -> None:
    """configs/pipelines/science.yaml with few rows, its training on the cluster, by the command that its head names;
    NEXA_SCIENCE=full takes all of its rows, steps and tokens, which is far longer."""
    for package in ("polars", "datasketch", "httpx", "pyarrow", "fastapi", "uvicorn", "openai", "transformers"):
        pytest.importorskip(package)
    smollm2(clean.root / "models/smollm2")
    shutil.copytree(REPO / "configs", clean.root / "configs")
    clean.write(".gitignore", "/models/\n/data/\n")
    full = os.environ.get("NEXA_SCIENCE") == "full"
    clean.write("data/glosses.jsonl", glosses(10**6 if full else 200))
    config = yaml.safe_load((REPO / "configs/pipelines/science.yaml").read_text())
    few = {
        "science": ["split.parts.train=0.8", "split.parts.validation=0.05", "split.parts.test=0.15"],
        "questions": ["sample.rows=20"],
        "answers": ["endpoint.max_tokens=32"],
        "student": [
            "dataset.held_out=0.2", "trainer.steps=20", "trainer.batch_size=1", "trainer.warmup_steps=1",
            "trainer.save_every=10", "trainer.log_every=1",
        ],
        "exam-questions": ["sample.rows=3"],
        "exam": ["endpoint.max_tokens=32"],
        "quality": ["generate.max_new_tokens=8"],
    }  # fmt: skip
    for name, words in () if full else few.items():
        config["stages"][name]["set"] = [*config["stages"][name].get("set", []), *words]
    config["stages"]["student"]["where"] = "cluster"
    file = clean.write("configs/pipelines/few.yaml", json.dumps(config))
    clean.nexa("pipeline", "run", file, timeout_s=20_000 if full else 3000)

    run = clean.newest().name
    manifest = clean.manifest()
    assert (manifest["stage"], manifest["status"], len(manifest["nodes"])) == ("train", "completed", 2)
    assert [len(node["ranks"]) for node in manifest["nodes"]] == [2, 2]
    assert manifest["eval_report"]["train_loss_last"] < manifest["eval_report"]["train_loss_first"] - 1
    assert "learns from a teacher of 134515008 parameters" in clean.log(0, "n0")
    shown = {name: clean.json("data", "show", name) for name in config["stages"]}
    assert {one["manifest"]["status"] for one in shown.values()} == {"completed"}
    assert shown["lessons"]["manifest"]["counts"]["rows"] >= 12
    (told,) = Path(shown["quality"]["path"]).glob(f"evals/quality_{run}.json")
    assert 1 < json.loads(told.read_text())["perplexity"]["value"] < 49152
    served = json.loads((Path(shown["served"]["path"]) / "serve.json").read_text())
    assert served["engine"] == "transformers" and all(one["text"] for one in served["answers"])
    assert clean.nexa("data", "verify").returncode == 0
    text = clean.nexa("lineage", "served").stdout
    for label in (*(f"{name}@v1" for name in config["stages"]), "data/glosses.jsonl", "models/smollm2", run):
        assert label in text
    assert "✗" not in text
    refused = clean.nexa("promote", run, "--to", "staging", "--max", "perplexity=1", code=1)
    assert "is more than 1" in refused.stderr and "no server of this checkpoint" in refused.stderr
