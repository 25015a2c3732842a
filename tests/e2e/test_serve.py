"""A model that was trained here, served on a node: asked through the tunnel, promoted, stopped, and nothing left."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import REPO, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.long("trains a model, and loads it in transformers serve")]


def trained(lab: Lab) -> str:
    """A tiny model, trained for four steps on both nodes."""
    config = yaml.safe_load((REPO / "configs/train/quickstart.yaml").read_text())
    config |= {"nproc_per_node": 1, "name": "tiny"}
    config["dataset"] |= {"min_mb": 1, "sequence_length": 64}
    config["model"] |= {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 300}
    config["trainer"] |= {"steps": 4, "save_every": 4, "log_every": 1, "batch_size": 2, "warmup_steps": 1}
    lab.nexa("run", lab.write("tiny.yaml", json.dumps(config)), timeout_s=900)
    return lab.newest().name


def asked(url: str, model: str, prompt: str) -> str:
    """What the served model makes of a text."""
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as response:
        return str(json.load(response)["choices"][0]["text"])


def told(path: Path) -> dict[str, Any] | None:
    """The line in which `nexa serve --json` says where the model answers."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return next((row for row in rows if "serving" in row), None)


def test_a_trained_model_is_served_asked_promoted_and_stopped(clean: Lab) -> None:
    lab = clean
    run = trained(lab)
    out = lab.root / "serve.out"
    with out.open("w") as file:
        serving = lab.begin("serve", run, "--node", "n1", "--port", "0", "--json", stdout=file)
        try:
            found = until(lambda: told(out) or serving.poll() is not None, "it is served", 600)
            assert isinstance(found, dict), serving.stderr and serving.stderr.read()
            assert (found["engine"], found["api"]) == ("transformers", "completions")
            assert asked(found["url"], found["model"], "import os")

            (row,) = until(
                lambda: [r for r in lab.json("serve", "status") if r.get("requests", 0) >= 3], "three requests"
            )
            assert (row["run"], row["node"], row["state"]) == (found["serving"], "n1", "ready")

            lab.write(f"evals/rubric_{run}.json", json.dumps({"scores": {"DSS": 0.55}}))
            refused = lab.nexa("promote", run, "--to", "production", "--min", "DSS=0.6", code=1)
            assert "dss: 0.55 is less than 0.6" in refused.stderr
            assert not (lab.root / "models").exists()
            promoted = lab.json("promote", run, "--to", "production", "--min", "DSS=0.5")
            assert (promoted["run"], promoted["step"], promoted["smoke"]["run"]) == (run, 4, found["serving"])
            assert json.loads((lab.root / "models/aliases.json").read_text())["production"]["run"] == run

            lab.nexa("serve", "stop")
            assert serving.wait(120) == 130
        finally:
            if serving.poll() is None:
                serving.send_signal(signal.SIGTERM)
                serving.wait(60)
    assert lab.json("serve", "status") == []
    with pytest.raises(OSError):
        asked(found["url"], found["model"], "import os")
    again = lab.nexa("promote", run, "--to", "staging", "--min", "DSS=0.5", code=1)
    assert "no server of this checkpoint is there to be asked" in again.stderr
    shutil.rmtree(lab.root / "models")
    shutil.rmtree(lab.root / "evals")
