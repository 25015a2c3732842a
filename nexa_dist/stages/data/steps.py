"""What the stage data does, in order: clean batch by batch, find duplicates, choose, split, write, measure.

Each batch and each file of the output is whole or absent, and what is there is not made again. Held in memory are a
batch, and some 30 bytes a row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nexa_dist.errors import EXIT_USAGE, NexaError
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.data.choose import refuse_empty, sampled
from nexa_dist.stages.data.clean import checked, evaluation_runs, filtered
from nexa_dist.stages.data.config import ColumnConfig, DataConfig
from nexa_dist.stages.data.read import Batch, batches, files_of, names_of
from nexa_dist.stages.data.shingles import near_duplicates, shingles, signatures
from nexa_dist.stages.data.statistics import drift, frames, measured
from nexa_dist.stages.data.write import Stopped, batches_of, heard, pack, write
from nexa_dist.stages.whole import whole

WORK = ".work"


def prepare(config: DataConfig, env: StageEnv) -> None:
    """Raises NexaError for inputs that are missing, cannot be read, or lack a column."""
    if missing := [name for name in config.special if name not in env.inputs]:
        raise NexaError(f"inputs has no {', '.join(missing)}", hint=f"it has {', '.join(env.inputs) or 'none'}")
    there: set[str] = set()
    for path, _ in _sources(config, env):
        there.update(names_of(path))
    if not there:
        raise NexaError(f"no row is in {', '.join(name for _, name in _sources(config, env))}")
    wanted = {config.text, *config.columns}
    wanted |= {one.by for one in (config.sample, config.split) if one and one.by}
    if lacking := sorted(wanted - there):
        raise NexaError(
            f"no input has the column {', '.join(lacking)}", hint=f"there are {', '.join(sorted(there)) or 'none'}"
        )


def run(config: DataConfig, env: StageEnv) -> int:
    work = env.output / WORK
    work.mkdir(exist_ok=True)
    try:
        told = _clean(config, env, work)
        keep, told["dropped"] = _unlike(config, env, work, Counter(told["dropped"]))
        keep, short = sampled(
            keep, config.sample, _column(work, config.sample.by if config.sample else None), config.seed
        )
        refuse_empty(
            int(keep.sum()), told["read"], {**({"bad": told["bad"]} if told["bad"] else {}), **told["dropped"]}
        )
        told["rows"] = write(config, env, work, keep)
        if config.pack:
            told["windows"] = pack(config, env)
        _measure(config, env, told, short)
    except Stopped:
        return EXIT_STOPPED
    except pl.exceptions.PolarsError as error:
        raise NexaError(f"polars cannot do this with these rows: {str(error).splitlines()[0][:300]}") from error
    return 0


def _sources(config: DataConfig, env: StageEnv) -> Iterator[tuple[Path, str]]:
    """Files of rows with the name that messages have for each."""
    sources = {name: root for name, root in env.inputs.items() if name not in config.special}
    if not sources:
        raise NexaError("inputs names no rows", hint="inputs: {rows: FILE or FOLDER}")
    for root in sources.values():
        for path in files_of(root):
            yield path, path.name if path == root else path.relative_to(root.parent).as_posix()


def _columns(config: DataConfig, env: StageEnv) -> dict[str, ColumnConfig]:
    """Columns of the output: those of the config, else every one that a source has."""
    if config.columns:
        return {**config.columns, **({} if config.text in config.columns else {config.text: ColumnConfig()})}
    names = dict.fromkeys(name for path, _ in _sources(config, env) for name in names_of(path))
    return {name: ColumnConfig(type="string" if name == config.text else "any", required=False) for name in names}


def _batches(config: DataConfig, env: StageEnv, columns: dict[str, ColumnConfig]) -> Iterator[Batch]:
    for path, name in _sources(config, env):
        yield from batches(path, name, columns)


def _clean(config: DataConfig, env: StageEnv, work: Path) -> dict[str, Any]:
    """Write each batch's good rows below `work`. Returns counts of what was read, bad and dropped."""
    columns, known = _columns(config, env), None
    if config.contamination:
        known = evaluation_runs(config, env.inputs[config.contamination.input])
    read, bad, first = 0, 0, list[dict[str, Any]]()
    dropped, others = Counter[str](), Counter[str]()
    with whole(env.output / "bad.jsonl") as path, path.open("w") as file:
        for number, batch in enumerate(_batches(config, env, columns)):
            if env.stop():
                raise Stopped
            note = work / f"{number:06}.json"
            if not note.exists():
                rows, faults = checked(batch, columns)
                kept, why = filtered(rows, config, known)
                with whole(work / f"{number:06}.parquet") as part:
                    kept.write_parquet(part)
                there = {"read": batch.read, "dropped": why, "others": batch.others}
                _json(note, {**there, "bad": [asdict(one) for one in faults]})
            said = json.loads(note.read_text())
            read, bad, first = read + said["read"], bad + len(said["bad"]), [*first, *said["bad"]][:5]
            dropped, others = dropped + Counter(said["dropped"]), others + Counter(said["others"])
            file.writelines(json.dumps(one) + "\n" for one in said["bad"])
            env.report(read, None, bad=bad, dropped=dropped.total())
    if bad > config.bad.most and bad > config.bad.most_share * read:
        shown = "\n".join(map(_fault, first))
        raise NexaError(
            f"{bad} of {read} rows are bad:\n{shown}",
            hint=f"{env.output}/bad.jsonl has them all; bad: {{most: {bad}}} bears them",
            code=EXIT_USAGE,
        )
    # Who names columns wants no others; those that nobody named begin too late in a file to have been seen.
    late = {} if config.columns else dict(others)
    for name, count in late.items():
        print(f"warning: column {name} is left out, {count} rows have it: columns: names it", flush=True)
    return {"read": read, "bad": bad, "dropped": dropped, "left_out": late}


