"""Which files go to the nodes, and that what does not is said."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import git
from nexa_dist.run.code.archive import Archive, project
from nexa_dist.run.code.ignore import Rules
from nexa_dist.run.code.listing import NAME_IT
from nexa_dist.run.runner import Result, Runner


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No .git above the temporary folder, and no config of this machine's user, is this test's."""
    monkeypatch.setattr(git, "top", lambda folder: below(tmp_path, folder))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def below(tmp_path: Path, folder: Path) -> Path | None:
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(tmp_path)]
    return next((place for place in places if os.path.lexists(place / ".git")), None)


def write(root: Path, *names: str, **texts: str) -> None:
    for name in (*names, *texts):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(texts.get(name, name))


def run_git(root: Path, *words: str) -> None:
    subprocess.run(("git", "-C", root, "-c", "protocol.file.allow=always", "-c", "user.name=n", "-c", "user.email=e",
                    *words), check=True, capture_output=True)  # fmt: skip


def found(root: Path, *also: str) -> Archive:
    return project(Runner(), root, also)


def said(made: Archive) -> dict[str, str]:
    return {one.name: one.why for one in made.left_out}


def test_a_repository_sends_what_git_would_commit(tmp_path: Path) -> None:
    manifest = "runs/manifests/train_20260101_000000_a.json"
    write(tmp_path, "a.py", "sub/b c.py", "skip.log", "new.py", ".env", "sub/.env.local", ".env.example", manifest,
          "runs/notes.md", "pkg/runs/x.py", "runs/train_20260101_000000_a/run.json", ".nexa/clusters/c/ssh/id",
          "tests/server.pem", "id.pem", "secrets.yaml", "__pycache__/a.pyc", ".aws/credentials",
          **{".gitignore": "*.log\n"})  # fmt: skip
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", "-f", "a.py", ".env", "tests/server.pem", "runs/notes.md", "pkg/runs/x.py",
            manifest, ".nexa", "__pycache__")  # fmt: skip
    made = found(tmp_path)
    assert set(made.names) == {
        ".env.example", ".gitignore", "a.py", "new.py", "pkg/runs/x.py", "runs/notes.md", "sub/b c.py",
        "tests/server.pem",
    }  # fmt: skip
    assert said(made) == {
        ".env": "for this machine alone",
        "sub/.env.local": "for this machine alone",
        "id.pem": "looks like a secret",
        "secrets.yaml": "looks like a secret",
        ".aws": "looks like a secret",
        ".nexa": "nexa's own",
        "runs/manifests": "nexa's own",
        "__pycache__": "Python makes it on the nodes",
    }


