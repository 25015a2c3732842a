"""The stage data on small files: what is taken, what is dropped, what is said, and that kills change no byte."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.late import needs

pl = pytest.importorskip("polars")
needs("datasketch")

from nexa_dist.errors import NexaError  # noqa: E402
from nexa_dist.stages import entry  # noqa: E402
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv  # noqa: E402
from nexa_dist.stages.data import steps  # noqa: E402
from nexa_dist.stages.data.choose import shares  # noqa: E402
from nexa_dist.stages.data.config import DataConfig as Config  # noqa: E402
from nexa_dist.stages.data.pack import windows  # noqa: E402
from nexa_dist.stages.data.shingles import shingles, signatures  # noqa: E402
from nexa_dist.stages.data.statistics import drift  # noqa: E402
from nexa_dist.stages.data.steps import prepare, run  # noqa: E402
from nexa_dist.stages.whole import hashes  # noqa: E402

WORDS = re.findall(
    r"[a-z]+",
    "amber basalt cobalt delta ember fjord garnet helium indigo jasper krypton lava marble neon opal quartz reed slate",
)


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of random words, by topic; every tenth is one that was there before, with one more word."""
    chance, rows = random.Random(seed), list[dict[str, Any]]()
    for number in range(count):
        text = " ".join(chance.choices(WORDS, k=30))
        if number % 10 == 9:
            text = rows[chance.randrange(len(rows))]["text"] + " again"
        rows.append({"id": number, "text": text, "topic": "abc"[number % 3]})
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(folder: Path, inputs: dict[str, Path], stop_after: int = 10**9, **keys: Any) -> int:
    """Run the stage in a folder; SIGTERM comes after so many looks."""
    looks: Iterator[int] = iter(range(10**9))
    folder.mkdir(exist_ok=True)
    config = Config.model_validate({"stage": "data", "name": "toy", **keys})
    env = StageEnv(inputs, folder, 0, 1, lambda: next(looks) >= stop_after, lambda *_, **__: None, lambda **_: None)
    prepare(config, env)
    return run(config, env)


def rows_of(folder: Path, part: str = "train") -> Any:
    return pl.read_parquet(sorted((folder / part).glob("*.parquet")))


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    path, frame = tmp_path / f"rows.{form}", pl.DataFrame(texts(20))
    if form == "parquet":
        frame.write_parquet(path)
    else:
        data = frame.write_csv(separator="\t" if form == "tsv" else ",") if "sv" in form else frame.write_ndjson()
        path.write_bytes(gzip.compress(data.encode()) if form.endswith("gz") else data.encode())
    columns = {"id": {"type": "integer"}, "text": {}, "topic": {"choices": ("a", "b", "c")}}
    assert made(tmp_path / "out", {"rows": path}, columns=columns) == 0
    assert rows_of(tmp_path / "out").equals(frame)


def test_bad_rows_are_put_apart_with_row_column_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,good\nx,good too\n3,"a\nb"\n4\n5,\n6,\xff\xfe\n7,fine\n')
    columns = {"id": {"type": "integer", "maximum": 6.0}, "text": {}}
    assert made(tmp_path / "out", {"rows": path}, columns=columns) == 0
    bad = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert [(one["row"], one["column"], one["why"]) for one in bad] == [
        (2, "id", "expected integer"), (4, "", "1 fields, and the header has 2"), (5, "text", "no value"),
        (6, "text", "no UTF-8"), (7, "id", "more than 6"),
    ]  # fmt: skip
    assert rows_of(tmp_path / "out")["id"].to_list() == [1, 3]
    with pytest.raises(NexaError, match=r"5 of 7 rows are bad:\nrows.csv row 2, column id: expected integer"):
        made(tmp_path / "strict", {"rows": path}, columns=columns, bad={"most": 4})
    (tmp_path / "torn.jsonl").write_text('{"text": "good"}\n{"text": \n[1]\n')
    assert made(tmp_path / "json", {"rows": tmp_path / "torn.jsonl"}) == 0
    assert (report(tmp_path / "json")["bad"], rows_of(tmp_path / "json")["text"].to_list()) == (2, ["good"])


def test_what_cannot_be_read_is_said_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(NexaError, match=r"torn\.parquet cannot be read"):
        made(tmp_path / "out", {"rows": tmp_path / "torn.parquet"})
    written(tmp_path / "rows.jsonl", texts(3))
    with pytest.raises(NexaError, match="no input has the column body"):
        made(tmp_path / "out", {"rows": tmp_path / "rows.jsonl"}, text="body")
    with pytest.raises(NexaError, match="of 3 rows none is left: too short 3"):
        made(tmp_path / "out", {"rows": tmp_path / "rows.jsonl"}, length={"min_words": 500})


