"""Code on its way to a node: what arrives is what was hashed, and what is there is looked at before it is used."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexa_dist.node.code import tree as code_tree
from nexa_dist.node.code.unpack import KEPT, STALE_S, lacks, prune, unpack, whole
from nexa_dist.run.code import archive


@pytest.fixture
def project(tmp_path: Path) -> archive.Archive:
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "a.py").write_text("print(1)")
    (root / "run.sh").write_text("true")
    (root / "run.sh").chmod(0o755)
    (root / "sub" / "empty").touch()
    (root / "link").symlink_to("sub/empty")
    (root / "folder").symlink_to("sub")
    (root / os.fsdecode(b"n\xff\n.txt")).write_text("a name that is no text")
    names = ["a.py", "run.sh", "sub/empty", "link", "folder", os.fsdecode(b"n\xff\n.txt")]
    return archive.build(root, names)


def sent(monkeypatch: pytest.MonkeyPatch, data: bytes, target: Path, name: str = "") -> dict[str, str]:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    return unpack(str(target), name)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: bytes, target: Path) -> str:
    with pytest.raises(SystemExit):
        sent(monkeypatch, data, target, target.name)
    assert [p.name for p in target.parent.iterdir() if p.name.endswith(".tmp")] == []
    return str(json.loads(capsys.readouterr().out)["error"])


@pytest.mark.parametrize("filtered", [True, False])
def test_a_node_and_the_controller_name_code_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: archive.Archive, filtered: bool
) -> None:
    if not filtered:  # Python 3.9.0
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    target = tmp_path / "node" / "code" / project.hash
    sent(monkeypatch, project.pack(), target, project.hash)
    assert code_tree.digest(code_tree.read(str(target))) == project.hash == archive.digest(project.files)
    assert os.access(target / "run.sh", os.X_OK) and not os.access(target / "a.py", os.X_OK)
    (target / "__pycache__").mkdir()
    (target / "__pycache__" / "a.pyc").touch()  # the ranks import the package from there
    assert whole(str(target)) == {"whole": True}


@pytest.mark.parametrize("damage", ["content", "more", "less", "mode", "link"])
def test_a_cache_that_is_wrong_is_found_and_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: archive.Archive, damage: str
) -> None:
    target = tmp_path / "node" / "code" / project.hash
    sent(monkeypatch, project.pack(), target, project.hash)
    act = {
        "content": lambda: (target / "a.py").write_text("print(2)"),
        "more": lambda: (target / "torch.py").touch(),
        "less": lambda: (target / "sub" / "empty").unlink(),
        "mode": lambda: (target / "run.sh").chmod(0o600),
        "link": lambda: ((target / "link").unlink(), (target / "link").symlink_to("a.py")),
    }[damage]
    act()
    assert whole(str(target)) == {"whole": False}
    sent(monkeypatch, project.pack(), target, project.hash)
    assert whole(str(target)) == {"whole": True}
    assert [p.name for p in target.parent.iterdir()] == [project.hash]


def test_what_is_not_what_it_is_called_is_refused_in_a_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, project: archive.Archive
) -> None:
    target = tmp_path / "node" / "code" / "0123456789abcdef"
    assert "what arrived is not 0123456789abcdef" in refused(monkeypatch, capsys, project.pack(), target)
    for cut in (20, 160, 200, 300):  # between two files it looks like an archive that is over: the name tells
        assert re.search("cannot be unpacked|is not 0123456789abcdef",
                         refused(monkeypatch, capsys, project.pack()[:cut], target))  # fmt: skip
    assert "cannot be unpacked" in refused(monkeypatch, capsys, b"nonsense", target)
    assert not target.exists()


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("name, kind", [("../../evil", tarfile.REGTYPE), ("/evil", tarfile.REGTYPE),
                                        ("l", tarfile.LNKTYPE), ("p", tarfile.FIFOTYPE)])  # fmt: skip
def test_nothing_leaves_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, kind: bytes,
    filtered: bool,
) -> None:  # fmt: skip
    if not filtered:  # Python 3.9.0
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    target = tmp_path / "node" / "code" / "0123456789abcdef"
    said = refused(monkeypatch, capsys, buffer.getvalue(), target)
    assert "what arrived" in said
    assert not (tmp_path / "evil").exists() and not target.exists()


def test_a_checkpoint_that_is_there_stays_and_old_leftovers_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: archive.Archive
) -> None:
    target = tmp_path / "node" / "step_1"
    (target / "there").mkdir(parents=True)
    old, young = target.parent / "step_0.123.tmp", target.parent / "step_2.99.tmp"
    for path, age in ((old, STALE_S + 60), (young, 0)):
        path.mkdir()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    sent(monkeypatch, archive.build(tmp_path / "project", ["a.py"]).pack(), target)
    assert {p.name for p in target.parent.iterdir()} == {"step_1", "step_2.99.tmp"}
    assert [p.name for p in target.iterdir()] == ["there"]
    with pytest.raises(SystemExit):  # a link, which only code has
        sent(monkeypatch, project.pack(), target.with_name("step_3"))


def changed(project: archive.Archive, tmp_path: Path) -> archive.Archive:
    root = tmp_path / "project"
    (root / "a.py").write_text("print(2)")
    (root / "new.py").write_text("new")
    return archive.build(root, [*project.names, "new.py"])


def test_only_what_no_other_code_has_is_sent_and_the_whole_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, project: archive.Archive
) -> None:
    first = tmp_path / "node" / "code" / project.hash
    new = changed(project, tmp_path)
    target = first.with_name(new.hash)
    asked = {"files": {file.name: file.mark for file in new.files}}
    assert lacks(str(target), asked)["lacks"] == list(range(len(new.names)))
    sent(monkeypatch, project.pack(), first, project.hash)
    for number in range(KEPT - 1):  # newer ones, of users who share the disk
        first.with_name(f"{number:0{code_tree.DIGITS}x}").mkdir()
    lacking = lacks(str(target), asked)["lacks"]
    assert [new.names[n] for n in lacking] == ["a.py", "new.py"]
    part = new.pack_part(lacking)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(part)))
    unpack(str(target), new.hash, "part")
    assert whole(str(target)) == {"whole": True} and os.access(target / "run.sh", os.X_OK)
    assert (first / "a.py").read_text() == "print(1)"
    (first / "a.py").chmod(0o700)  # the hash of what comes of it decides, whatever a rank did there
    (target / "run.sh").write_text("false")
    (first / "run.sh").write_text("false")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(part)))
    with pytest.raises(SystemExit):
        unpack(str(target), new.hash, "part")
    assert "what arrived is not" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil", "/evil", "sub/../../evil"])
def test_a_mark_takes_nothing_from_outside(tmp_path: Path, name: str) -> None:
    code = tmp_path / "code" / ("0" * 16)
    code.mkdir(parents=True)
    for path in (tmp_path / "code" / "evil", tmp_path / "evil"):
        path.write_text("x")
    assert lacks(str(tmp_path / "code" / "x"), {"files": {name: code_tree.mark(("-", b"x"))}}) == {"lacks": [0]}


def test_files_keep_their_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: archive.Archive) -> None:
    os.utime(tmp_path / "project" / "a.py", (1.5e9, 1.5e9))
    old = archive.build(tmp_path / "project", project.names)
    assert old.hash == project.hash  # times are no part of what runs
    target = tmp_path / "node" / "code" / old.hash
    sent(monkeypatch, old.pack(), target, old.hash)
    assert (target / "a.py").stat().st_mtime == 1.5e9


def test_old_code_goes_and_what_is_used_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    above = tmp_path / "code"
    names = [f"{n:016x}" for n in range(KEPT + 4)]
    for n, name in enumerate(names):
        (above / name).mkdir(parents=True)
        os.utime(above / name, (1e9 - n, 1e9 - n))
    (above / "not-ours").mkdir()
    os.utime(above / names[-1])  # the agent of a living run touches it
    monkeypatch.setattr("nexa_dist.node.code.unpack._named", lambda codes: {names[-2]})  # a process here names it
    prune(str(above), names[-3])
    left = {path.name for path in above.iterdir()}
    assert left == {*names[: KEPT - 1], names[-1], names[-2], names[-3], "not-ours"}
