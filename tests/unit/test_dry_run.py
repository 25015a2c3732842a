"""--dry-run of every verb that acts: it says what would be done, and no file, node or cloud is changed."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import GROUPS, main
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run import fake, trust
from nexa_dist.run.fake import Call, DryRunner, FakeRunner, only_reads
from nexa_dist.run.runner import Result, Runner, Stream
from nexa_dist.run.ssh.connections import LOOK, PUT, put_agent
from nexa_dist.run.workspace import Workspace
from nexa_dist.verbs._arguments import parser

READING = {"config", "plan", "preflight", "status", "ssh", "attach", "runs", "logs", "why", "cost", "timeline"}
READING |= {"report", "completion", "data", "lineage", "leaderboard"}
"""Verbs that change nothing here, on a node or in a cloud. `attach` takes over a run as it goes on, `ssh` is a shell,
and `plan` is itself what would be made."""
RUN = "train_20260101_000000_first"
NODES = (Node("n0", "127.0.0.2", 2, port=2201), Node("n1", "127.0.0.3", 2, port=2201))
LAB = Cluster("lab", "local", NODES, Layout("python3", "~/s", "~/h", "~/d"))
ATTEMPT: dict[str, Any] = {
    "attempt": 1, "state": "running", "started_unix": 1.0, "world_size": 4, "rdzv": "127.0.0.2:9", "resume_step": None,
    "ranks": {"n0": [0, 1], "n1": [2, 3]}, "hardware": {},
}  # fmt: skip
ENDED = {**ATTEMPT, "state": "failed", "ended_unix": 2.0}
LEFT = {
    "there": True, "more": False, "cut": False, "checkpoints": [],
    "files": [
        {"name": "a.csv", "path": "work/a.csv", "bytes": 7, "mtime_ns": 1, "kind": "outputs"},
        {"name": "model.pt", "path": "work/model.pt", "bytes": 1, "mtime_ns": 1, "kind": "other"},
    ],
}  # fmt: skip
FILES = {
    "local.yaml": "name: new\nprovider: local\nnodes: 2\ngpus_per_node: 2\n",
    "hosts.yaml": "name: own\ncluster:\n  - {host: 127.0.0.1, user: ann, gpus: 1, port: 2299}\n",
    "aws.yaml": "name: cloud\nprovider: aws\nregion: us-east-1\nnodes: 2\ngpus_per_node: 4\nmax_hours: 2\n"
    "market: on_demand\noffers: [{type: g6e.12xlarge}]\n",
    "told.yaml": "name: told\nprovider: local\nnodes: 1\ngpus_per_node: 1\nnotify:\n"
    "  - {url: 'https://hooks.example.com/services/verysecret'}\n  - {command: [touch, ROOT/told]}\n",
    "telling.yaml": "name: own\ncluster:\n  - {host: 127.0.0.1, gpus: 1, port: 2299}\nnotify:\n"
    "  - {url: 'https://hooks.example.com/services/verysecret', from_nodes: true}\n",
    "stack.yaml": "name: mine\nprovider: stack\nstack: st\nnodes: 2\ngpus_per_node: 1\nmax_hours: 1\n",
    "slurm.yaml": "name: job\nprovider: slurm\nnodes: 2\ngpus_per_node: 1\nslurm: {account: lab, time: 60}\n",
    "st/main.tf": "variable node_names {}\n",
    "train.yaml": "name: first\nscript: script.py\n",
    "script.py": "print('hello')\n",
    "tiny/config.json": "{}\n",
    "models/promotions.jsonl": "".join(
        json.dumps({"alias": "production", "run": run, "step": 1, "sha256": "", "by": "ann@x", "at_unix": 1.0}) + "\n"
        for run in ("first", "second")
    ),
    "stage.yaml": "stage: data\ninputs: {rows: script.py}\n",
    "tiny.yaml": "backend: hf\nmodel: {path: m}\ndataset: {}\ntrainer: {steps: 1}\n",
    "chain.yaml": "pipeline: chain\nstages:\n  again: {config: stage.yaml, inputs: {rows: stage:rows}}\n"
    "  rows: {config: stage.yaml}\n  first: {config: tiny.yaml}\n",
    "ssh_config": "Host x\n  ProxyCommand nc x 22\n",
}
CASES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "init": [("init fresh", ("would write fresh/cluster.yaml", "would write fresh/train.yaml"))],
    "provision": [
        (
            "provision --cluster local.yaml",
            (
                "would make cluster new: 2 nodes, 4 ranks, local",
                "n1: 2 ranks",
                '"gpus_per_node": 2',
                "/new/terraform/src/stacks/local init -input=false -no-color -reconfigure",
                "/new/terraform/src/stacks/local apply -json -input=false -lock-timeout=5s -auto-approve "
                "-var-file={root}/.nexa/clusters/new/terraform/nexa.tfvars.json",
                "playbooks/bootstrap.yml on n0, n1",
            ),
        ),
        (
            "provision --cluster stack.yaml",
            ("would plan: the stack {root}/st, and judge", "/mine/terraform/plan.bin\n"),
        ),
        (
            "provision --cluster slurm.yaml",
            ("would run: sbatch --parsable, as nexa-job-", "#SBATCH --account=lab\n", "would check: nexa diag"),
        ),
        ("provision --cluster hosts.yaml", ("n0: 1 ranks, ann@127.0.0.1:2299", "would pin: the host key", "on n0")),
        ("provision --cluster aws.yaml", ("2 nodes: ", "if used to the end", "src/stacks/aws apply -json")),
        ("provision --cluster lab.yaml", ("would bring in line cluster lab",)),
    ],
    "diag": [("diag lab --deep", ("each node's agent, deep: n0, n1", "is using it", "would write: {root}/.nexa"))],
    "teardown": [
        (
            "teardown --cluster lab",
            (f"would destroy cluster lab and the active runs {RUN}", "n1 127.0.0.3", "src/stacks/local destroy -json"),
        ),
        ("teardown --cluster lab", (f"would lose: {RUN}: 2 files (14 B): a.csv, a.csv; not named in outputs: ",)),
    ],
    "pull": [
        (f"pull {RUN} out", ("2 files (14 B): a.csv, a.csv to out/outputs", "would leave: 2 files (2 B): model.pt")),
        ("pull --all", (f"4 files (16 B): a.csv, a.csv, model.pt, model.pt to runs/{RUN}/outputs",)),
    ],
    "serve": [
        ("serve tiny --cluster lab --node n1 --port 0", ("model {root}/tiny", "would serve it on n1, and lead http://")),
    ],
    "promote": [("promote --to production --rollback", ("production would be first, step 1 (rollback",))],
    "sweep": [("sweep --delete --region us-east-1", ("would end: key pair key-",))],
    "image": [
        ("image bake --cluster aws.yaml", ("1 nodes: ", "cluster cloud-bake: 1 nodes", "would make: an image")),
        ("image delete {image} --region us-east-1", ("would delete in us-east-1: {image}",)),
    ],
    "trust": [
        ("trust ssh_config", ("ProxyCommand nc x 22", "would allow ssh to start these 1 until")),
        ("trust told.yaml", ("touch {root}/told", "would allow nexa to start these 1 in {root}")),
        ("trust .", ("would note in {state} that {root}/.nexa",)),
    ],
    "snapshot": [("snapshot --cluster lab -o s.json", ("would ask n0, n1 for packages", "would write: s.json"))],
    "notify": [
        ("notify --test --cluster told.yaml", ("at hooks.example.com\twould send\ta test", "has agreed to this")),
        (
            "notify --test --from-nodes --cluster telling.yaml",
            ("test\tn0\twebhook at hooks.example.com\twould send\tas an agent would",),
        ),
        (f"notify {RUN}", (f"{RUN}: nothing waits",)),
    ],
    "run": [
        ("run train.yaml --cluster lab", ("# n1 (127.0.0.3): ranks 2 to 3 of 4", "script.py")),
        ("run train.yaml train.yaml --cluster lab", ("waiting\ttrain.yaml\t",)),
    ],
    "queue": [
        ("queue add train.yaml --cluster lab --grid args.0=a,b", ("train.yaml args.0=a\t", "train.yaml args.0=b\t")),
        ("queue run --cluster lab", ("nothing waits in the queue of lab",)),
    ],
    "slurm": [
        (
            "slurm submit train.yaml --set slurm.time=30 --set slurm.gres=gpu:2 --set slurm.usd_per_gpu_hour=3",
            ("#SBATCH --gres=gpu:2", "hold \"$run/slurm/attempt\"", "for at most 1.00 GPU-hours, 3.00 USD"),
        ),
    ],
    "stop": [
        (f"stop {RUN}", (f"would end {RUN} on n0, n1, with 25 s for a checkpoint",)),
        ("stop --grace 3", ("with 3 s for a checkpoint",)),
    ],
    "pipeline": [
        (
            "pipeline run chain.yaml",
            ("first\ttrain\tto do", "would run: rows here: data of stage.yaml", "would run: again after rows: data"),
        ),
    ],
    "env": [("env prune --cluster lab", ("0123456789abcdef", "requirements.txt", "2 would be removed"))],
    "budget": [("budget extend 5 --cluster lab", ("budget of lab to 15.00 USD", "deadlines of n0, n1"))],
}  # fmt: skip
ACTS = {verb for verbs in GROUPS.values() for verb in verbs} - READING


class Nodes(FakeRunner):
    """git as it is, and nodes that have the agent."""

    def answer(self, call: Call) -> Result:
        words = shlex.split(call.argv[-1])
        if call.argv[0] == "env":
            return Runner().run(call.argv, stdin=call.stdin, **call.how)
        if LOOK in words:
            return Result(call.argv, 0, b"0\n/home/u\n")
        if "nexa_dist.train.checkpoint" in words:
            path = f"{words[-2]}/step_00000040" if "127.0.0.3" in call.argv or "n1" in call.argv else ""
            whole = [{"step": 40, "path": path}] if path else []
            return Result(call.argv, 0, json.dumps({"whole": whole, "skipped": []}).encode())
        if "wrote" in words:
            assert isinstance(call.stdin, bytes)
            runs = [LEFT] * len(json.loads(call.stdin)["runs"])
            return Result(call.argv, 0, json.dumps({"runs": runs}).encode())
        if call.argv[0] == "sbatch":
            return Result(call.argv, 0, err=b"sbatch: Job 7 to start at 2026-11-30T09:37:05")
        assert "probe" in words, f"unplanned: {call.argv}"
        answer = {"python": "3.11.1", "torch": "2.13.0", "cpus": 8, "gpus": [], "free_bytes": 1 << 40, "unix": 0.0}
        return Result(call.argv, 0, json.dumps({**answer, "peers": {}, "port": 4711, "have": []}).encode())

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        """A program of ours on a node: it answers what `nexa env prune` would remove."""
        made = {"python": "3.11.7", "torch": "2.13.0", "what": "requirements.txt"}
        row = {"name": "0123456789abcdef", "bytes": 3 << 30, "used_unix": 1.0, "busy": False, "made": made}
        self.calls.append(Call(tuple(argv), stdin, {}))
        answer = {"answer": {"removed": [row], "free_bytes": 5 << 30}}
        return Stream(io.BytesIO(json.dumps(answer).encode() + b"\n"), lambda: None, lambda _: None)


class Desk:
    """A workspace in which every verb finds something, and the runners of the dry runs in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.runners = root, list[DryRunner]()
        for name, text in FILES.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text.replace("ROOT", str(root)))
        (root / "lab.yaml").write_text(FILES["local.yaml"].replace("new", "lab"))
        trust.claim(root)
        folder = Workspace(root).cluster("lab")
        (folder.path / "ssh").mkdir(parents=True)
        folder.json.write_text(json.dumps(LAB.to_json()))
        (folder.path / "config.json").write_text(
            json.dumps({"name": "lab", "provider": "local", "nodes": 2, "gpus_per_node": 2})
        )
        folder.ledger("budget", usd=10.0, by="file")
        self.record([ATTEMPT])

    def record(self, attempts: list[dict[str, Any]]) -> None:
        run = {
            "version": 1, "run_id": RUN, "config_file": "train.yaml",
            "config": {"name": "first", "script": "script.py"},
            "cluster": LAB.to_json(), "nodes": {name: {"run_dir": f"/r/{RUN}"} for name in ("n0", "n1")},
            "attempts": attempts,
        }  # fmt: skip
        path = self.root / "runs" / RUN / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))

    def seen(self) -> dict[str, Any]:
        """Every file with its content, mode and time."""
        paths = [path for path in self.root.parent.rglob("*") if not path.is_socket()]
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in paths
        }

    def calls(self) -> list[Call]:
        return [call for runner in self.runners for call in runner.calls]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    root = tmp_path / "project"
    root.mkdir()
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "HOME" / ".terraformrc").touch()
    monkeypatch.setenv("NEXA_TERRAFORM", sys.executable)  # which only has to be there: nobody starts it
    monkeypatch.delenv("NEXA_WORKSPACE", raising=False)
    made = Desk(root)

    def runner(_: object) -> DryRunner:
        made.runners.append(DryRunner(Nodes()))
        return made.runners[-1]

    monkeypatch.setattr(fake, "DryRunner", runner)
    for name in ("run_logged", "stream"):
        monkeypatch.setattr(Runner, name, lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.chdir(root)
    before = os.umask(0o022)
    yield made
    os.umask(before)


def dry(desk: Desk, words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a dry run says; that it changed nothing is seen to here."""
    before = desk.seen()
    code = main([*words.split(), "--dry-run"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert desk.seen() == before
    assert [call.argv for call in desk.calls() if not only_reads(call.argv) or PUT in shlex.split(call.argv[-1])] == []
    return told.out + told.err


def test_every_verb_either_reads_or_has_a_dry_run() -> None:
    assert set(CASES) == ACTS
    verbs = next(action for action in parser()._actions if action.dest == "verb").choices
    assert verbs and set(verbs) == ACTS | READING
    assert {name for name, verb in dict(verbs).items() if "--dry-run" in verb.format_help()} == ACTS


@pytest.mark.parametrize(
    "words, said", [case for verb in CASES if verb not in ("sweep", "image") for case in CASES[verb]]
)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str], words: str, said: tuple[str, ...]
) -> None:
    told = dry(desk, words, capsys)
    for part in said:
        assert part.format(root=desk.root, state=trust.state()) in told
    assert words.split()[0] in ("init", "trust") or desk.runners


def test_a_run_that_is_begun_again_is_shown_from_its_checkpoint(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.record([ENDED])
    told = dry(desk, f"run --resume {RUN}", capsys)
    places = [f"/home/u/s/{RUN}/checkpoints/step_00000040"] * 2
    assert [line for line in told.splitlines() if "step 40" in line] and all(place in told for place in places)
    assert not (desk.root / "runs" / RUN / "lock").exists()


def test_a_program_that_acts_is_not_started_by_a_dry_run() -> None:
    nodes = Nodes()
    runner = DryRunner(nodes)
    for argv in (
        ("ssh-keygen", "-f", "k"),
        ("terraform", "apply"),
        ("ssh", "n0", "rm -rf /r"),
        ("ssh", "n0", "x start"),
    ):
        with pytest.raises(Exception, match="a dry run does not start"):
            runner.run(argv)
    with pytest.raises(AssertionError):
        runner.stream(("ssh", "n0", "tar -cf - ."))
    assert nodes.calls == [] and len(runner.calls) == 4
    assert put_agent.__doc__ and only_reads(("ssh", "n0", shlex.join(("sh", "-c", PUT, "sh"))))


def test_a_fake_answers_in_order_and_refuses_the_rest() -> None:
    runner, lines = FakeRunner(Result((), 0, b"a\nb\n"), otherwise=None), list[str]()
    done = runner.run_logged(("x",), Path("log"), on_line=lines.append, hold=Path("hold"), timeout_s=1.0)
    assert done.code == 0 and lines == ["a", "b"]
    with pytest.raises(AssertionError, match="unplanned"):
        runner.run(("y",))
    assert [call.argv for call in runner.calls] == [("x",), ("y",)]
