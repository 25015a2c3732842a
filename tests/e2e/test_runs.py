"""nexa run on a real cluster: ranks, failures, stops, dropped links, and nothing left after any of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pexpect
import pytest

from nexa_dist.run.files import held
from tests.e2e.conftest import NO_TORCH, REPO, Lab, environment, kill, runs, until

pytestmark = pytest.mark.e2e

REDUCE = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(total)
rank, world, node = dist.get_rank(), dist.get_world_size(), os.environ["NEXA_NODE"]
data = os.environ["NEXA_DATA"]
print(sorted(os.listdir(data + "/corpus")), open(data + "/words").read())
print("rank", rank, "of", world, "on", node, "sum", total.item(), sys.argv[1:])
open("left-by-rank-%d.txt" % rank, "w").write("relative paths work")
dist.destroy_process_group()
"""
# Three ranks wait quietly, as in an NCCL kernel: only the launcher can end them.
QUIET = """
import os, time
rank = int(os.environ["RANK"])
print("ready", flush=True)
while not os.path.exists(os.environ["NEXA_RUN_DIR"] + "/trigger"):
    time.sleep(0.05)
if rank == 2:
    print("the reason, last line", flush=True)
    raise SystemExit(9)
time.sleep(600)
"""
COUNT = """
import os, time
for i in range(400):
    while i in (100, 300) and not os.path.exists(os.environ["NEXA_RUN_DIR"] + "/trigger_%d" % i):
        time.sleep(0.05)
    print("line", i, flush=True)
    time.sleep(0.02)
"""


OWN = """
import os, sys, tomlkit, torch.distributed as dist
dist.init_process_group("gloo")
print("attempt", os.environ["NEXA_ATTEMPT"], "by", sys.executable, tomlkit.__version__, flush=True)
dist.barrier()  # one that is through would be gone for those that still meet
dist.destroy_process_group()
sys.exit(os.environ["NEXA_ATTEMPT"] == "1")
"""


def ready(lab: Lab, before: int) -> bool:
    if len(list((lab.root / "runs").glob("train_*"))) <= before:
        return False
    return all("ready" in lab.log(rank, f"n{rank // 2}") for rank in range(4))


def trigger(lab: Lab, *nodes: str, name: str = "trigger") -> None:
    for node in nodes:
        Path(lab.record()["nodes"][node]["run_dir"], name).touch()


def written(lab: Lab, rank: int) -> str:
    """The log of a rank on its node."""
    path = Path(lab.record()["nodes"][f"n{rank // 2}"]["run_dir"], f"rank_{rank}", "attempt_1.log")
    return path.read_text() if path.exists() else ""


def test_ranks_are_where_the_plan_says_and_arguments_arrive_as_they_are(clean: Lab) -> None:
    hostile = ["a b", "$(touch pwned)", "{{ 1 }}", "quote's \" `x`", "-oProxyCommand=x", "two\nlines", "ünï"]
    clean.write("corpus/a.txt", "some text")
    data = {"corpus": "corpus", "words": str(clean.root / "corpus/a.txt")}
    outputs = ["left-by-rank-[0-2].*"]
    train = clean.script("reduce", REDUCE, args=hostile, tags=["hello"], data=data, outputs=outputs)
    told = clean.nexa("run", train, "--rank", "all").stderr
    for rank in range(4):
        said = clean.log(rank, f"n{rank // 2}")
        assert f"rank {rank} of 4 on n{rank // 2} sum 15.0 {hostile!r}" in said and "['a.txt'] some text" in said
    assert not list(clean.root.rglob("pwned"))
    manifest = clean.manifest()
    assert (manifest["data"]["corpus"]["bytes"], manifest["data"]["words"]["single"]) == (9, "a.txt")
    jsonschema.validate(manifest, json.loads((REPO / "docs" / "manifest.schema.json").read_text()))
    assert (manifest["status"], manifest["hardware"]["world_size"]) == ("completed", 4)
    assert set(manifest["tags"]) == {"backend:script", "train", "hello"}
    assert [node["ranks"] for node in manifest["nodes"]] == [[0, 1], [2, 3]]
    attempt = manifest["attempts"][0]
    hours = (attempt["ended_unix"] - attempt["started_unix"]) / 3600
    assert manifest["gpu_hours"] == pytest.approx(4 * hours, rel=1e-3)
    assert manifest["cost_usd"] == pytest.approx(2 * 3.6 * hours, rel=1e-2)
    came = clean.newest() / "outputs"
    assert {path.name for path in came.iterdir()} == {f"left-by-rank-{rank}.txt" for rank in range(3)}
    assert (came / "left-by-rank-2.txt").read_text() == "relative paths work"
    assert manifest["outputs"]["files"] == {"count": 3, "bytes": 3 * 19}
    assert manifest["outputs"]["folder"] == os.path.relpath(came, clean.root)
    assert "written, and not named in outputs: 1 file (19 B): left-by-rank-3.txt" in told


