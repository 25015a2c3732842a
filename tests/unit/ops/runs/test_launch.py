"""What a launch says to the nodes, and what becomes of it when one of them fails: no ssh, no node."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import ConfigError, NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs import code as sending
from nexa_dist.ops.runs import launch, status
from nexa_dist.ops.runs.code import of_now, send, tell_kept
from nexa_dist.ops.runs.wandb import settled
from nexa_dist.ops.work import image
from nexa_dist.run import trust
from nexa_dist.run.code import archive
from nexa_dist.run.fake import Call, FakeRunner
from nexa_dist.run.record import Run
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.ssh.program import Refused
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.secrets import redact_text

NODES = (Node("n0", "10.0.0.1", 1), Node("n1", "10.0.0.2", 1))
TWO = tuple(dataclasses.replace(node, gpus=2) for node in NODES)
CLUSTER = Cluster("c", "static", NODES, Layout("python3", "~/s", "~/h", "~/d"))


PREPARED: dict[str, Any] = {
    "model": {"vocab_size": 2048, "hidden_size": 128, "layers": 2, "heads": 4, "intermediate_size": 384},
    "dataset": {"source": "python-stdlib", "sequence_length": 128},
    "trainer": {"steps": 10, "batch_size": 8},
}


class Nodes(FakeRunner):
    """Answers the agents' commands. `failing` are (node, command) that answer with an error."""

    def __init__(self, *failing: tuple[str, str], have: bool = True, start: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.failing, self.have, self.start = failing, have, start or {}
        self.asked: list[tuple[str, str, Any]] = []
        """(node, command, message)."""
        self.lock = threading.Lock()

    def answer(self, call: Call) -> Result:
        argv, stdin = call.argv, call.stdin
        node = next(node.name for node in NODES if argv[-2] in (node.address, node.name))
        words = shlex.split(argv[-1])
        verb = words[words.index("-E") + 2]
        message: Any = json.loads(stdin) if isinstance(stdin, bytes) and stdin and verb != "unpack" else None
        with self.lock:
            self.asked.append((node, verb, message))
        if (node, verb) in self.failing:
            return Result((), 1, json.dumps({"error": "it is ill"}).encode())
        answer: dict[str, Any] = {"pid": 7, "already": False, **self.start} if verb == "start" else {}
        if verb == "stop":
            answer = {"state": "stopped", "ended": 0, "left": []}
        if verb == "probe":
            answer = {"python": "3.11.1", "torch": "2.13.0", "cpus": 8, "gpus": [], "free_bytes": 1 << 40, "unix": 0.0}
            answer |= {"peers": {}, "port": 4711, "have": message.get("have", []) if self.have else []}
        return Result((), 0, json.dumps(answer).encode())

    def told(self, verb: str) -> dict[str, Any]:
        """The messages of this command by node."""
        return {node: message for node, name, message in self.asked if name == verb}


class Trial:
    def __init__(self, folder: Path, nodes: Nodes, cluster: Cluster = CLUSTER, **config: Any) -> None:
        (folder / "train.py").write_text("pass\n")
        self.nodes = nodes
        self.ctx = Context(Workspace(folder), nodes, lambda text: None)
        self.ssh = Ssh(nodes, cluster, "/nonexistent")
        self.links = [Link(self.ssh, node, "/home/u") for node in NODES]
        self.config = TrainConfig.model_validate({"name": "t", "script": "train.py", **config})
        self.code = archive.build(folder, ["train.py"])
        self.run = RunFolder(folder / "runs" / "r")

    def prepare(self, **more: Any) -> launch.Prepared:
        codes = (self.code, self.code)
        return launch.prepare(
            self.ctx, self.ssh, self.config, "r", 1, None, codes=codes, links=lambda: self.links, **more
        )

    def start(self) -> Run:
        self.run.path.mkdir(parents=True)
        record = Run(CLUSTER, {}, {}, [], "r")
        record.path = self.run.json
        launch.start(self.run, self.prepare(), record)
        assert self.run.load() == record
        return record


def test_ranks_begin_with_start_when_nothing_has_to_be_prepared(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes())
    record = trial.start()
    assert {name: message["go"] for name, message in trial.nodes.told("start").items()} == {"n0": True, "n1": True}
    assert record.last.state == "running"
    assert (trial.run.code / f"{trial.code.hash}.tar.gz").exists()


def test_ranks_wait_for_all_nodes_when_something_has_to_be_prepared(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), script=None, backend="hf", **PREPARED)
    trial.start()
    specs = {name: message["spec"] for name, message in trial.nodes.told("start").items()}
    assert all(spec["prepare"] for spec in specs.values())
    assert {message["go"] for message in trial.nodes.told("start").values()} == {False}
    assert {tuple(spec["preload"]) for spec in specs.values()} == {
        ("-datasets", "-scipy", "torch", "transformers.trainer")
    }


