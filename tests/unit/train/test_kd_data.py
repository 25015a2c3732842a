"""Rows with a teacher's words become the batches that a student learns from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.late import Late, needs

np = pytest.importorskip("numpy")
needs("torch", "transformers")
torch: Any = Late("torch")
transformers: Any = Late("transformers")
trainer_setup: Any = Late("nexa_dist.train.backends.trainer_setup")
teacher: Any = Late("nexa_dist.train.kd.teacher")

from nexa_dist.config.train import TrainConfig  # noqa: E402
from nexa_dist.errors import UsageError  # noqa: E402
from nexa_dist.train import data  # noqa: E402
from nexa_dist.train.env import RankEnv  # noqa: E402

WORDS = [f"w{number}" for number in range(20)]
END = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the tokenizer of a teacher, whose tokens are words."""
    import tokenizers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate([*WORDS, "<end>"])}, "w0")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({"vocab_size": 24, "eos_token_id": END}))
    return tmp_path


def prepared(folder: Path, rows: list[dict[str, Any]], **trainer: Any) -> data.Dataset:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}
    asked = {
        "backend": "hf",
        "model": {"tokenizer": str(folder / "teacher"), **shape},
        "dataset": {"source": "examples", "path": str(folder / "rows.jsonl"), "held_out": 0.3},
        "trainer": {"steps": 1, "use_kd": True, **trainer},
    }
    env = RankEnv.read("t", {"NEXA_SHARED": str(folder / "shared"), "NEXA_RUN_DIR": str(folder / "run")})
    return data.prepare(TrainConfig.model_validate(asked), env)


def row(number: int, said: list[int] | None) -> dict[str, Any]:
    """Two words of a prompt and two of a completion; the teacher would have said the next word, or the end."""
    made: dict[str, Any] = {"prompt": f"w{number} w1 ", "completion": f"w2 w{number}"}
    if said is not None:
        made["teacher_tokens"] = said
        made["teacher_top_ids"] = [[token, END] for token in said]
        made["teacher_top_logprobs"] = [[-0.1 * number, -3.0] for _ in said]
    return made


def test_every_token_of_a_completion_has_what_was_said_in_its_place(folder: Path) -> None:
    rows = [row(number, [[2, number, END], [2, number], [2, 19], None][number % 4]) for number in range(3, 19)]
    done = prepared(folder, rows)
    found = trainer_setup.rows(done, "train", 32, taught=True)
    assert done.vocab_size == 24 and done.taught and done.unlike and done.taught + done.unlike < len(found)
    for one in (found[at] for at in range(len(found))):
        number = int(one["input_ids"][0])
        assert one["input_ids"].tolist() == [number, 1, 2, number, END]
        assert one["labels"].tolist() == [-100, -100, 2, number, END]
        known = [[2, 3, 4], [2, 3], [], []][number % 4]
        assert [at for at in range(5) if one[teacher.LOGPROBS][at, 0] > -math.inf] == known
        for at in known:
            assert one[teacher.IDS][at].tolist() == [one["input_ids"][at], END]
            torch.testing.assert_close(one[teacher.LOGPROBS][at], torch.tensor([-0.1 * number, -3.0]))
    short = {name: part[:3] for name, part in found[0].items()}
    batch = trainer_setup.collate([short, found[1]])
    assert {name: tuple(part.shape) for name, part in batch.items()} == {
        "input_ids": (2, 5), "labels": (2, 5), teacher.IDS: (2, 5, 2), teacher.LOGPROBS: (2, 5, 2),
    }  # fmt: skip
    assert (batch[teacher.LOGPROBS][0, 3:] == -math.inf).all() and (batch["labels"][0, 3:] == -100).all()
    assert set(trainer_setup.collate([trainer_setup.rows(done, "held_out", 32)[0]])) == {"input_ids", "labels"}


def test_a_teacher_that_nobody_hears_is_refused_before_a_rank_starts(folder: Path) -> None:
    with pytest.raises(UsageError, match="none has a teacher's words; 0 have them on other tokens"):
        prepared(folder, [row(number, None) for number in range(3, 19)])
    rows = [row(number, [2, number]) for number in range(3, 19)]
    rows[4]["teacher_vocab_sha256"] = "0" * 64
    with pytest.raises(UsageError, match=r"rows\.jsonl:5: teacher_vocab_sha256"):
        prepared(folder, rows)
    (folder / "other").mkdir()
    for name in ("config.json", "tokenizer.json"):
        text = (folder / "teacher" / name).read_text()
        (folder / "other" / name).write_text(text.replace('"w7"', '"seven"'))
    with pytest.raises(UsageError, match=f"differ .*: {folder}/teacher .*, {folder}/other ") as refused:
        prepared(folder, rows, kd_teacher=str(folder / "other"))
    assert "kd_teacher" in str(refused.value)
    assert prepared(folder, rows, kd_teacher=str(folder / "teacher")).taught == 0
