"""nexa pull and the question of nexa teardown, against real agents: only ssh is a stand-in, which starts them here."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.cli import main
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.checkpoints import rescue, spread_checkpoint
from nexa_dist.ops.runs.finish import finish_again
from nexa_dist.ops.work import come, results
from nexa_dist.run import trust
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.run.workspace import RunFolder, Workspace
from nexa_dist.train import checkpoint
from tests import shards

RUN = "train_20260101_000000_x"
SSH = """#!/bin/sh
case " $* " in *" -Oexit "*|*" -G "*) exit 0;; esac
while [ "$1" != -- ]; do shift; done
[ -d "$NODES/$2" ] || { echo "ssh: no route to host" >&2; exit 255; }
HOME=$NODES/$2 exec sh -c "$3"
"""


class Lab:
    """A workspace with a cluster of two nodes and one run that has ended."""

    def __init__(self, root: Path, provider: str = "local") -> None:
        self.root, self.nodes = root / "project", root / "nodes"
        layout = Layout(sys.executable, "~/s", "~/h", "~/d")
        nodes = tuple(Node(f"n{n}", f"198.51.100.{n + 1}", 1) for n in range(2))
        self.cluster = Cluster("lab", provider, nodes, layout, str(root / "ssh_config"))  # type: ignore[arg-type]
        (root / "ssh_config").touch()
        (root / "bin").mkdir()
        (root / "bin" / "ssh").write_text(SSH)
        (root / "bin" / "ssh").chmod(0o755)
        self.root.mkdir()
        trust.claim(self.root)
        folder = Workspace(self.root).cluster("lab")
        folder.path.mkdir(parents=True)
        folder.json.write_text(json.dumps(self.cluster.to_json()))
        (folder.path / "config.json").write_text(json.dumps({"name": "lab", "provider": provider, "nodes": 2}))
        self.run = RunFolder(self.root / "runs" / RUN)
        self.run.path.mkdir(parents=True)
        for node in ("n0", "n1"):
            (self.on(node) / "work").mkdir(parents=True)
        attempt = {
            "attempt": 1, "state": "completed", "started_unix": 1.0, "ended_unix": 2.0, "world_size": 2, "rdzv": "x:1",
            "next": {"action": "done"},
        }  # fmt: skip
        record = {
            "run_id": RUN, "cluster": self.cluster.to_json(), "attempts": [attempt],
            "config": {"name": "x", "script": "x.py", "outputs": ["figures/**", "*.csv"]},
            "nodes": {node: {"run_dir": str(self.on(node))} for node in ("n0", "n1")},
        }  # fmt: skip
        self.run.json.write_text(json.dumps(record))

    def on(self, node: str) -> Path:
        return self.nodes / node / "s" / RUN

    def wrote(self, node: str, **files: str) -> None:
        for name, text in files.items():
            path = self.on(node) / "work" / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def saved(self, step: int, text: str = "weights", node: str = "n0") -> Path:
        def fill(folder: Path) -> None:
            for name in ("a", "b"):
                (folder / name).write_text(text)

        return checkpoint.write(self.on(node) / "checkpoints", step, fill, {})

    def there(self, folder: Path | None = None) -> dict[str, str]:
        top = (folder or self.run.path) / "outputs"
        return {path.relative_to(top).as_posix(): path.read_text() for path in top.rglob("*") if path.is_file()}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("NODES", str(tmp_path / "nodes"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    monkeypatch.delenv("NEXA_WORKSPACE", raising=False)
    made = Lab(tmp_path)
    monkeypatch.chdir(made.root)
    return made


Said = pytest.CaptureFixture[str]


def nexa(capsys: Said, *words: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr."""
    capsys.readouterr()
    found = main(words)
    told = capsys.readouterr()
    assert found == code, told.err
    return told.out, told.err


def pulled(capsys: Said, *words: str) -> Any:
    return json.loads(nexa(capsys, "pull", *words, "--json")[0])


