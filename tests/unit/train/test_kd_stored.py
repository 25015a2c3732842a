"""A teacher's words in the rows of a dataset: read, put where they belong, refused by their row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from nexa_dist.errors import UsageError  # noqa: E402
from nexa_dist.train.text import stored, vocabulary  # noqa: E402

ROW: dict[str, Any] = {
    "teacher_tokens": [5, 6, 7],
    "teacher_top_ids": [[5, 1], [6], [7, 2]],
    "teacher_top_logprobs": [[-0.1, -2.0], [0.0], [-0.5, -1]],
}


def said(**changed: Any) -> stored.Said | None:
    return stored.said("rows.jsonl:3", {**ROW, **changed}, 8, "name")


def test_positions_of_fewer_tokens_are_filled_up() -> None:
    found = said(teacher_vocab_sha256="name")
    assert found is not None and found.tokens == (5, 6, 7)
    assert found.ids.tolist() == [[5, 1], [6, 0], [7, 2]]
    assert found.logprobs[1].tolist() == [0.0, -math.inf]
    assert stored.said("x", {"prompt": "a"}, 8, "name") is None
    assert stored.said("x", {**dict.fromkeys(ROW), "prompt": "a"}, 8, "name") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teacher_top_ids": None}, "no teacher_top_ids"),
        ({"teacher_tokens": [5, 6]}, "not of the same lengths"),
        ({"teacher_top_ids": [[5, 1], [6], [7]]}, "not of the same lengths"),
        ({"teacher_top_ids": [[5, 1], [], [7, 2]], "teacher_top_logprobs": [[0, 0], [], [0, 0]]}, "has 0 to 2 tokens"),
        ({"teacher_top_ids": [[5, 1], [6], [7, 8]]}, "has id 8, the vocabulary 8 tokens"),
        ({"teacher_top_ids": [[5, 1], [6], [7, True]]}, "True is no token's id"),
        ({"teacher_tokens": 7}, "rows.jsonl:3: "),
        ({"teacher_top_logprobs": [[-0.1, -2.0], [0.5], [-0.5, -1]]}, "natural logarithms"),
        ({"teacher_top_logprobs": [[-0.1, -2.0], [math.nan], [-0.5, -1]]}, "natural logarithms"),
        ({"teacher_vocab_sha256": "another"}, "teacher_vocab_sha256 is 'another', of the student name"),
    ],
)
def test_what_is_no_teachers_word_is_refused_by_its_row(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"^rows\.jsonl:3: ") as refused:
        said(**changed)
    assert words in str(refused.value)


def test_they_belong_to_the_last_stretch_that_is_learned_and_only_to_the_same_tokens() -> None:
    found = said()
    assert found is not None
    mask = np.array([0, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert stored.begins([9, 5, 6, 7, 5, 6, 7, 3], mask, found) == 4
    assert stored.begins([9, 5, 6, 7, 5, 6, 4, 3], mask, found) is None
    assert stored.begins([9, 5, 6, 7, 5, 6], mask[:6], found) is None
    assert stored.begins([9, 5], np.array([False, False]), found) is None


def test_rows_are_joined_and_every_token_finds_its_own() -> None:
    wide = stored.Said((1,), np.array([[1, 2, 3]], np.int32), np.zeros((1, 3), np.float32))
    narrow = said()
    assert narrow is not None
    made = stored.joined([(2, None), (5, (1, narrow)), (2, (1, wide))])
    assert made["_kd_at"].tolist() == [-1, -1, -1, 0, 1, 2, -1, -1, 3]
    assert made["_kd_ids"].tolist() == [[5, 1, 0], [6, 0, 0], [7, 2, 0], [1, 2, 3]]
    assert made["_kd_logprobs"][:, 2].tolist() == [-math.inf] * 3 + [0.0]


def model(folder: Path, rows: int, tokens: dict[str, int], added: dict[str, int]) -> Path:
    folder.mkdir()
    more = [{"content": token, "id": number} for token, number in added.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": more}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    return folder


def test_vocabularies_are_compared_by_token_id_and_size(tmp_path: Path) -> None:
    student = model(tmp_path / "student", 8, {"a": 0, "b": 1}, {"<end>": 2})
    same = model(tmp_path / "same", 8, {"b": 1, "a": 0, "<end>": 2}, {})
    assert vocabulary.difference(student, same) == ""
    assert vocabulary.digest(vocabulary.of(student)) == vocabulary.digest(vocabulary.of(same))
    for name, rows, tokens, words in (
        ("padded", 16, {"a": 0, "b": 1, "<end>": 2}, f"the student {student} has logits of 8 tokens, the teacher"),
        ("swapped", 8, {"b": 0, "a": 1, "<end>": 2}, f"first in the id of 'a': {student} 0, {tmp_path}/swapped 1"),
        (
            "less",
            8,
            {"a": 0, "b": 1},
            f"(3 and 2 tokens), first in the id of '<end>': {student} 2, {tmp_path}/less has no",
        ),
    ):
        assert words in vocabulary.difference(student, model(tmp_path / name, rows, tokens, {}))
    assert f"{tmp_path}/none" in vocabulary.difference(student, tmp_path / "none")
    (same / "tokenizer.json").write_text("[]")
    assert "no tokenizer.json of tokenizers" in vocabulary.difference(student, same)
