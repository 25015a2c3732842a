"""An environment of the user's by the real uv: on a disk that is too small, without a network, killed at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.bring import Brought
from nexa_dist.ops.work.environment import make_ready
from nexa_dist.run.runner import Runner, Stream
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace

UV = shutil.which("uv")
WHEELS = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
pytestmark = [
    pytest.mark.long("the real uv installs torch"),
    pytest.mark.skipif(not UV or not WHEELS, reason="needs uv, and a folder of wheels that has torch for CPUs"),
]
PINS = "tomlkit\nfilelock\n"


class Here(Runner):
    """What goes to the node runs here."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        words = ["env", "-i", *(f"{name}={value}" for name, value in self.env.items()), *shlex.split(argv[-1])]
        return super().stream(words, stdin=stdin)


class Lab:
    def __init__(self, root: Path, shared: Path) -> None:
        self.root, self.shared, self.said = root, shared, list[str]()
        (root / "requirements.txt").write_text(PINS)
        node = Node("n0", "127.0.0.1", 1)
        cluster = Cluster("c", "static", (node,), Layout(sys.executable, "~/s", str(shared), "~/d"), env_hash="0" * 16)
        net = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
        env = {"PATH": f"{Path(str(UV)).parent}:{os.defpath}", "HOME": str(root), "NEXA_MARK": str(root), **net}
        self.link = Link(Ssh(Here(env), cluster, str(root)), node, str(root))

    def ready(self, **hidden: str) -> Brought:
        ctx = Context(Workspace(self.root), Runner(), self.said.append)
        train: Any = {"script": "a.py", "environment": {"requirements": "requirements.txt"}}
        return Brought(*make_ready(ctx, [self.link], TrainConfig.model_validate(train), hidden, None))

    def whole(self) -> list[str]:
        return [path.parent.name for path in self.shared.glob("envs/*/.complete")]

    def left(self) -> set[str]:
        """Names beside the locks: nothing half may stay under a name that somebody could take for whole."""
        return {path.name for path in self.shared.glob("envs/*") if path.suffix != ".lock"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MiB: uv gets far, and torch does not fit."""
    if os.geteuid():
        pytest.skip("root mounts the small disk")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=0700", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path: Path, small: Path) -> None:
    lab = Lab(tmp_path, small)
    with pytest.raises(NexaError, match=r"n0: requirements.txt: the disk is full. uv says:") as caught:
        lab.ready()
    assert "nexa env prune" in caught.value.hint
    assert lab.left() == set() and not lab.whole()


def test_without_a_network_the_index_is_named_and_nothing_half_is_left(tmp_path: Path) -> None:
    lab = Lab(tmp_path, tmp_path / "shared")
    with pytest.raises(NexaError, match=r"the package index cannot be reached. uv says:") as caught:
        lab.ready(UV_DEFAULT_INDEX="http://127.0.0.1:9/simple", UV_HTTP_TIMEOUT="5", UV_HTTP_RETRIES="0")
    assert "UV_DEFAULT_INDEX" in caught.value.hint
    assert lab.left() == set() and not lab.whole()


def test_killed_at_any_moment_the_next_build_is_whole(tmp_path: Path) -> None:
    lab, chance = Lab(tmp_path, tmp_path / "shared"), random.Random(5)
    code = f"from {__name__} import Lab, Path; Lab(Path({str(tmp_path)!r}), Path({str(lab.shared)!r})).ready()"
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(1, 10))
        for pid in [child.pid, *ours(tmp_path)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()
        for name in lab.whole():
            works(lab.shared / "envs" / name / "bin" / "python")
    made = lab.ready()
    assert works(Path(made.pythons["n0"])) == made.environment["torch"] and len(lab.left()) == 1


def works(python: Path) -> str:
    argv = [str(python), "-I", "-c", "import torch, tomlkit; print(torch.__version__)"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def ours(mark: Path) -> list[int]:
    """Processes of the node, by its own variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"NEXA_MARK={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