def test_a_run_comes_from_its_nodes_and_a_second_pull_brings_what_is_new(lab: Lab, capsys: Said) -> None:
    lab.wrote("n0", figures__a="1", figures__same="s", t_dot_csv="n0's", model="m")
    lab.wrote("n1", figures__b="2", figures__same="s", t_dot_csv="n1's")
    (lab.on("n0") / "result.json").write_text('{"model": "tiny"}')
    lab.saved(2)
    lab.saved(4)
    said = nexa(capsys, "pull", "--dry-run")[1]
    assert "would bring: the checkpoint of step 4 from n0 (14 B)" in said and not lab.there()
    told = pulled(capsys)
    mine = {"figures/a": "1", "figures/same": "s", "t.csv": "n0's", "figures/b": "2", "n1/t.csv": "n1's"}
    assert lab.there() == mine
    assert told["unnamed"] == {"count": 1, "bytes": 1} and told["failed"] == told["silent"] == {}
    paths = [Path(row["path"]) for row in told["files"]]
    assert len(paths) == 6 and all(path.is_file() for path in paths)
    assert told["checkpoint"]["step"] == 4 and not checkpoint.verify(Path(told["checkpoint"]["path"]))
    assert json.loads((lab.run.path / "result.json").read_text()) == {"model": "tiny"}
    assert not (lab.run.path / ".part").exists()
    (lab.run.path / "pulled.json").unlink()  # a pull that was killed before it had noted what it put there
    pulled(capsys)
    assert lab.there() == mine

    lab.wrote("n0", figures__a="changed", new_dot_csv="new")
    (lab.run.path / "outputs" / "t.csv").write_text("a note of the user's")
    lab.wrote("n0", t_dot_csv="n0 again")
    pulled(capsys, RUN, "--all")
    assert lab.there() == {
        **mine, "figures/a": "changed", "new.csv": "new", "model": "m", "t.csv": "n0 again",
        "t.csv~": "a note of the user's",
    }  # fmt: skip
    assert pulled(capsys, "", "out", "--all")["unnamed"]["count"] == 0
    assert lab.there(lab.root / "out")["model"] == "m"


def test_a_checkpoint_by_its_step_and_none_that_is_damaged(lab: Lab, capsys: Said) -> None:
    lab.saved(2)
    newest = lab.saved(4)
    (newest / "b").write_text("weighty")  # as long as before
    assert nexa(capsys, "pull", "--checkpoint", "3", code=2)[1].endswith("hint: there are: 2, 4\n")
    assert "neither 'newest' nor a step" in nexa(capsys, "pull", "--checkpoint", "x", code=2)[1]
    half = lab.run.path / ".part" / "half"
    half.parent.mkdir()
    half.write_text("of a file that another pull goes on with")
    assert "b: " in nexa(capsys, "pull", "--checkpoint", "4", code=1)[1]
    assert half.exists()
    told = pulled(capsys)
    assert not half.exists(), "all that is wanted is here"
    assert told["checkpoint"]["step"] == 2 and not (lab.run.path / "checkpoints" / "step_00000004").exists()


def test_what_is_nowhere_else_is_not_ended_unasked(lab: Lab, capsys: Said) -> None:
    lab.saved(4)
    lab.wrote("n0", figures__a="1")
    lab.wrote("n1", model="mm")
    began = time.monotonic()
    for words in (("-y",), ()):
        said = nexa(capsys, "teardown", *words, code=2)[1]
        assert f"{RUN}: the checkpoint of step 4 (14 B); 1 file (1 B): figures/a; not named in outputs: 1 file" in said
        assert "--keep-nothing gives it up" in said
    assert time.monotonic() - began < 30
    pulled(capsys)
    said = nexa(capsys, "teardown", "-y", code=2)[1]
    assert f"{RUN}: not named in outputs: 1 file (2 B): model\n" in said
    pulled(capsys, "", "out", "--all")
    assert "would lose" not in nexa(capsys, "teardown", "--dry-run")[1]
    shutil.rmtree(lab.root / "out")
    lab.saved(6)
    said = nexa(capsys, "teardown", "--dry-run")[1]
    assert f"would lose: {RUN}: the checkpoint of step 6 (14 B); not named in outputs: 1 file (2 B): model" in said


