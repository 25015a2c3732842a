"""Hostile words and broken folders through the real command line: plain errors, exit 1 or 2, nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.cli import main
from nexa_dist.run import trust
from tests.e2e.conftest import NEXA, REPO, Lab, environment, until

TABLE: dict[str, dict[str, Any]] = yaml.safe_load((REPO / "tests" / "cases" / "hostile_cli.yaml").read_text())
CASES = [
    pytest.param(group, word, id=f"{group}-{i}") for group in TABLE for i, word in enumerate(TABLE[group]["words"])
]
RUN = "train_20260101_000000_first"
NODE = {"address": "127.0.0.1", "gpus": 1, "port": 9, "user": "", "price_usd_per_hour": 0.0}
CLUSTER = {
    "name": "lab",
    "provider": "local",
    "nodes": [{"name": "n0", **NODE}, {"name": "n1", **NODE}],
    "layout": {"python": "python3", "scratch": "~/s", "shared": "/s", "durable": "/d"},
}
ATTEMPT = {
    "attempt": 1,
    "state": "completed",
    "cause": "",
    "started_unix": 1.0,
    "ended_unix": 2.0,
    "world_size": 2,
    "rdzv": "127.0.0.1:9",
    "resume_step": None,
    "ranks": {"n0": [0, 0], "n1": [1, 1]},
    "hardware": {},
}
RECORD = {
    "version": 1,
    "run_id": RUN,
    "config_file": "train.yaml",
    "config": {"name": "first", "script": "script.py"},
    "cluster": CLUSTER,
    "nodes": {"n0": {"run_dir": "/r"}, "n1": {"run_dir": "/r"}},
    "attempts": [ATTEMPT],
}


def fill(root: Path) -> Path:
    """A workspace in which every verb finds something, and files that are not what their names say."""
    root.mkdir(exist_ok=True)
    trust.claim(root)  # or every verb would refuse it as somebody else's
    (root / "c.yaml").write_text("name: c\nprovider: local\nnodes: 1\ngpus_per_node: 1\n")
    (root / "hosts.yaml").write_text("name: hosts\ncluster:\n  - {host: 127.0.0.1, gpus: 1, port: 9}\n")
    (root / "train.yaml").write_text("name: first\nscript: script.py\n")
    (root / "script.py").write_text("print('hello')\n")
    (root / "folder.yaml").mkdir()
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(root / "fifo.yaml")
    (root / "torn.yaml").write_text("name: [c\n")
    (root / "binary.yaml").write_bytes(b"\x7fELF\0\xff\xfe")
    save(root / ".nexa" / "clusters" / "lab" / "cluster.json", CLUSTER)
    save(root / "runs" / RUN / "run.json", RECORD)
    save(root / "runs" / ".gitignore", "*\n")
    log = root / "runs" / RUN / "logs" / "n0" / "rank_0" / "attempt_1.log"
    log.parent.mkdir(parents=True)
    log.write_text("a" * 64 + "!\n")
    return root


def save(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def refused(code: object, said: str, words: object) -> None:
    """What every refusal has in common."""
    assert code in (1, 2), f"{words!r}: exit {code}\n{said}"
    assert "Traceback" not in said, said
    assert any(line.startswith(("error: ", "usage: ")) for line in said.splitlines()), f"{words!r}: {said!r}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("hostile"))


Door = Callable[..., str]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Door]:
    """`main` in this process, for a command that must be refused; returns what it said."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def never(*_: object) -> None:
        raise AssertionError("a program would have been started in our place")

    def call(root: Path, *words: str) -> str:
        monkeypatch.chdir(root)
        monkeypatch.setattr(os, "execvp", never)
        for name in [name for name in os.environ if name.startswith("NEXA_") and name != "NEXA_SHARED"]:
            monkeypatch.delenv(name)
        try:
            code: object = main(words)
        except SystemExit as stop:
            code = stop.code
        said = capfd.readouterr().err
        refused(code, said, words)
        return said

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def as_program(root: Path, words: list[str | bytes], **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*NEXA, *words], cwd=root, env=environment(**env), capture_output=True, timeout=600, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(("group", "word"), CASES)
def test_a_hostile_word_is_refused(group: str, word: str, workspace: Path, door: Door) -> None:
    before = tree(workspace)
    for command in TABLE[group]["commands"]:
        door(workspace, *(part.replace("X", word) for part in command))
    assert tree(workspace) == before


