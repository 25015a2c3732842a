"""The stage filter: rules, rubric, people's CSV, and rows that the training reads."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

pq: Any = pytest.importorskip("pyarrow.parquet")

from nexa_dist.errors import ConfigError, UsageError  # noqa: E402
from nexa_dist.stages.contract import StageEnv  # noqa: E402
from nexa_dist.stages.filter import review  # noqa: E402
from nexa_dist.stages.filter import sorting as stage  # noqa: E402
from nexa_dist.stages.load import load_stage  # noqa: E402
from nexa_dist.train.text import examples  # noqa: E402

ROWS = [
    {"id": "a", "prompt": "Define tin.", "completion": "A soft metal.", "json": '{"score": 0.9}'},
    {"id": "b", "prompt": "Define zinc.", "completion": "Sorry, I cannot say.", "json": '{"score": 0.8}'},
    {"id": "c", "prompt": "Define lead.", "completion": "Heavy.", "json": '{"score": 0.2}'},
    {"id": "d", "prompt": "Define gold.", "completion": 'Yellow, =SUM(A1), ein "Metall"\nund mehr.', "json": "{}"},
    {"id": "e", "prompt": "Define TIN.", "completion": "a soft  METAL.", "json": '{"score": 1}'},
    {"id": "f", "prompt": "Define iron.", "completion": "   ", "json": '{"score": 1}'},
    {"id": "g", "prompt": None, "completion": "Of what?", "json": '{"score": 1}'},
]
CONFIG: dict[str, Any] = {
    "stage": "filter",
    "rules": [{"name": "sorry", "column": "completion", "not_matches": "^Sorry"}],
    "rubric": {"least": {"json.score": 0.5}, "missing": "review"},
    "unique": ["completion"],
    "keep": ["json"],
}


def sort(folder: Path, rows: list[Any] | None = None, back: Path | None = None, **config: Any) -> Any:
    """Run the stage. Returns (the rows that stay, report.json, the folder of the output)."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    inputs = {"rows": folder / "rows.jsonl", **({"review": back} if back else {})}
    if tokenizer := config.pop("tokenizer", None):
        inputs["tokenizer"] = tokenizer
    values = {**CONFIG, **config, "inputs": {name: str(path) for name, path in inputs.items()}}
    (folder / "filter.json").write_text(json.dumps(values))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    env = StageEnv(inputs, out, 0, 1, lambda: False, lambda *_, **__: None, lambda **_: None)
    loaded = load_stage(folder / "filter.json")
    stage.prepare(loaded, env)
    assert stage.run(loaded, env) == 0
    kept = pq.read_table(out / "rows.parquet").to_pylist()
    return kept, json.loads((out / "report.json").read_text()), out


def ids(rows: list[dict[str, Any]]) -> str:
    return "".join(row["id"] for row in rows)


def test_what_went_is_said_with_its_reason(tmp_path: Path) -> None:
    kept, told, out = sort(tmp_path)
    assert ids(kept) == "a"
    assert kept[0]["messages"] == [
        {"role": "user", "content": "Define tin."}, {"role": "assistant", "content": "A soft metal."}
    ]  # fmt: skip
    assert told["counts"] == {
        "rows_in": 7, "rows": 1, "dropped": 5, "pending": 1, "accepted": 0, "rejected": 0
    }  # fmt: skip
    assert told["reasons"] == {
        "duplicate": {"drop": 1}, "form": {"drop": 1}, "nothing_learned": {"drop": 1}, "rubric json.score": {"drop": 1},
        "rubric json.score: missing": {"pending": 1}, "sorry": {"drop": 1},
    }  # fmt: skip
    gone = [json.loads(line) for line in (out / "gone" / "rows.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reasons"][0]) for row in gone] == [
        ("b", "sorry"), ("c", "rubric json.score"), ("e", "duplicate"), ("f", "nothing_learned"), ("g", "form")
    ]  # fmt: skip
    assert gone[0]["row"] == ROWS[1]
    assert "| sorry | 1 | drop 1 |" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"min_chars": 6}, "abcdeg"),
        ({"max_chars": 6}, "cf"),
        ({"min_words": 2, "max_words": 3}, "aeg"),
        ({"matches": "(?i)metal"}, "ade"),
        ({"column": "json.score", "least": 0.85, "missing": "keep"}, "adefg"),
        ({"column": "json.score", "most": 0.5}, "c"),
        ({"column": "id", "one_of": ["a", "g"]}, "ag"),
        ({"column": "prompt", "min_chars": 0}, "abcdef"),
    ],
)
def test_rules(tmp_path: Path, rule: Any, holds: str) -> None:
    rows = [{**row, "completion": row["completion"].replace("   ", "three")} for row in ROWS]
    if rule.get("max_chars"):
        rows[5]["completion"] = "three"
    config = {"rubric": {"least": {"json.score": -1}, "missing": "keep"}, "unique": [], "prompt": "id"}
    kept, _, _ = sort(tmp_path, rows, rules=[{"name": "r", "column": "completion", **rule}], **config)
    assert ids(kept) == holds