def test_a_sharded_checkpoint_comes_from_its_nodes_together_and_counts_only_then(lab: Lab, capsys: Said) -> None:
    roots = [lab.on(node) / "checkpoints" for node in ("n0", "n1")]
    for root, names in zip(roots, (shards.NAMES[:2], shards.NAMES[2:]), strict=True):
        shards.write(root, names, 4)
    shards.write(roots[0], shards.NAMES[:2], 6)
    shards.write(roots[1], shards.NAMES[2:], 6, text="another save")
    said = nexa(capsys, "teardown", "-y", code=2)[1]
    assert f"{RUN}: the checkpoint of step 4 (16 B)\n" in said
    assert "step 4 from n0, n1 (16 B)" in nexa(capsys, "pull", "--dry-run")[1]
    told = pulled(capsys)["checkpoint"]
    assert (told["step"], told["from"]) == (4, "n0, n1")
    mine = Path(told["path"])
    assert checkpoint.verify(mine) == [] and checkpoint.digest(mine) == told["sha256"]
    assert {name: (mine / name).read_text() for name in shards.NAMES} == {name: f"{name}x" for name in shards.NAMES}
    assert "would lose" not in nexa(capsys, "teardown", "--dry-run")[1]
    assert pulled(capsys)["checkpoint"]["step"] == 4 and not (lab.run.path / ".part").exists()

    shards.write(roots[1], shards.NAMES, 6)  # one node has it all, and the other a part
    assert pulled(capsys)["checkpoint"]["from"] == "n1"
    (roots[1] / "step_00000006" / "b_2").write_text("as long"[:4])  # damaged: of the same size
    shutil.rmtree(lab.run.path / "checkpoints")
    assert "step 6 from n1: b_2: " in nexa(capsys, "pull")[1]


def test_shards_that_only_a_leaving_node_has_go_to_one_that_stays(lab: Lab) -> None:
    roots = [lab.on(node) / "checkpoints" for node in ("n0", "n1")]
    shards.write(roots[0], shards.NAMES[:2], 4)
    shards.write(roots[1], shards.NAMES[2:], 4)
    said: list[str] = []
    ctx, record = Context(Workspace(lab.root), Runner(), said.append), lab.run.load()
    with session(ctx.runner, lab.cluster) as ssh:
        links = connect(ssh)
        rescue(ctx, links, record, ["n1"])
        shutil.rmtree(lab.nodes / "n1")
        (lab.nodes / "n1").mkdir()  # made anew
        found = spread_checkpoint(ctx, links, record)
    made = roots[0] / "step_00000004"
    assert found == (4, {"n0": str(made), "n1": f"{lab.on('n1')}/checkpoints/step_00000004"}), said
    assert checkpoint.verify(made) == [] and set(shards.NAMES) < set(checkpoint.names(made))
    assert not [line for line in said if "warning" in line]


def test_a_silent_node_keeps_nothing_alive_and_one_is_enough_for_a_pull(lab: Lab, capsys: Said) -> None:
    lab.wrote("n0", figures__a="1")
    lab.wrote("n1", figures__b="2")
    shutil.rmtree(lab.nodes / "n1")
    told = pulled(capsys)
    assert lab.there() == {"figures/a": "1"} and "no route to host" in told["silent"]["n1"]
    said = nexa(capsys, "teardown", "--dry-run")[1]
    assert "would lose" not in said
    shutil.rmtree(lab.nodes / "n0")
    assert "nothing of" in nexa(capsys, "pull", code=1)[1]


def test_a_cluster_that_is_gone_leaves_what_lies_in_its_durable_folder(lab: Lab, capsys: Said) -> None:
    durable = lab.root.parent / "durable"
    record = json.loads(lab.run.json.read_text())
    record["cluster"]["layout"]["durable"] = str(durable)
    lab.run.json.write_text(json.dumps(record))
    checkpoint.copy(lab.saved(6), durable / RUN / "checkpoints")
    shutil.rmtree(Workspace(lab.root).cluster("lab").path)
    said = nexa(capsys, "pull", "", "out")[1]
    assert "n0 is gone: cluster lab was torn down" in said and "step 6 in out/checkpoints/step_00000006" in said
    assert checkpoint.verify(lab.root / "out" / "checkpoints" / "step_00000006") == []
    shutil.rmtree(durable)
    assert "nothing of" in nexa(capsys, "pull", code=1)[1]


