"""What a folder holds counts as ours only when it was made here, and programs that a file names need consent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run import dotenv, git, trust
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh import consent
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.run.workspace import Workspace


class Git:
    """Answers `ls-files` with these names; anything else is an error."""

    def __init__(self, *tracked: str) -> None:
        self.tracked, self.asked = tracked, list[Sequence[str]]()

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        assert "git" in argv and "ls-files" in argv
        self.asked.append(argv)
        return Result(tuple(argv), 0, "\0".join(self.tracked).encode())


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "state" / "nexa"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(root: Path, *tracked: str) -> str:
    with pytest.raises(trust.Foreign) as error:
        trust.refuse_foreign(Git(*tracked), root)  # type: ignore[arg-type]
    return f"{error.value} {error.value.hint}"


def accepted(root: Path, *tracked: str) -> None:
    trust.refuse_foreign(Git(*tracked), root)  # type: ignore[arg-type]


BROUGHT = (
    ".nexa/clusters/lab/ssh/ssh_config", ".nexa/bin/terraform", ".nexa/history/lab_1/ledger.jsonl", ".nexa/workspace",
    ".nexa/buckets/b/src/main.tf", ".nexa/capacity.jsonl", "runs/train_1/run.json",
)  # fmt: skip


@pytest.mark.parametrize("name", BROUGHT)
def test_what_came_with_a_folder_is_refused_until_the_user_says_it_is_theirs(name: str, root: Path) -> None:
    write(root / name)
    assert "was not made here by you" in refused(root) and "nexa trust" in refused(root)
    trust.adopt(root)
    accepted(root)


@pytest.mark.parametrize("name", [".nexa/schema/cluster.schema.json", "runs/mine/events.tfevents", "train.yaml"])
def test_what_nexa_does_not_act_on_is_nobodys_business(name: str, root: Path, state: Path) -> None:
    write(root / name)
    accepted(root, name)
    assert not state.exists()


MAKERS: list[Callable[[Path], object]] = [
    lambda root: Workspace(root).new_run("train", "x"),
    lambda root: Workspace(root).cluster("lab").locked("provision").__enter__(),
]


@pytest.mark.parametrize("make", MAKERS, ids=["a run", "a cluster"])
def test_what_is_made_here_is_ours_and_not_for_git(make: Callable[[Path], object], root: Path) -> None:
    make(root)
    write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
    accepted(root)
    assert (root / ".nexa" / ".gitignore").read_text() == "*\n"
    mark = (root / ".nexa" / "id").read_text()
    trust.claim(root)
    assert (root / ".nexa" / "id").read_text() == mark


def test_a_copy_elsewhere_is_not_ours_and_neither_is_another_one_at_the_same_place(root: Path) -> None:
    write(root / ".nexa" / "clusters" / "lab" / "ssh" / "ssh_config")
    trust.adopt(root)
    shutil.copytree(root, root.parent / "clone")
    assert "was not made here" in refused(root.parent / "clone")
    root.rename(root.parent / "moved")
    write(root / ".nexa" / "clusters" / "lab" / "ssh" / "ssh_config")
    write(root / ".nexa" / "id", "0" * 32)
    assert "was not made here" in refused(root)


def test_neither_a_damaged_id_nor_a_restored_backup_locks_the_user_out(root: Path) -> None:
    trust.claim(root)
    write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
    shutil.copytree(root, root.parent / "backup")
    for damage in ("", "x" * 100_000, "\0"):
        write(root / ".nexa" / "id", damage)
        accepted(root)
    shutil.rmtree(root / ".nexa")
    write(root / "runs" / "train_1" / "run.json")
    accepted(root)
    root.rename(root.parent / "moved")
    (root.parent / "backup").rename(root)
    accepted(root)


def test_what_came_with_a_folder_is_not_claimed_by_using_it(root: Path) -> None:
    write(root / ".nexa" / "clusters" / "evil" / "cluster.json")
    Workspace(root).new_run("train", "x")
    assert "was not made here" in refused(root)


def test_a_link_to_a_workspace_of_ours_does_not_lend_its_mark(root: Path) -> None:
    write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
    trust.adopt(root)
    (root.parent / "theirs").mkdir()
    (root.parent / "theirs" / ".nexa").symlink_to(root / ".nexa")
    assert "was not made here" in refused(root.parent / "theirs")


def test_a_killed_mark_is_made_anew(root: Path, state: Path) -> None:
    trust.claim(root)
    for lost in (root / ".nexa" / "id", next((state / "workspaces").glob("[0-9a-f]*"))):
        assert lost.read_text()
        lost.unlink()
        accepted(root)
        trust.claim(root)
        write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
        accepted(root)
        shutil.rmtree(root / ".nexa" / "clusters")


def test_files_that_a_pull_brings_into_our_own_workspace_are_refused(root: Path) -> None:
    write(root / ".git" / "HEAD")
    write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
    trust.adopt(root)
    accepted(root)
    assert "git tracks" in refused(root, ".nexa/clusters/evil/ssh/ssh_config")


def test_another_users_folder_is_refused_whatever_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root / ".nexa" / "clusters" / "lab" / "cluster.json")
    trust.adopt(root)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to user" in refused(root)
    with pytest.raises(UsageError, match="belongs to user"):
        trust.adopt(root)


def test_a_state_folder_that_cannot_be_written_is_said_plainly(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "state")
    with pytest.raises(NexaError, match="cannot note that") as error:
        trust.claim(root)
    assert "XDG_STATE_HOME" in error.value.hint


def test_marks_of_folders_that_are_gone_make_room(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "KEPT", 3)
    for number in range(8):
        (root / str(number)).mkdir()
        trust.claim(root / str(number))
        if number != 2:
            shutil.rmtree(root / str(number))
    assert len(list((state / "workspaces").glob("[0-9a-f]*"))) <= 3
    accepted(root / "2")


def test_git_is_called_with_what_a_repository_names_off(root: Path) -> None:
    words = git.argv(root, "ls-files")
    assert words.index("core.fsmonitor=false") < words.index("ls-files") and "core.hooksPath=/dev/null" in words


PROGRAMS = (
    "ProxyCommand touch pwned", "  proxycommand=touch pwned", '"ProxyCommand" touch', "=ProxyCommand touch",
    "LocalCommand x", "KnownHostsCommand /x", "PKCS11Provider ./x.so", "SecurityKeyProvider ./x.so", "Match exec x",
    'Match ex"e"c x',    "Match !exec x", "XAuthLocation /x", "SomethingNew x", "Include %d/x", "Include $HOME/x",
    "Include [a-z]",    r"Include a\b",    'Include "', "\tProxyCommand\tx", "ProxyCommand\tx",
)  # fmt: skip
PLAIN = (
    "", "# ProxyCommand x", "Host *\n    User me", "ProxyJump jump", "IdentityFile ~/.ssh/k", "Match all\nSendEnv -*",
    "Match host a user b", 'Include "nowhere [*]"', "Include nowhere/* other", "Port=22", "Include ~/.ssh/config",
)  # fmt: skip


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_in_an_ssh_config_is_found(text: str, root: Path) -> None:
    file = write(root / "cfg", f"Host x\n{text}\n")
    named, _ = consent.programs(str(file))
    assert named == [f"{file}:2: {text.strip()}"]


@pytest.mark.parametrize("text", PLAIN)
def test_what_starts_nothing_needs_no_consent(text: str, root: Path, tmp_path: Path) -> None:
    write(tmp_path / "home" / ".ssh" / "config", "ProxyCommand the users own")
    consent.refuse_unconsented(str(write(root / "cfg", text + "\n")))


def ssh(file: Path) -> Ssh:
    node = Node("n0", "192.0.2.1", 1)
    cluster = Cluster("c", "static", (node,), Layout("python3", "/s", "/h", "/d"), ssh_config=str(file))
    return Ssh(Git(), cluster, "/nowhere")  # type: ignore[arg-type]


def test_no_ssh_without_consent_and_consent_ends_with_the_content(root: Path) -> None:
    more = write(root / "more", "ProxyCommand touch pwned\n")
    file = write(root / "cfg", f'Host x\nInclude "{more}"\n')
    with pytest.raises(consent.Unconsented, match="more:1: ProxyCommand touch pwned") as error:
        ssh(file)
    assert error.value.hint.startswith("nexa trust ") and error.value.code == 2
    assert consent.programs(str(file))[0] == [f"{more}:1: ProxyCommand touch pwned"]
    error.value.allow()
    ssh(file)
    write(more, "ProxyCommand touch pwned2\n")
    with pytest.raises(consent.Unconsented):
        ssh(file)
    write(more, "ProxyCommand touch pwned\n")
    ssh(file)
    with pytest.raises(consent.Unconsented):  # the same text in a file of another place
        ssh(write(root / "cfg2", file.read_text()))


def test_a_cluster_of_somebody_elses_is_never_connected_to(root: Path) -> None:
    file = write(root / ".nexa" / "clusters" / "lab" / "ssh" / "ssh_config", "Host n0\n")
    with pytest.raises(trust.Foreign, match="was not made here"):
        ssh(file)
    trust.adopt(root)
    ssh(file)
    with pytest.raises(consent.Unconsented):
        ssh(write(file, "ProxyCommand x\n"))


def test_a_file_without_end_or_bottom_is_not_read_through(root: Path) -> None:
    deep = root / "deep"
    write(deep, f'Include "{deep}"\n')
    assert "too deeply" in consent.programs(str(deep))[0][0]
    assert "too long" in consent.programs(str(write(root / "long", "#" * (consent.LARGEST + 1))))[0][0]
    assert consent.programs(str(root / "nowhere"))[0] == []


def test_env_of_a_repository_does_not_choose_whose_accounts_are_used(root: Path) -> None:
    write(root / ".env", "HF_TOKEN=theirs\n").chmod(0o600)
    environ: dict[str, str] = {}
    with pytest.raises(UsageError, match="git tracks it"):
        dotenv.load(root, environ, lambda: True)
    assert environ == {}
    write(root / ".env", "WANDB_PROJECT=p\n").chmod(0o600)
    dotenv.load(root, environ, lambda: True)
    assert environ == {"WANDB_PROJECT": "p"}
