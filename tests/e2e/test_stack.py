"""A cluster of the user's own Terraform stack, which this test writes into a folder and which shares no code with ours:
real Terraform, real sshds with homes and host keys of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab, until
from tests.e2e.test_bootstrap import BASE_PYTHON, env_folder

pytestmark = pytest.mark.e2e

MAIN = """
variable "node_names" { type = list(string) }
variable "ssh_public_key" { type = string }
variable "deadline_unix" { type = number }
variable "tags" { type = map(string) }
variable "root" { type = string }
variable "ports" { type = map(number) }
variable "ends_with" {
  type    = string
  default = "power_off"
}

resource "terraform_data" "machine" {
  for_each         = toset(var.node_names)
  triggers_replace = [each.key, var.ssh_public_key]
  input = {
    ROOT = "${var.root}/${each.key}"
    PORT = tostring(var.ports[each.key])
    KEY  = var.ssh_public_key
    WHO  = var.tags["nexa_cluster"]
  }
  provisioner "local-exec" {
    command     = "sh ${path.module}/machine.sh up"
    environment = self.input
  }
  provisioner "local-exec" {
    when        = destroy
    command     = "sh ${path.module}/machine.sh down"
    environment = self.input
  }
}

output "ends_with" { value = var.ends_with }

output "nodes" {
  value = [for name in var.node_names : {
    name         = name
    id           = terraform_data.machine[name].id
    address      = "127.0.0.1"
    port         = var.ports[name]
    gpus         = 1
    usd_per_hour = 1.8
    HOST_KEY
  }]
}
"""
GIVEN_KEY = 'host_key     = trimspace(file("${var.root}/keys/${name}.pub"))'
MACHINE = r"""set -eu
# A "machine": an sshd and all that its sessions start, known by STACK_MACHINE in the environment.
pids() { grep -lszx "STACK_MACHINE=$ROOT" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | grep -vx $$ || :; }
end() {
  for pid in $(pids) $(cat "$ROOT/pid" 2>/dev/null || :); do
    kill -CONT "$pid" 2>/dev/null || :
    kill -KILL "$pid" 2>/dev/null || :
  done
}
end; sleep 0.2; end
if [ "$1" = down ]; then rm -rf "$ROOT"; exit 0; fi
umask 077
mkdir -p "$ROOT/home/.nexa" /run/sshd
printf '%s\n' "$KEY" >"$ROOT/authorized"
cat >"$ROOT/config" <<CONFIG
ListenAddress 127.0.0.1
Port $PORT
HostKey $(dirname "$ROOT")/keys/$(basename "$ROOT")
AuthorizedKeysFile $ROOT/authorized
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM yes
StrictModes no
PidFile none
MaxStartups 100
PerSourcePenalties no
Subsystem sftp internal-sftp
SetEnv HOME=$ROOT/home STACK_MACHINE=$ROOT
ForceCommand cd "\$HOME"; exec sh -c "\$SSH_ORIGINAL_COMMAND"
CONFIG
sshd=$(command -v sshd || echo /usr/sbin/sshd)
"$sshd" -t -f "$ROOT/config" 2>/dev/null || sed -i /PerSourcePenalties/d "$ROOT/config"
env -i PATH="$PATH" setsid "$sshd" -D -f "$ROOT/config" >"$ROOT/log" 2>&1 </dev/null &
echo $! >"$ROOT/pid"
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1]) - 12000  # below those that the kernel gives away