def test_a_node_that_cannot_start_stops_those_that_run_and_their_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(launch, "fetch", lambda links, run_dirs, logs: fetched.extend(k.node.name for k in links))
    trial = Trial(tmp_path, Nodes(("n1", "start")))
    with pytest.raises(NexaError, match="n1: it is ill"):
        trial.start()
    assert set(trial.nodes.told("stop")) == {"n0", "n1"}
    assert {message["attempt"] for message in trial.nodes.told("stop").values()} == {1}
    assert fetched == ["n0"]


def test_who_interrupts_a_start_has_stopped_it_and_no_agent_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(tmp_path, Nodes())
    monkeypatch.setattr(launch, "fetch", lambda *_: {})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trial.start()
    row = trial.run.load().last
    assert (row.state, row.cause) == ("stopped", "stopped by the user before every node had started")
    assert {message["reason"] for message in trial.nodes.told("stop").values()} == {"stopped by the user"}


def test_the_interpreter_of_the_ranks_is_loaded_while_the_nodes_are_asked(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), launcher="direct", env={"A": "b"})
    prepared = trial.prepare()
    for name, message in trial.nodes.told("probe").items():
        early, spec = message["warm"]["spec"], prepared.specs[name]
        assert message["warm"]["run_dir"] == f"/home/u/s/r.{name}"  # own hosts may share their home
        assert (early["argv"], early["cwd"], early["nproc"]) == (list(spec["argv"]), spec["cwd"], spec["nproc"])
        assert list(spec["preload"]) == early["preload"] == ["torch"]
        # What differs is not read by an import: names of an attempt, its interface, and the threads that it counts.
        differs = {key for key in {*early["env"], *spec["env"]} if early["env"].get(key) != spec["env"].get(key)}
        assert differs == {"OMP_NUM_THREADS"}
        assert spec["keep_warm"] is True


@pytest.mark.parametrize(("provider", "threads"), [("static", 4), ("local", 2)])
def test_nodes_on_one_machine_share_its_cpus(tmp_path: Path, provider: str, threads: int) -> None:
    """Of 8 CPUs, with two ranks on each of two nodes; and a warm interpreter is made for as many."""
    trial = Trial(tmp_path, Nodes(), dataclasses.replace(CLUSTER, provider=provider, nodes=TWO), launcher="direct")
    prepared = trial.prepare()
    for name, message in trial.nodes.told("probe").items():
        assert prepared.specs[name]["env"]["OMP_NUM_THREADS"] == str(threads)
        assert 8 // message["warm"]["spec"]["nproc"] == threads


@pytest.mark.parametrize(
    ("keys", "warm"), [({"launcher": "direct"}, True), ({"launcher": "direct", "preload": False}, False), ({}, False)]
)
def test_an_interpreter_is_kept_ready_only_where_ranks_are_forked(
    tmp_path: Path, keys: dict[str, Any], warm: bool
) -> None:
    trial = Trial(tmp_path, Nodes(), **keys)
    assert {spec["keep_warm"] for spec in trial.prepare().specs.values()} == {warm}
    assert {"warm" in message for message in trial.nodes.told("probe").values()} == {warm}


@pytest.mark.parametrize("launcher", ["torchrun", "direct"])
def test_a_dry_run_begins_nothing(tmp_path: Path, launcher: str) -> None:
    trial = Trial(tmp_path, Nodes(), launcher=launcher)
    trial.ctx = dataclasses.replace(trial.ctx, dry=True)
    trial.prepare()
    assert all("warm" not in message for message in trial.nodes.told("probe").values())
    assert {verb for _, verb, _ in trial.nodes.asked} == {"probe"}


def test_a_launch_that_is_refused_leaves_no_interpreter(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(("n1", "probe")), launcher="direct")
    with pytest.raises(NexaError, match="n1: it is ill"):
        trial.prepare()
    assert set(trial.nodes.told("forget")) == {"n0", "n1"}