def test_there_are_enough_of_them() -> None:
    assert sum(len(group["words"]) * len(group["commands"]) for group in TABLE.values()) > 400


@pytest.mark.long("forty starts of nexa; the same words are refused in this process")
@pytest.mark.parametrize("group", TABLE)
def test_as_a_program_of_its_own_too(group: str, workspace: Path) -> None:
    """Not UTF-8, very long, and the group's own worst, as the shell would hand them over."""
    before, command = tree(workspace), TABLE[group]["commands"][0]
    worst = [w for w in TABLE[group]["words"] if ("pwned" in w or "\n" in w) and "\0" not in w][:1]
    for word in (b"\xff\xfe\xed\xa0\x80", b"x" * 100_000, *(os.fsencode(w) for w in worst)):
        if (group, word[:1]) == ("folders", b"\xff") or group == "patterns":
            continue  # a good name of a folder, or a good pattern
        done = as_program(workspace, [os.fsencode(part).replace(b"X", word) for part in command])
        refused(done.returncode, done.stderr.decode(errors="replace"), command)
    assert tree(workspace) == before


def break_file(name: str, content: object) -> Callable[[Path], None]:
    return lambda root: save(root / name, content)


def replace_by_file(name: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / name).rename(root / "aside")
        (root / name).write_text("in the way")

    return act


