"""The data is made once a node, from the files alone, and damage is made good."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

from nexa_dist.config.train import DatasetConfig, TrainConfig  # noqa: E402
from nexa_dist.errors import NexaError  # noqa: E402
from nexa_dist.train import data  # noqa: E402
from nexa_dist.train.env import RankEnv  # noqa: E402
from nexa_dist.train.text import corpus, tokens  # noqa: E402


def texts(folder: Path) -> Path:
    root = folder / "texts"
    root.mkdir()
    for number in range(20):
        (root / f"m{number}.py").write_text(f"def f{number}(x):\n    return x + {number}  # é\n" * 5)
    return root


def config(root: Path, **dataset: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "t",
            "backend": "hf",
            "model": {"vocab_size": 300, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32},
            "dataset": {"source": "path", "path": str(root), "held_out": 0.2, **dataset},
            "trainer": {"steps": 1},
        }
    )


def env(folder: Path, run: str = "run") -> RankEnv:
    return RankEnv.read("t", {"NEXA_SHARED": str(folder / "shared"), "NEXA_RUN_DIR": str(folder / run)})


def test_unigram_entropy_in_nats() -> None:
    assert data.unigram_entropy_nats(np.array([3, 3, 3])) == 0.0
    assert data.unigram_entropy_nats(np.arange(8)) == pytest.approx(math.log(8))
    assert data.unigram_entropy_nats(np.array([0, 0, 0, 9])) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )


def test_prepared_data_is_complete_and_deterministic(tmp_path: Path) -> None:
    root = texts(tmp_path)
    one = data.prepare(config(root), env(tmp_path))
    train, held_out = one.part("train"), one.part("held_out")
    assert (len(train), len(held_out)) == (one.train_tokens, one.held_out_tokens)
    assert train.dtype == np.uint16
    assert int(train.max()) < one.vocab_size
    assert one.documents == 20
    assert one.bytes == sum(path.stat().st_size for path in root.iterdir())
    assert one.unigram_entropy_nats == data.unigram_entropy_nats(held_out)
    assert sorted(path.name for path in one.folder.parent.iterdir()) == [one.folder.name, f"{one.folder.name}.lock"]
    (tmp_path / "other").mkdir()
    two = data.prepare(config(texts(tmp_path / "other")), env(tmp_path / "other"))
    assert (one.sha256, one.folder.name) == (two.sha256, two.folder.name)


def test_every_document_comes_back_from_the_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    root = texts(tmp_path)
    done = data.prepare(config(root), env(tmp_path))
    tokenizer = Tokenizer.from_file(str(done.folder / "tokenizer.json"))
    both = [*done.part("train").tolist(), *done.part("held_out").tolist()]
    found = tokenizer.decode(both, skip_special_tokens=False).split(tokens.END)[:-1]
    assert sorted(found) == sorted(path.read_text() for path in root.iterdir())


def test_a_second_call_reuses_and_damage_is_made_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = texts(tmp_path)
    one = data.prepare(config(root), env(tmp_path))
    assert "data ready" in capsys.readouterr().out
    assert data.prepare(config(root, sequence_length=64), env(tmp_path, "run2")).folder == one.folder
    assert "data reused" in capsys.readouterr().out
    raw = bytearray((one.folder / "train.npy").read_bytes())
    raw[-1] ^= 1
    (one.folder / "train.npy").write_bytes(raw)
    assert data.prepare(config(root), env(tmp_path)).sha256 == one.sha256
    assert "data ready" in capsys.readouterr().out


def test_ranks_read_what_the_run_folder_notes(tmp_path: Path) -> None:
    root = texts(tmp_path)
    one = data.prepare(config(root), env(tmp_path))
    (root / "m0.py").write_text("changed after the run began")
    assert data.find(config(root), env(tmp_path)) == one
    assert data.find(config(root, held_out=0.5), env(tmp_path)).sha256 != one.sha256


def test_changed_text_or_parameters_are_other_data(tmp_path: Path) -> None:
    root = texts(tmp_path)
    one = data.prepare(config(root), env(tmp_path))
    assert data.prepare(config(root, held_out=0.3), env(tmp_path)).folder != one.folder
    (root / "m0.py").rename(root / "n0.py")
    assert data.prepare(config(root), env(tmp_path)).folder != one.folder


def test_many_at_once_prepare_once(tmp_path: Path) -> None:
    root = texts(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=data.prepare, args=(config(root), env(tmp_path, f"r{n}"))) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
        assert worker.exitcode == 0
    assert len(list((tmp_path / "shared" / "data").iterdir())) == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [({"min_mb": 1.0}, "dataset.min_mb is 1"), ({"held_out": 1e-9}, "held-out part is empty")],
)
def test_too_little_text_is_refused(tmp_path: Path, dataset: dict[str, Any], message: str) -> None:
    with pytest.raises(NexaError, match=message):
        data.prepare(config(texts(tmp_path), **dataset), env(tmp_path))


def test_binary_files_are_named(tmp_path: Path) -> None:
    root = texts(tmp_path)
    (root / "x.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NexaError, match=r"x\.bin: not UTF-8"):
        data.prepare(config(root), env(tmp_path))


def test_large_files_come_in_pieces_of_whole_lines(tmp_path: Path) -> None:
    text = "".join(f"line {number} é\r\n" for number in range(30_000))
    (tmp_path / "big.txt").write_bytes(text.encode())
    pieces = list(corpus.documents(*corpus.sources(DatasetConfig(source="path", path=str(tmp_path / "big.txt")))))
    assert len(pieces) > 5
    assert all(piece.endswith("\r\n") for _, piece in pieces)
    assert "".join(piece for _, piece in pieces) == text


def test_the_standard_library_is_ten_megabytes_of_sources_without_tests() -> None:
    root, files = corpus.sources(DatasetConfig())
    assert sum(path.stat().st_size for path in files) > 10e6
    parts = {part for path in files for part in path.relative_to(root).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests"}
