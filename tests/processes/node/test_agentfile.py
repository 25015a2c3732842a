"""The agent as one file: the same bytes for the same sources, and it runs without its sources."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nexa_dist.node.protocol import VERSION
from nexa_dist.run.agent_file import INSIDE, LONG_AGO, content, digest


def test_the_file_is_the_same_whenever_it_is_made() -> None:
    first = content()
    content.cache_clear()
    assert content() == first
    assert len(digest()) == 16
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {LONG_AGO}
        assert {name.split("/")[0] for name in archive.namelist()} == {"__main__.py", INSIDE}


def test_it_runs_alone_and_loads_nothing_that_a_short_command_does_not_need(agent_file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-E", "-X", "importtime", str(agent_file)]
    version = subprocess.run([*argv, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert version.stdout == f"{VERSION}\n"
    status = subprocess.run([*argv, "status", str(tmp_path / "none")], capture_output=True, text=True, cwd=tmp_path)
    assert '"state": "absent"' in status.stdout
    loaded = {line.rsplit("|")[-1].strip() for line in status.stderr.splitlines()}
    assert f"{INSIDE}.control" in loaded
    assert not loaded & {"subprocess", "socket", "shutil", "tarfile", "http.client", "nexa_dist"}


@pytest.mark.parametrize("words", [(), ("nonsense",), ("nonsense", "folder")])
def test_an_unknown_command_is_a_usage_error(agent_file: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-S", "-E", str(agent_file), *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: agent.pyz")


def test_unpack_is_whole_or_absent_and_stays_in_its_folder(tmp_path: Path, agent_file: Path) -> None:
    def pack(name: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
        return buffer.getvalue()

    target = tmp_path / "code" / "abc"
    for data, code in ((pack("../../evil"), 1), (pack("ok.py")[:-20], 1), (pack("ok.py"), 0), (pack("ok.py"), 0)):
        done = subprocess.run(
            [sys.executable, "-S", "-E", str(agent_file), "unpack", str(target)], input=data, capture_output=True
        )
        assert done.returncode == code
        assert target.exists() == (code == 0)
    assert not (tmp_path / "evil").exists()
    assert (target / "ok.py").read_text() == "hi"