def test_filters_and_contamination_count_what_they_drop(tmp_path: Path) -> None:
    good = "The water of the river is cold in the winter and it is warm in the summer of that year"
    rows = [good, "short", "Der Fluss ist kalt im Winter und die Stadt ist nicht weit von dem See und den Bergen",
            "AAAA BBBB CCCC DDDD EEEE FFFF GGGG the", "$$$ %%% &&& ### @@@ !!! ??? the of it",
            "the the the the the the",
            "some say that all of the ice was gone by the end of May, as it was"]  # fmt: skip
    written(tmp_path / "rows.jsonl", [{"text": text} for text in rows])
    written(tmp_path / "eval.jsonl", [{"text": "yes: all of the ICE was gone by the end, no"}])
    keys = {"length": {"min_words": 3}, "language": {}, "quality": {}, "contamination": {"input": "held", "words": 8}}
    assert made(tmp_path / "out", {"rows": tmp_path / "rows.jsonl", "held": tmp_path / "eval.jsonl"}, **keys) == 0
    assert rows_of(tmp_path / "out")["text"].to_list() == [good]
    assert report(tmp_path / "out")["dropped"] == {
        "in the evaluation set": 1, "other language": 1, "repeats itself": 1, "too many capitals": 1,
        "too many symbols": 1, "too short": 1,
    }  # fmt: skip


def test_signatures_are_those_of_datasketch_and_near_rows_go(tmp_path: Path) -> None:
    from datasketch import MinHash

    series = pl.Series([row["text"] for row in texts(30)])
    found, starts = shingles(series, 3)
    mine = signatures(found, starts, 32, 5)
    for at, begin in enumerate(starts):
        end = starts[at + 1] if at + 1 < len(starts) else len(found)
        its = MinHash(32, 5, hashfunc=int, scheme="legacy")
        its.update_batch([int(value) & 0xFFFFFFFF for value in found[begin:end]])
        assert mine[at].tolist() == its.hashvalues.tolist()
    written(tmp_path / "rows.jsonl", texts(100))
    keys = {"duplicates": {"near": {"threshold": 0.7}}}
    assert made(tmp_path / "out", {"rows": tmp_path / "rows.jsonl"}, **keys) == 0
    kept = rows_of(tmp_path / "out")["id"].to_list()
    assert kept == [number for number in range(100) if number % 10 != 9]


def test_near_rows_go_by_their_similarity_wherever_they_are() -> None:
    from tests.bench.near_rows import arrays_of, families

    rows, best = families(1200)
    found = list(zip(arrays_of(rows, 64), best, strict=True))
    alike, unlike = ([drop for drop, like in found if low <= like < high] for low, high in ((0.9, 1.1), (0.0, 0.65)))
    assert len(alike) > 50 < len(unlike)
    assert (sum(alike), sum(unlike)) == (len(alike), 0), "a signature of 64 has a standard error of 0.05"


def test_a_sample_follows_its_policy_and_the_seed(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "topic": "a" if n % 4 else "b"} for n in range(200)]
    source = {"rows": written(tmp_path / "rows.jsonl", rows)}

    def took(name: str, seed: int = 0, **sample: Any) -> list[str]:
        assert made(tmp_path / name, source, sample=sample, seed=seed) == 0
        found: list[str] = rows_of(tmp_path / name)["text"].to_list()
        return found

    assert took("first", policy="first", rows=3) == ["row 0", "row 1", "row 2"]
    one, again, other = (took(f"r{n}", seed, policy="random", rows=40) for n, seed in enumerate((1, 1, 2)))
    assert one == again != other
    assert len(other) == 40
    by = {f"row {n}": row["topic"] for n, row in enumerate(rows)}
    strata = [by[text] for text in took("strata", policy="stratified", rows=20, by="topic")]
    assert (strata.count("a"), strata.count("b")) == (15, 5)
    quota = [by[text] for text in took("quota", policy="quota", by="topic", quotas={"a": 3, "b": 70})]
    assert (quota.count("a"), quota.count("b")) == (3, 50)
    assert report(tmp_path / "quota")["short"] == ["topic b: 50 rows of 70 wanted"]
    assert shares({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}


def test_a_group_stays_in_its_part_whatever_comes_beside_it(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "topic": f"t{n % 40}"} for n in range(400)]
    keys = {"split": {"by": "topic", "parts": {"train": 0.6, "test": 0.4}}}
    assert made(tmp_path / "all", {"rows": written(tmp_path / "a.jsonl", rows)}, **keys) == 0
    assert made(tmp_path / "few", {"rows": written(tmp_path / "b.jsonl", rows[::7])}, **keys) == 0
    topics = {(name, part): set(rows_of(tmp_path / name, part)["topic"]) for name in ("all", "few")
              for part in ("train", "test")}  # fmt: skip
    assert not topics["all", "train"] & topics["all", "test"]
    assert topics["few", "train"] <= topics["all", "train"]
    assert topics["few", "test"] <= topics["all", "test"]
    assert 100 < len(rows_of(tmp_path / "all", "test")) < 220