def edited(path: Path, change: Any, *, encoding: str = "utf-8", delimiter: str = ",", end: str = "\r\n") -> None:
    """Open the CSV as a spreadsheet does, change its rows, and save it in the spreadsheet's own way."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    rows = change(rows) or rows
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


ASK_ALL: dict[str, Any] = {
    "rules": [{"name": "all", "column": "id", "one_of": ["-"], "otherwise": "review"}],
    "rubric": {"least": {"json.score": -1}, "missing": "keep"},
    "unique": [],
}


def test_the_csv_goes_out_and_comes_back(tmp_path: Path) -> None:
    kept, told, out = sort(tmp_path, ROWS[:5], **ASK_ALL)
    assert (kept, told["counts"]["pending"]) == ([], 5)
    assert (out / "review.csv").read_bytes().startswith(b"\xef\xbb\xbfkey,review,note,reasons,id,prompt,completion")
    back = tmp_path / "back.csv"

    def people(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        words = {"a": "Accept ", "b": "reject", "c": "ACCEPT", "d": "", "e": "pending"}
        for row in rows:
            row["review"], row["note"] = words[row["id"]], "vague; äh" if row["id"] == "b" else ""
            row["id"] = "1.2E+15"  # what a spreadsheet makes of a long number
        return sorted(rows, key=lambda row: row["completion"], reverse=True)

    for encoding, delimiter, end in (("utf-8", ",", "\n"), ("utf-8-sig", ";", "\r\n"), ("utf-16", "\t", "\r\n")):
        back.write_bytes((out / "review.csv").read_bytes())
        edited(back, people, encoding=encoding, delimiter=delimiter, end=end)
        kept, told, again = sort(tmp_path / encoding, ROWS[:5], back, **ASK_ALL)
        assert ids(kept) == "ac"
        counts = {name: told["counts"][name] for name in ("accepted", "rejected", "pending")}
        assert counts == {"accepted": 2, "rejected": 1, "pending": 2}
    gone = json.loads((again / "gone" / "rows.jsonl").read_text())
    assert (gone["id"], gone["fate"], gone["note"]) == ("b", "reject", "vague; äh")
    assert "reject,vague; äh" in (again / "review.csv").read_text(encoding="utf-8-sig")


def test_a_cell_is_no_formula(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "completion": "=HYPERLINK(1)"}]
    _, _, out = sort(tmp_path, rows, review={"share": 1.0})
    assert "'=HYPERLINK(1)" in (out / "review.csv").read_text(encoding="utf-8-sig")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,review\nKEY,maybe\n", "back.csv:2: review is 'maybe'"),
        ("key,review\n\nk0123,accept\n", "back.csv:3: no row has the key 'k0123'"),
        ("id,review\na,accept\n", "no column key"),
        ("key,review\nKEY,accept\nKEY,reject\n", "back.csv:3: KEY is reject here and accept in line 2"),
        (b"\x9c\xff\x00", "neither UTF-8 nor UTF-16"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_by_its_line(tmp_path: Path, text: Any, says: str) -> None:
    key, back = review.key_of("a"), tmp_path / "back.csv"
    back.write_bytes(text if isinstance(text, bytes) else text.replace("KEY", key).encode())
    with pytest.raises(UsageError) as error:
        sort(tmp_path / "run", back=back)
    assert says.replace("KEY", key) in str(error.value)


def test_a_share_is_drawn_by_id_and_seed(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": "p", "completion": f"c{n}"} for n in range(400)]
    config = {"rules": [], "rubric": {"least": {"x": 0}, "missing": "keep"}, "keep": [], "review": {"share": 0.25}}
    first = {row["id"] for row in sort(tmp_path / "a", rows, **config)[0]}
    fewer = {row["id"] for row in sort(tmp_path / "b", rows[100:], **config)[0]}
    other = {row["id"] for row in sort(tmp_path / "c", rows, seed=1, **config)[0]}
    assert 260 < len(first) < 340
    assert fewer == {one for one in first if int(one) >= 100}
    assert other != first


def test_the_tokenizer_of_the_model_that_learns_has_the_last_word(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    tokenizers: Any = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(["x"], tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["</s>"]))  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    turns = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[a]{% endif %}"
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [ROWS[0], {**ROWS[2], "completion": "Heavy. " * 20}]
    config = {"rules": [], "rubric": {"least": {"x": 0}, "missing": "keep"}, "system": "S"}
    kept, told, out = sort(tmp_path, rows, tokenizer=tmp_path / "model", max_tokens=60, **config)
    assert ids(kept) == "a"
    assert told["reasons"] == {"too_long": {"drop": 1}}
    ((where, row),) = examples.rows([out / "rows.parquet"])
    ((one, tokens, mask),) = examples.encoded(tokenizer, [examples.example(where, row, tokenizer)])
    assert one.text == "[s]S\n[u]Define tin.\n[a]A soft metal.\n"
    assert told["tokens"] == {"all": len(tokens), "learned": int(mask.sum())}
    assert int(mask.sum()) == len("A soft metal.\n")


def test_probabilities_of_a_teacher_go_on(tmp_path: Path) -> None:
    logits = {"teacher_tokens": [1], "teacher_top_ids": [[1, 2]], "teacher_top_logprobs": [[-0.5, -1.0]]}
    kept, _, _ = sort(tmp_path, [{**ROWS[0], **logits}])
    assert {name: kept[0][name] for name in logits} == logits


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rules": [{"name": "r", "column": "x"}]}, "asks nothing"),
        ({"rules": [{"name": "r", "column": "x", "matches": "("}]}, "no regular expression"),
        ({"rules": [{"name": "form", "column": "x", "least": 1}]}, "name the rule otherwise"),
        ({"rules": [{"name": "r", "column": "x", "least": 1}] * 2}, "two rules are called r"),
        ({"rules": [{"name": "r", "colunm": "x", "least": 1}]}, "colunm"),
        ({"max_tokens": 99}, "needs inputs.tokenizer"),
    ],
)
def test_a_config_that_says_nothing_sensible_is_refused(tmp_path: Path, config: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sort(tmp_path, **config)
