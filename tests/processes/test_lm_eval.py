"""lm-eval under the stage eval, on tasks of one's own: what a model has learned to answer is what is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bytes_model import byte_llama
from tests.late import Late, needs

pq: Any = pytest.importorskip("pyarrow.parquet")
needs("torch", "transformers")
torch: Any = Late("torch")
transformers: Any = Late("transformers")

PYTHON = os.environ.get("NEXA_LM_EVAL_PYTHON", sys.executable)
"""An interpreter of an environment with lm-eval beside ours."""
SAYS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoot"}
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def trained(folder: Path) -> Path:
    """A byte model that has learned what each animal says."""
    tokenizer, model = byte_llama(folder)
    rows = [tokenizer(f"{animal}:{sound}")["input_ids"] for animal, sound in SAYS.items()]
    width = max(map(len, rows))
    labels = torch.tensor([[*row, *[-100] * (width - len(row))] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(input_ids=labels.clamp(min=0), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def task(folder: Path, name: str, shift: int) -> None:
    """A question of each animal whose right answer is that of the animal so many places on."""
    sounds, rows = list(SAYS.values()), []
    for at, animal in enumerate(SAYS):
        rows.append({"question": f"{animal}:", "choices": sounds, "answer": (at + shift) % len(sounds)})
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name))


@pytest.mark.long("lm-eval and a training: a minute of CPU")
def test_a_task_of_ones_own_is_measured_without_the_network(tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-c", "import lm_eval"], capture_output=True).returncode:
        pytest.skip("lm-eval is not in this environment; NEXA_LM_EVAL_PYTHON names one")
    trained(tmp_path / "model")
    task(tmp_path / "tasks", "sounds", 0)
    task(tmp_path / "tasks", "wrong", 1)
    (tmp_path / "eval.yaml").write_text(json.dumps({
        "stage": "eval", "name": "animals", "inputs": {"model": "model", "tasks": "tasks"},
        "tasks": {"names": ["sounds", "wrong"], "batch": 2},
    }))  # fmt: skip
    words = ["--config", "eval.yaml", "--output", "evals/animals"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                   "NEXA_WORKSPACE": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [PYTHON, "-m", "nexa_dist.stages.eval", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (table,) = (tmp_path / "evals/animals/evals").glob("*.tasks.parquet")
    found = {(row["task"], row["metric"]): row["value"] for row in pq.read_table(table).to_pylist()}
    assert found == {("sounds", "acc"): 1.0, ("wrong", "acc"): 0.0}
    board = subprocess.run(
        [sys.executable, "-m", "nexa_dist", "leaderboard", "--json"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ((row,),) = (one["rows"] for one in json.loads(board.stdout))
    assert (row["run"], row["figures"]["sounds/acc"]["value"]) == ("model", 1.0)
    # Other rows of a task are another evaluation: they are an input as any other.
    before = json.loads((tmp_path / "evals/animals/manifest.json").read_text())["inputs"]["tasks"]["sha256"]
    task(tmp_path / "tasks", "wrong", 2)
    again = subprocess.run(
        [PYTHON, "-m", "nexa_dist.stages.eval", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 2 and before, again.stderr