def test_submodules_are_sent_and_clones_are_said_or_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "a.py", "third/gone/x")
    run_git(root, "init", "-q")
    for name in ("third/lib", "clone"):
        write(root / name, f"{Path(name).name}.py", "skip.log", **{".gitignore": "*.log\n"})
        run_git(root / name, "init", "-q")
        run_git(root / name, "add", ".")
        run_git(root / name, "commit", "-qm", "1")
    (root / "third/gone/x").unlink()
    for name in ("third/lib", "third/gone"):
        run_git(root, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{name}")
    made = found(root)
    assert set(made.names) == {"a.py", "third/lib/.gitignore", "third/lib/lib.py"}
    assert [str(one) for one in made.left_out] == [
        f"clone: a clone of another repository ({NAME_IT})",
        "third/gone: a submodule that is not checked out (git submodule update --init)",
    ]
    named = found(root, "clone/")
    assert {"clone/.gitignore", "clone/clone.py"} < set(named.names)
    assert "clone/skip.log" not in named.names and "clone" not in said(named)


@pytest.fixture
def outside_of_dev() -> Iterator[Path]:
    """Where `scripts/test unit` has its files, and keys may lie."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_links_go_as_links_when_they_stay_inside(outside_of_dev: Path) -> None:
    root, outside = outside_of_dev / "root", outside_of_dev / "outside"
    write(root, "sub/a.py")
    write(outside, "x.bin", "deep/y.bin", ".ssh/id", ".env")
    links = {"l": "sub/a.py", "abs": str(root / "sub"), "odd": f"../{root.name}/sub", "sub/up": "../sub/../sub/a.py",
             "data": str(outside), "via": "data/x.bin", "nowhere": "sub/none", "out": "../outside/x.bin"}  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    made = found(root)
    sent = {file.name: os.fsdecode(file.content) for file in made.files if file.kind == "l"}
    assert sent == {"l": "sub/a.py", "abs": "sub", "odd": "sub", "sub/up": "../sub/a.py", "nowhere": "sub/none"}
    assert said(made) == {
        "data": f"a link out of the project, to {outside}",
        "via": "a link out of the project, to data/x.bin",
        "out": "a link out of the project, to ../outside/x.bin",
    }
    named = found(root, "data", "out")
    contents = {file.name: file.content for file in named.files}
    assert (contents["data/x.bin"], contents["data/deep/y.bin"], contents["out"]) == (b"x.bin", b"deep/y.bin", b"x.bin")
    assert named.followed == (("data", outside), ("out", outside / "x.bin"))
    assert said(named) == {
        "via": "a link out of the project, to data/x.bin",
        "data/.ssh": "looks like a secret",
        "data/.env": "for this machine alone",
    }


def test_files_adds_what_is_ignored_and_never_what_holds_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    write(root, "out/vocab.json", "id.pem", ".env", **{".gitignore": "out/\n"})
    write(home, ".ssh/id", ".cache/x", "data/x")
    monkeypatch.setenv("HOME", str(home))
    made = found(root, "out/vocab.json", "id.pem", ".env")
    assert set(made.names) == {".gitignore", "out/vocab.json", "id.pem"}
    write(root, "out/lib/a.bin", "out/lib/b.bin", **{"out/lib/.gitignore": "*.bin\n", "out/lib/.nexaignore": "b.bin\n"})
    whole = {"out/lib/.gitignore", "out/lib/.nexaignore", "out/lib/a.bin"}
    assert set(found(root, "out/lib").names) == {".gitignore", *whole}
    made = found(root, "out/vocab.json", "id.pem", ".env")
    assert said(made) == {".env": "for this machine alone"}
    for name, target in (("a", home / ".ssh"), ("b", home), ("c", tmp_path), ("d", Path("/etc")), ("e", Path("/"))):
        (root / name).symlink_to(target)
        with pytest.raises(UsageError, match=f"files: {name} leads to .* keys may lie"):
            found(root, name)
    (root / "f").symlink_to(home / "data")
    assert "f/x" in found(root, "f").names
    for name in ("../home", str(home), "none"):
        with pytest.raises(UsageError, match="is not there"):
            found(root, name)


def test_without_git_ignore_files_and_a_list_of_secrets_decide(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "big.bin", "sub/big.bin", "sub/secret.txt", "sub/keep.bin", "id_rsa", "id_rsa.pub",
          "secrets.py", ".venv/lib/x.py", "clone/.git/config", "clone/x.py", "hidden/x", "__pycache__/x.pyc",
          ".nexa/x", ".git-credentials", "sub/old.log",
          **{".nexaignore": "*.bin\nhidden/\n", ".gitignore": "*.log\n", "sub/.gitignore": "!none\n"})  # fmt: skip
    made = found(tmp_path)
    assert set(made.names) == {
        ".gitignore", ".nexaignore", "a.py", "id_rsa.pub", "secrets.py", "sub/.gitignore",
    }  # fmt: skip
    assert said(made) == {
        "sub/secret.txt": "looks like a secret",
        "id_rsa": "looks like a secret",
        ".git-credentials": "looks like a secret",
        ".venv": "a cache",
        "clone": "a clone of another repository",
    }


def test_nexaignore_leaves_out_what_git_tracks(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "docs/x.md", "docs/y/z.md", **{".nexaignore": "docs/\n"})
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", ".")
    assert found(tmp_path).names == (".nexaignore", "a.py")


def test_what_is_neither_a_file_nor_a_link_is_said(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    assert said(found(tmp_path)) == {"pipe": "neither a file nor a link"}


def test_a_name_is_shown_without_what_rewrites_a_terminal(tmp_path: Path) -> None:
    name = "a\x1b[2J\u202e" + os.fsdecode(b"\xff") + "\n.pem"
    write(tmp_path, **{name: ""})
    assert [str(one) for one in found(tmp_path).left_out] == [
        rf"a\x1b[2J\u202e\udcff\n.pem: looks like a secret ({NAME_IT})"
    ]


class Refusing:
    """git that does not answer."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

    def run(self, argv: tuple[str, ...], **more: Any) -> Result:
        return Result(argv, self.code, err=self.text.encode())


DUBIOUS = "fatal: detected dubious ownership in repository at '/p'"


@pytest.mark.parametrize(
    "code, text, words, hint",
    [
        (128, DUBIOUS, "dubious ownership", "git config --global --add safe.directory"),
        (128, "fatal: not a git repository: /gone/.git/worktrees/p", "/gone/.git/worktrees/p", "mend the repository"),
        (127, "env: 'git': No such file or directory", "git is not installed", "install git"),
        (124, "no answer within 60 s", "no answer within 60 s", "mend the repository"),
    ],
)
def test_when_git_refuses_nothing_is_guessed(tmp_path: Path, code: int, text: str, words: str, hint: str) -> None:
    write(tmp_path, "a.py", "secret.txt", **{".git": "gitdir: /gone/.git/worktrees/p\n"})
    with pytest.raises(NexaError, match=words) as caught:
        project(Refusing(code, text), tmp_path)  # type: ignore[arg-type]
    assert hint in caught.value.hint


@pytest.mark.parametrize("broken", ["file", "folder", "config", "link"])
def test_a_broken_repository_is_one(tmp_path: Path, broken: str) -> None:
    write(tmp_path, "a.py", "secret.txt", **{".gitignore": "secret.txt\n"})
    make: dict[str, Callable[[], object]] = {
        "file": lambda: (tmp_path / ".git").write_text("gitdir: /gone\n"),
        "folder": lambda: (tmp_path / ".git").mkdir(),
        "config": lambda: (run_git(tmp_path, "init", "-q"), (tmp_path / ".git" / "config").write_text("[")),
        "link": lambda: (tmp_path / ".git").symlink_to("gone"),
    }
    make[broken]()
    with pytest.raises(NexaError, match="git does not say which files"):
        found(tmp_path)


def test_no_program_that_a_repository_names_is_run(tmp_path: Path) -> None:
    mark, evil = tmp_path / "mark", tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    evil.chmod(0o755)
    root = tmp_path / "root"
    write(root, "a.py", **{".gitattributes": "*.py filter=evil\n"})
    run_git(root, "init", "-q")
    run_git(root, "add", "a.py")
    for name in (
        "core.fsmonitor",
        "core.sshCommand",
        "filter.evil.clean",
        "filter.evil.smudge",
        "core.pager",
        "core.editor",
    ):
        run_git(root, "config", name, str(evil))
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit"):
        (root / ".git" / "hooks" / hook).write_text(evil.read_text())
        (root / ".git" / "hooks" / hook).chmod(0o755)
    assert found(root).names == (".gitattributes", "a.py")
    git.ask(Runner(), root, "rev-parse", "HEAD")
    assert not mark.exists()


def test_an_index_that_names_what_lies_behind_a_link_sends_nothing_of_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path / "home", "key")
    write(root, "a.py", "data/key")
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    (root / "data" / "key").unlink()
    (root / "data").rmdir()
    (root / "data").symlink_to(tmp_path / "home")
    made = found(root)
    assert (made.names, list(said(made))) == (("a.py",), ["data"])
    write(root, "inside/key")
    (root / "data").unlink()
    (root / "data").symlink_to("inside")
    assert found(root).names == ("a.py", "data", "inside/key")


