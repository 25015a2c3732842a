"""Outputs in the bucket, from a node's own agent to `nexa pull` when the node is gone: the real aws command against the
emulated region."""

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

from nexa_dist.node import keep
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import come
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh.connections import connect, session
from nexa_dist.run.workspace import Workspace
from tests.processes.test_pull import RUN, Lab, Said, lab, nexa, pulled
from tests.unit.cloud_server import HOME, Emulated

__all__ = ["lab"]
REPO = Path(__file__).parents[2]


class Bucket:
    """A cluster with a bucket, and its nodes' agents."""

    def __init__(self, lab: Lab, emulated_region: Emulated) -> None:
        self.lab, self.name, self.s3 = lab, f"kept-{emulated_region.name()}", aws_client.client("s3", HOME)
        self.s3.create_bucket(Bucket=self.name)
        self.place = f"s3://{self.name}/c1"
        record = json.loads(lab.run.json.read_text())
        record["cluster"] |= {"bucket": self.place, "region": HOME}
        lab.run.json.write_text(json.dumps(record))
        folder = Workspace(lab.root).cluster("lab")
        folder.json.write_text(json.dumps(json.loads(folder.json.read_text()) | {"bucket": self.place, "region": HOME}))

    def keep(self, node: str, attempt: int = 1) -> dict[str, Any]:
        """What the daemon does on a node at the end of an attempt."""
        aws = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        env = {**aws, "NEXA_BUCKET": self.place, "NEXA_SYNC": str(REPO / "scripts" / "run_sync.sh")}
        named = {"named": ["figures/**", "*.csv"], "python": sys.executable}
        spec = {"run_id": RUN, "attempt": attempt, "node": node, "env": env, "outputs": named}
        (self.lab.on(node) / "spec.json").write_text(json.dumps(spec))
        return keep.keep(str(self.lab.on(node)), {"seconds": 60})

    def names(self) -> list[str]:
        rows = self.s3.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [row["Key"].partition(f"{RUN}/outputs/")[2] for row in rows]


@pytest.fixture
def bucket(lab: Lab, emulated_region: Emulated) -> Bucket:
    return Bucket(lab, emulated_region)


def test_outputs_of_a_node_that_is_gone_come_from_the_bucket(bucket: Bucket, lab: Lab, capsys: Said) -> None:
    lab.wrote("n0", figures__a="1", t_dot_csv="n0's")
    lab.wrote("n1", figures__b="2", t_dot_csv="n1's", figures__gone="in an older attempt", other="o")
    assert bucket.keep("n1") == {"files": 3, "bytes": 24, "later": 0, "later_bytes": 0, "why": ""}
    said = nexa(capsys, "teardown", "--dry-run")[1]
    assert "would lose" in said and "2 files (5 B): t.csv, figures/a" in said, "of n0 nothing was kept"
    assert "not named in outputs: 1 file (1 B): other" in said
    shutil.rmtree(lab.nodes / "n1")
    told = pulled(capsys)
    mine = {
        "figures/a": "1",
        "t.csv": "n0's",
        "figures/b": "2",
        "figures/gone": "in an older attempt",
        "n1/t.csv": "n1's",
    }
    assert lab.there() == mine and told["failed"] == {} and len(told["files"]) == 5
    assert not (lab.run.path / ".part").exists()


@pytest.mark.long("each call of the aws command takes a second")
def test_a_node_made_anew_lacks_what_the_bucket_has(bucket: Bucket, lab: Lab, capsys: Said) -> None:
    lab.wrote("n0", figures__a="1", figures__same="s")
    lab.wrote("n1", figures__old="of attempt 1", figures__log="1\n", figures__same="s")
    for node in ("n0", "n1"):
        bucket.keep(node)
    assert "would lose" not in nexa(capsys, "teardown", "--dry-run")[1]
    shutil.rmtree(lab.on("n1"))
    lab.wrote("n1", figures__log="1\n2\n", figures__new="of attempt 2")
    bucket.keep("n1", attempt=2)
    record = json.loads(lab.run.json.read_text())
    record["attempts"].append({**record["attempts"][0], "attempt": 2})
    lab.run.json.write_text(json.dumps(record))
    pulled(capsys, "", "live")
    expected = {"figures/a": "1", "figures/same": "s", "figures/old": "of attempt 1", "figures/log": "1\n2\n",
                "figures/new": "of attempt 2"}  # fmt: skip
    assert lab.there(lab.root / "live") == expected
    shutil.rmtree(lab.nodes)
    lab.nodes.mkdir()
    pulled(capsys, "", "dead")
    assert lab.there(lab.root / "dead") == expected
    pulled(capsys, "", "dead")
    assert lab.there(lab.root / "dead") == expected


