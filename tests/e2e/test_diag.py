"""nexa diag on a local cluster: what it says, what it keeps from running, and the machine that is put in the place of a
bad one. The GPU that is missing is told by a stand-in for nvidia-smi in the node's home; the taken port is real."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nexa_dist.ops.providers.local import free_port
from nexa_dist.run import files
from tests.e2e.conftest import NO_TORCH, Lab, everything_of, until

pytestmark = pytest.mark.e2e

HELLO = "import os\nprint('hello from', os.environ['RANK'])\n"
ONE_GPU = """#!/bin/sh
case "$*" in
*nvlink*) ;;
*) echo '0, NVIDIA T4, 580.95.05, 15360, 00000000:00:1E.0, 30, 0, 0x0000000000000001' ;;
esac
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("diag") / "own lab")
    made.root.mkdir()
    port = free_port("127.0.0.1")
    made.write(
        "c.yaml",
        f"name: own\nprovider: local\nnodes: 2\ngpus_per_node: 2\nprice_usd_per_hour: 3.6\nrdzv_port: {port}\n",
    )
    try:
        made.nexa("provision", "--cluster", "c.yaml", timeout_s=400)
        yield made
    finally:
        made.nexa("teardown", "-y", "--keep-nothing")
    until(lambda: not everything_of(made.root), f"nothing of {made.root} is left")


@contextlib.contextmanager
def one_gpu_short(home: Path, keep: bool = False) -> Iterator[None]:
    """On the node with this home nvidia-smi tells of one GPU, until the end of the block or (`keep`) of the node."""
    if not pwd.getpwuid(os.getuid()).pw_shell.endswith("bash"):
        pytest.skip("the stand-in for nvidia-smi is put on PATH by ~/.bashrc, which only bash reads")
    (home / "bin").mkdir()
    (home / "bin" / "nvidia-smi").write_text(ONE_GPU)
    (home / "bin" / "nvidia-smi").chmod(0o755)
    (home / ".bashrc").write_text("PATH=$HOME/bin:$PATH\n")
    try:
        yield
    finally:
        if not keep:
            (home / ".bashrc").unlink()
            shutil.rmtree(home / "bin")


def folder(lab: Lab) -> Path:
    return lab.root / ".nexa" / "clusters" / "own"


def cluster(lab: Lab) -> dict[str, Any]:
    return dict(json.loads((folder(lab) / "cluster.json").read_text()))


@pytest.mark.long("test_region.py has it")
def test_a_provision_ends_with_a_diagnosis_that_is_kept(own: Lab) -> None:
    verdict = json.loads((folder(own) / "diag.json").read_text())
    assert verdict["ok"] and set(verdict["nodes"]) == {"n0", "n1"}
    assert verdict["test"]["busbw_gb_s"] > 0
    assert (folder(own) / "diag" / verdict["report"]).exists()


@pytest.mark.long("two diagnoses more")
def test_it_says_what_every_node_has_and_draws_the_pairs(own: Lab) -> None:
    report = own.json("diag", "own", "--picture", "pairs.svg", timeout_s=600)
    assert report["ok"] and not report["deep"]
    for name in ("n0", "n1"):
        said = report["facts"][name]
        assert said["environment"]["torch"] and said["peers"] and abs(said["skew_s"]) < 5
    matrix = report["test"]["matrix"]
    assert matrix[0][1] > 0 and matrix[1][0] > 0
    drawn = ElementTree.parse(own.root / "pairs.svg")
    assert "n0" in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    said = own.nexa("diag", "--deep")
    assert "n0\t" in said.stdout and "2 nodes are fit" in said.stderr
    until(lambda: not [line for line in everything_of(own.root) if "bandwidth" in line], "the group test is gone")


def test_an_unfit_node_is_named_and_a_run_is_refused_until_it_is_fit(clean: Lab) -> None:
    train = clean.script("hello", HELLO, **NO_TORCH)
    with one_gpu_short(clean.root / ".nexa" / "clusters" / "lab" / "nodes" / "n1" / "home"):
        said = clean.nexa("diag", code=1).stderr
        assert "error: n1: gpu missing: 1 GPUs (expected: 2 GPUs)" in said
        refused = clean.nexa("run", train, code=1).stderr
        assert "n1: gpu missing: " in refused and "hint: nexa diag looks again" in refused
        refused = clean.nexa("run", train, "--ignore-diag", code=1).stderr
        assert (
            "n1: 1 GPUs found, 2 promised, and 2 ranks want one each (nproc_per_node: 1 in train.yaml fits)" in refused
        )
        clean.nexa("run", train, "--ignore-diag", "--set", "nproc_per_node=1")
    clean.nexa("diag", "--picture", "pairs.svg")
    drawn = ElementTree.parse(clean.root / "pairs.svg")
    assert "n0" in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    clean.nexa("run", train)


@pytest.mark.long("variant of a fault: a port that is taken")
def test_a_taken_port_is_named_and_a_run_is_refused_until_it_is_free(own: Lab) -> None:
    train = own.script("hello", HELLO, **NO_TORCH)
    first = cluster(own)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((first["nodes"][0]["address"], int(first["rdzv"].rpartition(":")[2])))
        taken.listen()
        said = own.nexa("diag", code=1)
        assert "error: n0: port: " in said.stderr and "Address already in use" in said.stderr
    refused = own.nexa("run", train, code=1)
    assert "n0: port: " in refused.stderr and "hint: nexa diag looks again" in refused.stderr
    own.nexa("run", train, "--ignore-diag")
    assert "hello from 0" in own.log(0, "n0")
    own.nexa("diag")
    own.nexa("run", train)


@pytest.mark.long("test_region_kept.py has a bad node replaced on aws")
def test_a_bad_node_is_replaced_once_and_what_it_cost_is_written_down(own: Lab) -> None:
    home = folder(own) / "nodes" / "n1" / "home"
    with one_gpu_short(home, keep=True):
        pass
    said = own.nexa("diag", code=1).stderr
    assert "error: n1: gpu missing: 1 GPUs (expected: 2 GPUs)" in said
    kept = folder(own) / "nodes" / "n0" / "home" / "mine"
    kept.write_text("stays")
    provisioned = own.nexa("provision", "--cluster", "c.yaml", timeout_s=400).stderr
    assert "another machine in the place of n1 (gpu missing)" in provisioned
    assert kept.read_text() == "stays" and not home.joinpath(".bashrc").exists()
    told = [row for row in files.read_lines(folder(own) / "ledger.jsonl") if row["event"] == "replaced"]
    assert [(row["node"], row["causes"]) for row in told] == [("n1", ["gpu missing"])]
    assert told[0]["minutes"] > 0 and told[0]["usd"] > 0
    steps = [(row["step"], row["state"]) for row in files.read_lines(folder(own) / "journal.jsonl")]
    assert steps.count(("replace", "done")) == 1
    assert json.loads((folder(own) / "diag.json").read_text())["ok"]