def replace_by_folder(name: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return act


RUN_JSON, CLUSTER_JSON = f"runs/{RUN}/run.json", ".nexa/clusters/lab/cluster.json"
TORN: list[object] = ["", "{", "null", "[]", "3", "{}", '"text"', "\0\0\0", "[" * 100_000]
TORN_RECORDS: list[object] = [
    *TORN,
    *({**RECORD, key: bad} for key in ("cluster", "attempts", "nodes") for bad in (None, 3, {"a": 1}, [{}])),
    *({**RECORD, "config": bad} for bad in (None, 3, [{}])),
    *({k: v for k, v in RECORD.items() if k != key} for key in ("cluster", "attempts", "nodes", "config")),
    {**RECORD, "attempts": [{k: v for k, v in ATTEMPT.items() if k != "started_unix"}]},
    {**RECORD, "attempts": [{**ATTEMPT, "started_unix": "noon"}]},
    {**RECORD, "attempts": [{**ATTEMPT, "world_size": []}]},
    {**RECORD, "attempts": [{**ATTEMPT, "state": []}]},
]
TORN_CLUSTERS: list[object] = [
    *TORN,
    *({**CLUSTER, key: bad} for key in ("nodes", "layout") for bad in (None, 3, {"a": 1}, [{}], [])),
    {**CLUSTER, "nodes": [{**NODE, "name": "n0", "gpus": "many"}]},
]


@pytest.mark.parametrize("content", TORN_RECORDS, ids=lambda _: "run")
def test_a_torn_run_record_is_said_plainly(content: object, tmp_path: Path, door: Door) -> None:
    root = fill(tmp_path / "w")
    save(root / RUN_JSON, content)
    shutil.rmtree(root / ".nexa" / "clusters")  # nexa status would look for the nodes
    for words in (["runs"], ["logs"], ["stop", RUN], ["attach"], ["run", "--resume", RUN], ["status"]):
        assert RUN in door(root, *words)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("content", TORN_CLUSTERS, ids=lambda _: "cluster")
def test_a_torn_cluster_is_said_plainly(content: object, tmp_path: Path, door: Door) -> None:
    root = fill(tmp_path / "w")
    save(root / CLUSTER_JSON, content)
    for words in (["status"], ["run", "train.yaml"], ["ssh", "n0"]):
        assert "lab" in door(root, *words)
    assert not list(tmp_path.rglob("pwned"))


SCENES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    ".nexa is a file: provision": (replace_by_file(".nexa"), ["provision", "--cluster", "c.yaml"]),
    ".nexa is a file: init": (replace_by_file(".nexa"), ["init", "."]),
    "clusters is a file": (replace_by_file(".nexa/clusters"), ["provision", "--cluster", "c.yaml"]),
    "the cluster is a file": (replace_by_file(".nexa/clusters/lab"), ["teardown", "--cluster", "lab"]),
    "cluster.json is a folder": (replace_by_folder(CLUSTER_JSON), ["status"]),
    "run.json is a folder": (replace_by_folder(RUN_JSON), ["runs"]),
    "the log is a folder": (replace_by_folder(f"runs/{RUN}/logs/n0/rank_0/attempt_1.log"), ["logs"]),
    "runs is a file": (replace_by_file("runs"), ["logs"]),
    "a config of another version": (
        break_file(RUN_JSON, {**RECORD, "config": {"name": "first", "nosuch": 1}}),
        ["run", "--resume", RUN],
    ),
    "the script is a folder": (replace_by_folder("script.py"), ["run", "train.yaml", "--cluster", "hosts.yaml"]),
    "no such workspace": (lambda root: None, ["run", "train.yaml", "--cluster", "nosuch"]),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_broken_folder_is_said_plainly(scene: str, tmp_path: Path, door: Door) -> None:
    root = fill(tmp_path / "w")
    prepare, words = SCENES[scene]
    prepare(root)
    door(root, *words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
@pytest.mark.parametrize("name", ["c.yaml", ".nexa", "runs"])
def test_what_may_not_be_read_is_said_plainly(name: str, tmp_path: Path, door: Door) -> None:
    root = fill(tmp_path / "w")
    (root / name).chmod(0)
    door(root, *(["config", "c.yaml"] if name == "c.yaml" else ["logs"] if name == "runs" else ["ssh", "n0"]))
    (root / name).chmod(0o700)


@pytest.mark.parametrize("name", ["$(touch pwned)", 'a "quote"', "two\nlines", "{{ 1 }}", "100%", "a\\b", "${x}"])
def test_a_workspace_that_tools_would_expand_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, door: Door
) -> None:
    root = tmp_path / name
    root.mkdir()
    (root / "c.yaml").write_text("name: c\nprovider: local\nnodes: 1\ngpus_per_node: 1\n")
    assert "hint: use a folder whose path has none of these" in door(root, "provision", "--cluster", "c.yaml")
    assert tree(root) == {"c.yaml"}


@pytest.mark.parametrize("name", ["NEXA_SHARED", "XDG_CACHE_HOME", "UV_FIND_LINKS", "UV_CACHE_DIR"])
def test_an_environment_that_ansible_would_expand_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nprovider: local\nnodes: 1\ngpus_per_node: 1\n")
    env = {"NEXA_SHARED": ""} if name == "XDG_CACHE_HOME" else {}
    bad = "/x/{{ lookup('pipe', 'touch pwned') }}"
    done = as_program(tmp_path, ["provision", "--cluster", "c.yaml"], **env, **{name: bad})
    refused(done.returncode, done.stderr.decode(), name)
    assert tree(tmp_path) == {"c.yaml"}


def test_the_folder_we_are_in_may_be_gone(tmp_path: Path) -> None:
    command = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    argv = ["sh", "-c", command, "sh", *NEXA, "status"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
    refused(done.returncode, done.stderr, "gone")


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had, user and system."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_pattern_without_end_can_be_interrupted(workspace: Path) -> None:
    child = subprocess.Popen(
        [*NEXA, "logs", "--grep", "(a+)+$"], cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True
    )
    until(lambda: cpu_s(child.pid) > 2, "it has long been loaded, and searches")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 130 and said.startswith("error: interrupted")


@pytest.mark.parametrize(
    "words",
    [
        ["nosuch.py"],
        ["обучение.py"],
        ["-m"],
        ["-m", "a;touch pwned"],
        ["-m", "-oProxyCommand=x"],
        ["$(touch pwned)"],
        ["../script.py"],
        ["two\nlines.py"],
        ["folder.yaml"],
        [""],
        [],
    ],
)
def test_the_launch_module_refuses_too(words: list[str], workspace: Path) -> None:
    argv = [sys.executable, "-m", "nexa_dist.launch", "--config", "hosts.yaml", "--", *words]
    done = subprocess.run(argv, cwd=workspace, env=environment(), capture_output=True, text=True, timeout=600)
    refused(done.returncode, done.stderr, words)
    assert "127.0.0.1" not in done.stderr  # said before any node is asked
    assert not list(workspace.rglob("pwned"))


@pytest.mark.e2e
def test_a_command_for_a_node_arrives_word_by_word(lab: Lab) -> None:
    hostile = ["a b", "$(touch pwned)", "`touch pwned`", "{{ 1 }}", 'it\'s "x"', "two\nlines", "-oProxyCommand=x", "*"]
    done = lab.nexa("ssh", "n0", "--", "printf", "%s|", *hostile)
    assert done.stdout == "".join(f"{word}|" for word in hostile)
    assert not list(lab.root.rglob("pwned"))
