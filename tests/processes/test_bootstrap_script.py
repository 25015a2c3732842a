"""scripts/nexa-bootstrap.sh on a bare box, with programs that stand in for its engine and driver."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "nexa-bootstrap.sh"
CLIENT = '#!/bin/sh\n[ "$1" != info ] || exit %d\nprintf "%%s\\n" "$(basename "$0")" "$@" >>%s\n'


class Box:
    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        # The box has what every one has, and no engine or driver but those that a test adds.
        for name in (
            "sed",
            "tail",
            "awk",
            "id",
            "realpath",
            "mkdir",
            "wc",
            "lsblk",
            "grep",
            "findmnt",
            "sh",
            "basename",
        ):
            (self.bin / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def engine(self, name: str, works: bool = True) -> None:
        self.add(name, CLIENT % (0 if works else 1, shlex.quote(str(self.calls))))

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        bare = {"PATH": str(self.bin), "HOME": str(self.folder)}
        return subprocess.run(
            ["/bin/bash", SCRIPT, *words],
            env={**bare, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_without_an_engine_it_says_what_to_install_and_does_nothing(box: Box) -> None:
    done = box()
    assert done.returncode == 1 and "apt-get install podman" in done.stderr
    box.engine("docker", works=False)
    done = box()
    assert done.returncode == 1 and "docker does not answer" in done.stderr
    assert box.called() == [] and not (box.folder / "work").exists()


def test_it_pulls_and_opens_the_image_over_the_folder(box: Box) -> None:
    box.engine("docker", works=False)
    box.engine("podman")
    done = box("lab/x@sha256:" + "a" * 64, "python", "a b", WORK=str(box.folder / "my work"), SHM_SIZE="8g")
    assert done.returncode == 0, done.stderr
    called = box.called()
    assert called[:3] == ["podman", "pull", "lab/x@sha256:" + "a" * 64], "docker does not answer"
    run = called[3:]
    assert run[:3] == ["podman", "run", "--rm"] and run[-2:] == ["python", "a b"]
    assert f"type=bind,source={box.folder}/my work,target=/workspace" in run
    assert run[run.index("--shm-size") + 1] == "8g" and run[run.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert "--gpus" not in run and "HF_TOKEN" in run, "a name, whose value no argument has"
    assert (box.folder / "my work" / ".home").is_dir()
    assert "no GPU answers here" in done.stderr


def test_an_image_that_was_built_here_needs_no_registry(box: Box) -> None:
    client = CLIENT % (0, shlex.quote(str(box.calls)))
    box.add("podman", client.replace("printf", '[ "$1" != pull ] || exit 125\nprintf', 1))
    done = box("nexacompute:train-light", "true")
    assert done.returncode == 0 and "the one that is here is taken" in done.stderr
    assert box.called()[:4] == ["podman", "image", "inspect", "nexacompute:train-light"]
    box.add("podman", '#!/bin/sh\n[ "$1" = info ]\n')
    done = box("nexacompute:nosuch", "true")
    assert done.returncode == 1 and "error: nexacompute:nosuch is not here, and cannot be pulled" in done.stderr


def test_gpus_need_the_toolkit_and_are_all_given(box: Box) -> None:
    box.engine("docker")
    box.add("nvidia-smi", "#!/bin/sh\necho GPU 0\necho GPU 1\n")
    done = box()
    assert done.returncode == 1 and "container toolkit is missing" in done.stderr and box.called() == []
    box.add("nvidia-ctk", "#!/bin/sh\n")
    done = box()
    assert done.returncode == 0 and "GPUs: 2" in done.stderr
    called = box.called()
    assert called[called.index("--gpus") + 1] == "all" and "memlock=-1:-1" in called
    assert called[-2:] == ["ghcr.io/nexacompute/nexacompute:train-light", "bash"]


def test_a_dry_run_shows_the_command_and_changes_nothing(box: Box) -> None:
    box.engine("docker")
    done = box("--dry-run", "lab:1", WORK="a 'b'")
    assert done.returncode == 0 and box.called() == [] and not (box.folder / "a 'b'").exists()
    words = shlex.split(done.stdout)
    assert words[:2] == ["docker", "run"] and words[-2:] == ["lab:1", "bash"]
    assert f"type=bind,source={box.folder}/a 'b',target=/workspace" in words


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (["--privileged"], {}, "there is no option --privileged"),
        (["a b"], {}, "a b is no name of an image"),
        (["x"], {"SHM_SIZE": "lots"}, "SHM_SIZE is lots"),
        (["x"], {"WORK": "/a,b"}, "WORK: /a,b has a sign"),
        (["x"], {"NVME": "/etc/passwd"}, "NVME: /etc/passwd is no disk"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything(
    box: Box, words: list[str], env: dict[str, str], says: str
) -> None:
    box.engine("docker")
    done = box(*words, **env)
    assert done.returncode == 2 and says in done.stderr and box.called() == []


def test_a_disk_in_use_is_never_touched(box: Box) -> None:
    root = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(root).is_block_device():
        pytest.skip(f"{root} is no disk")
    box.engine("docker")
    for name in ("mkfs.ext4", "mount", "wipefs", "chown", "sudo"):
        box.add(name, f'#!/bin/sh\necho "{name} $*" >>{shlex.quote(str(box.calls))}\n')
    done = box("x", NVME=root)
    assert done.returncode == 2 and f"{root} is in use" in done.stderr
    assert box.called() == []
