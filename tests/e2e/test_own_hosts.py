"""The user's own hosts: a cluster.yaml that lists them, reached with the user's own ssh settings.

The hosts are the lab's sshds under other names; their addresses sort the wrong way on purpose, and nothing of
their folders is shared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import NO_TORCH, Lab

pytestmark = pytest.mark.e2e

WHO = """
from os import environ as e
print("rank", e["RANK"], "of", e["WORLD_SIZE"], "on", e["NEXA_NODE"], e["GLOO_SOCKET_IFNAME"], end=" ")
"""
# Each rank leaves a file beside itself, and fails while the code is of version 1.
MENDED = """
import pathlib, time, version
mine, all_there = pathlib.Path("by-rank-" + e["RANK"]), pathlib.Path(e["NEXA_SCRATCH"])
print(version.V, "after " + mine.read_text() if mine.exists() else "", flush=True)
mine.write_text(version.V)
(all_there / ("ready-" + e["RANK"])).touch()
while len(list(all_there.glob("ready-*"))) < 3:  # the first one that fails ends the others
    time.sleep(0.05)
raise SystemExit(version.V == "v1")
"""


@pytest.fixture
def hosts(clean: Lab) -> str:
    """A cluster.yaml of two own hosts with 2 and 1 ranks; the second node of the lab comes first."""
    ssh = clean.root / ".nexa" / "clusters" / "lab" / "ssh"
    nodes = {n["name"]: n for n in json.loads((ssh.parent / "cluster.json").read_text())["nodes"]}
    clean.write("own/ssh_config", (ssh / "ssh_config").read_text().replace("Host n", "Host 127.0.0.1? x"))
    listed = [
        {"host": nodes[name]["address"], "port": nodes[name]["port"], "gpus": gpus}
        for name, gpus in (("n1", 2), ("n0", 1))
    ]
    config = [f"Host {nodes[n]['address']}\n    HostKeyAlias {n}\n" for n in nodes]
    shared = (ssh / "ssh_config").read_text().split("Host *")[1]
    clean.write("own/ssh_config", "".join(config) + "Host *" + shared)
    cluster = {
        "cluster": listed,
        "backend": "torch.distributed",
        "ssh_config": "ssh_config",
        "python": sys.executable,
        "shared": "~/my shared",
    }
    return clean.write("own/own-hosts.yaml", json.dumps(cluster))


def test_ranks_follow_the_file_not_the_addresses(clean: Lab, hosts: str) -> None:
    """The hosts share their folders, as those with one home over NFS do; and the first attempt has to be mended."""
    nfs = clean.root / ".nexa" / "clusters" / "lab" / "nodes" / "n0" / "one home"
    config = {**json.loads((clean.root / hosts).read_text()), "scratch": f"{nfs}/scratch", "shared": f"{nfs}/shared"}
    both = clean.write("own/one-home.yaml", json.dumps(config))
    clean.write("version.py", 'V = "v1"')
    (clean.root / "afar").symlink_to("/nonexistent/data")
    train = clean.script("who", WHO + MENDED)
    said = clean.nexa("run", train, "--cluster", both, code=1).stderr
    assert "afar: a link out of the project, to /nonexistent/data (name it in files: of train.yaml)" in said
    assert "rank 0 of 3 on n0 lo v1" in clean.log(0, "n0")
    run_dirs = {n: Path(e["run_dir"]) for n, e in clean.record()["nodes"].items()}
    assert run_dirs == {n: nfs / "scratch" / f"{clean.newest().name}.{n}" for n in ("n0", "n1")}
    clean.write("version.py", 'V = "v2"')  # of the same size, within the same second for all that Python knows
    clean.nexa("run", "--resume", clean.newest().name)
    assert "rank 0 of 3 on n0 lo v2 after v1" in clean.log(0, "n0", 2)
    assert "rank 2 of 3 on n1 lo v2 after v1" in clean.log(2, "n1", 2)
    assert (run_dirs["n1"] / "rank_2").is_dir() and (run_dirs["n1"] / "work" / "by-rank-2").read_text() == "v2"
    again = clean.nexa("run", "--resume", clean.newest().name, "--dry-run").stdout
    assert run_dirs["n1"].name in again and "# n1 (127.0.0.11): ranks 2 to 2 of 3" in again
    assert len(clean.record()["attempts"]) == 2
    printed = clean.nexa("run", train, "--cluster", hosts, "--print").stdout
    assert "--node_rank=0 --master_addr=127.0.0.12" in printed
    assert "# n1 (127.0.0.11): ranks 2 to 2 of 3" in printed
    assert "/nodes/n1/home/.nexa/scratch/train_dry_run.n0" in printed
    (clean.root / "afar").unlink()


@pytest.mark.long("with real ssh what tests/unit/run/ssh/test_connections.py and test_trust.py hold")
def test_settings_of_the_users_that_hurt_are_off_and_programs_need_consent(clean: Lab, hosts: str) -> None:
    file = clean.root / "own" / "ssh_config"
    hurt = "RequestTTY force", "RemoteCommand touch pwned", "ForwardAgent yes", "SendEnv *", "LogLevel QUIET"
    clean.write("own/ssh_config", "\n".join([file.read_text(), *hurt, "PermitLocalCommand yes"]) + "\n")
    clean.nexa("run", clean.script("who", WHO, **NO_TORCH), "--cluster", hosts)
    assert "rank 0 of 3 on n0 lo" in clean.log(0, "n0")
    clean.write("own/ssh_config", f"{file.read_text()}LocalCommand touch pwned\n")
    said = clean.nexa("run", "who.yaml", "--cluster", hosts, "--print", code=2).stderr
    assert "LocalCommand touch" in said and "hint: nexa trust " in said
    clean.nexa("trust", str(file))
    assert "# n1 (127.0.0.11)" in clean.nexa("run", "who.yaml", "--cluster", hosts, "--print").stdout
    assert not list(clean.root.rglob("pwned"))


@pytest.mark.long("variant of the rendezvous")
def test_c10d_is_refused_for_that_order_and_right_for_the_other(clean: Lab, hosts: str) -> None:
    config = json.loads((clean.root / hosts).read_text())
    wrong = clean.write("own/c10d.yaml", json.dumps({**config, "rdzv_backend": "c10d"}))
    train = clean.script("who", WHO)
    said = clean.nexa("run", train, "--cluster", wrong, code=1).stderr
    assert "c10d would order the nodes 127.0.0.11, 127.0.0.12" in said
    right = {**config, "rdzv_backend": "c10d", "cluster": config["cluster"][::-1]}
    clean.nexa("run", train, "--cluster", clean.write("own/c10d.yaml", json.dumps(right)))
    assert "rank 0 of 3 on n0 lo" in clean.log(0, "n0")


def test_hosts_that_were_not_provisioned_have_nothing_to_tear_down(clean: Lab, hosts: str) -> None:
    assert "nothing to tear down" in clean.nexa("teardown", "--cluster", hosts).stderr
    config = {**json.loads((clean.root / hosts).read_text()), "name": "lab"}
    same = clean.write("own/same.yaml", json.dumps(config))
    for verb in ("provision", "teardown"):  # the local cluster of that name would be taken for it
        said = clean.nexa(verb, "--cluster", same, "-y", code=2).stderr
        assert "cluster lab is there already, and it is of another provider's nodes" in said


@pytest.mark.long("variant: a host that is down")
def test_a_host_that_is_down_or_unknown_is_named(clean: Lab, hosts: str) -> None:
    config = json.loads((clean.root / hosts).read_text())
    config["cluster"].append({"host": "127.0.0.99", "port": 9, "gpus": 1})
    config["python"] = "/no/such/python"
    said = clean.nexa(
        "run", clean.script("who", WHO), "--cluster", clean.write("own/bad.yaml", json.dumps(config)), code=1
    )
    assert "node n2 (127.0.0.99)" in said.stderr
    config["cluster"].pop()
    said = clean.nexa(
        "run", clean.script("who", WHO), "--cluster", clean.write("own/bad.yaml", json.dumps(config)), code=1
    )
    assert "/no/such/python" in said.stderr
