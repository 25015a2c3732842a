"""Checkpoints through real S3 calls (the AWS CLI against moto on this machine), and damage at a real resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from nexa_dist.train import checkpoint
from nexa_dist.train.env import RankEnv
from nexa_dist.train.keeper import Keeper
from tests.cloud.imds import Imds
from tests.cloud.types import HostSpec
from tests.e2e.conftest import REPO
from tests.processes.train.test_shards import ALL, Nodes, staged

SYNC = REPO / "scripts" / "run_sync.sh"
AWS = shutil.which("aws", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long("a hundred calls of the aws command; test_region.py has some on its nodes"),
]
needs_aws = pytest.mark.skipif(AWS is None, reason="the aws command is not here")
SPEC = HostSpec("i-1", "us-east-1", "us-east-1a", "vpc-1", "g5", "10.0.0.4", None, "10.0.0.0/20", b"", "", True, {})
SHARD_BYTES = 9 << 20
"""More than a part of a multipart upload."""


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def metadata_url() -> Iterator[str]:
    door = socket.create_server(("127.0.0.1", 0))
    service = Imds(door, SPEC, "02:00:00:00:00:01", lambda: None)
    yield f"http://127.0.0.1:{door.getsockname()[1]}"
    service.close()


class Bucket:
    """A bucket of its own for each test, as a node reaches it: with the keys of its instance profile alone."""

    def __init__(self, name: str, s3_url: str, metadata_url: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.s3: Any = boto3.client(
            "s3", endpoint_url=s3_url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.s3.create_bucket(Bucket=name)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "NEXA_"))}
        self.env |= {
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_url,
            "AWS_ENDPOINT_URL_S3": s3_url,
            "NEXA_BUCKET": f"s3://{name}/c1",
            "NEXA_PYTHON": sys.executable,
            "PYTHONPATH": str(REPO),
            "PATH": f"{Path(str(AWS)).parent}:{os.environ['PATH']}",
        }

    def begin(self, *words: str, attempt: int = 1, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SYNC), words[0], "r1", *words[1:]],
            env={**self.env, "NEXA_ATTEMPT": str(attempt), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def sync(self, *words: str, attempt: int = 1, code: int = 0) -> tuple[str, str]:
        child = self.begin(*words, attempt=attempt)
        said = child.communicate(timeout=600)
        assert child.returncode == code, said
        return said

    def names(self) -> list[str]:
        return [row["Key"] for row in self.s3.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def checkpoint(self, step: int) -> Path:
        def fill(path: Path) -> None:
            (path / "w").write_bytes(os.urandom(SHARD_BYTES))
            (path / "a b").mkdir()
            (path / "a b" / "c").write_text("c")

        return checkpoint.write(self.folder / "mine", step, fill, {"attempt": 1})


@pytest.fixture
def bucket(s3_url: str, metadata_url: str, tmp_path: Path) -> Bucket:
    return Bucket(f"b{os.urandom(6).hex()}", s3_url, metadata_url, tmp_path)


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@needs_aws
def test_the_whole_durable_tier_goes_without_what_is_only_half_there(bucket: Bucket, tmp_path: Path) -> None:
    tier = tmp_path / "tier"
    whole = ["r1/checkpoints/step_00000001/w", "r1/generation", "r2/result.json", "notes of mine.txt"]
    half = ["r1/checkpoints/.tmp-1-step_00000002-7/w", "r2/.tmp-result-7", "a.tmp", "r1/b.part", "c.lock"]
    for name in (*whole, *half):
        (tier / name).parent.mkdir(parents=True, exist_ok=True)
        (tier / name).write_text(name)
    (tmp_path / "outside").write_text("not of the tier")
    (tier / "link").symlink_to(tmp_path / "outside")

    def tiered(*words: str, code: int = 0) -> str:
        argv = ["bash", str(SYNC), "tier", str(tier), *words]
        done = subprocess.run(argv, env=bucket.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done
        return done.stdout

    assert "(dryrun)" in tiered("--dry-run") and bucket.names() == []
    tiered()
    assert sorted(bucket.names()) == sorted(f"c1/tier/{name}" for name in whole)
    (tier / "r2" / "result.json").unlink()
    assert tiered() == "" and len(bucket.names()) == len(whole)  # nothing new, and nothing is removed there
    tiered("--wrong", code=2)


def without_manifests(folder: Path) -> str:
    """A python beside which is an aws command that never comes to a manifest."""
    never = 'case "$*" in */manifest.json*) exec sleep 600 ;; esac'
    folder.mkdir()
    for name, lines in (("python", f'exec {sys.executable} "$@"'), ("aws", f'{never}\nexec {AWS} "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    return str(folder / "python")


@needs_aws
def test_a_killed_upload_leaves_no_checkpoint_and_damage_is_passed_over(bucket: Bucket) -> None:
    first, second = bucket.checkpoint(20), bucket.checkpoint(40)
    bucket.sync("push", str(first))
    child = bucket.begin("push", str(second), NEXA_PYTHON=without_manifests(bucket.folder / "bin"))
    until(lambda: any("step_00000040" in key for key in bucket.names()), "the upload has begun")
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=600)
    assert not any(key.endswith("step_00000040/g000001/manifest.json") for key in bucket.names())
    out, _ = bucket.sync("pull", str(bucket.folder / "one"))
    assert out.strip() == str(bucket.folder / "one" / "step_00000020")
    assert checkpoint.verify(Path(out.strip())) == []

    bucket.sync("push", str(second))
    shard = "c1/r1/checkpoints/step_00000040/g000001/w"
    body = bytearray((second / "w").read_bytes())
    body[1 << 20] ^= 1
    bucket.s3.put_object(Bucket=bucket.name, Key=shard, Body=bytes(body))
    out, err = bucket.sync("pull", str(bucket.folder / "two"))
    assert out.strip() == str(bucket.folder / "two" / "step_00000020")
    assert "w: its SHA-256 does not fit" in err and "step_00000040/g000001 is passed over" in err
    assert os.listdir(bucket.folder / "two") == ["step_00000020"]


@needs_aws
def test_what_was_put_over_a_checkpoint_is_not_taken(bucket: Bucket) -> None:
    """A node may put, not delete: damage, and another checkpoint that is whole in itself."""
    bucket.s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    mine = bucket.checkpoint(40)
    bucket.sync("push", str(mine))
    digest, folder = checkpoint.digest(mine), "c1/r1/checkpoints/step_00000040/g000001"
    bucket.s3.put_object(Bucket=bucket.name, Key=f"{folder}/a b/c", Body=b"damage")
    out, err = bucket.sync("pull", str(bucket.folder / "one"))
    assert checkpoint.digest(Path(out.strip())) == digest and "was written over" in err
    shutil.rmtree(mine)
    other = bucket.checkpoint(40)
    for file in (other / "w", other / "a b" / "c", other / "manifest.json"):
        bucket.s3.put_object(Bucket=bucket.name, Key=f"{folder}/{file.relative_to(other)}", Body=file.read_bytes())
    assert checkpoint.digest(other) != digest
    bucket.s3.put_object(Bucket=bucket.name, Key=f"{folder}/../../../x", Body=b"a way out")
    out, _ = bucket.sync("pull", str(bucket.folder / "two"))
    assert checkpoint.digest(Path(out.strip())) == digest and checkpoint.verify(Path(out.strip())) == []


@needs_aws
def test_an_attempt_that_nobody_began_locks_nobody_out(bucket: Bucket) -> None:
    lies = [f"c1/r1/generation/{lie}" for lie in ("999999", "104", "1" + "0" * 30, "18446744073709551617")]
    for lie in lies:  # each by itself, then all of them
        bucket.s3.put_object(Bucket=bucket.name, Key=lie, Body=b"")
        _, err = bucket.sync("fence", "1")
        assert "which nobody began: passed over" in err
        bucket.s3.delete_object(Bucket=bucket.name, Key=lie)
    for lie in lies:
        bucket.s3.put_object(Bucket=bucket.name, Key=lie, Body=b"")
    bucket.sync("push", str(bucket.checkpoint(20)), attempt=1)
    bucket.sync("fence", "3")
    _, err = bucket.sync("fence", "1", code=3)
    assert "says attempt 3" in err


@needs_aws
def test_an_older_generation_is_refused_and_old_ones_are_pruned(bucket: Bucket) -> None:
    first = bucket.checkpoint(20)
    assert bucket.sync("show")[0] == "null\n"
    bucket.sync("push", str(first))
    whole = json.loads(bucket.sync("list", "--json")[0])
    shown = {"step": 20, "uri": whole[0]["uri"], "sha256": checkpoint.digest(first)}
    assert json.loads(bucket.sync("show")[0]) == shown
    assert shown["uri"] == f"{bucket.env['NEXA_BUCKET']}/r1/checkpoints/step_00000020/g000001"
    assert [(row["step"], row["generation"]) for row in whole] == [(20, 1)]
    assert json.loads(bucket.sync("fence", "10")[0]) == {"step": 20}
    later = bucket.checkpoint(40)
    for words in (("push", str(later)), ("fence", "1")):
        _, err = bucket.sync(*words, attempt=1, code=3)
        assert "attempt 1 may write no checkpoint any more" in err
    assert not any("step_00000040" in key for key in bucket.names())
    bucket.sync("push", str(later), attempt=10)
    assert bucket.sync("list")[0] == "step 40 (attempt 10)\nstep 20 (attempt 1)\n"
    assert bucket.sync("prune", "1")[0] == "step_00000020\n"
    assert not any("step_00000020" in name for name in bucket.names())


@needs_aws
def test_rank_0_brings_its_checkpoints_to_the_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    names = {
        "NEXA_DURABLE_WAIT_S": "600",
        "NEXA_RUN_DIR": str(bucket.folder / "run"),
        "NEXA_RUN_ID": "r1",
        "NEXA_SYNC": str(SYNC),
    }
    keeper = Keeper(RankEnv.read("t", {**names, "NEXA_BUCKET": bucket.env["NEXA_BUCKET"], "NEXA_ATTEMPT": "3"}))
    keeper.begin()

    def fill(path: Path) -> None:
        (path / "w").write_bytes(b"weights")

    keeper.save(7, fill)
    assert keeper.finish().startswith("step 7 is durable")
    folder = "c1/r1/checkpoints/step_00000007/g000003"
    assert bucket.names() == [f"{folder}/manifest.json", f"{folder}/w", "c1/r1/generation/000003"]


@needs_aws
def test_each_node_brings_its_shards_and_the_manifest_comes_when_all_are_there(bucket: Bucket) -> None:
    part = bucket.folder / "part" / "step_00000010"
    part.mkdir(parents=True)
    (part / "rank_0.bin").write_bytes(b"0")
    bucket.sync("part", str(part))
    assert bucket.sync("show")[0] == "null\n"
    body = {"version": 1, "step": 10, "files": {name: {"bytes": 1} for name in ("rank_0.bin", "rank_1.bin")}}
    checkpoint.seal(part, body)
    _, err = bucket.sync("seal", str(part), code=1)
    assert "rank_1.bin is not what was uploaded" in err and bucket.sync("list", "--json")[0] == "[]\n"

    with staged() as stage:
        nodes = Nodes(bucket.folder, stage)
        names = {"NEXA_DURABLE_WAIT_S": "600", "NEXA_SYNC": str(SYNC)}
        out = nodes.run(["begin", 0], ["save", 20], ["finish", 20], attempt=3, **bucket.env | names)
        assert nodes.codes == [0] * 4 and "step 20 is durable" in nodes.said, nodes.said
        assert "warning" not in nodes.said, nodes.said
        folder = "c1/r1/checkpoints/step_00000020/g000003"
        assert {name for name in bucket.names() if "step_00000020" in name} == {
            f"{folder}/{name}" for name in (*ALL, checkpoint.MANIFEST)
        }
        assert out[0][2]["uri"] == f"s3://{bucket.name}/{folder.removesuffix('/')}"
        pulled = Path(bucket.sync("pull", str(bucket.folder / "node_0" / "checkpoints"))[0].strip())
        shutil.rmtree(bucket.folder / "node_1")
        assert pulled == nodes.step(0, 20) and not checkpoint.verify(pulled)
        assert nodes.run(["start"], attempt=4)[3] == [[20, str(nodes.step(1, 20))]], nodes.said


def test_a_resume_walks_back_over_damage_to_the_same_weights(tmp_path: Path) -> None:
    script = REPO / "configs" / "train" / "own_script.py"

    def train(run: str, steps: int) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("NEXA_", "RANK", "WORLD_SIZE"))}
        env |= {"PYTHONPATH": str(REPO), "NEXA_RUN_DIR": str(tmp_path / run), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, str(script), "--steps", str(steps), "--save-every", "10"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    whole = train("whole", 30)
    train("broken", 20)
    file = tmp_path / "broken" / "checkpoints" / "step_00000020" / "state.pt"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    said = train("broken", 30)
    assert "skipped checkpoint" in said and "state.pt: its SHA-256 does not fit" in said
    assert "resuming from step 10" in said
    assert weights(said) == weights(whole)
    os.truncate(tmp_path / "broken" / "checkpoints" / "step_00000030" / "state.pt", 1000)
    said = train("broken", 30)
    assert "state.pt: 1000 bytes, expected" in said and "resuming from step 20" in said
    assert weights(said) == weights(whole)


def weights(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("weights ")]
    return line