@dataclass(frozen=True)
class Theirs:
    """The stack, the folder of its machines, and the workspace from which it is used."""

    lab: Lab
    stack: Path
    root: Path

    def file(self, **changes: object) -> str:
        ports = {"n0": free_port(), "n1": free_port()}
        config = {
            "name": "theirs", "provider": "stack", "stack": "../a stack", "nodes": 2, "gpus_per_node": 1,
            "max_hours": 2, "variables": {"root": str(self.root), "ports": ports}, "python": BASE_PYTHON,
            "shared": str(self.root / "shared"), "boot_timeout_s": 60,
        }  # fmt: skip
        made = {key: value for key, value in {**config, **changes}.items() if value is not None}
        return self.lab.write("theirs.yaml", json.dumps(made))

    def write(self, main: str = MAIN, key: str = GIVEN_KEY) -> None:
        (self.stack / "main.tf").write_text(main.replace("HOST_KEY", key))
        self.lab.nexa("trust", str(self.stack))

    def pids(self, *names: str) -> list[int]:
        """Of all machines, or of these: what their sessions started, and their sshds."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            except OSError:
                continue
            if any(f"{self.root}/{name}".encode() in words for name in names or ("n0", "n1")):
                found.append(int(path.name))
        return found

    def freeze(self, name: str) -> None:
        """The machine is there and says nothing more, as one whose network is gone."""
        for pid in self.pids(name):
            os.kill(pid, signal.SIGSTOP)


@pytest.fixture
def theirs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Theirs]:
    if os.geteuid() or not shutil.which("sshd", path="/usr/sbin:/usr/bin"):
        pytest.skip("the stack of this test starts sshd as root")
    if not (env_folder() / ".complete").exists():
        request.getfixturevalue("lab")
    made = Theirs(Lab(tmp_path / "it's a workspace"), tmp_path / "a stack", tmp_path / "machines")
    for folder in (made.lab.root, made.stack, made.root / "keys", made.root / "shared" / "envs"):
        folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(made.lab.root)], check=True)
    (made.root / "shared" / "envs" / env_folder().name).symlink_to(env_folder())
    for name in ("n0", "n1"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made.root / "keys" / name)]
        subprocess.run(argv, check=True)
    (made.stack / "machine.sh").write_text(MACHINE)
    made.write()
    yield made
    if (made.lab.root / ".nexa" / "clusters" / "theirs").exists():
        made.lab.nexa("teardown", "--cluster", "theirs", "-y", "--keep-nothing")
    until(lambda: not made.pids(), "no process of a machine is left", 10)


def ended(theirs: Theirs) -> dict[str, object]:
    """The cluster's receipt, and the proof that it is true."""
    receipt = theirs.lab.json("teardown", "--cluster", "theirs", "-y", "--keep-nothing")
    until(lambda: not theirs.pids(), "no process of a machine is left", 10)
    assert not (theirs.root / "n0").exists()
    assert not (theirs.root / "n1").exists()
    assert receipt["left"] == {"resources": []}
    assert receipt["destroyed"] == ['terraform_data.machine["n0"]', 'terraform_data.machine["n1"]']
    assert "no sweep by tag" in receipt["not_proven"][0]
    return dict(receipt)


def test_a_stack_of_the_users_own_is_made_used_and_given_back(theirs: Theirs) -> None:
    lab = theirs.lab
    plan = lab.json("plan", "--cluster", theirs.file())
    assert plan["changes"]["create"] == ['terraform_data.machine["n0"]', 'terraform_data.machine["n1"]']
    assert (plan["ends_with"], plan["usd_per_hour"], plan["stops_h"]) == ("power_off", 3.6, 2)
    assert plan["worst_usd"] == pytest.approx(7.2, rel=0.02)
    assert not theirs.pids()
    assert "would be made, and cost" in lab.nexa("provision", "--cluster", "theirs.yaml", code=2).stderr
    made = lab.json("provision", "--cluster", "theirs.yaml", "-y")
    assert [(node["name"], node["price_usd_per_hour"]) for node in made["nodes"]] == [("n0", 1.8), ("n1", 1.8)]
    pinned = (lab.root / ".nexa/clusters/theirs/ssh/known_hosts").read_text()
    assert all((theirs.root / "keys" / f"{n}.pub").read_text().split()[1] in pinned for n in ("n0", "n1"))
    up = lab.json("status", "--cluster", "theirs")["clusters"][0]
    assert (up["state"], up["usd_per_hour"], len(up["nodes"])) == ("up", 3.6, 2)
    lab.nexa("run", lab.plain("short", "--steps", "3"), "--cluster", "theirs")
    assert lab.manifest()["status"] == "completed"
    receipt = ended(theirs)
    assert isinstance(receipt["cost_usd"], float)
    assert receipt["cost_usd"] > 0


