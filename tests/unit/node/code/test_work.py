"""A working folder from attempt to attempt: the code that is named, and what the run's scripts wrote."""

from __future__ import annotations

import json
import os
import py_compile
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from nexa_dist.node.code import tree as code_tree
from nexa_dist.node.code import work


class Run:
    """A run's folder on a node. `lay` lays out this code, a text (or a link's target after "->") for each name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.attempt = folder / "run", folder / "run" / "work", 0
        self.shared = folder / "code"
        self.work.mkdir(parents=True)

    def code(self, **files: str) -> Path:
        made = self.shared / "unnamed"
        for name, text in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                path.symlink_to(text[2:])
            else:
                path.write_text(text)
        made.mkdir(parents=True, exist_ok=True)
        named = self.shared / code_tree.digest(code_tree.read(str(made)))
        if named.exists():
            return named
        return made.rename(named)

    def lay(self, files: dict[str, str]) -> dict[str, list[str]]:
        code, self.attempt = self.code(**files), self.attempt + 1
        answer = work.lay_out(str(code), str(self.work), str(self.folder), self.attempt)
        for path in sorted(code.rglob("*"), reverse=True):  # the next one may have other files of the same names
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        code.rmdir()
        return answer

    def wrote(self, name: str, text: str) -> None:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def text(self, name: str) -> str:
        return (self.work / name).read_text()

    def holds(self) -> set[str]:
        return {os.path.relpath(p, self.work) for p in self.work.rglob("*") if p.is_symlink() or not p.is_dir()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_new_code_is_whole_and_what_the_run_wrote_stays(run: Run) -> None:
    old = {"a.py": "1", "gone.py": "x", "pkg/old.py": "x", "only/x.py": "x", "link": "->a.py", "same.txt": "s"}
    run.lay(old)
    run.wrote("out/snapshot.pt", "first attempt")
    run.wrote("pkg/events.log", "beside the code")
    new = {"a.py": "2", "pkg/new.py": "y", "link": "->same.txt", "same.txt": "s", "sub/deep/b.py": "b"}
    assert run.lay(new) == {"kept": [], "aside": []}
    assert run.holds() == {*new, "out/snapshot.pt", "pkg/events.log"}
    assert (run.text("a.py"), os.readlink(run.work / "link")) == ("2", "same.txt")
    assert not (run.work / "only").exists()


def test_a_file_becomes_a_folder_and_a_folder_a_file(run: Run) -> None:
    run.lay({"utils.py": "1", "data": "file", "pkg/__init__.py": "", "lib": "->pkg"})
    run.lay({"utils/__init__.py": "1", "data/x": "1", "pkg": "now a file", "lib/y.py": "1"})
    assert run.holds() == {"utils.py", "utils/__init__.py", "data/x", "pkg", "lib/y.py"} - {"utils.py"}
    assert not (run.work / "lib").is_symlink()


def test_what_a_script_rewrote_stays_until_the_new_code_changes_that_very_file(run: Run) -> None:
    code = {"train.py": "1", "counter.txt": "0", "notes.txt": "n", "deleted.txt": "d"}
    run.lay(code)
    run.wrote("counter.txt", "41")
    run.wrote("notes.txt", "by the run")
    (run.work / "deleted.txt").unlink()
    assert run.lay(code) == {"kept": ["counter.txt", "notes.txt"], "aside": []}
    assert (run.text("counter.txt"), run.text("deleted.txt")) == ("41", "d")
    told = run.lay({**code, "train.py": "2", "notes.txt": "by a person"})
    assert told == {"kept": ["counter.txt"], "aside": ["notes.txt"]}
    assert (run.text("train.py"), run.text("counter.txt"), run.text("notes.txt")) == ("2", "41", "by a person")
    assert (run.folder / "aside" / "attempt_3" / "notes.txt").read_text() == "by the run"
    run.lay({"train.py": "2"})
    assert run.holds() == {"train.py", "counter.txt"}  # the code has it no more, but the run wrote it


def test_what_is_in_the_way_of_the_code_is_put_aside_and_nothing_is_written_through_a_link(
    run: Run, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.lay({"a.py": "1"})
    run.wrote("out", "a file of the run")
    (run.work / "pkg").symlink_to(elsewhere)
    run.wrote("cfg/made", "a folder of the run")
    told = run.lay({"a.py": "1", "out/x.py": "1", "pkg/y.py": "1", "cfg": "1"})
    assert told == {"kept": [], "aside": ["cfg", "out", "pkg"]}
    assert list(elsewhere.iterdir()) == []
    aside = run.folder / "aside" / "attempt_2"
    assert ((aside / "out").read_text(), (aside / "cfg" / "made").exists()) == ("a file of the run", True)


def test_python_and_make_notice_every_change_of_the_same_size(run: Run) -> None:
    run.lay({"v.py": 'V="v1"', "same.py": "S=1", "quiet.py": "Q=1"})
    source, object_file = run.work / "v.py", run.work / "v.o"
    first = source.stat().st_mtime
    object_file.touch()
    for name, mode in (("v", "TIMESTAMP"), ("quiet", "UNCHECKED_HASH"), ("same", "TIMESTAMP")):
        py_compile.compile(str(run.work / f"{name}.py"), invalidation_mode=py_compile.PycInvalidationMode[mode])
    before = (run.work / "same.py").stat().st_mtime_ns
    run.lay({"v.py": 'V="v2"', "same.py": "S=1", "quiet.py": "Q=2"})

    def value(name: str) -> object:
        space: dict[str, object] = {}
        code = SourceFileLoader(name, str(run.work / f"{name}.py")).get_code(name)
        assert code is not None
        exec(code, space)
        return space[name[0].upper()]

    assert (value("v"), value("quiet"), value("same")) == ("v2", 2, 1)
    assert first > 1e9
    assert int(source.stat().st_mtime) > int(first)
    assert source.stat().st_mtime > object_file.stat().st_mtime
    assert (run.work / "same.py").stat().st_mtime_ns == before
    assert len(list((run.work / "__pycache__").glob("same.*"))) == 1


def test_a_kill_at_any_point_is_mended_by_the_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"a.py": "1", "b.py": "1", "gone.py": "1", "mine.txt": "0"}
    new = {"a.py": "2", "b.py": "2", "c/d.py": "2", "mine.txt": "0"}
    run.lay(old)
    run.wrote("mine.txt", "written")
    code, done = run.code(**new), 0
    real = os.replace

    def killed(source: str, target: str) -> None:
        nonlocal done
        done += 1
        if done > 1:
            raise KeyboardInterrupt
        real(source, target)

    for _ in range(5):
        done = 0
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            work.lay_out(str(code), str(run.work), str(run.folder), 2)
        if {name: run.text(name) for name in run.holds()} == {**new, "mine.txt": "written"}:
            break  # only the note was missing
    work.lay_out(str(code), str(run.work), str(run.folder), 2)
    assert {name: run.text(name) for name in run.holds()} == {**new, "mine.txt": "written"}
    assert not (run.folder / "aside").exists()


def test_code_that_is_not_what_its_name_says_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = run.code(**{"a.py": "1"})
    (code / "a.py").write_text("2")
    with pytest.raises(SystemExit):
        work.lay_out(str(code), str(run.work), str(run.folder), 1)
    assert "is not what its name says" in json.loads(capsys.readouterr().out)["error"]
    assert run.holds() == set()


def test_a_file_that_lost_its_content_with_the_power_is_put_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.lay({"a.py": "1", "b.txt": "b"})
    run.wrote("a.py", "\0")
    run.wrote("b.txt", "by the run")
    monkeypatch.setattr(work, "_boot", lambda: "another")
    assert run.lay({"a.py": "1", "b.txt": "b"})["kept"] == ["b.txt"]
    assert run.text("a.py") == "1"


@pytest.mark.parametrize("note", ["null", "5", "[]", '{"files": 5}', "{"])
def test_a_note_that_a_rank_has_spoilt_ends_nothing(run: Run, note: str) -> None:
    run.lay({"a.py": "1"})
    (run.folder / "code.json").write_text(note)
    run.lay({"a.py": "2"})
    assert run.text("a.py") == "2"


def test_a_file_has_its_own_time_at_first_and_later_one_that_is_noticed(run: Run) -> None:
    code = run.code(**{"a.py": "1", "b.py": "1"})
    os.utime(code / "a.py", (1.5e9, 1.5e9))
    os.utime(code / "b.py", (9e9, 9e9))  # a clock that is ahead
    work.lay_out(str(code), str(run.work), str(run.folder), 1)
    assert (run.work / "a.py").stat().st_mtime == 1.5e9
    assert 1.5e9 < (run.work / "b.py").stat().st_mtime < 9e9
    later = run.code(**{"a.py": "2", "c.py": "1"})
    for path in later.iterdir():
        os.utime(path, (1.4e9, 1.4e9))
    work.lay_out(str(later), str(run.work), str(run.folder), 2)
    # What was made of an older a.py, or of a c.py that is gone, must not look newer than these.
    assert min((run.work / name).stat().st_mtime for name in ("a.py", "c.py")) > 1.6e9