@pytest.mark.long("a real resolve, and torch installed once more; the programs are tested with a uv that takes notes")
def test_packages_of_ones_own_are_built_once_and_kept_for_later_attempts(clean: Lab) -> None:
    clean.write("needs.txt", "tomlkit==0.13.2\nlightning==2.6.1\npackaging==20.0\n")
    refused = clean.nexa("run", clean.script("own", OWN, environment={"requirements": "needs.txt"}), code=2)
    assert "  needs.txt:2: lightning==2.6.1\n  needs.txt:3: packaging==20.0\n" in refused.stderr
    clean.write("needs.txt", "tomlkit==0.13.2\n")
    train = clean.script("own", OWN, environment={"requirements": "needs.txt"}, launcher="direct", restarts_per_hour=1)
    clean.nexa("run", train, "--rank", "all")
    manifest = clean.manifest()
    python = f"/envs/{manifest['environment']['hash']}/bin/python"
    assert "tomlkit==0.13.2" in manifest["environment"]["freeze"] and len(manifest["attempts"]) == 2
    for rank in range(4):
        assert re.search(rf"attempt 2 by \S+{python} 0\.13\.2", clean.log(rank, f"n{rank // 2}", attempt=2))
    again = clean.nexa("run", train, "--set", "restarts_per_hour=0", "--dry-run")
    assert f"{manifest['environment']['hash']} of needs.txt: there" in again.stderr
    assert manifest["environment"]["hash"] in clean.nexa("env").stdout