def test_what_comes_by_itself_is_bounded_and_the_rest_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.wrote("n0", figures__a="1", figures__large="large", model="m")
    lab.wrote("n1", figures__b="2")
    said: list[str] = []
    ctx, record = Context(Workspace(lab.root), Runner(), said.append), lab.run.load()
    monkeypatch.setattr(come, "BY_ITSELF_BYTES", 4)
    with session(ctx.runner, lab.cluster) as ssh:
        links = connect(ssh)
        told = come.come(ctx, lab.run, links, record, short=False)
        assert lab.there() == {"figures/a": "1", "figures/b": "2"}
        assert told["files"] == {"count": 2, "bytes": 2} and told["later"] == {"count": 1, "bytes": 5}
        assert (told["unnamed"]["count"], told["failed"]) == (1, 0) and told["folder"] == f"runs/{RUN}/outputs"
        assert said[1:] == [
            f"too much to come by itself: 1 file (5 B): figures/large; nexa pull {RUN} brings it",
            f"written, and not named in outputs: 1 file (1 B): model; nexa pull {RUN} --all brings it",
        ]
        monkeypatch.setattr(come, "BY_ITSELF_BYTES", 100)
        monkeypatch.setattr(come, "BY_ITSELF_S", 0.0)
        monkeypatch.setenv("NODES", "/nowhere")
        assert come.come(ctx, lab.run, links, record, short=False) == {}, "no node answers: the run ends all the same"
        assert len([line for line in said if "did not come: node n" in line]) == 2
        with results.pulling(lab.run):
            assert come.come(ctx, lab.run, links, record, short=True) == {}
    assert "is in use" in said[-1] and f"the outputs of {RUN} did not come" in said[-1]


def test_what_a_killed_controller_had_not_brought_comes_once(lab: Lab) -> None:
    lab.wrote("n0", figures__a="1")
    said: list[str] = []
    ctx, record = Context(Workspace(lab.root), Runner(), said.append), lab.run.load()
    lab.run.manifest.parent.mkdir(parents=True)
    lab.run.manifest.write_text('{"checkpoint": {"path": "p", "step": 3}}')
    with session(ctx.runner, lab.cluster) as ssh:
        for _ in range(2):
            finish_again(ctx, lab.run, connect(ssh), record)
    told = json.loads(lab.run.manifest.read_text())
    assert lab.there() == {"figures/a": "1"} and told["outputs"]["files"] == {"count": 1, "bytes": 1}
    assert told["checkpoint"]["step"] == 3 and len([line for line in said if line.startswith("outputs: ")]) == 1


def whole(lab: Lab, sizes: dict[str, bytes]) -> None:
    """Whatever is in its place is all of it."""
    for name, data in sizes.items():
        path = lab.run.path / "outputs" / name
        assert not path.exists() or path.read_bytes() == data, name
    for path in (lab.run.path / "checkpoints").glob("step_*"):
        assert checkpoint.verify(path) == []


def test_killed_anywhere_the_next_one_goes_on_and_nothing_torn_is_in_its_place(lab: Lab) -> None:
    comes_whole(lab, kills=3)


@pytest.mark.long("the same with more kills")
def test_killed_many_times_it_comes_whole(lab: Lab) -> None:
    comes_whole(lab, kills=40)


def comes_whole(lab: Lab, kills: int) -> None:
    chance = random.Random(kills)
    sizes = {f"figures/{n}": chance.randbytes(chance.choice((0, 1, 3 << 20))) for n in range(8)}
    for name, data in sizes.items():
        path = lab.on("n0") / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def fill(folder: Path) -> None:
        for n in range(4):
            (folder / str(n)).write_bytes(bytes([n]) * (3 << 20))

    checkpoint.write(lab.on("n0") / "checkpoints", 8, fill, {})
    command = [sys.executable, "-m", "nexa_dist", "pull"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(kills):
        child = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0.2, 1.5))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        whole(lab, sizes)
    assert subprocess.run(command, env=env, stderr=subprocess.DEVNULL).returncode == 0
    whole(lab, sizes)
    assert {path.name for path in (lab.run.path / "outputs" / "figures").iterdir()} == {n[8:] for n in sizes}
    assert (lab.run.path / "checkpoints" / "step_00000008").is_dir() and not (lab.run.path / ".part").exists()
