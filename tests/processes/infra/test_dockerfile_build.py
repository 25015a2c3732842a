"""The RUN lines of a Dockerfile, executed as they stand by a real builder, on a Debian root instead of NVIDIA's image
and with the CPU build of torch: an image of the nodes' environment comes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import engines

pytestmark = pytest.mark.long("downloads a gigabyte of packages, and installs them for minutes")
ROOT = Path(__file__).parents[3]
CA, IMAGE = Path("/etc/ssl/certs/ca-certificates.crt"), "localhost/nexa-light:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[Path]:
    with engines.podman_somewhere() as program:
        yield program


def settings_of_this_machine() -> list[str]:
    """What a build needs to reach packages where we are: certificates, mirrors of apt, a folder of wheels."""
    words = [
        f"--volume={CA}:/machine-ca.crt:ro",
        "--env=SSL_CERT_FILE=/machine-ca.crt",
        "--env=PIP_CERT=/machine-ca.crt",
    ]
    if f"VERSION_CODENAME={engines.DEBIAN}\n" in Path("/etc/os-release").read_text():
        words.append("--volume=/etc/apt:/etc/apt:ro")
    if wheels := os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS"):
        words.append(f"--env=UV_FIND_LINKS={wheels}")
        words += [f"--volume={wheels}:{wheels}:ro"] if wheels.startswith("/") else []
    backend = "" if wheels else "cpu"  # a folder of wheels has the build that it has
    return [
        *words,
        "--env=UV_SYSTEM_CERTS=1",
        "--env=UV_PYTHON_DOWNLOADS=never",
        f"--build-arg=TORCH_BACKEND={backend}",
    ]


@pytest.fixture(scope="module")
def light(engine: Path) -> Path:
    """The engine, with the image built."""
    argv = [engine, "build", "--format=docker", "--network=host", *settings_of_this_machine()]
    argv += [f"--build-arg=BASE={engines.IMAGE}", "--build-arg=PYTHON=3.11", "--build-arg=REVISION=abc"]
    argv += ["--tag", IMAGE, "--file", "docker/train-light.Dockerfile", "."]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=2 * engines.LIMIT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return engine


def inside(engine: Path, *words: str) -> str:
    argv = [engine, "run", "--rm", "--network=none", IMAGE, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=engines.LIMIT_S).stdout


def test_it_holds_the_lock_to_the_version_and_nothing_that_torch_did_not_ask_for(light: Path) -> None:
    said = inside(
        light,
        "python",
        "-c",
        """
import importlib.metadata as m, json, re
print(json.dumps({re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in m.distributions()}))""",
    )
    installed = dict(json.loads(said))
    lock = dict(re.findall(r"^([a-z0-9-]+)==(\S+) ", (ROOT / "docker/lock/train.txt").read_text(), re.M))
    markers = {name: version for name, version in lock.items() if name in installed}
    assert len(markers) > 80 and {name: installed[name] for name in markers} == markers
    torch = re.search(r"^torch==(\S+)$", (ROOT / "docker/cuda_torch.txt").read_text(), re.M)
    assert torch and installed["torch"].partition("+")[0] == torch[1]
    assert set(installed) - set(lock) <= {"torch"}


def test_a_rank_can_train_as_nobodys_root(light: Path) -> None:
    said = inside(
        light,
        "python",
        "-c",
        """
import getpass, os, torch
x = torch.randn(64, 4); w = torch.zeros(4, requires_grad=True); first = None
for _ in range(50):
    loss = ((x @ w - x.sum(1)) ** 2).mean(); first = first or loss.item()
    loss.backward(); w.data -= 0.1 * w.grad; w.grad = None
open(os.environ["HF_HOME"] + "/x", "w").close()
print(os.getuid(), getpass.getuser(), os.getcwd(), os.environ["HF_HOME"], loss.item() < first / 10)""",
    )
    assert said.split() == ["1000", "runner", "/workspace", "/home/runner/.cache/huggingface", "True"]


def test_it_says_what_it_is_and_how_it_is(light: Path) -> None:
    (told,) = json.loads(subprocess.check_output([light, "image", "inspect", IMAGE], timeout=60))
    config: dict[str, Any] = told["Config"]
    assert config["User"] == "1000:1000" and config["Labels"]["org.opencontainers.image.revision"] == "abc"
    assert config["Labels"]["org.opencontainers.image.base.name"] == engines.IMAGE
    assert told["Healthcheck"]["Test"] == ["CMD", "/opt/nexa/bin/health.sh"]
    assert inside(light, "/opt/nexa/bin/health.sh") == ""
    listed = json.loads(inside(light, "cat", "/opt/nexa/sbom.cdx.json"))["components"]
    kinds = {row["purl"].split("/")[0] for row in listed}
    assert kinds == {"pkg:pypi", "pkg:deb"} and any(row["name"] == "transformers" for row in listed)
