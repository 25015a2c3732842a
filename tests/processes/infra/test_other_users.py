"""Another user of this machine against what is ours: files, folders and locks."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.run import files
from nexa_dist.run.workspace import Workspace

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def as_nobody(act: Callable[[], object]) -> int:
    """0 when it could be done, else the errno."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    top = tmp_path / "runs"
    files.write_json(top / "a" / "b" / "x.json", {})
    files.append_json(top / "c" / "y.jsonl", {})
    with files.locked(top / "d" / "lock", "run"):
        assert mode(top / "d" / "lock") == 0o600
    Workspace(tmp_path).new_run("train", "x")
    assert {oct(mode(path)) for path in (top, *top.rglob("*")) if path.is_dir()} == {"0o700"}
    assert {oct(mode(path)) for path in top.rglob("*") if path.is_file()} == {"0o600"}


def test_what_an_older_nexa_left_open_is_closed(tmp_path: Path) -> None:
    for name in (".nexa", "runs", "mine"):
        (tmp_path / name).mkdir()
    Workspace(tmp_path).close_to_others()
    assert [mode(tmp_path / name) for name in (".nexa", "runs", "mine")] == [0o700, 0o700, 0o755]
    (tmp_path / "runs" / "new").touch()
    assert mode(tmp_path / "runs" / "new") == 0o600, "children of this command get the same umask"


@as_root
def test_nobody_else_can_hold_a_lock(tmp_path: Path) -> None:
    with files.locked(tmp_path / "c" / "lock", "provision"):
        pass
    (tmp_path / "c").chmod(0o755)  # the folder alone would do
    folder = os.open(tmp_path / "c", os.O_RDONLY | os.O_DIRECTORY)  # what is above it is for root alone, too
    try:
        assert as_nobody(lambda: fcntl.flock(os.open("lock", os.O_RDONLY, dir_fd=folder), fcntl.LOCK_EX)) == 13
    finally:
        os.close(folder)


@as_root
def test_who_holds_a_lock_is_who_the_kernel_names_and_not_the_dead_that_wrote_there(tmp_path: Path) -> None:
    path = tmp_path / "c" / "lock"
    with files.locked(path, "provision"):
        pass
    path.chmod(0o644)  # as an older nexa left it
    path.parent.chmod(0o755)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            fcntl.flock(os.open("lock", os.O_RDONLY, dir_fd=folder), fcntl.LOCK_EX)
            os.write(ready[1], b"x")
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        assert os.read(ready[0], 1) == b"x"
        with pytest.raises(NexaError) as caught, files.locked(path, "teardown"):
            pass
        assert f"process {child} of nobody holds {path}" in str(caught.value)
        assert mode(path) == 0o600, "from now on nobody else gets in"
    finally:
        os.close(done[1])
        os.waitpid(child, 0)
        for fd in (ready[0], done[0], folder):
            os.close(fd)
    with files.locked(path, "teardown"):
        pass
