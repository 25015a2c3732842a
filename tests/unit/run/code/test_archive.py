"""The hash is of the bytes that are sent, whatever somebody edits meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.run.code import archive


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(archive, "AGAIN_S", 0.0)
    for name in ("a.py", "sub/b c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"print({name!r})")
    return tmp_path


NAMES = ("a.py", "sub/b c.py")


def texts(packed: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_its_name_is_its_content(root: Path) -> None:
    made, again = archive.build(root, NAMES), archive.build(root, reversed(NAMES))
    assert (made.names, made.hash, made.pack()) == (NAMES, again.hash, again.pack())
    seen = {made.hash}
    for act in (
        lambda: (root / "a.py").write_text("print('b.py')"),
        lambda: (root / "a.py").chmod(0o755),
        lambda: ((root / "a.py").unlink(), (root / "a.py").symlink_to("sub/b c.py")),
        lambda: (root / "a.py").unlink(),  # tracked, and deleted in the work tree
    ):
        act()
        seen.add(archive.build(root, NAMES).hash)
    assert len(seen) == 5


def test_an_edit_after_it_was_named_is_not_sent(root: Path) -> None:
    made = archive.build(root, NAMES)
    (root / "a.py").write_text("later")
    (root / "sub" / "b c.py").unlink()
    assert texts(made.pack()) == {name: f"print({name!r})".encode() for name in NAMES}
    archive.keep(root / "kept", made)
    assert texts(archive.Kept(root / "kept" / f"{made.hash}.tar.gz").pack())["a.py"] == b"print('a.py')"


def test_what_was_kept_and_is_damaged_is_kept_anew(root: Path) -> None:
    made = archive.build(root, NAMES)
    kept = archive.Kept(root / "kept" / f"{made.hash}.tar.gz")
    for code in (made, made, kept):
        archive.keep(root / "kept", code)
        assert kept.pack() == made.pack()
        kept.path.write_bytes(b"damaged" if code is not made else made.pack())
    assert kept.pack() == b"damaged"  # nobody has it any more; the nodes refuse it
    archive.keep(root / "kept", made)
    assert kept.pack() == made.pack()


def meddle(monkeypatch: pytest.MonkeyPatch, times: int, act: Callable[[], object]) -> None:
    """`act` comes between the look at a file's size and the end of its reading, so many times."""
    real, left = archive.os.fstat, [times]

    def fstat(fd: int) -> object:
        seen = real(fd)
        if left[0]:
            left[0] -= 1
            act()
        return seen

    monkeypatch.setattr(archive.os, "fstat", fstat)


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_a_file_that_changes_is_read_again_and_then_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    size = 5000

    def act() -> None:
        nonlocal size
        size += 1000 if change == "grows" else -1000
        (root / "a.py").write_bytes(b"x" * size)

    meddle(monkeypatch, 1, act)
    made = archive.build(root, ["a.py"])
    assert texts(made.pack())["a.py"] == b"x" * size
    meddle(monkeypatch, 100, act)
    with pytest.raises(NexaError, match=r"a\.py changed or disappeared while it was read") as caught:
        archive.build(root, ["a.py"])
    assert ".nexaignore" in caught.value.hint


def test_a_file_that_disappears_is_looked_for_again_and_then_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = archive._whole
    gone = [1]

    def vanishing(name: str, inside: Path, path: Path) -> archive.File | None:
        if gone[0]:
            gone[0] -= 1
            raise FileNotFoundError(path)
        return real(name, inside, path)

    monkeypatch.setattr(archive, "_whole", vanishing)
    assert archive.build(root, NAMES).names == NAMES
    gone[0] = 2
    with pytest.raises(NexaError, match=r"a\.py changed or disappeared"):
        archive.build(root, NAMES)


def test_a_file_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archive.os, "open", closed)
    with pytest.raises(NexaError, match=r"cannot read .*a\.py: Permission denied"):
        archive.build(root, NAMES)


def test_data_is_refused_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1000)
    (root / "data.bin").write_bytes(b"x" * 2000)
    with pytest.raises(NexaError, match=r"largest: data\.bin"):
        archive.build(root, [*NAMES, "data.bin"])


def test_the_package_alone_reads_a_config_of_every_backend(tmp_path: Path) -> None:
    """As the launcher on a node does, where nothing else of the checkout is."""
    with tarfile.open(fileobj=BytesIO(archive.package().pack())) as tar:
        tar.extractall(tmp_path)
    repo = Path(__file__).parents[4]
    read = (
        "import sys\nfrom pathlib import Path\nfrom nexa_dist.config.load import load_train\n"
        "print(*(load_train(Path(name)).backend for name in sys.argv[1:]), load_train.__code__.co_filename)"
    )
    names = [str(repo / "configs" / "train" / f"{name}.yaml") for name in ("quickstart", "fsdp", "zero3", "axolotl")]
    argv = [sys.executable, "-P", "-c", read, *names]
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=repo, env=env)
    assert done.stdout.split() == ["hf", "acc", "ds", "ax", f"{tmp_path}/nexa_dist/config/load.py"], done.stderr