def test_a_window_holds_whole_documents_or_one_alone() -> None:
    made = list(windows([[1, 2, 3], [4, 5], [6, 7, 8, 9], list(range(10, 20))], 6))
    assert [tokens for tokens, _, _ in made] == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 0, 0], [10, 11, 12, 13, 14, 15],
                                                 [16, 17, 18, 19, 0, 0]]  # fmt: skip
    assert made[0][1:] == ([1, 1, 1, 2, 2, 0], [0, 1, 2, 0, 1, 0])
    assert made[3][2] == [6, 7, 8, 9, 0, 0]


def test_drift_is_zero_against_itself_and_named_by_column(tmp_path: Path) -> None:
    import numpy as np

    chance = np.random.default_rng(0)
    old = pl.DataFrame({"x": chance.normal(size=4000), "kind": ["a", "b"] * 2000})
    new = pl.DataFrame({"x": chance.normal(1.0, size=4000), "kind": ["a"] * 3600 + ["c"] * 400})
    same = drift(old.lazy(), old.lazy())
    assert (same["x"]["psi"], same["x"]["ks"], same["kind"]["psi"]) == (0.0, 0.0, 0.0)
    found = drift(old.lazy(), new.lazy())
    assert found["x"]["ks"] == pytest.approx(0.383, abs=0.03)  # 2·Φ(1/2) - 1 of two normals one apart
    assert found["x"]["psi"] == pytest.approx(1.0, abs=0.2)  # (μ/σ)², and a little less for bins
    assert found["kind"]["bins"] == ["a", "b", "c"]
    assert found["kind"]["psi"] > 1
    old.write_parquet(tmp_path / "old.parquet")
    new.with_columns(text=pl.col("kind") + pl.int_range(4000).cast(pl.String)).write_parquet(tmp_path / "new.parquet")
    with pytest.raises(NexaError, match=r"drift is above max_psi 0\.2: kind "):
        made(tmp_path / "out", {"rows": tmp_path / "new.parquet", "old": tmp_path / "old.parquet"},
             drift={"against": "old", "max_psi": 0.2})  # fmt: skip
    assert json.loads((tmp_path / "out/drift.json").read_text())["x"]["of"] == "numbers"


KEYS: dict[str, Any] = {"duplicates": {"near": {"threshold": 0.7}}, "rows_per_file": 40, "split": {},
                        "sample": {"policy": "random", "rows": 150}}  # fmt: skip


def killed_until_done(folder: Path, source: Path, looks: Iterator[int]) -> int:
    """How often the stage was stopped, each time after so many looks, until it came to its end."""
    for count, look in enumerate(looks):
        if made(folder, {"rows": source}, stop_after=look, **KEYS) == 0:
            return count
    raise AssertionError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(steps, "batches", lambda path, name, columns: steps_batches(path, name, columns, 25))
    return written(tmp_path / "rows.jsonl", texts(200))


steps_batches = steps.batches


def test_stopped_everywhere_the_bytes_are_the_same(tmp_path: Path, small: Path) -> None:
    assert made(tmp_path / "whole", {"rows": small}, **KEYS) == 0
    assert killed_until_done(tmp_path / "torn", small, iter(range(0, 200, 5))) >= 4
    want = hashes(tmp_path / "whole")
    assert hashes(tmp_path / "torn") == want
    assert len([name for name in want if name.startswith("train/")]) > 2


def test_a_program_started_by_hand_leaves_a_version(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    (tmp_path / "d.yaml").write_text(f"stage: data\ninputs: {{rows: {small}}}\nsplit: {{parts: {{train: 0.5}}}}\n")
    words = ["--config", str(tmp_path / "d.yaml"), "--output", str(tmp_path / "out")]
    assert entry.main("data", words) == 2
    assert "d.yaml:3: split: the shares of parts are 0.5 together, not 1" in capsys.readouterr().err
    assert entry.main("data", [*words, "--set", "split={}"]) == 0
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert told["counts"]["read"] == 200
    assert told["schema"] == {"id": "Int64", "text": "String", "topic": "String"}
    assert EXIT_STOPPED == 143