def test_code_that_cannot_be_sent_refuses_the_launch(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(("n0", "unpack"), have=False), launcher="direct")
    prepared = trial.prepare()
    with pytest.raises(NexaError, match="n0: it is ill"):
        launch.deliver(trial.ctx, prepared)
    assert set(trial.nodes.told("forget")) == {"n0", "n1"}


def test_what_is_not_sent_is_said_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("/")
    (tmp_path / "id.pem").touch()
    trial = Trial(tmp_path, Nodes())
    lines: list[str] = []
    ctx = dataclasses.replace(trial.ctx, say=lines.append, runner=Runner())
    found, _ = of_now(ctx, trial.config)
    assert found.names == ("train.py",)
    assert lines == [
        "not sent to the nodes:",
        "  id.pem: looks like a secret (name it in files: of train.yaml)",
        "  data: a link out of the project, to / (name it in files: of train.yaml)",
    ]
    for script, words in (("id.pem", "id.pem: looks like a secret"), ("no.py", "does not exist")):
        with pytest.raises(NexaError, match=words):
            of_now(ctx, trial.config.model_copy(update={"script": script}))


def test_the_file_of_a_backend_is_looked_at_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trial = Trial(tmp_path, Nodes(), script=None, backend="ax", config="./ax.yaml")
    ctx = dataclasses.replace(trial.ctx, runner=Runner())
    with pytest.raises(NexaError, match=r"config \./ax\.yaml does not exist"):
        of_now(ctx, trial.config)
    (tmp_path / "ax.yaml").write_text("base_model: m\nlerning_rate: 1\ndatasets: [{path: a}]\ndeepspeed: z.json\n")
    with pytest.raises(ConfigError) as caught:
        of_now(ctx, trial.config)
    assert "ax.yaml:2: lerning_rate: unknown key of Axolotl (hint: did you mean learning_rate?)" in str(caught.value)
    (tmp_path / "ax.yaml").write_text("base_model: m\nlearning_rate: 1\ndatasets: [{path: a}]\ndeepspeed: z.json\n")
    with pytest.raises(NexaError, match=r"\./ax\.yaml: z\.json does not exist"):
        of_now(ctx, trial.config)
    (tmp_path / "z.json").write_text("{}")
    assert "ax.yaml" in of_now(ctx, trial.config)[0].names


def test_what_the_run_rewrote_is_written_down_and_said(tmp_path: Path) -> None:
    laid = {"kept": ["counter.txt"], "aside": [], "more": 5}
    trial = Trial(tmp_path, Nodes(start=laid))
    record = trial.start()
    assert record.last.laid == {"n0": {"kept": ["counter.txt"]}, "n1": {"kept": ["counter.txt"]}}
    lines: list[str] = []
    tell_kept(dataclasses.replace(trial.ctx, say=lines.append), record.last)
    assert lines == [f"n{n}: counter.txt: rewritten by the run, and kept as it is" for n in (0, 1)]


@pytest.mark.parametrize("lie", [5, None, "x", {"a": 1}, ["x"] * 1000])
def test_what_a_node_says_of_it_is_not_believed(tmp_path: Path, lie: Any) -> None:
    with pytest.raises(NexaError, match=r"n0: its answer to start makes no sense: kept: .* is no list of at most 100"):
        Trial(tmp_path, Nodes(start={"kept": lie})).start()


def test_names_that_are_none_are_passed_over(tmp_path: Path) -> None:
    assert "laid" not in Trial(tmp_path, Nodes(start={"kept": [5, None, ["x"]], "aside": []})).start().last.to_json()


def test_code_that_is_there_is_neither_asked_for_nor_sent(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes())
    launch.deliver(trial.ctx, trial.prepare())
    assert {verb for _, verb, _ in trial.nodes.asked} == {"probe"}


def test_secrets_of_a_training_reach_the_agents_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-of-mine-5")
    (tmp_path / ".env").write_text("OTHER_KEY=from-the-file-7\nWANDB_ENTITY=x\n")
    (tmp_path / ".env").chmod(0o600)
    trial = Trial(tmp_path, Nodes(), secrets=["MY_API_KEY", "OTHER_KEY"], args=["--key", "s3cr3t-of-mine-5"])
    record = trial.start()
    for message in trial.nodes.told("start").values():
        own = {name: message["secrets"][name] for name in ("MY_API_KEY", "OTHER_KEY")}
        assert own == {"MY_API_KEY": "s3cr3t-of-mine-5", "OTHER_KEY": "from-the-file-7"}
        assert "from-the-file-7" not in json.dumps(message["spec"])
    assert "OTHER_KEY" not in os.environ  # nor does what we start get it
    assert "s3cr3t" not in json.dumps(record.to_json())
    assert redact_text("at s3cr3t-of-mine-5 and from-the-file-7") == "at *** and ***"


