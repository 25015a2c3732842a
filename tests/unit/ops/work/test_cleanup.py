"""What is freed of runs that are over, and what never goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.ops.work import cleanup
from nexa_dist.train import checkpoint

RECORD = ("agent.jsonl", "spec.json", "rank_0/attempt_1.log")
# The pid: a process of this name anywhere on the machine makes a run live, and another suite may have one.
OLD, LIVES, YOUNG = (
    f"train_2026010{n}_000000_{name}-{os.getpid()}" for n, name in ((1, "old"), (2, "lives"), (3, "young"))
)


def save(root: Path, step: int) -> Path:
    return checkpoint.write(root / "checkpoints", step, lambda path: (path / "w").write_bytes(bytes([step]) * 100) and None, {})  # fmt: skip # noqa: E501


def run(scratch: Path, name: str, *steps: int) -> Path:
    folder = scratch / name
    (folder / "rank_0").mkdir(parents=True)
    (folder / "work").mkdir()
    for file, text in (
        ("agent.jsonl", "{}\n"),
        ("spec.json", "{}"),
        ("rank_0/attempt_1.log", "said\n"),
        ("work/big", "x" * 999),
    ):
        (folder / file).write_text(text)
    for step in steps:
        save(folder, step)
    return folder


def age(folder: Path, days: float = 30.0) -> None:
    at = time.time() - days * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (at, at), follow_symlinks=False)


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    scratch, durable = tmp_path / "scratch", tmp_path / "durable"
    scratch.mkdir()
    durable.mkdir()
    return scratch, durable


def told(disks: tuple[Path, Path], *words: str) -> list[str]:
    said: list[str] = []
    assert cleanup.main(["--scratch", str(disks[0]), "--durable", str(disks[1]), *words], said.append) == 0
    return said


def test_old_runs_go_with_their_record_archived_and_only_when_asked(disks: tuple[Path, Path]) -> None:
    scratch, durable = disks
    old, young = run(scratch, OLD, 1, 2), run(scratch, YOUNG, 1)
    for step in (1, 2, 3):
        save(durable / OLD, step)
    for folder in (old, durable / OLD):
        age(folder)
    for words in ((), ("--delete", "--dry-run")):
        said = told(disks, *words)
        assert any(line.startswith(f"would remove: {old}") for line in said) and old.exists()
    said = told(disks, "--delete")
    assert not old.exists() and young.exists()
    assert checkpoint.steps(durable / OLD / "checkpoints") == [3, 2]
    [packed] = (scratch / "archive").iterdir()
    with tarfile.open(packed) as tar:
        assert sorted(tar.getnames()) == sorted(
            f"{OLD}/{name}" for name in ("agent.jsonl", "spec.json", "rank_0/attempt_1.log")
        )
    assert packed.stat().st_mode & 0o077 == 0
    assert told(disks, "--delete")[-1].startswith("0 folders")


def test_the_newest_whole_checkpoint_stays_where_it_is_nowhere_else(disks: tuple[Path, Path]) -> None:
    scratch, durable = disks
    folder = run(scratch, OLD, 1, 2, 3)
    save(durable / OLD, 1)
    (folder / "checkpoints" / "step_00000003" / "w").write_bytes(b"damaged")
    age(folder)
    age(durable / OLD)
    said = told(disks, "--delete")
    assert any("step_00000002, which is nowhere else, stays" in line for line in said)
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]
    assert checkpoint.steps(folder / "checkpoints") == [2]
    assert checkpoint.verify(folder / "checkpoints" / "step_00000002") == []
    age(folder)
    assert told(disks, "--delete")[-1].startswith("0 folders")


def test_what_is_damaged_makes_no_room(disks: tuple[Path, Path]) -> None:
    root = disks[1] / OLD
    for step in (1, 2, 3, 4):
        save(root, step)
    for step in (3, 4):
        (root / "checkpoints" / checkpoint.step_name(step) / "w").write_bytes(b"no")
    age(root)
    told(disks, "--delete", "--keep", "2")
    assert checkpoint.steps(root / "checkpoints") == [4, 3, 2, 1]


def test_a_run_that_lives_is_not_touched(disks: tuple[Path, Path]) -> None:
    """By its agent, or by any process of it."""
    scratch, durable = disks
    folder, other = run(scratch, LIVES, 1, 2, 3), run(scratch, f"{OLD}.n1", 1)
    start = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    (folder / "agent.pid").write_text(json.dumps({"pid": os.getpid(), "start_time": start}))
    for step in (1, 2, 3):
        save(durable / LIVES, step)
    for path in (folder, other, durable / LIVES):
        age(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, env={"NEXA_RUN_DIR": str(other)})
    try:
        while b"NEXA_RUN_DIR" not in Path(f"/proc/{child.pid}/environ").read_bytes():
            time.sleep(0.01)
        said = told(disks, "--delete", "--keep", "1", "--days", "0")
    finally:
        child.kill()
        child.communicate()
    assert sum("its run lives" in line for line in said) == 3 and said[-1].startswith("0 folders")
    assert folder.exists() and checkpoint.steps(durable / LIVES / "checkpoints") == [3, 2, 1]


def test_unreadable_shards_and_what_is_no_run_are_left_alone(disks: tuple[Path, Path], tmp_path: Path) -> None:
    scratch, _ = disks
    folder = run(scratch, OLD)
    checkpoint.write(folder / "checkpoints", 1, lambda path: (path / "w").write_bytes(b"1") and None, {"shards": {}})
    (scratch / "my-own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (scratch / YOUNG).symlink_to(tmp_path / "elsewhere")
    age(folder)
    age(scratch / "my-own")
    said = told(disks, "--delete", "--days", "0")
    assert any(line.startswith(f"stays: {folder}: of step_00000001 ") for line in said) and folder.exists()
    assert (scratch / "my-own").exists() and (tmp_path / "elsewhere").exists()


def test_without_room_for_the_record_nothing_goes(disks: tuple[Path, Path], tmp_path: Path) -> None:
    folder = run(disks[0], OLD)
    age(folder)
    (tmp_path / "file").touch()
    said: list[str] = []
    words = ["--scratch", str(disks[0]), "--archive", str(tmp_path / "file" / "x"), "--delete"]
    assert cleanup.main(words, said.append) == 1
    assert folder.exists() and any("cannot be archived" in line for line in said)


def test_folders_of_two_nodes_go_together_and_a_killed_cleanup_is_gone_on_with(disks: tuple[Path, Path]) -> None:
    (disks[1] / "second").mkdir()
    own, other = disks[1] / OLD, disks[1] / "second" / OLD
    for step in (1, 2):
        save(own, step)
    save(other, 1)
    killed = own / "checkpoints" / ".tmp-cleanup-step_00000000"
    killed.mkdir()
    for folder in (own, other):
        age(folder)
    words = ("--durable", str(disks[1] / "second"), "--keep", "1")
    assert told(disks, *words)[-1].startswith("2 folders") and killed.exists()
    assert told(disks, *words, "--delete")[-1].startswith("2 folders") and not killed.exists()
    assert (checkpoint.steps(own / "checkpoints"), checkpoint.steps(other / "checkpoints")) == ([2], [])


def test_bad_words_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NEXA_SCRATCH", raising=False)
    monkeypatch.delenv("NEXA_DURABLE", raising=False)
    for words in ([], ["--scratch", str(tmp_path), "--keep", "0"], ["--durable", str(tmp_path / "none")]):
        with pytest.raises(UsageError):
            cleanup.main(words)
