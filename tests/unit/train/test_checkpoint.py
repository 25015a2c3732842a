"""Checkpoints are whole or absent, and no damage passes as whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint

META = {"world_size": 4, "run_id": "r1", "attempt": 1}


def fill(seed: int = 0) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        rng = random.Random(seed)
        (path / "model.safetensors").write_bytes(rng.randbytes(5000))
        (path / "sub").mkdir()
        (path / "sub" / "state é.json").write_text("{}")
        (path / "empty").touch()

    return write


def make(root: Path, step: int) -> Path:
    return checkpoint.write(root, step, fill(step), META)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def damage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"torn")


def test_the_manifest_is_the_contract(tmp_path: Path) -> None:
    path = make(tmp_path, 40)
    assert path == tmp_path / "step_00000040"
    body = json.loads((path / "manifest.json").read_text())
    assert {key: body[key] for key in ("version", "step", *META)} == {"version": 1, "step": 40, **META}
    assert set(body["files"]) == {"model.safetensors", "sub/state é.json", "empty"}
    assert body["files"]["model.safetensors"]["bytes"] == 5000
    assert checkpoint.verify(path) == []
    assert checkpoint.digest(path) == body["sha256"]
    assert names(tmp_path) == ["step_00000040"]


def test_no_flip_of_a_byte_in_any_file_passes(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    rng = random.Random(7)
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    for number in range(300):
        file = files[number % len(files)]
        good = file.read_bytes()
        offset = rng.randrange(len(good))
        file.write_bytes(good[:offset] + bytes([good[offset] ^ (1 << rng.randrange(8))]) + good[offset + 1 :])
        assert checkpoint.verify(path), f"{file.name} at {offset}"
        file.write_bytes(good)
    assert checkpoint.verify(path) == []


def test_no_truncation_passes(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    for file in [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]:
        good = file.read_bytes()
        for length in {0, 1, len(good) // 2, len(good) - 1} - {len(good)}:
            file.write_bytes(good[:length])
            assert checkpoint.verify(path), f"{file.name} cut to {length}"
        file.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
        assert checkpoint.verify(path), f"{file.name} with a tail of zeros"
        file.write_bytes(good)


def test_missing_extra_and_linked_files_are_named(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    (path / "empty").unlink()
    (path / "extra").touch()
    assert checkpoint.verify(path) == ["extra: not in the manifest", "empty: missing"]
    (path / "extra").unlink()
    (tmp_path / "elsewhere").touch()
    (path / "empty").symlink_to(tmp_path / "elsewhere")
    assert checkpoint.verify(path) == ["empty: not a regular file"]


def test_a_directory_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    os.rename(make(tmp_path, 1), tmp_path / "step_00000002")
    assert "is of step 1" in checkpoint.verify(tmp_path / "step_00000002")[0]


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"sha256": 1}', "\x00", '{"version": 1, "files": 3}'])
def test_a_manifest_that_is_none_gives_a_problem_and_no_traceback(tmp_path: Path, text: str) -> None:
    path = make(tmp_path, 1)
    (path / "manifest.json").write_text(text)
    assert checkpoint.verify(path)
    (path / "manifest.json").unlink()
    assert checkpoint.verify(path)


def test_a_failing_fill_leaves_nothing_and_keeps_the_older_one(tmp_path: Path) -> None:
    make(tmp_path, 1)

    def no_space(path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write(tmp_path, 2, no_space, META)
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("moment", ["manifest", "rename"])
def test_a_kill_before_the_end_leaves_the_older_one_newest(tmp_path: Path, moment: str) -> None:
    make(tmp_path, 1)
    program = f"""
import os, sys
from pathlib import Path
from nexa_dist.train import checkpoint
root = Path(sys.argv[1])
def fill(path):
    (path / "model.safetensors").write_bytes(b"x" * 5000)
def die(*args):
    os._exit(9)
if {moment!r} == "manifest":
    checkpoint.manifest_bytes = die
else:
    checkpoint.os.rename = die
checkpoint.write(root, 2, fill, {{}})
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env).returncode == 9
    assert len(names(tmp_path)) == 2
    assert checkpoint.newest_whole(tmp_path) == (1, tmp_path / "step_00000001")
    make(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_newest_whole_walks_back_and_says_why(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        make(tmp_path, step)
    damage(tmp_path / "step_00000010")
    (tmp_path / "step_00000009" / "manifest.json").unlink()
    (tmp_path / "step_12x").mkdir()
    skipped: list[str] = []
    assert checkpoint.newest_whole(tmp_path, skipped.append) == (8, tmp_path / "step_00000008")
    assert "step_00000010: model.safetensors: 4 bytes, expected 5000" in skipped[0]
    assert "step_00000009" in skipped[1]
    assert len(skipped) == 2
    assert checkpoint.newest_whole(tmp_path / "absent") is None


def test_prune_counts_only_whole_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    damage(tmp_path / "step_00000004")
    assert checkpoint.prune(tmp_path, keep=2) == [tmp_path / "step_00000001"]
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]
    damage(tmp_path / "step_00000003")
    assert checkpoint.prune(tmp_path, keep=2) == []


def test_a_second_write_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    make(tmp_path, 1)
    path = checkpoint.write(tmp_path, 1, fill(99), META)
    assert checkpoint.verify(path) == []
    assert (path / "model.safetensors").read_bytes() == random.Random(99).randbytes(5000)
    assert names(tmp_path) == ["step_00000001"]


def test_copy_is_whole_and_equal(tmp_path: Path) -> None:
    path = make(tmp_path / "a", 3)
    other = checkpoint.copy(path, tmp_path / "b")
    assert other == tmp_path / "b" / "step_00000003"
    assert (other / "manifest.json").read_bytes() == (path / "manifest.json").read_bytes()
    assert checkpoint.verify(other) == []
    before = other.stat().st_ino
    assert checkpoint.copy(path, tmp_path / "b").stat().st_ino == before
    damage(other)
    assert checkpoint.verify(checkpoint.copy(path, tmp_path / "b")) == []


def test_copy_refuses_a_broken_source(tmp_path: Path) -> None:
    path = make(tmp_path / "a", 3)
    damage(path)
    with pytest.raises(NexaError, match=r"damaged: model\.safetensors"):
        checkpoint.copy(path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