def test_a_secret_that_is_nowhere_refuses_the_launch(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), secrets=["NOT_SET_HERE"])
    with pytest.raises(UsageError) as caught:
        trial.prepare()
    assert re.search(
        "secrets names NOT_SET_HERE, which is neither in the environment nor in .*env", redact_text(str(caught.value))
    )
    assert trial.nodes.asked == []
    (tmp_path / ".env").write_text("NOT_SET_HERE=x\n")
    (tmp_path / ".env").chmod(0o644)
    with pytest.raises(UsageError, match="others may read it"):
        trial.prepare()


EXAMPLE_TRAIN = (Path(__file__).parents[4] / "configs" / "templates" / "train.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "key", "config", "mode", "said"),
    [
        ({"train.py": "import wandb\n"}, "k", {}, "online", "wandb: online, since WANDB_API_KEY is there and train.py"),
        ({"train.py": "import lib\n", "lib.py": "x = WandbLogger()\n"}, "k", {}, "online", "lib.py may use it"),
        ({}, "k", {"args": ["--report_to", "wandb"]}, "online", "args may use it"),
        ({"train.py": "import wandb\n"}, "", {}, "off", "wandb: off, since there is no WANDB_API_KEY"),
        ({"train.py": "pass\n"}, "k", {}, "off", "wandb: off, since nothing asks for it"),
        ({"train.py": "pass\n"}, "", {}, "off", ""),
        ({"train.py": "pass\n", "train.yaml": EXAMPLE_TRAIN}, "k", {}, "off", "wandb: off, since nothing asks for it"),
        ({"train.py": "pass\n", "a.yaml": "# none\nwandb: x\n"}, "k", {}, "online", "a.yaml may use it"),
        ({"train.py": "import wandb\n"}, "k", {"wandb": "off"}, "off", ""),
        ({"train.py": "import wandb\n"}, "k", {"env": {"WANDB_MODE": "offline"}}, None, ""),
        ({}, "k", {"script": None, "backend": "hf", **PREPARED}, "off", "wandb: online in train.yaml uses it"),
    ],
)
def test_wandb_is_on_when_a_key_is_there_and_the_script_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], key: str, config: dict[str, Any],
    mode: str | None, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", key)
    trial = Trial(tmp_path, Nodes(), **config)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    lines: list[str] = []
    found = settled(dataclasses.replace(trial.ctx, say=lines.append, runner=Runner()), trial.config)
    assert found.wandb == mode
    assert (said in lines[0]) if said else not lines


def test_variables_in_args_get_a_nodes_values_where_the_file_says_so(tmp_path: Path) -> None:
    args = ["--out=${NEXA_DURABLE}/x", "$NEXA_NODE", "$HOME", "${RANK}", "$$NEXA"]
    for expand, wanted in ((False, args), (True, ["--out=/d/x", "n1", *args[2:]])):
        trial = Trial(tmp_path, Nodes(), args=args, expand=expand)
        got = [word.replace(trial.links[1].path(CLUSTER.layout.durable), "/d") for word in
               trial.prepare().specs["n1"]["argv"][-len(args):]]  # fmt: skip
        assert got == wanted
    with pytest.raises(UsageError, match="there is no NEXA_NOED"):
        Trial(tmp_path, Nodes(), args=["$NEXA_NOED"], expand=True).prepare()


def test_of_large_code_only_what_a_node_lacks_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.bin").write_bytes(os.urandom(2 << 20))
    (tmp_path / "train.py").write_text("changed\n")
    code, calls = archive.build(tmp_path, ["big.bin", "train.py"]), list[Any]()
    monkeypatch.setattr(Link, "call", lambda _, verb, target, message: {"lacks": [1]})
    monkeypatch.setattr(Link, "unpack", lambda _, target, data, name, part: calls.append((len(data), name, part)))
    trial = Trial(tmp_path, Nodes())
    send(trial.ctx, trial.links, (code,), {"n0": (), "n1": ()})
    assert [(name, part) for _, name, part in calls] == [(code.hash, True)] * 2 and calls[0][0] < 1000
    monkeypatch.setattr(Link, "call", lambda _, verb, target, message: {"lacks": [0, 1]})
    send(trial.ctx, trial.links, (code,), {"n0": (), "n1": ()})
    assert [part for _, _, part in calls[2:]] == [False, False] and calls[2][0] > 2 << 20

    def gone(_: Link, target: str, data: bytes, name: str, part: bool) -> None:
        calls.append((len(data), name, part))
        if part:
            raise NexaError("what arrived is not that")

    monkeypatch.setattr(Link, "call", lambda _, verb, target, message: {"lacks": [1]})
    monkeypatch.setattr(Link, "unpack", gone)
    send(trial.ctx, trial.links[:1], (code,), {"n0": ()})
    assert [part for _, _, part in calls[4:]] == [True, False], "what the node had went meanwhile"