def _fault(row: dict[str, Any]) -> str:
    where = f"{row['file']} row {row['row']}" + (f", column {row['column']}" if row["column"] else "")
    return f"{where}: {row['why']}, found {row['value']}"


def _unlike(config: DataConfig, env: StageEnv, work: Path, dropped: Counter[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Mask of the rows that none before is like."""
    hashes = _column(work, "_hash")
    assert hashes is not None
    keep = np.ones(len(hashes), bool)
    if config.duplicates.exact:
        keep = hashes.is_first_distinct().to_numpy().copy()
        dropped["exact duplicate"] = int((~keep).sum())
    near = config.duplicates.near
    if near and keep.any():
        done = work / "near.npy"
        if not done.exists():
            beat = partial(heard, env)
            there = np.flatnonzero(keep)
            found = near_duplicates(
                _signed(config, env, work, keep), len(there), near.threshold, work / "signatures", beat
            )
            with whole(done) as path, path.open("wb") as file:
                np.save(file, there[found])
        again = np.load(done)
        keep[again] = False
        dropped["near duplicate"] = len(again)
    return keep, dict(sorted((name, count) for name, count in dropped.items() if count))


def _signed(config: DataConfig, env: StageEnv, work: Path, keep: np.ndarray) -> Iterator[np.ndarray]:
    near, at = config.duplicates.near, 0
    assert near is not None
    for path in batches_of(work):
        texts = pl.read_parquet(path, columns=[config.text])[config.text]
        texts, at = texts.filter(pl.Series(keep[at : at + len(texts)])), at + len(texts)
        heard(env)
        if len(texts):
            yield signatures(*shingles(texts, near.shingle), near.permutations, config.seed)
            env.report(at, len(keep), signed=at)


def _column(work: Path, name: str | None) -> pl.Series | None:
    """One column of all clean rows."""
    return (
        None if name is None else pl.concat([pl.read_parquet(path, columns=[name]) for path in batches_of(work)])[name]
    )


def _measure(config: DataConfig, env: StageEnv, told: dict[str, Any], short: list[str]) -> None:
    """Write report.json, and drift.json where another version is compared with. Notes counts and schema."""
    rows = pl.scan_parquet([path for part in told["rows"] for path in sorted((env.output / part).glob("*.parquet"))])
    columns = measured(rows)
    _json(env.output / "report.json", {**told, "columns": columns, "short": short})
    counts = {"read": told["read"], "bad": told["bad"], "rows": sum(told["rows"].values()), "parts": told["rows"],
              "dropped": told["dropped"], **({"windows": told["windows"]} if config.pack else {})}  # fmt: skip
    env.note(counts=counts, schema={name: one["kind"] for name, one in columns.items()}, short=short)
    for words in short:
        print(f"warning: {words}", flush=True)
    if config.drift is None:
        return
    try:
        found = drift(frames(env.inputs[config.drift.against]), rows)
    except pl.exceptions.PolarsError as error:
        raise NexaError(f"drift: {env.inputs[config.drift.against]}: {str(error).splitlines()[0][:200]}") from None
    for name, one in found.items():
        if one["psi"] is None:
            print(f"warning: drift of {name} has no figure: {one['of']}", flush=True)
    _json(env.output / "drift.json", found)
    worst = {name: one["psi"] for name, one in found.items() if one["psi"] is not None}
    env.note(drift=worst)
    limit = config.drift.max_psi
    if limit and not worst:
        raise NexaError("drift: no column could be compared, so max_psi says nothing", code=EXIT_USAGE)
    if limit and (over := {name: psi for name, psi in worst.items() if psi > limit}):
        said = ", ".join(f"{name} {psi:.3f}" for name, psi in sorted(over.items(), key=lambda one: -one[1]))
        hint = f"{env.output}/drift.json has the shares"
        raise NexaError(f"drift is above max_psi {limit:g}: {said}", hint=hint, code=EXIT_USAGE)


def _json(path: Path, data: Any) -> None:
    with whole(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