@pytest.mark.long("each call of the aws command takes a second")
def test_what_comes_by_itself_comes_from_the_bucket_too(bucket: Bucket, lab: Lab) -> None:
    lab.wrote("n0", figures__a="1")
    lab.wrote("n1", figures__b="2")
    bucket.keep("n1")
    shutil.rmtree(lab.nodes / "n1")
    said: list[str] = []
    ctx, record = Context(Workspace(lab.root), Runner(), said.append), lab.run.load()
    with session(ctx.runner, record.cluster) as ssh:
        links = [connect(ssh, [record.cluster.nodes[0]])[0]]
        told = come.come(ctx, lab.run, links, record, short=False)
    assert lab.there() == {"figures/a": "1", "figures/b": "2"} and told["files"] == {"count": 2, "bytes": 2}, said


@pytest.mark.long("each call of the aws command takes a second")
def test_what_was_changed_in_the_bucket_is_not_taken_for_what_was_written(
    bucket: Bucket, lab: Lab, capsys: Said, emulated_region: Emulated
) -> None:
    lab.wrote("n1", figures__a="aaaa", figures__b="bbbb", figures__c="cccc")
    bucket.keep("n1")
    shutil.rmtree(lab.nodes / "n1")
    blobs = [key for key in bucket.names() if not key.endswith(".json")]
    prefix = f"c1/{RUN}/outputs/"
    bucket.s3.put_object(Bucket=bucket.name, Key=prefix + blobs[0], Body=b"evil")
    bucket.s3.delete_object(Bucket=bucket.name, Key=prefix + blobs[1])
    told = json.loads(nexa(capsys, "pull", "--json", code=1)[0])
    assert len(lab.there()) == 1 and set(lab.there().values()) < {"aaaa", "bbbb", "cccc"}
    assert sorted(told["failed"].values()) == [
        "the bucket has it no more",
        "what the bucket has is not what was written",
    ]
    for body in (b"no json", json.dumps({"files": [{"name": "../../x"}]}).encode()):
        bucket.s3.put_object(Bucket=bucket.name, Key=f"{prefix}n1/g000001.json", Body=body)
        assert "warning: outputs of n1 in the bucket are passed over: " in nexa(capsys, "pull", "", "again", code=1)[1]
    lab.wrote("n0", figures__d="d")
    emulated_region.control.rights(deny=["s3:PutObject"])
    told = bucket.keep("n0")
    assert told["later"] == 1 and "AccessDenied" in told["why"]


@pytest.mark.long("each call of the aws command takes a second")
def test_killed_at_any_moment_the_next_pull_brings_it_whole(bucket: Bucket, lab: Lab, capsys: Said) -> None:
    chance, sizes = random.Random(7), {}
    for n in range(6):
        path = lab.on("n1") / "work" / "figures" / str(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data := chance.randbytes(chance.choice((1, 100, 20 << 20))))
        sizes[str(n)] = data
    assert bucket.keep("n1")["why"] == ""
    shutil.rmtree(lab.nodes / "n1")
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "nexa_dist", "pull"]
    for _ in range(6):
        child = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(1.0, 8.0))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for path in (lab.run.path / "outputs").glob("figures/*"):
            assert path.read_bytes() == sizes[path.name]
    nexa(capsys, "pull")
    assert {path.name: path.read_bytes() for path in (lab.run.path / "outputs" / "figures").iterdir()} == sizes
    assert not (lab.run.path / ".part").exists()