def test_a_project_of_its_own_runs_by_an_interpreter_that_the_nodes_make(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    trial = Trial(tmp_path, Nodes(), script=None, program="lab-train", args=["x"], setup=["make"], launcher="direct")
    made = archive.build(tmp_path, ["pyproject.toml", "train.py"])
    archive.keep(tmp_path / "kept", made)
    trial.code = archive.Kept(tmp_path / "kept" / f"{made.hash}.tar.gz")  # type: ignore[assignment]
    prepared = trial.prepare()
    layer = "/home/u/s/r.n1/layer"
    spec = prepared.specs["n1"]
    module = "nexa_dist.train.console_script"
    assert spec["argv"] == (f"{layer}/bin/python", "-u", "-m", module, "lab-train", "x")
    told = spec["setup"]
    assert (told["layer"], told["python"], told["requires"], told["lines"]) == (
        layer,
        "python3",
        ("hatchling",),
        ("make",),
    )
    assert spec["path"] == trial.nodes.told("probe")["n1"]["warm"]["spec"]["path"] == [f"{layer}/bin"]
    assert trial.nodes.told("probe")["n1"]["python"] == "python3"  # a layer is made after the checks
    assert told["must"] is True
    assert told["key"] != prepared.specs["n0"]["setup"]["key"]
    trial.run.path.mkdir(parents=True)
    record = Run(CLUSTER, {}, {}, [], "r")
    record.path = trial.run.json
    launch.start(trial.run, prepared, record)
    assert {message["go"] for message in trial.nodes.told("start").values()} == {False}


def test_packages_of_the_system_are_refused_where_it_is_not_ours(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes(), apt=["libsndfile1"])
    with pytest.raises(UsageError, match=r"apt: the system of c \(static\) is not nexa's to change") as refused:
        trial.prepare()
    assert "system_changes: true" in refused.value.hint
    assert trial.nodes.asked == []
    folder = trial.ctx.workspace.cluster("c").path
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"system_changes": true}')
    told = trial.prepare().specs["n0"]["setup"]
    assert (told["apt"], told["layer"], told["requires"]) == (("libsndfile1",), "", None)


def test_a_large_file_is_said_before_it_is_sent_and_while_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LARGE_BYTES", 1000)
    monkeypatch.setattr(sending, "TOLD_BYTES", 1000)
    monkeypatch.setattr(sending, "TELL_S", 0.001)
    for name in ("big.bin", "named.bin"):
        (tmp_path / name).write_bytes(os.urandom(3 << 20))
    trial = Trial(tmp_path, Nodes(), files=["named.bin"])
    lines: list[str] = []
    ctx = dataclasses.replace(trial.ctx, say=lines.append, runner=Runner())
    found, _ = of_now(ctx, trial.config)
    assert lines == [
        "big.bin has 3 MB and goes to every node: the line /big.bin in .nexaignore leaves it out",
        "named.bin has 3 MB and goes to every node: files: names it",
    ]
    half = threading.Event()

    def unpack(link: Link, target: str, data: Any, name: str, part: bool, timeout_s: float) -> None:
        data.read(4 << 20)
        assert half.wait(60)
        assert timeout_s > 600

    def say(text: str) -> None:
        lines.append(text)
        if "4 of 6 MiB" in text:
            half.set()

    monkeypatch.setattr(Link, "call", lambda _, verb, target, message: {"lacks": [0, 1, 2]})
    monkeypatch.setattr(Link, "unpack", unpack)
    send(dataclasses.replace(ctx, say=say), trial.links[:1], (found,), {"n0": ()})
    assert "  n0: 4 of 6 MiB of code" in lines
    assert lines[-1] == f"  n0: sent {len(found.pack()) >> 10} KiB of code"


