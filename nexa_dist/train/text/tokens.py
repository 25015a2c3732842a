"""The tokens of a training's files: one text, cut into windows later, or examples with a mask of what is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nexa_dist.config.trainer import DatasetConfig, ModelConfig
from nexa_dist.errors import UsageError
from nexa_dist.train.text import corpus, examples, stored, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

END = "<|endoftext|>"
_BATCH = 64


class Piece(NamedTuple):
    """One document, or one example."""

    held_out: bool
    bytes: int
    """UTF-8 bytes of its text."""
    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None = None
    """Bool, of the same shape: true for a token that is learned. None: every token is."""
    taught: tuple[int, stored.Said] | None = None
    """What a teacher said, from which token on."""
    unlike: bool = False
    """A teacher said something, of other tokens."""


class Tokens(NamedTuple):
    tokenizer: Tokenizer
    end_id: int | None
    pieces: Iterator[Piece]


def read(model: ModelConfig, dataset: DatasetConfig, root: Path, files: list[Path], *, taught: bool = False) -> Tokens:
    """The tokenizer, and the tokens of all files; `taught`: with what rows have of a teacher. Raises UsageError, naming
    file and line, for what it cannot read."""
    if dataset.source == "examples":
        return _examples(model, dataset.held_out, files, taught)
    share = dataset.held_out
    train_texts = (text for name, text in corpus.documents(root, files) if not corpus.is_held_out(name, share))
    tokenizer, end_id = _tokenizer(model, train_texts)
    return Tokens(tokenizer, end_id, _documents(tokenizer, end_id, corpus.documents(root, files), share))


def joined(pieces: list[Piece]) -> dict[str, np.ndarray[Any, Any]]:
    """The tokens one after the other, under ""; of examples also `_mask` and `_ends`, and what stored.joined makes
    where one of them has a teacher."""
    import numpy as np

    made = {"": np.concatenate([piece.ids for piece in pieces])}
    masks = [piece.mask for piece in pieces if piece.mask is not None]
    if masks:
        made["_mask"] = np.concatenate(masks)
        made["_ends"] = np.cumsum([len(mask) for mask in masks], dtype=np.int64)
    if any(piece.taught for piece in pieces):
        made |= stored.joined([(len(piece.ids), piece.taught) for piece in pieces])
    return made


def chat_template(model: ModelConfig) -> str:
    """What lays out the chats of a pretrained model, as far as its files have it: as text, to be hashed."""
    folder = Path(model.words or "")
    names = ("tokenizer_config.json", "chat_template.jinja") if model.words else ()
    return "\0".join((folder / name).read_text() for name in names if (folder / name).is_file())


def _documents(
    tokenizer: Tokenizer, end_id: int | None, documents: Iterator[tuple[str, str]], share: float
) -> Iterator[Piece]:
    """Each document, in order; encoded in batches, so on all cores."""
    import numpy as np

    while batch := [pair for _, pair in zip(range(_BATCH), documents, strict=False)]:
        encodings = tokenizer.encode_batch([text for _, text in batch], add_special_tokens=False)
        for (name, text), encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids if end_id is None else [*encoding.ids, end_id], dtype=np.uint32)
            yield Piece(corpus.is_held_out(name, share), len(text.encode()), ids)


def _examples(model: ModelConfig, share: float, files: list[Path], taught: bool) -> Tokens:
    """Whether an example is held out follows from its text, so one that is there twice is on one side."""
    import numpy as np

    auto: Any = import_module("transformers").AutoTokenizer
    if model.words is not None:
        tokenizer_file(model)
        tokenizer = auto.from_pretrained(model.words, local_files_only=True)
        if not tokenizer.is_fast:
            raise UsageError(f"{model.words}: its tokenizer cannot tell where in the text a token stands")
        _check_vocabulary(model, len(tokenizer))
    else:
        train_texts = (one.text for one in _read(files, None) if not corpus.is_held_out(one.text, share))
        tokenizer = import_module("transformers").PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(model, train_texts)[0], eos_token=END, bos_token=END
        )

    known = tokenizer.get_vocab()
    named = (len(known), vocabulary.digest(known)) if taught else None

    def pieces() -> Iterator[Piece]:
        for one, ids, mask in examples.encoded(tokenizer, _read(files, tokenizer, named)):
            held_out = corpus.is_held_out(one.text, share)
            begin = stored.begins(ids, mask, one.said) if one.said and not held_out else None
            heard = (begin, one.said) if one.said and begin is not None else None
            unlike = one.said is not None and heard is None
            yield Piece(held_out, len(one.text.encode()), np.array(ids, dtype=np.uint32), mask, heard, unlike)

    return Tokens(tokenizer.backend_tokenizer, tokenizer.eos_token_id, pieces())


def _read(files: Iterable[Path], tokenizer: Any, known: tuple[int, str] | None = None) -> Iterator[examples.Example]:
    """`known`: size and name of the vocabulary in which a teacher's ids are read."""
    for where, row in examples.rows(files):
        one = examples.example(where, row, tokenizer)
        yield one._replace(said=stored.said(where, row, *known)) if known else one


def _tokenizer(model: ModelConfig, texts: Iterator[str]) -> tuple[Tokenizer, int | None]:
    """The pretrained model's tokenizer, or a byte-level BPE trained on `texts`; and the id of a document's end."""
    tokenizers = import_module("tokenizers")
    if model.words is not None:
        tokenizer: Tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file(model)))
        _check_vocabulary(model, tokenizer.get_vocab_size())
        end = json.loads((Path(model.words) / "config.json").read_bytes()).get("eos_token_id")
        return tokenizer, end[0] if isinstance(end, list) else end
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=model.vocab_size, special_tokens=[END], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer, 0


def rows(model: ModelConfig) -> int:
    """Of the table of a pretrained model, which may be more than its tokenizer has tokens; 0 where it has none."""
    has = json.loads((Path(model.words) / "config.json").read_bytes()).get("vocab_size") if model.words else 0
    return has if isinstance(has, int) else 0


def _check_vocabulary(model: ModelConfig, tokens: int) -> None:
    if 0 < (has := rows(model)) < tokens:
        raise UsageError(
            f"model.path {model.words}: the tokenizer has {tokens} tokens, the model {has}",
            hint="take the tokenizer that belongs to it, or save the model with resize_token_embeddings",
        )


def tokenizer_file(model: ModelConfig) -> Path:
    folder = Path(model.words or "")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UsageError(
                f"model.path {folder}: {name} is not there",
                hint="model.path is a directory that save_pretrained of model and tokenizer made",
            )
    return folder / "tokenizer.json"