@pytest.mark.long("waits the half minute for which a silent node may come back")
def test_a_lost_node_is_made_anew_alone_and_a_fingerprint_is_enough(theirs: Theirs) -> None:
    prints = {n: fingerprint(theirs.root / "keys" / n) for n in ("n0", "n1")}
    theirs.write(key=f"host_key     = {json.dumps(prints)}[name]".replace('": "', '" = "'))
    lab = theirs.lab
    before = {n["name"]: n["instance_id"] for n in lab.json("provision", "--cluster", theirs.file(), "-y")["nodes"]}
    stop = theirs.root / "stop"
    train = lab.plain("lose", "--step-seconds", "0.2", "--save-every", "5", "--until", stop, "--steps", "5000")
    run = lab.begin("run", train, "--cluster", "theirs")
    try:
        until(lambda: "step 10/" in lab.log(0, "n0"), "it trains", 60)
        theirs.freeze("n1")
        until(lambda: len(lab.record()["attempts"]) > 1 and "step" in lab.log(0, "n0", 2), "it goes on", 240)
        stop.touch()
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert lab.record()["attempts"][1]["replaced"] == ["n1"]
    cluster = json.loads((lab.root / ".nexa/clusters/theirs/cluster.json").read_text())
    after = {node["name"]: node["instance_id"] for node in cluster["nodes"]}
    assert after["n0"] == before["n0"]
    assert after["n1"] != before["n1"]
    ended(theirs)


def fingerprint(key: Path) -> str:
    argv = ["ssh-keygen", "-lf", f"{key}.pub"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]


@pytest.mark.long("provisions until it is killed, at three points")
@pytest.mark.parametrize("at", ["create", "ssh", "bootstrap"])
def test_a_killed_provision_converges(theirs: Theirs, at: str) -> None:
    lab, journal = theirs.lab, theirs.lab.root / ".nexa/clusters/theirs/journal.jsonl"
    command = lab.begin("provision", "--cluster", theirs.file(), "-y")
    until(lambda: journal.exists() and f'"step": "{at}"' in journal.read_text(), f"{at} begins", 120)
    command.kill()
    command.wait()
    if at == "create":  # the end of what was begun, without a provision between
        lab.nexa("teardown", "--cluster", "theirs", "-y", "--keep-nothing")
        assert not theirs.pids()
        return
    made = lab.json("provision", "--cluster", "theirs.yaml", "-y")
    assert [node["name"] for node in made["nodes"]] == ["n0", "n1"]
    ended(theirs)


def test_what_a_stack_must_not_do_is_said_before_anything_is_made(theirs: Theirs) -> None:
    def refused(main: str = MAIN, key: str = GIVEN_KEY, code: int = 1, **changes: object) -> str:
        theirs.write(main, key)
        said = theirs.lab.nexa("plan", "--cluster", theirs.file(**changes), code=code).stderr
        assert not theirs.pids()
        assert not (theirs.lab.root / ".nexa/clusters/theirs/config.json").exists()
        return said

    where = theirs.stack.name
    assert f"{where} has no output `nodes`" in refused(MAIN.partition('output "nodes"')[0])
    assert "has no output `ends_with`" in refused(MAIN.replace('output "ends_with"', 'output "ends"'))
    assert "declares no such variable" in refused(code=2, variables={"root": "/", "prots": {}})
    assert "did you mean ports?" in theirs.lab.nexa("plan", "--cluster", "theirs.yaml", code=2).stderr
    assert "is no folder" in refused(code=2, stack="elsewhere")
    assert "TF_VAR_api_token" in refused(code=2, variables={"api_token": "x"})
    api = {"root": str(theirs.root), "ports": {"n0": 1, "n1": 2}, "ends_with": "api"}
    assert "budget_usd cannot be kept" in refused(code=2, variables=api, budget_usd=5, price_usd_per_hour=1.8)
    said = theirs.lab.nexa("plan", "--cluster", theirs.file(variables=api)).stderr
    assert "cost without end" in said
    (theirs.stack / "more.tf").write_text("# another thought\n")
    assert "nexa trust" in theirs.lab.nexa("plan", "--cluster", "theirs.yaml", code=2).stderr
    (theirs.stack / "more.tf").unlink()
    theirs.write(key="")
    said = theirs.lab.nexa("provision", "--cluster", theirs.file(), "-y", code=1).stderr
    assert "0: host_key is missing" in said
    assert "host-key checking is never off" in said