def test_git_is_asked_about_this_repository_whatever_called_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        write(tmp_path / name, f"{name}.py")
        run_git(tmp_path / name, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert found(tmp_path / "one").names == ("one.py",)


def test_patterns_mean_what_they_mean_to_git() -> None:
    rules = Rules()
    for line in (
        "*.log",
        "!keep.log",
        "/top",
        "build/",
        "a/**/b",
        "d/**",
        "data/*.bin",
        "[a-c]x?",
        r"\#h",
        "[z-a]",
        "[!q]1",
    ):
        rules.add(line)
    yes = [
        "x.log",
        "s/x.log",
        "top",
        "build/x",
        "s/build/y",
        "a/b",
        "a/q/r/b",
        "d/x/y",
        "data/a.bin",
        "axq",
        "#h",
        "p1",
    ]
    no = ["keep.log", "s/keep.log", "s/top", "build", "abuild/x", "d", "data/s/a.bin", "dxq", "q1", "z"]
    assert [name for name in yes if not rules.first(name)] == []
    assert [name for name in no if rules.first(name)] == []
    trap = Rules()
    trap.add("*a" * 60 + "*b")
    assert trap.first("a" * 250) == ""


def commit(root: Path) -> str:
    """The commit that is named for what is sent, without its hash."""
    sent = {file.name: file.content for file in found(root).files}
    name = git.commit(Runner(), root, sent) or "none"
    return name if len(name) < 40 else name[40:] or "clean"


def test_a_commit_is_called_dirty_when_what_is_sent_is_not_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b/c.py", "d\r\n.txt", **{".gitignore": "data\n"})
    (tmp_path / "link").symlink_to("a.py")
    assert commit(tmp_path) == "none"
    run_git(tmp_path, "init", "-q")
    assert commit(tmp_path) == "none"
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-qm", "x")
    write(tmp_path, "data", "runs/manifests/x.json", ".nexa/y")
    assert commit(tmp_path) == commit(tmp_path / "b") == "clean"
    (tmp_path / "b" / "c.py").write_text("changed")
    assert commit(tmp_path) == commit(tmp_path / "b") == "-dirty"
    run_git(tmp_path, "add", ".")
    assert commit(tmp_path) == "-dirty"  # nor when it is only staged
    run_git(tmp_path, "commit", "-qm", "y")
    assert commit(tmp_path) == "clean"
    (tmp_path / "a.py").unlink()
    assert (commit(tmp_path), commit(tmp_path / "b")) == ("-dirty", "clean")
    run_git(tmp_path, "checkout", "-q", "a.py")
    write(tmp_path, "new.py")
    assert commit(tmp_path) == "-dirty"


def test_what_programs_make_of_a_file_is_not_compared_and_they_are_not_run(tmp_path: Path) -> None:
    write(tmp_path, "model.bin", "a.py", **{".gitattributes": "*.bin filter=x\n"})
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "-c", "filter.x.clean=tr a-z A-Z", "add", ".")
    run_git(tmp_path, "-c", "filter.x.clean=tr a-z A-Z", "commit", "-qm", "x")
    run_git(tmp_path, "config", "filter.x.clean", f"touch {tmp_path}/pwned; cat")
    assert commit(tmp_path) == "clean"
    (tmp_path / "a.py").write_text("changed")
    assert commit(tmp_path) == "-dirty"
    assert not (tmp_path / "pwned").exists()
