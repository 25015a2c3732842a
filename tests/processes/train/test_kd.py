"""A student and its teacher for real, on two ranks: by the teacher's model, and by what was stored of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes.train_ranks import DATASET, MODEL, REPO, Start, losses, result, train

STEPS, STOP_AT = 12, 7
TEACHER: dict[str, Any] = {
    "backend": "hf",
    "model": MODEL,
    "dataset": DATASET,
    "trainer": {"steps": 30, "batch_size": 4, "learning_rate": 0.01, "save_every": 30},
}
MADE = f"""
import os, pathlib, sys
teacher = "teacher/checkpoints/step_{TEACHER["trainer"]["steps"]:08d}"
told = transformers.AutoTokenizer.from_pretrained(teacher)
model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
torch.manual_seed(1)
shape = transformers.AutoConfig.from_pretrained(teacher)
shape.num_hidden_layers = 1
transformers.AutoModelForCausalLM.from_config(shape).save_pretrained("student")
told.save_pretrained("student")
os.symlink(teacher, "known")
sys.path.insert(0, {str(REPO)!r})
from nexa_dist.train.text import examples, stored, vocabulary
rows = [json.loads(line) for line in open("rows.jsonl")]
name = vocabulary.digest(told.get_vocab())
with open("said.jsonl", "w") as out, open("gaps.jsonl", "w") as gaps:
    for at, row in enumerate(rows):
        one = examples.example("", row, told)
        ((_, ids, mask),) = examples.encoded(told, [one])
        with torch.no_grad():
            said = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        first = int(mask.argmax())
        top = said[first - 1 : -1].topk(512)
        words = {{stored.TOKENS: ids[first:], stored.IDS: top.indices.tolist(), stored.LOGPROBS: top.values.tolist()}}
        out.write(json.dumps(row | words | {{stored.VOCABULARY: name}}) + "\\n")
        if at % 3 == 1:
            words[stored.TOKENS] = [0, *words[stored.TOKENS][1:]]  # as if it had been generated otherwise
        gaps.write(json.dumps(row | (words if at % 3 else {{}})) + "\\n")
"""


def student(backend: str = "hf", path: str = "rows.jsonl", **trainer: Any) -> dict[str, Any]:
    own = {"config": "fsdp.yaml"} if backend == "acc" else {}
    return {
        "backend": backend, **own,
        "model": {"path": "student"},
        "dataset": {"source": "examples", "path": path, "sequence_length": 48, "held_out": 0.2},
        "trainer": {"steps": STEPS, "batch_size": 2, "learning_rate": 0.01, "log_every": 1, "save_every": 4, **trainer},
    }  # fmt: skip


def held_out(made: dict[str, Any]) -> list[int]:
    import numpy as np

    return list(np.load(Path(made["path"]) / "held_out_ends.npy"))


@pytest.mark.long("trains a teacher and eight students of two ranks; tests/unit/train holds the formula")
def test_a_student_learns_what_the_teacher_says_by_either_way_and_under_either_backend(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "fsdp.yaml").write_text((REPO / "configs" / "acc" / "fsdp_cpu.yaml").read_text())
    lines = [line for file in Path(json.__file__).parent.glob("*.py") for line in file.read_text().splitlines()]
    rows = [dict(zip(("prompt", "completion"), line.split("(", 1), strict=True)) for line in lines if "(" in line]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:180]))
    taught = {"use_kd": True, "kd_temperature": 2.0, "kd_lambda": 0.7}
    model = {**taught, "kd_teacher": "known"}
    all_of_it = {**model, "kd_lambda": 0.0}
    starts = [
        *(Start("teacher", TEACHER, ranks=1), MADE, Start("plain", student())),
        *(Start("nothing", student(**all_of_it)), Start("by-model", student(**model))),
        *(Start("broken", student(**model), stop_at=STOP_AT), Start("broken", student(**model))),
        *(Start("sharded", student("acc", **model)), Start("one", student(**{**model, "batch_size": 4}), ranks=1)),
        *(Start("stored", student(path="said.jsonl", **taught)), Start("gaps", student(path="gaps.jsonl", **taught))),
    ]
    codes, said = train(tmp_path, starts)
    assert codes == [[0], [0, 0], [0, 0], [0, 0], [143, 143], [0, 0], [0, 0], [0], [0, 0], [0, 0]], said
    names = ("plain", "nothing", "by-model", "sharded", "one", "stored", "gaps")
    found = {name: losses(tmp_path, name, STEPS) for name in names}
    for step in range(1, STEPS + 1):
        assert found["nothing"][step] == pytest.approx(found["plain"][step], abs=1e-5)
        assert found["sharded"][step] == pytest.approx(found["by-model"][step], abs=1e-4)
        assert found["one"][step] == pytest.approx(found["by-model"][step], abs=1e-4)
        assert found["stored"][step] == pytest.approx(found["by-model"][step], abs=1e-4)
        assert found["gaps"][step] != found["stored"][step]
    assert abs(found["by-model"][1] - found["plain"][1]) > 0.01
    assert found["by-model"][STEPS] < found["by-model"][1] - 0.1
    weights = [
        (tmp_path / name / f"checkpoints/step_{STEPS:08d}/model.safetensors").read_bytes()
        for name in ("by-model", "broken")
    ]
    assert hashlib.sha256(weights[0]).digest() == hashlib.sha256(weights[1]).digest()
    assert "learns from a teacher of" in said and "temperature 2, lambda 0.7" in said
    made = [json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("stored", "gaps")]
    assert made[0]["unlike"] == 0 < made[0]["taught"] == made[0]["documents"] - len(held_out(made[0]))
    assert 40 < made[1]["taught"] < 65 and 40 < made[1]["unlike"] < 65
    assert f"({made[1]['taught']} examples have its words, {made[1]['unlike']} on other tokens)" in said
    assert result(tmp_path, "by-model")["eval_report"]["eval_loss_nats"] > 0
