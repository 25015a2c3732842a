"""The wheel alone, in an empty folder: what it holds, and the whole life cycle from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import little_text
from tests.e2e.conftest import REPO, copy_checkout, environment, everything_of, until

pytestmark = pytest.mark.e2e

BUNDLE = "nexa_dist/_bundle/"
NEEDED = (
    "ansible/ansible.cfg",
    "ansible/roles/base/tasks/main.yml",
    "ansible/roles/node_agent/tasks/main.yml",
    "ansible/roles/uv_env/files/make_env.py",
    "ansible/roles/uv_env/files/uv.txt",
    "configs/dist/local.yaml",
    "configs/plans/v2.yaml",
    "configs/templates/cluster.yaml",
    "configs/templates/train.yaml",
    "configs/train/quickstart.yaml",
    "docker/cuda_infer.txt",
    "docker/cuda_torch.txt",
    "docker/lock/heavy.txt",
    "docker/lock/infer.txt",
    "docker/lock/train.txt",
    "playbooks/bootstrap.yml",
    "terraform/modules/local_node/folder.py",
    "terraform/modules/local_node/host.py",
    "terraform/modules/local_node/processes.py",
    "terraform/modules/local_node/sshd.py",
    "terraform/shared/deadline.sh",
    "terraform/stacks/local/main.tf",
)
JUNK = ("terraform/stacks/local/.terraform/provider", "ansible/roles/base/__pycache__/x.pyc", "nexa_dist/y.pyc")
SMALL = (
    "model.vocab_size=512",
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=64",
    "dataset.source=path",
    "dataset.path=text",
    "dataset.sequence_length=32",
    "trainer.steps=4",
    "trainer.batch_size=2",
    "trainer.warmup_steps=1",
    "trainer.save_every=2",
)


def outside() -> dict[str, str]:
    """The environment of somebody who has no checkout; uv and Ansible are those of the environment that tests."""
    env = environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    del env["PYTHONPATH"]
    return env


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network from a copy of the checkout in which rubbish that git ignores lies about."""
    copy, out = tmp_path_factory.mktemp("copy") / "repo", tmp_path_factory.mktemp("dist")
    copy_checkout(copy)
    for name in JUNK:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).touch()
    argv = ["uv", "build", "--wheel", "--no-build-isolation", "--offline", "--python", sys.executable, "-o", str(out)]
    built = subprocess.run([*argv, str(copy)], env=outside(), capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; its dependencies are those of the environment that tests."""
    venv = tmp_path_factory.mktemp("an env") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    scope = next(venv.glob("lib/python3*/site-packages"))
    # A path from a .pth file is searched last, and its own .pth files are not read: no editable install counts.
    (scope / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    argv = ["uv", "pip", "install", "-q", "--no-deps", "--offline", "--python", str(venv / "bin" / "python")]
    subprocess.run([*argv, str(wheel)], env=outside(), check=True, timeout=600)
    return venv


def test_the_wheel_holds_what_a_user_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {BUNDLE + name for name in NEEDED} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top.partition("-")[2] or top for top in tops} == {"nexa_dist", f"{wheel.name.split('-')[1]}.dist-info"}
    for name in names:
        assert not {"tests", "__pycache__", ".terraform"} & set(name.split("/")), name
        assert not name.endswith((".pyc", ".tftest.hcl", ".tfstate")), name
    packages = {str(path.relative_to(REPO)) for path in (REPO / "nexa_dist").rglob("*.py")}
    assert packages <= set(names)


@pytest.mark.long("a training; the quickstart is one, from the checkout")
def test_the_whole_life_cycle_from_the_wheel_in_an_empty_folder(venv: Path, tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()

    def nexa(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [str(venv / "bin" / "nexa"), *words]
        done = subprocess.run(
            argv, cwd=root, env=outside(), capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
        )
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    where = "import nexa_dist.run.bundle as b; print(b.root())"
    argv = [str(venv / "bin" / "python"), "-c", where]
    found = subprocess.run(argv, cwd=root, env=outside(), capture_output=True, text=True, check=True).stdout
    assert found.strip().startswith(str(venv)) and found.strip().endswith("/nexa_dist/_bundle")

    nexa("init")
    assert sorted(path.name for path in root.iterdir()) == [".nexa", "cluster.yaml", "train.yaml"]
    nexa("init", code=2)  # writes over nothing
    assert json.loads(nexa("config", "cluster.yaml", "--json").stdout)["provider"] == "local"
    assert json.loads(nexa("config", "train.yaml", "--json").stdout)["backend"] == "hf"
    little_text.write(root / "text")
    try:
        nexa("provision", "--cluster", "cluster.yaml")
        assert (root / ".nexa/clusters/first/terraform/src/stacks/local/main.tf").exists()
        said = nexa("run", "train.yaml", "--json", *(w for s in SMALL for w in ("--set", s))).stdout
        result = json.loads(said.splitlines()[-1])
        manifest = json.loads(Path(result["manifest"]).read_text())
        assert (manifest["status"], manifest["checkpoint"]["step"], manifest["hardware"]["world_size"]) == (
            "completed",
            4,
            4,
        )
    finally:
        nexa("teardown", "-y", "--keep-nothing")
    until(lambda: not everything_of(root), f"nothing of {root} is left")
    assert json.loads(nexa("status", "--json").stdout) == {"clusters": [], "runs": []}


@pytest.mark.long("installs the dependencies anew, from the package index or uv's cache, and provisions")
def test_as_a_tool_of_uv_it_needs_no_program_of_a_checkout(wheel: Path, tmp_path: Path) -> None:
    """As the README installs it: nothing of an environment for development is on PATH, Ansible neither."""
    own = Path(sys.executable).parent
    programs = [part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != own]
    env = {**outside(), "UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    env["PATH"] = os.pathsep.join([str(tmp_path / "bin"), *programs])
    root = tmp_path / "empty"
    root.mkdir()
    uv = shutil.which("uv", path=os.pathsep.join([str(own), os.environ["PATH"]]))
    assert uv

    def told(*argv: str) -> str:
        done = subprocess.run(
            argv, cwd=root, env=env, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    told(uv, "tool", "install", "--python", sys.executable, str(wheel))
    nexa = str(tmp_path / "bin" / "nexa")
    assert told(nexa, "--version") == f"nexa {wheel.name.split('-')[1]}\n"
    told(nexa, "init")
    assert str(tmp_path / "tools") in told(nexa, "provision", "--cluster", "cluster.yaml", "--dry-run")
    try:
        told(nexa, "provision", "--cluster", "cluster.yaml", "-y")
        assert "torch.distributed.run" in told(nexa, "run", "train.yaml", "--dry-run")
    finally:
        told(nexa, "teardown", "-y", "--keep-nothing")
    until(lambda: not everything_of(root), f"nothing of {root} is left")