def test_of_two_launches_at_once_one_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Nodes())
    here = dataclasses.replace(CLUSTER, nodes=NODES[:1])
    with status.launching(trial.ctx, here):
        assert trust.is_ours(tmp_path), "also when this launch is refused"
        with status.launching(trial.ctx, dataclasses.replace(CLUSTER, nodes=NODES[1:])):
            pass  # another node
        with status.launching(dataclasses.replace(trial.ctx, dry=True), CLUSTER):
            pass
        words = r"cluster c is busy with the launch of a run on n0: \S+ nexa run pid"
        with pytest.raises(UsageError, match=words), status.launching(trial.ctx, CLUSTER):
            raise AssertionError
    with status.launching(trial.ctx, CLUSTER):
        pass


def box(**more: Any) -> dict[str, Any]:
    """What remote/images.py says of a node."""
    return {
        "engine": "podman", "program": "/usr/bin/podman", "version": "5.4.2", "image": "ab" * 32,
        "digest": "x@sha256:77", "user": 0, "group": 0,
        "memory_bytes": 1 << 30, "gpus": False, "devices": [], "amazon": False, **more,
    }  # fmt: skip


def boxed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *said: dict[str, Any], **config: Any) -> Trial:
    answers = dict(zip(("n0", "n1"), said, strict=True))
    monkeypatch.setattr(image, "run_program", lambda link, *_, **__: answers[link.node.name])
    return Trial(tmp_path, Nodes(), CLUSTER, image="x:1", **config)


def test_the_ranks_of_a_run_in_an_image_start_in_it_and_the_interpreter_there_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = boxed(tmp_path, monkeypatch, box(), box(), env={"MINE": "value-of-mine"})
    prepared = trial.prepare()
    asked = trial.nodes.told("probe")["n0"]
    assert asked["inside"][:2] == ["/usr/bin/podman", "run"] and asked["inside"][-1] == "ab" * 32
    argv = prepared.specs["n1"]["argv"]
    at = argv.index("inside")
    assert argv[:2] == ("/usr/bin/podman", "run") and argv[at - 4] == "ab" * 32
    assert argv[at + 2 : at + 5] == ("python3", "-m", "torch.distributed.run")
    assert "--name=nexa-r-n1-1" in argv and "--env=MINE" in argv and "value-of-mine" not in "".join(argv)
    spec = prepared.specs["n1"]
    assert spec["container"]["remove"] == ("rm", "--force", "--time=0")
    assert (spec["path"], spec["setup"]) == ([], None), "nothing of the node's environment"
    assert prepared.brought.environment["ids"] == {"podman": "ab" * 32}
    assert prepared.brought.environment["digest"] == "x@sha256:77"


def test_a_backend_prepares_its_data_in_the_image_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = boxed(tmp_path, monkeypatch, box(), box(), script=None, backend="hf", **PREPARED)
    prepare = trial.prepare().specs["n0"]["prepare"]
    assert prepare[:2] == ("/usr/bin/podman", "run") and prepare[-1] == "--prepare"
    assert "--name=nexa-r-n0-1-prepare" in prepare


def test_an_image_that_is_not_the_same_everywhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NexaError, match=r"not the same everywhere: cdcdcdc.* on n1, ababab.* on n0") as caught:
        boxed(tmp_path, monkeypatch, box(), box(image="cd" * 32)).prepare()
    assert "podman pull x:1" in str(caught.value.hint)
    two = boxed(tmp_path, monkeypatch, box(), box(engine="docker", image=f"sha256:{'cd' * 32}")).prepare()
    assert set(two.brought.environment["ids"]) == {"podman", "docker"}, "each engine has its own name for it"


def test_a_later_attempt_has_the_image_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "run"
    kept.mkdir()
    boxed(tmp_path, monkeypatch, box(), box()).prepare(kept=kept)
    with pytest.raises(NexaError, match=r"cdcdcd.* on n0, ababab.* at the attempt before"):
        boxed(tmp_path, monkeypatch, box(image="cd" * 32), box(image="cd" * 32)).prepare(kept=kept)


def test_a_node_without_an_engine_is_named_with_the_way_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = boxed(tmp_path, monkeypatch, box(), box())

    def none(link: Link, *_: Any, **__: Any) -> Any:
        raise Refused(f"{link.node.name}: no container engine for image: docker is not installed")

    monkeypatch.setattr(image, "run_program", none)
    with pytest.raises(NexaError, match="n0: no container engine") as caught:
        trial.prepare()
    assert "apt-get install podman" in str(caught.value.hint) or "apt-get install podman" in str(caught.value)
    assert not trial.nodes.asked, "nothing was begun"
