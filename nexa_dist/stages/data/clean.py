"""What becomes of the rows of a batch: bad by the schema, dropped by a filter, or kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from nexa_dist.errors import NexaError
from nexa_dist.stages.data.config import ColumnConfig, DataConfig, Language, Quality
from nexa_dist.stages.data.read import DTYPES, SHOWN, Bad, Batch, batches, files_of
from nexa_dist.stages.data.shingles import shingles

COMMON = {
    "en": "the of and to in a is that for it as was with be by on not he his or are this which from an had at but",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se il ce sont avec",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le",
    "it": "di e il la che in un a per è una non sono con si da le dei come del ha nel della al alla più",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das",
    "nl": "de het een van en in is dat op te zijn met voor niet aan er om ook als dan maar bij uit door over",
}  # fmt: skip
"""The commonest words of a language, as any frequency list has them."""


def checked(batch: Batch, columns: Mapping[str, ColumnConfig]) -> tuple[pl.DataFrame, list[Bad]]:
    """Rows that are what the schema asks, with exactly its columns in its kinds, and the bad ones."""
    frame, bad = batch.rows, list(batch.bad)
    for name, want in columns.items():
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(None).cast(DTYPES.get(want.type, pl.Null)).alias(name))
        column, reason = pl.col(name), pl.lit(None, pl.String)
        cast = _cast(column, frame.schema[name], want.type)
        size = cast.str.len_chars() if want.type == "string" else cast
        reason = (
            pl.when(column.is_null())
            .then(pl.lit("no value") if want.required else reason)
            .when(cast.is_null())
            .then(pl.lit(f"expected {want.type}"))
        )
        if want.choices:
            reason = reason.when(~cast.cast(pl.String).is_in(want.choices)).then(pl.lit("none of the choices"))
        if want.minimum is not None:
            reason = reason.when(size < want.minimum).then(pl.lit(f"less than {want.minimum:g}"))
        if want.maximum is not None:
            reason = reason.when(size > want.maximum).then(pl.lit(f"more than {want.maximum:g}"))
        frame = frame.with_columns(reason.otherwise(None).alias("_why"))
        for row in frame.filter(pl.col("_why").is_not_null()).select("_row", name, "_why").iter_rows():
            bad.append(Bad(batch.file, row[0], name, row[2], repr(row[1])[:SHOWN]))
        frame = frame.filter(pl.col("_why").is_null()).with_columns(cast.alias(name))
    return frame.select("_row", *columns), sorted(bad, key=lambda one: one.row)


def _cast(column: pl.Expr, kind: pl.DataType, wanted: str) -> pl.Expr:
    """The column in the wanted kind; null where a value would be another one there, or is none of it."""
    if wanted not in DTYPES or kind == DTYPES[wanted]:
        return column
    known = kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)
    if not known and (wanted != "string" or kind.is_nested() or kind == pl.Binary):
        return pl.lit(None, DTYPES[wanted])
    cast = column.cast(DTYPES[wanted], strict=False)
    return pl.when(cast.cast(kind) == column).then(cast) if kind.is_numeric() and wanted != "string" else cast


def filtered(frame: pl.DataFrame, config: DataConfig, known: np.ndarray | None) -> tuple[pl.DataFrame, dict[str, int]]:
    """Rows that pass every filter, with `_hash` of their text, and how many each one dropped. `known` are the hashes of
    the evaluation's runs of words, sorted."""
    if config.text not in frame.columns:
        raise NexaError(f"text: there is no column {config.text!r}", hint=f"there are {', '.join(frame.columns[1:])}")
    text = pl.col(config.text)
    if frame.schema[config.text] != pl.String:
        raise NexaError(f"text: column {config.text} holds {frame.schema[config.text]}, and no text")
    if config.normalize:
        frame = frame.with_columns(text.str.normalize("NFC").str.replace_all(r"\s+", " ").str.strip_chars())
    frame = frame.with_columns(text.fill_null(""))
    words = text.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
    characters, size, length = text.str.len_chars(), words.list.len(), config.length
    why = (
        pl.when((characters < length.min_characters) | (size < length.min_words)).then(pl.lit("too short"))
        .when((characters > length.max_characters) | (size > length.max_words)).then(pl.lit("too long"))
    )  # fmt: skip
    if config.language:
        why = why.when((size >= config.language.from_words) & _foreign(words, config.language)).then(
            pl.lit("other language")
        )
    if config.quality:
        for name, fails in _poor(text, words, config.quality).items():
            why = why.when(fails).then(pl.lit(name))
    frame = frame.with_columns(why.otherwise(None).alias("_why"))
    if known is not None and len(frame):
        runs, starts = shingles(frame[config.text], config.contamination.words if config.contamination else 13)
        shared = np.logical_or.reduceat(np.isin(runs, known), starts)
        frame = frame.with_columns(
            pl.when(pl.col("_why").is_null() & pl.Series(shared)).then(pl.lit("in the evaluation set"))
            .otherwise(pl.col("_why")).alias("_why")
        )  # fmt: skip
    dropped = frame["_why"].drop_nulls().value_counts().sort("_why")
    plain = text.str.to_lowercase().str.replace_all(r"\s+", "")
    kept = frame.filter(pl.col("_why").is_null()).with_columns(plain.hash(0).alias("_hash")).drop("_why")
    return kept, {str(name): int(count) for name, count in dropped.iter_rows()}


def evaluation_runs(config: DataConfig, root: Path | None) -> np.ndarray | None:
    """Hashes of all runs of words of the evaluation set, sorted; None where the config asks for no look."""
    if config.contamination is None or root is None:
        return None
    column, found = config.contamination.column, [np.empty(0, np.uint64)]
    for path in files_of(root):
        for batch in batches(path, path.name, {column: ColumnConfig()}):
            if column not in batch.rows.columns:
                raise NexaError(f"contamination: {path} has no column {column!r}")
            if len(texts := batch.rows[column].drop_nulls().cast(pl.String)):
                found.append(shingles(texts, config.contamination.words)[0])
    return np.unique(np.concatenate(found))


def _foreign(words: pl.Expr, language: Language) -> pl.Expr:
    common = words.list.eval(pl.element().is_in(COMMON[language.keep].split()).cast(pl.Float64)).list.mean()
    return common < language.min_share


def _poor(text: pl.Expr, words: pl.Expr, bounds: Quality) -> dict[str, pl.Expr]:
    length = text.str.len_chars().clip(1)
    letters = text.str.count_matches(r"\p{L}").clip(1)
    mean = words.list.eval(pl.element().str.len_chars()).list.mean()
    repeated = 1 - words.list.n_unique() / words.list.len().clip(1)
    return {
        "too many symbols": text.str.count_matches(r"[^\p{L}\p{N}\s]") / length > bounds.max_symbol_share,
        "too many digits": text.str.count_matches(r"\p{N}") / length > bounds.max_digit_share,
        "too many capitals": text.str.count_matches(r"\p{Lu}") / letters > bounds.max_upper_share,
        "no words": (mean < bounds.min_mean_word) | (mean > bounds.max_mean_word),
        "repeats itself": (words.list.len() > 0) & (repeated > bounds.max_repeated_share),
    }
