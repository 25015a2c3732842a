"""Terraform's lock, its state before there is one, and what of its output is told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.run import files
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import CommandFailed, Result
from nexa_dist.run.terraform.locks import Lock, lock_in
from nexa_dist.run.terraform.stack import Terraform, TerraformFailed
from tests.begun import begun

US = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
IDENT = "4d7c8a2e-0000-1111-2222-333344445555"
REFUSED = "operation error S3: PutObject, https response error StatusCode: 412, RequestID: f70D, HostID: 9Gjjt1m+=, "
LOCKED = """Error message: {refused}api error PreconditionFailed: At least one of the pre-conditions did not hold
Lock Info:
  ID:        {ident}
  Path:      state/k/terraform.tfstate
  Operation: OperationTypeApply
  Who:       {who}
  Version:   1.11.4
  Created:   2026-01-01 00:00:00.123456 +0000 UTC
  Info:      

Terraform acquires a state lock to protect the state from being written
by multiple users at the same time. Please resolve the issue above and try
again. For most commands, you can disable locking with the "-lock=false"
flag, but this is not recommended."""  # noqa: W291
ANN = Lock(IDENT, "ann@desk", "2026-01-01 00:00:00.123456 +0000 UTC")
BACKEND = {"bucket": "state", "key": f"k{os.getpid()}/terraform.tfstate", "region": "us-east-1"}
"""Of this process alone: the tests of another look at all processes of the machine, too."""


def locked(who: str) -> str:
    return LOCKED.format(refused=REFUSED, ident=IDENT, who=who)


def diagnostic(summary: str, detail: str = "", level: str = "error") -> str:
    return json.dumps({"@level": level, "type": "diagnostic", "diagnostic": {"summary": summary, "detail": detail}})


def started(action: str, message: str) -> str:
    return json.dumps({"@level": "info", "@message": message, "type": "apply_start", "hook": {"action": action}})


class Script(FakeRunner):
    """Terraform that says what was written for it, call by call: exit code and lines."""

    def __init__(self, *planned: tuple[int, str]) -> None:
        results = [Result((), code, text.encode(), text.encode() if code else b"") for code, text in planned]
        super().__init__(*results)

    @property
    def envs(self) -> list[Mapping[str, str]]:
        return [call.how.get("env") or {} for call in self.calls]

    def verbs(self) -> list[str]:
        return [call.argv[2] for call in self.calls]


def stack(folder: Path, *planned: tuple[int, str], backend: Mapping[str, str] = BACKEND) -> tuple[Terraform, Script]:
    script = Script(*planned)
    made = Terraform(script, "terraform", folder, "aws", backend)
    made.chdir.mkdir(parents=True, exist_ok=True)
    write_backend(made.chdir, backend)
    return made, script


def write_backend(chdir: Path, backend: Mapping[str, str]) -> None:
    chdir.mkdir(parents=True, exist_ok=True)
    files.write_json(chdir / "backend_override.tf.json", {"terraform": {"backend": {"s3": dict(backend)}}})


@pytest.mark.parametrize(
    ("said", "lock"),
    [
        (locked("ann@desk"), ANN),
        ("\n".join(f"│ {line}" for line in locked("ann@desk").splitlines()), ANN),
        (f"creating EC2 Instance: {REFUSED}api error InvalidParameterValue: Who: is: this", None),
        ("", None),
    ],
)
def test_the_lock_of_a_state_is_read_from_terraform_s_words(said: str, lock: Lock | None) -> None:
    assert lock_in(said) == lock


def refused(folder: Path, who: str) -> NexaError:
    """The error of an apply under a lock that is not broken."""
    terraform, script = stack(folder, (1, diagnostic("Error acquiring the state lock", locked(who))))
    with pytest.raises(NexaError, match="locked by") as caught:
        terraform.apply(lambda _: None)
    assert script.verbs() == ["apply"]
    assert who in str(caught.value) and IDENT in caught.value.hint
    return caught.value


@pytest.mark.parametrize("who", ["ann@elsewhere", f"other@{socket.gethostname()}"])
def test_the_lock_of_another_is_not_broken(tmp_path: Path, who: str) -> None:
    refused(tmp_path, who)


def test_the_lock_of_a_terraform_that_lives_is_not_broken(tmp_path: Path) -> None:
    with open(tmp_path / "busy", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(tmp_path, US)


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Starts what looks like a Terraform of this user in another folder, with that backend."""
    started: list[subprocess.Popen[bytes]] = []

    def start(backend: Mapping[str, str]) -> None:
        there = tmp_path / "elsewhere" / "src" / "stacks" / "aws"
        write_backend(there, backend)
        argv = ["sh", "-c", "sleep 600 & wait", "terraform", f"-chdir={there}", "apply"]
        started.append(begun(argv, start_new_session=True))

    yield start
    for child in started:
        os.killpg(child.pid, 9)
        child.wait()


