"""Rows a second and peak memory of the stage data and of pandas, on one Parquet file: `tests.bench.data_stage ROWS`.

Both put white space right, drop texts under five words, and drop rows whose text (without case and spaces) was there
before. Each runs in a process of its own; that they keep the same rows is checked, and that the stage stays within its
bound of memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PANDAS = """
import sys, pandas as pd
rows = pd.read_parquet(sys.argv[1])
rows["text"] = rows["text"].str.normalize("NFC").str.replace(r"\\s+", " ", regex=True).str.strip()
rows = rows[rows["text"].str.count(r"\\w+") >= 5]
plain = rows["text"].str.lower().str.replace(r"\\s+", "", regex=True)
rows[~plain.duplicated()].to_parquet(sys.argv[2])
"""
CONFIG = "stage: data\nlength: {min_words: 5}\nrows_per_file: 1000000\n"
BOUND_MB = 2048
"""Peak memory of the stage, up to 10 million rows."""
NEAR = "duplicates: {near: {threshold: 0.8}}\n"


def main(rows: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "rows.parquet"
        made(path, rows)
        print(f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB of Parquet")
        (folder / "data.yaml").write_text(CONFIG + NEAR * (os.environ.get("NEAR") == "1"))
        stage = ["-m", "nexa_dist.stages.data", "--config", str(folder / "data.yaml"), "--input", f"rows={path}"]
        ours = measured("stage data", rows, [*stage, "--output", str(folder / "out")])
        if ours[1] > BOUND_MB:
            print(f"the stage took more than {BOUND_MB} MB")
            return 1
        theirs = measured("pandas", rows, ["-c", PANDAS, str(path), str(folder / "pandas.parquet")])
        print(
            f"the stage takes {ours[0] / theirs[0]:.2f} x pandas' CPU seconds, {ours[1] / theirs[1]:.2f} x its memory"
        )
        import polars as pl

        kept = pl.scan_parquet(folder / "out/train/*.parquet").select(pl.len()).collect().item()
        same = pl.scan_parquet(folder / "pandas.parquet").select(pl.len()).collect().item()
        print(f"kept: {kept} rows, pandas {same}")
        return 0 if kept == same or os.environ.get("NEAR") == "1" else 1


def made(path: Path, rows: int) -> None:
    """Rows of 12 to 20 random words of a vocabulary of 20,000; a fifth was there before, some are too short."""
    import numpy as np
    import polars as pl
    import pyarrow.parquet as pq

    chance, block, writer = np.random.default_rng(0), 200_000, None
    words = np.array([f"w{chance.integers(36**4):x}" for _ in range(20_000)])
    seen: list[str] = []
    for begin in range(0, rows, block):
        count = min(block, rows - begin)
        lengths = chance.integers(2, 21, count)
        picked = words[chance.integers(0, len(words), (count, 20))]
        texts = ["  ".join(row[:size]) for row, size in zip(picked, lengths, strict=True)]
        seen = seen or texts[:]
        for at in np.flatnonzero(chance.random(count) < 0.2):
            texts[at] = seen[at % len(seen)].upper()
        table = pl.DataFrame({"id": range(begin, begin + count), "text": texts}).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def measured(name: str, rows: int, argv: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MB of a Python program."""
    probe = (
        "import resource, subprocess, sys\n"
        "code = subprocess.call([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", probe, *argv], stdout=subprocess.PIPE, text=True, check=True).stdout
    code, cpu, peak = said.split()
    wall = time.monotonic() - began
    if code != "0":
        raise SystemExit(f"{name} failed with exit code {code}")
    rate, peak_mb = rows / wall, float(peak)
    print(f"{name}: {rate:,.0f} rows/s, {wall:.1f} s ({float(cpu):.1f} of CPU), peak {peak_mb:.0f} MB", flush=True)
    return float(cpu), peak_mb


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
