"""A person's mistakes at the terminal get an answer that a person can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main, parsed
from nexa_dist.config.launchers import calls_one
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.cluster.provision import node_of
from nexa_dist.ops.runs import stop as stopping
from nexa_dist.ops.runs.summary import changed
from nexa_dist.run import trust
from nexa_dist.run.ansible import Roles
from nexa_dist.run.workspace import Workspace
from tests.unit import records

CLUSTER = Cluster("lab", "local", (Node("n0", "127.0.0.2", 1),), Layout("p", "s", "s", "d"))


@pytest.mark.parametrize(
    "words, meant",
    [
        ("runn", "did you mean run"),
        ("stats", "did you mean status"),
        ("run --detatch", "did you mean --detach?"),
        ("logs --folow x", "did you mean --follow?"),
        ("image bak", "did you mean bake?"),
        ("xyzzy", "nexa --help lists"),
    ],
)
def test_what_was_meant_is_named(words: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and meant in said and said.startswith("error: nexa") and len(said.splitlines()) == 2


@pytest.mark.parametrize("words, shows", [("help", "usage: nexa [-h]"), ("help run", "usage: nexa run")])
def test_help_is_a_verb_too(words: str, shows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0 and shows in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, node, command",
    [
        ("ssh", "", []),
        ("ssh n1", "n1", []),
        ("ssh -- nvidia-smi -L", "", ["nvidia-smi", "-L"]),
        ("ssh --cluster c -- ls", "", ["ls"]),
        ("ssh --cluster=c -- ls", "", ["ls"]),
        ("ssh --cluster c n1 -- ls", "n1", ["ls"]),
        ("ssh n1 git log -- x", "n1", ["git", "log", "--", "x"]),
    ],
)
def test_the_only_node_need_not_be_named(words: str, node: str, command: list[str]) -> None:
    got = parsed(words.split())
    assert (got.node, [word for n, word in enumerate(got.command) if n or word != "--"]) == (node, command)
    assert node_of(CLUSTER, "").name == "n0"
    two = Cluster("lab", "local", (*CLUSTER.nodes, Node("n1", "127.0.0.3", 1)), CLUSTER.layout)
    with pytest.raises(UsageError, match="which node"):
        node_of(two, "")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    trust.claim(tmp_path)
    return tmp_path


def run(root: Path, state: str, config: dict[str, Any], *events: dict[str, Any]) -> str:
    made = Workspace(root).new_run("train", "x")
    attempt = {"attempt": 1, "state": state, "started_unix": 1.0, "ended_unix": 2.0, "world_size": 1, "rdzv": "x:1"}
    records.put(made, {"cluster": CLUSTER.to_json(), "config": config, "nodes": {}, "attempts": [attempt]})
    (made.logs / "n0").mkdir(parents=True)
    (made.logs / "n0" / "agent.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return made.run_id


def test_stop_takes_the_only_run_that_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[str] = []

    def stop(_: Any, run: Any, __: float) -> dict[str, Any]:
        stopped.append(run.run_id)
        return {"run": run.run_id, "state": "stopped", "ended": {}, "left": {}}

    monkeypatch.setattr(stopping, "stop", stop)
    run(root, "completed", {"name": "x"})
    assert main(["stop"]) == 2 and "no run goes on" in capsys.readouterr().err
    alive = run(root, "running", {"name": "x"})
    assert main(["stop", ""]) == 2  # an unset variable
    assert main(["stop"]) == 0 and stopped == [alive]
    other = run(root, "running", {"name": "x"})
    assert main(["stop"]) == 2
    assert f"which run? {alive}, {other}" in capsys.readouterr().err and stopped == [alive]


def test_runs_are_told_apart(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"event": "progress", "at": 1.0, "steps": {"0": 40, "1": 39}, "loss": 2.25}
    run(
        root,
        "completed",
        {"name": "x", "experiment": "lr", "args": ["--lr", "1e-3"], "trainer": {"steps": 5}},
        progress,
    )
    run(root, "completed", {"name": "x", "experiment": "lr", "args": ["--lr", "3e-4"], "trainer": {"steps": 9}})
    assert main(["runs", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["step"], first["loss"], first["experiment"], first["changed"]) == (39, 2.25, "lr", "")
    assert (second["step"], second["changed"]) == (None, "args=--lr 3e-4, trainer.steps=9")
    assert changed({"a": 1}, {"a": 1, "b": None, "c": [1, "x"]}) == ["b=null", "c=1 x"]


@pytest.mark.parametrize(
    "target, program, args, instead",
    [
        (
            "module",
            "torch.distributed.run",
            ["--nproc_per_node", "4", "train.py", "--lr", "3"],
            'script: train.py and args: ["--lr", 3]',
        ),
        ("module", "accelerate.commands.launch", ["-m", "pkg.train"], "module: pkg.train"),
        ("script", "/usr/bin/torchrun", ["a/t.py"], "script: a/t.py"),
        ("script", "accelerate", ["launch", "t.py"], "script: t.py"),
        ("script", "deepspeed", [], "script: train.py"),
    ],
)
def test_a_launcher_below_the_launcher_is_refused_with_the_line_to_use(
    target: str, program: str, args: list[str], instead: str
) -> None:
    with pytest.raises(ValueError, match="starts ranks, and so does nexa") as caught:
        TrainConfig.model_validate({"name": "x", target: program, "args": args})
    assert instead in str(caught.value)


@pytest.mark.parametrize(
    "line, found",
    [
        ("subprocess.run(['torchrun', 't.py'])", "torchrun"),
        ("os.system('accelerate launch t.py')", "accelerate launch"),
        ("subprocess.check_call([sys.executable, '-m', 'torch.distributed.run'])", "torch.distributed.run"),
        ("# subprocess.run(['torchrun'])", ""),
        ("from accelerate import Accelerator", ""),
        ("print('use torchrun t.py')", ""),
    ],
)
def test_a_script_that_calls_one_is_found(line: str, found: str) -> None:
    assert calls_one(f"import x\n{line}\n".encode()) == found


def test_a_role_is_a_line() -> None:
    said: list[str] = []
    roles = Roles(said.append, now=lambda: 5.0)

    def event(name: str, **data: Any) -> None:
        roles.take({"event": name, "event_data": data})

    for role, task in (("base", "Look"), ("base", "Make"), ("agent", "Send")):
        event("playbook_on_task_start", role=role, task=task)
        for host in ("n0", "n1"):
            event("runner_on_ok", host=host, task=task, res={"changed": task == "Make"})
    event("runner_retry", host="n0", task="Send", res={"stderr": "first\nbusy"})
    event("playbook_on_stats")
    assert said == ["base: 2 tasks, 0.0 s; changed: Make (n0, n1)", "n0: Send: busy", "agent: 1 tasks, 0.0 s"]