def test_the_lock_of_another_workspace_of_ours_is_not_broken(
    tmp_path: Path, neighbour: Callable[[Mapping[str, str]], None]
) -> None:
    neighbour(BACKEND)  # same user, same machine, same state: not dead
    refused(tmp_path / "here", US)


def test_the_lock_of_a_dead_one_is_broken_and_the_work_goes_on(
    tmp_path: Path, neighbour: Callable[[Mapping[str, str]], None]
) -> None:
    neighbour({**BACKEND, "key": "another/terraform.tfstate"})
    said = diagnostic("Error acquiring the state lock", locked(US))
    terraform, script = stack(tmp_path / "here", (1, said), (0, ""), (0, ""))
    terraform.apply(lambda _: None)
    assert script.verbs() == ["apply", "force-unlock", "apply"]
    assert IDENT in script.calls[1].argv


def test_the_lock_is_broken_once(tmp_path: Path) -> None:
    said = diagnostic("Error acquiring the state lock", locked(US))
    terraform, script = stack(tmp_path, (1, said), (0, ""), (1, said))
    with pytest.raises(TerraformFailed, match="state lock"):
        terraform.apply(lambda _: None)
    assert script.verbs() == ["apply", "force-unlock", "apply"]


def test_a_plan_breaks_no_lock(tmp_path: Path) -> None:
    """It is made without a claim on the cluster, so whose lock it meets is not known."""
    terraform, script = stack(tmp_path, (1, diagnostic("Error acquiring the state lock", locked(US))))
    with pytest.raises(TerraformFailed, match="state lock"):
        terraform.plan()
    assert script.verbs() == ["plan"]


@pytest.mark.parametrize("backend", [BACKEND, {}])
def test_before_the_first_init_there_is_no_state(tmp_path: Path, backend: dict[str, str]) -> None:
    script = Script()
    fresh = Terraform(script, "terraform", tmp_path / "terraform", "aws", backend)
    assert fresh.ids() == set() and fresh.resources() == []
    assert script.calls == []


def test_ids_are_of_what_terraform_manages(tmp_path: Path) -> None:
    rows = [
        {"mode": "managed", "instances": [{"attributes": {"id": "i-0"}}, {"attributes": None}, {"attributes": {}}]},
        {"mode": "data", "instances": [{"attributes": {"id": "ami-0"}}]},
    ]
    terraform, _ = stack(tmp_path, (0, json.dumps({"resources": rows})))
    files.write_json(tmp_path / "data" / "terraform.tfstate", {})
    assert terraform.ids() == {"i-0"}


def test_a_local_state_is_read_without_terraform_and_one_that_is_not_plain_by_it(tmp_path: Path) -> None:
    state = {
        "outputs": {"nodes": {"value": [{"name": "n0"}], "type": "x"}},
        "resources": [
            {"mode": "data", "type": "aws_ami", "name": "a", "instances": [{"attributes": {"id": "ami-0"}}]},
            {"mode": "managed", "type": "aws_vpc", "name": "v", "instances": [{"attributes": {"id": "vpc-0"}}]},
            {
                "module": 'module.nodes["a"]',
                "mode": "managed",
                "type": "aws_instance",
                "name": "node",
                "instances": [{"index_key": "n0", "attributes": {"id": "i-0"}}, {"index_key": 1}],
            },
        ],
    }
    node = 'module.nodes["a"].aws_instance.node'
    terraform, script = stack(tmp_path, (0, json.dumps(state)), (1, "torn"), backend={})
    files.write_json(terraform.state, state)
    assert terraform.ids() == {"vpc-0", "i-0"} and terraform.outputs() == {"nodes": [{"name": "n0"}]}
    assert terraform.resources() == ["aws_vpc.v", f'{node}["n0"]', f"{node}[1]"]
    assert script.calls == []
    files.write_json(terraform.state, {"encrypted_data": "…"})
    assert terraform.ids() == {"vpc-0", "i-0"}
    terraform.state.write_text("{")
    with pytest.raises(CommandFailed, match="torn"):
        terraform.resources()
    assert script.verbs() == ["state", "state"]


