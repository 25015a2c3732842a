"""One local cluster for all end-to-end tests of a worker: real Terraform, sshd, Ansible and torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cloud import provider
from tests.cloud.region import Running, Unable, region
from tests.state import own_places

REPO = Path(__file__).parents[2]
PLAIN_RANK = REPO / "tests" / "plain_rank.py"
NO_TORCH: dict[str, Any] = {"launcher": "direct", "preload": False}
"""Of a train.yaml that is not about torch: torchrun imports it on each node for each attempt, 2 CPU s."""
NEXA = (sys.executable, "-m", "nexa_dist")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and every program below would ignore Ctrl-C too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def copy_checkout(to: Path) -> None:
    """The files of this checkout that git does not ignore, as they are now, without its history."""
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=REPO, text=True)
    for name in filter(None, listed.split("\0")):
        if (REPO / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, to / name, follow_symlinks=False)


def environment(**more: str) -> dict[str, str]:
    """Of a user who has never used nexa here, but for the shared cache (environments take gigabytes)."""
    own_places()  # also where no pytest is: the tools of tests/chaos and tests/bench
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NEXA_") or k == "NEXA_SHARED"}
    return {**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", **more}


@dataclass(frozen=True)
class Lab:
    """A workspace and the command line in it."""

    root: Path
    prefix: tuple[str, ...] = ()
    """Puts a command into an emulated region."""
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        return {**environment(), **self.env, **more}

    def nexa(self, *words: str, code: int = 0, timeout_s: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.prefix, *NEXA, *words],
            cwd=self.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr or "rank" in done.stderr, done.stderr
        assert done.returncode == code, f"exit {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.nexa(*words, "--json", **more).stdout)

    def begin(
        self,
        *words: str,
        stderr: int | IO[str] = subprocess.PIPE,
        stdout: int | IO[str] = subprocess.PIPE,
        **env: str,
    ) -> subprocess.Popen[str]:
        """A command that goes on while the test acts. With files for its output the test can read what it says."""
        return subprocess.Popen(
            [*self.prefix, *NEXA, *words],
            cwd=self.root,
            env=self.environment(**env),
            stdout=stdout,
            stderr=stderr,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def write(self, name: str, text: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def script(self, name: str, text: str, **more: Any) -> str:
        """A torchrun script and the train.yaml that runs it, once unless `more` says otherwise; returns the latter."""
        self.write(f"{name}.py", text)
        train = {"name": name, "script": f"{name}.py", "restarts_per_hour": 0, **more}
        return self.write(f"{name}.yaml", json.dumps(train))

    def plain(self, name: str, *args: object, **more: Any) -> str:
        """train.yaml of tests/plain_rank.py with these arguments. Neither it nor what starts it imports torch, unless
        `more` names the launcher."""
        shutil.copy(PLAIN_RANK, self.root)
        started = {} if "launcher" in more else NO_TORCH
        train = {"name": name, "script": PLAIN_RANK.name, "args": [str(word) for word in args], **started, **more}
        return self.write(f"{name}.yaml", json.dumps(train))

    def newest(self) -> Path:
        return max((self.root / "runs").glob("train_*"), key=lambda p: p.name.split("_", 1)[1])

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.newest() / "run.json").read_text()))

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "runs" / "manifests" / f"{self.newest().name}.json").read_text()))

    def log(self, rank: int, node: str, attempt: int = 1) -> str:
        if not runs(self):
            return ""
        path = self.newest() / "logs" / node / f"rank_{rank}" / f"attempt_{attempt}.log"
        return path.read_text() if path.exists() else ""

    def on_node(self, node: str) -> list[int]:
        """Pids of this node that belong to a run: what its sshd and its own daemons do not explain."""
        mark = f"NEXA_RUN_DIR={self.root}/.nexa/clusters/lab/nodes/{node}/".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def processes(self) -> list[int]:
        return [*self.on_node("n0"), *self.on_node("n1")]


def runs(lab: Lab) -> int:
    """How many runs this workspace knows."""
    return len(list((lab.root / "runs").glob("train_*")))


def until(condition: Callable[[], Any], what: str, timeout_s: float = 600, every_s: float = 0.1) -> Any:
    """What the condition answers once it holds. A region that is asked all the time for minutes takes a tenth of a CPU:
    `every_s` for what is far away."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def everything_of(root: Path) -> list[str]:
    """Command lines of all processes that this workspace started and that still live."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            words = command + (path / "environ").read_bytes()
        except OSError:
            continue
        if f"{root}/.nexa".encode() in words and int(path.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def contents(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below `root`, but for what is gone before it is read: nodes write there meanwhile."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One of a worker. tests/conftest.py brings the tests that use it to two workers."""
    root = tmp_path_factory.mktemp("it's a lab")
    made = Lab(root)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    made.write("lab.yaml", "name: lab\nprovider: local\nnodes: 2\ngpus_per_node: 2\nprice_usd_per_hour: 3.6\n")
    try:
        made.nexa("provision", "--cluster", "lab.yaml", timeout_s=900)
        yield made
    finally:
        made.nexa("teardown", "--cluster", "lab", "-y", "--keep-nothing")
    until(lambda: not everything_of(root), f"nothing of {root} is left")


@pytest.fixture(scope="session")
def here() -> Iterator[Running]:
    """One emulated region for all tests of a worker. Each leaves neither a cluster nor a fault in it."""
    try:
        with region(f"e2e-{os.getpid()}") as running:
            yield running
    except Unable as error:
        pytest.skip(str(error))


@pytest.fixture
def one_provider(here: Running) -> Iterator[None]:
    """One AWS provider for every Terraform. Where it is killed or refused, each has its own."""
    with provider.running(here.prefix, here.environ()):
        yield


def rented(here: Running, root: Path) -> Lab:
    """A workspace whose commands run in the region."""
    return Lab(root, here.prefix, {**here.env, "NEXA_SETTLE_S": "3"})


def make_bucket(lab: Lab, name: str) -> None:
    """In the region of this workspace."""
    make = f"import boto3; boto3.client('s3', region_name='us-east-1').create_bucket(Bucket='{name}')"
    subprocess.run([*lab.prefix, sys.executable, "-c", make], env=lab.environment(), check=True)


@pytest.fixture
def clean(lab: Lab) -> Iterator[Lab]:
    """The lab, and the proof after the test that no process of a run is left on any node."""
    yield lab
    try:
        until(lambda: not lab.processes(), "no process of a run is left")
    finally:  # one test that fails half way must not leave the cluster busy for the next
        for path in (lab.root / "runs").glob("*/run.json"):
            attempts = json.loads(path.read_text())["attempts"]
            if attempts and attempts[-1]["state"] in ("starting", "running"):
                lab.nexa("stop", path.parent.name, "--grace", "0")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
