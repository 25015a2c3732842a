"""Files are whole or absent, whoever writes beside."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nexa_dist.run import files


def test_two_threads_that_write_the_same_file_do_not_take_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes all of its own while the first is about to give its file the name."""
    path = tmp_path / "a.json"
    second = threading.Thread(target=files.write_text, args=(path, "second"))
    plain = os.fsync

    def fsync(fd: int) -> None:
        plain(fd)
        if threading.current_thread() is not second:
            second.start()
            second.join(60)
            assert path.read_text() == "second"

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