def test_errors_are_told_and_progress_is(tmp_path: Path) -> None:
    lines = [
        started("create", "n0: Creating..."),
        started("read", "data.x: Reading..."),
        diagnostic("careful", level="warn"),
        "Warning: no JSON",
        diagnostic("creating EC2 Instance: api error InsufficientInstanceCapacity: x"),
        diagnostic("creating EC2 Instance: api error VcpuLimitExceeded: y"),
    ]
    terraform, _ = stack(tmp_path, (1, "\n".join(lines)))
    told: list[str] = []
    with pytest.raises(TerraformFailed) as caught:
        terraform.apply(told.append)
    assert told == ["n0: Creating..."]
    assert "InsufficientInstanceCapacity" in str(caught.value) and "VcpuLimitExceeded" in str(caught.value)
    assert "careful" not in str(caught.value)


def test_a_time_out_is_said(tmp_path: Path) -> None:
    terraform, _ = stack(tmp_path, (124, ""))
    with pytest.raises(TerraformFailed, match="no end within 7 s"):
        terraform.apply(lambda _: None, timeout_s=7)


@pytest.mark.parametrize(
    ("code", "given", "runs"),
    [
        ("ExpiredToken", ["1", "2"], ["1", "2"]),
        ("RequestExpired", ["1", "1"], ["1"]),  # of a source that has no newer ones
        ("ExpiredToken", ["1"], ["1"]),  # nobody is there to type a code
        ("UnauthorizedOperation", ["1", "2"], ["1"]),
    ],
)
def test_keys_that_end_during_an_apply_are_renewed_once(
    tmp_path: Path, code: str, given: list[str], runs: list[str]
) -> None:
    late = (1, diagnostic(f"creating EC2 Instance: {REFUSED}api error {code}: x"))
    terraform, script = stack(tmp_path, late, late)
    held = given[:1]

    def keys(renew: bool) -> dict[str, str]:
        if renew and not given[1:]:
            raise NexaError("no terminal")
        held[:] = given[1:] if renew else held
        return {"AWS_ACCESS_KEY_ID": held[0]}

    with pytest.raises(TerraformFailed, match=code) as caught:
        replace(terraform, keys=keys).apply(lambda _: None)
    assert [env["AWS_ACCESS_KEY_ID"] for env in script.envs] == runs
    assert "log in again" in caught.value.hint or code == "UnauthorizedOperation"


def test_nothing_is_initialised_twice_but_after_a_change_or_a_failure(tmp_path: Path) -> None:
    program, sources = tmp_path / "terraform", tmp_path / "sources"
    program.write_text("1.11")
    sources.mkdir()
    (sources / "main.tf").write_text("")
    denied = f"creating EC2 Instance: {REFUSED}api error UnauthorizedOperation: you are not to"
    script = Script(*[(0, "")] * 3, (1, diagnostic(denied)), (1, "no plugin"), *[(0, "")] * 3)
    made = Terraform(script, str(program), tmp_path / "cluster", "aws", BACKEND)

    def begun(**variables: int) -> list[str]:
        before = len(script.calls)
        made.prepare(sources, variables)
        return script.verbs()[before:]

    assert begun() == ["init"]
    assert begun(nodes=3) == []
    (sources / "main.tf").write_text("# new")
    assert begun() == ["init"]
    (made.chdir / ".terraform.lock.hcl").write_text("what an init writes")
    assert begun() == []
    made.apply(lambda _: None)
    assert begun() == []
    with pytest.raises(NexaError, match="you are not to"):
        made.apply(lambda _: None)
    assert begun() == [], "of the cloud, which Terraform reached"
    with pytest.raises(NexaError, match="no plugin"):
        made.apply(lambda _: None)
    assert begun() == ["init"]
    program.write_text("1.11.4")
    assert begun() == ["init"]
    shutil.rmtree(tmp_path / "cluster" / "data")
    assert begun() == ["init"]


def test_what_an_init_had_installed_is_installed_again(tmp_path: Path) -> None:
    gone = diagnostic("Required plugins are not installed", "there is no package cached in data/providers")
    program = tmp_path / "terraform"
    program.write_text("1.11")
    for again, verbs in (((0, ""), ["apply", "init", "apply"]), ((1, gone), ["apply", "init", "apply"])):
        script = Script((1, gone), (0, ""), again)
        made = Terraform(script, str(program), tmp_path / "cluster", "aws", BACKEND)
        with contextlib.nullcontext() if again[0] == 0 else pytest.raises(TerraformFailed, match="not installed"):
            made.apply(lambda _: None)
        assert script.verbs() == verbs