def test_the_launch_module_with_fewer_ranks_a_node(clean: Lab) -> None:
    clean.write(
        "who.py", "import os, sys\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], sys.argv[1:])\n"
    )
    words = ["--config", "lab", "--nproc-per-node", "1", "--", "who.py", "--flag"]
    launch = [sys.executable, "-m", "nexa_dist.launch", *words]
    done = subprocess.run(launch, cwd=clean.root, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "rank 1 of 2 ['--flag']" in clean.log(1, "n1")


def test_one_failing_rank_ends_all_and_is_named(clean: Lab) -> None:
    before = runs(clean)
    child = clean.begin("run", clean.script("quiet", QUIET))
    until(lambda: ready(clean, before), "four ranks are ready")
    trigger(clean, "n1")
    _, said = child.communicate(timeout=600)  # the other ranks would sleep for 600 s
    assert child.returncode == 1, said
    assert "failed: rank 2 on n1: exit code 9" in said
    assert "the reason, last line" in said
    assert "processes left: n0 0, n1 0" in said
    assert clean.manifest()["status"] == "failed"


VARIANT = pytest.mark.long("variant of a process that is killed")


@pytest.mark.parametrize("victim", ["agent", *(pytest.param(name, marks=VARIANT) for name in ("rank", "torchrun"))])
def test_a_killed_process_ends_the_run_everywhere(clean: Lab, victim: str) -> None:
    before = runs(clean)
    child = clean.begin("run", clean.script("quiet", QUIET))
    until(lambda: ready(clean, before), "four ranks are ready")
    run_dir = Path(clean.record()["nodes"]["n1"]["run_dir"])
    if victim == "agent":
        kill(json.loads((run_dir / "agent.pid").read_text())["pid"])
    else:
        events = [json.loads(line) for line in (run_dir / "agent.jsonl").read_text().splitlines()]
        torchrun = next(e["pid"] for e in events if e["event"] == "torchrun")
        ranks = [int(p) for p in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()]
        inner = [int(p) for p in Path(f"/proc/{ranks[0]}/task/{ranks[0]}/children").read_text().split()]
        kill(torchrun if victim == "torchrun" else inner[0])
    _, said = child.communicate(timeout=600)
    assert child.returncode == 1, said
    assert "n1" in said.split("✗")[1]
    assert "processes left: n0 0, n1 0" in said


def heard(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal."""
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


def test_at_a_terminal_an_interrupt_asks_once(clean: Lab) -> None:
    before = runs(clean)
    train = clean.script("quiet", QUIET)
    words = [sys.executable, "-m", "nexa_dist", "run", train]
    child = pexpect.spawn(words[0], words[1:], cwd=str(clean.root), env=environment(), timeout=600, encoding="utf-8")
    until(lambda: ready(clean, before), "four ranks are ready")
    child.sendintr()
    child.expect(r"\[d\] detach .*, \[s\] stop it: ")
    child.sendline("")  # Enter is no wish to stop
    child.expect("the run goes on")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert len(clean.processes()) >= 8
    assert "is busy with" in clean.nexa("run", train, code=2).stderr
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # nobody can be asked: a viewer leaves
        viewer = clean.begin("attach")
        until(lambda: held(clean.newest() / "lock"), "the run is in its hands")
        until(lambda seen=(viewer.pid, number): heard(*seen), "it hears signals")
        viewer.send_signal(number)
        _, said = viewer.communicate(timeout=600)
        assert viewer.returncode in ((0, 130) if number == signal.SIGINT else (130,)), said
        assert "the run goes on" in said and "error" not in said, said
    assert len(clean.processes()) >= 8
    supervisor = clean.begin("attach")
    until(lambda: held(clean.newest() / "lock"), "the run is supervised again")
    stopped = clean.json("stop", clean.newest().name, "--grace", "1")
    assert (stopped["state"], clean.manifest()["status"]) == ("stopped", "stopped")
    assert "stopped: stopped by the user" in supervisor.communicate(timeout=600)[1]
    why = clean.nexa("why").stdout
    assert "somebody stopped it" in why and "failed first" not in why
    assert stopped["left"] == {"n0": [], "n1": []}
    assert min(stopped["ended"].values()) >= 4


@pytest.mark.long("variant of the interrupt")
def test_without_a_terminal_an_interrupt_stops_the_run(clean: Lab) -> None:
    before = runs(clean)
    child = clean.begin("run", clean.script("quiet", QUIET, **NO_TORCH))
    until(lambda: ready(clean, before), "four ranks are ready")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 130, said
    assert "processes left: n0 0, n1 0" in said
    assert clean.manifest()["status"] == "stopped"


def test_dropped_connections_and_a_killed_controller_lose_and_repeat_nothing(clean: Lab, tmp_path: Path) -> None:
    before, said = runs(clean), tmp_path / "said"
    with said.open("w") as file:
        child = clean.begin("run", clean.script("count", COUNT, **NO_TORCH), "--rank", "0", stderr=file)
    until(lambda: runs(clean) > before and "line 20\n" in clean.log(0, "n0"), "lines come")
    dropped = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            if f"PPid:\t{child.pid}\n" in (path / "status").read_text() and b"follow" in words:
                os.kill(int(path.name), signal.SIGKILL)
                dropped += 1
        except OSError:
            continue
    assert dropped == 2
    so_far = len(clean.log(0, "n0").splitlines())
    trigger(clean, "n0", "n1", name="trigger_100")
    until(lambda: "[n0:0] line 299\n" in said.read_text(), "lines come again")
    child.kill()
    child.communicate()
    shown = [line for line in said.read_text().splitlines(keepends=True) if line.startswith("[n0:0]")]
    assert len(shown) > so_far and shown == [f"[n0:0] line {i}\n" for i in range(len(shown))]

    status = clean.json("status")
    assert {n["state"] for n in status["runs"][0]["nodes"].values()} == {"running"}
    reader = clean.begin("logs", "--follow", "--rank", "3")
    trigger(clean, "n0", "n1", name="trigger_300")
    clean.nexa("attach")
    lines, _ = reader.communicate(timeout=600)
    assert (reader.returncode, lines) == (0, "".join(f"[n1:3] line {i}\n" for i in range(400)))
    for rank in range(4):
        assert clean.log(rank, f"n{rank // 2}") == "".join(f"line {i}\n" for i in range(400))
    assert clean.manifest()["status"] == "completed"


@pytest.mark.long("variant: a node that cannot be reached")
def test_detach_logs_and_a_stop_that_cannot_reach_all(clean: Lab) -> None:
    before = runs(clean)
    run = clean.json("run", clean.script("quiet", QUIET), "--detach")["run"]
    until(lambda: all("ready" in written(clean, rank) for rank in range(4)), "ranks run")
    assert len(clean.processes()) >= 8
    assert runs(clean) == before + 1
    lines = [json.loads(line) for line in clean.nexa("logs", "--json", "--rank", "1,3").stdout.splitlines()]
    assert {(line["rank"], line["node"]) for line in lines} <= {(1, "n0"), (3, "n1")}
    assert clean.nexa("logs", "--grep", "no such line").stdout == ""
    config = clean.root / ".nexa" / "clusters" / "lab" / "ssh" / "ssh_config"
    good = config.read_text()
    first, second = sorted(set(re.findall(r"Port (\d+)", good)), key=good.index)
    try:
        config.write_text(good.replace(f"Port {second}", "Port 9"))
        said = clean.nexa("stop", run, "--grace", "1", code=4).stderr
        assert "node n1" in said
        assert clean.on_node("n0") == []
        assert len(clean.on_node("n1")) >= 4
        assert first
    finally:
        config.write_text(good)
    stopped = clean.json("stop", run, "--grace", "1")
    assert stopped["left"] == {"n0": [], "n1": []} and stopped["ended"]["n1"] >= 4
    assert {row["run"]: row["state"] for row in clean.json("runs")}[run] == "stopped"
    clean.nexa("attach", run, code=2)


def test_checks_come_before_anything_starts(clean: Lab) -> None:
    before = runs(clean)
    for text, expected in (
        ('{"name": "x", "script": "missing.py"}', "script missing.py does not exist"),
        ('{"name": "x", "script": "quiet.py", "nproc_per_node": 3}', "nproc_per_node is 3, but node n0 takes 2 ranks"),
    ):
        clean.script("quiet", QUIET)
        assert expected in clean.nexa("run", clean.write("bad.yaml", text), code=1).stderr
    assert runs(clean) == before


def test_a_wrong_host_key_is_refused(clean: Lab) -> None:
    known = clean.root / ".nexa" / "clusters" / "lab" / "ssh" / "known_hosts"
    good = known.read_text()
    first, second = good.splitlines()
    try:
        known.write_text(f"n0 {second.split(' ', 1)[1]}\nn1 {first.split(' ', 1)[1]}\n")
        said = clean.nexa("run", clean.script("nothing", "pass"), code=1).stderr
        assert "the host key is not the pinned one" in said
    finally:
        known.write_text(good)


@pytest.mark.long("matrix: torch in every rank")
@pytest.mark.parametrize("module", ["test_ops", "test_sync"])
def test_scripts_of_other_people_run_unchanged(clean: Lab, module: str) -> None:
    """accelerate's own multi-process checks travel in its wheel; nobody here wrote them."""
    text = {
        "name": "foreign",
        "module": f"accelerate.test_utils.scripts.{module}",
        "nproc_per_node": 1,
        "env": {"ACCELERATE_USE_CPU": "true"},
    }
    clean.nexa("run", clean.write("foreign.yaml", json.dumps(text)))
    assert clean.manifest()["status"] == "completed"
