"""Text to tokens, once a node: `$NEXA_SHARED/data/<hash of sources and parameters>/`, which ranks only read.

The directory holds `tokenizer.json`, `train.npy` and `held_out.npy` (one dimension, token ids as uint16 or
uint32, documents joined by the end token) and `dataset.json`, written last. Of examples there are also
`train_mask.npy` (bool, true for a token that is learned) and `train_ends.npy` (int64, where each example ends), and
the same of the held-out part; where a teacher's words are learned from, `train_kd_at.npy`, `train_kd_ids.npy` and
`train_kd_logprobs.npy` (text/stored.py). It is made under a lock, then renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.config.trainer import DatasetConfig, ModelConfig
from nexa_dist.errors import UsageError
from nexa_dist.train.checkpoint import sha256_of
from nexa_dist.train.env import RankEnv
from nexa_dist.train.text import corpus, stored, tokens, vocabulary

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
INFO = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says. `sha256` covers the tokenizer and both token files."""

    request: str
    """Hash of what the config asked for; the sources are not part of it."""
    path: str
    sha256: str
    bytes: int
    """UTF-8 bytes of all the text."""
    tokens: int
    documents: int
    train_tokens: int
    held_out_tokens: int
    vocab_size: int
    end_id: int | None
    unigram_entropy_nats: float
    """`unigram_entropy_nats` of the held-out tokens: the score of the best model that ignores the context."""
    files: dict[str, dict[str, Any]]
    """Name to `bytes` and `sha256`."""
    taught: int = 0
    """Training examples of which a teacher's words are there."""
    unlike: int = 0
    """Those of which they are, and of other tokens."""

    @property
    def folder(self) -> Path:
        return Path(self.path)

    @property
    def of_examples(self) -> bool:
        """Whether it is cut into examples, with a mask; else it is one text."""
        return "train_mask.npy" in self.files

    def part(self, name: str) -> np.ndarray[Any, Any]:
        """Token ids of `train` or `held_out` (or their `_mask`, `_ends`), a read-only memory map of one dimension."""
        import numpy as np

        found: np.ndarray[Any, Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return found


def prepare(config: TrainConfig, env: RankEnv) -> Dataset:
    """Make the data unless the node has it, and note in the run folder where it is. Raises UsageError, since another
    try would meet the same."""
    started = time.monotonic()
    assert config.dataset is not None and config.model is not None
    _same_vocabulary(config)
    root, files = corpus.sources(config.dataset)
    size = sum(path.stat().st_size for path in files)
    if size < config.dataset.min_mb * 1e6:
        raise UsageError(
            f"{root}: {size / 1e6:.1f} MB of text in {len(files)} files, dataset.min_mb is {config.dataset.min_mb:g}",
            hint="choose another source or lower dataset.min_mb",
        )
    key = _content_key(config.dataset, config.model, root, files, taught=_taught(config))
    folder = env.shared / "data" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = _read(folder / INFO)
        verb = "reused"
        if done is None or not _intact(done, hashes=True):
            verb = "ready"
            _build(config, root, files, folder)
            done = _read(folder / INFO)
            assert done is not None
        done = replace(done, request=_request(config))
        env.run_dir.mkdir(parents=True, exist_ok=True)
        _write_json(env.run_dir / INFO, asdict(done))
    if env.local_rank == 0:
        print(
            f"data {verb}: {done.bytes / 1e6:.1f} MB in {done.documents} documents, {done.tokens} tokens,"
            f" held-out {done.held_out_tokens}, unigram entropy {done.unigram_entropy_nats:.4f} nats,"
            f" {time.monotonic() - started:.1f} s",
            flush=True,
        )
    return done


def find(config: TrainConfig, env: RankEnv) -> Dataset:
    """The data that `prepare` made for this run on this node; made now when nobody did."""
    noted = _read(env.run_dir / INFO)
    if noted is not None and noted.request == _request(config) and _intact(noted, hashes=False):
        return noted
    return prepare(config, env)


def unigram_entropy_nats(tokens: np.ndarray[Any, Any]) -> float:
    """H = -Σ p(t) · ln p(t) in nats a token, where p(t) is the share of token t among these very tokens.

    It is the cross entropy of the tokens under their own unigram distribution, so no model that ignores the
    context can score less on them.
    """
    import numpy as np

    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def _build(config: TrainConfig, root: Path, files: list[Path], folder: Path) -> None:
    """Write `folder`, whole or not at all. The caller holds the lock."""
    import numpy as np

    assert config.dataset is not None and config.model is not None
    temp = folder.with_name(f".tmp-{folder.name}")
    for leftover in (temp, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    temp.mkdir()
    made = tokens.read(config.model, config.dataset, root, files, taught=_taught(config))
    made.tokenizer.save(str(temp / "tokenizer.json"))
    vocab_size = max(made.tokenizer.get_vocab_size(), config.model.vocab_size or tokens.rows(config.model))
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    parts: dict[bool, list[tokens.Piece]] = {False: [], True: []}
    size = 0
    for piece in made.pieces:
        parts[piece.held_out].append(piece._replace(ids=piece.ids.astype(kind)))
        size += piece.bytes
    documents = len(parts[True]) + len(parts[False])
    if not parts[True] or not parts[False]:
        empty = "held-out" if not parts[True] else "training"
        raise UsageError(
            f"the {empty} part is empty: {documents} documents, dataset.held_out is {config.dataset.held_out:g}",
            hint="give more text, or change dataset.held_out",
        )
    heard, unlike = sum(piece.taught is not None for piece in parts[False]), sum(piece.unlike for piece in parts[False])
    if _taught(config) and not heard:
        raise UsageError(
            f"of {len(parts[False])} training examples none has a teacher's words; {unlike} have them on other tokens",
            hint=f"rows with {', '.join(stored.COLUMNS)} of this tokenizer (docs/DISTILLATION.md), or kd_teacher",
        )
    train, held_out = tokens.joined(parts[False]), tokens.joined(parts[True])
    names = ["tokenizer.json"]
    for name in train:  # the tokens first
        for part, arrays in (("train", train), ("held_out", held_out)):
            if name not in arrays:  # nobody learns from the held-out part
                continue
            names.append(f"{part}{name}.npy")
            np.save(temp / names[-1], arrays[name])
    info: dict[str, dict[str, Any]] = {
        name: {"bytes": (temp / name).stat().st_size, "sha256": sha256_of(temp / name)} for name in names
    }
    done = Dataset(
        request="",
        path=str(folder),
        sha256=hashlib.sha256("".join(str(info[name]["sha256"]) for name in names).encode()).hexdigest(),
        bytes=size,
        tokens=len(train[""]) + len(held_out[""]),
        documents=documents,
        train_tokens=len(train[""]),
        held_out_tokens=len(held_out[""]),
        vocab_size=vocab_size,
        end_id=made.end_id,
        unigram_entropy_nats=unigram_entropy_nats(held_out[""][held_out.get("_mask", ...)]),
        files=info,
        taught=heard,
        unlike=unlike,
    )
    _write_json(temp / INFO, asdict(done))
    os.rename(temp, folder)


def _request(config: TrainConfig) -> str:
    """Hash of the parts of the config that decide the data; window length and limits do not."""
    assert config.dataset is not None and config.model is not None
    asked: list[object] = [FORMAT, config.dataset.source, config.dataset.path, config.dataset.held_out]
    asked += [config.model.words, config.model.vocab_size, *(["taught"] if _taught(config) else [])]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _taught(config: TrainConfig) -> bool:
    """Whether what the rows have of a teacher is learned from."""
    trainer = config.trainer
    return trainer is not None and trainer.use_kd and trainer.kd_teacher is None


def _same_vocabulary(config: TrainConfig) -> None:
    assert config.model is not None
    teacher = config.trainer.kd_teacher if config.trainer is not None else None
    if teacher and (why := vocabulary.difference(Path(config.model.words or ""), Path(teacher))):
        raise UsageError(f"trainer.kd_teacher: {why}", hint=vocabulary.CURE)


def _content_key(
    dataset: DatasetConfig, model: ModelConfig, root: Path, files: list[Path], *, taught: bool = False
) -> str:
    """Names the prepared data by everything it is made from: texts, their names, parameters, tokenizer."""
    version: str = import_module("tokenizers").__version__
    tokenizer = sha256_of(tokens.tokenizer_file(model)) if model.words else version
    asked: list[object] = [FORMAT, dataset.held_out, model.vocab_size, tokenizer]
    if dataset.source == "examples":
        asked += [dataset.source, tokens.chat_template(model), *(["taught"] if taught else [])]
    key = hashlib.sha256(json.dumps(asked).encode())
    for path in files:
        key.update(f"\0{path.relative_to(root).as_posix()}\0{sha256_of(path)}".encode(errors="surrogateescape"))
    return key.hexdigest()[:32]


def _intact(done: Dataset, *, hashes: bool) -> bool:
    """Whether the files are as long as noted and, with `hashes`, hold the same bytes."""
    for name, want in done.files.items():
        path = done.folder / name
        if not path.is_file() or path.stat().st_size != want["bytes"]:
            return False
        if hashes and sha256_of(path) != want["sha256"]:
            return False
    return True


def _read(path: Path) -> Dataset | None:
    """None when the note is absent, torn or of another version."""
    try:
        return Dataset(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temp = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temp.write_text(json.dumps(value, indent=1))
    os.rename(temp, path)
