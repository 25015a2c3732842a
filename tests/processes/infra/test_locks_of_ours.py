"""The locks of heavy and infer against the package index: nothing is downloaded but what packages say they need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCKS = ROOT / "docker" / "lock"


def entries(text: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by name."""
    found = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(.*\n(?: .*\n)*)", text, re.M)
    return {name: (version, set(re.findall("sha256:[0-9a-f]{64}", rest))) for name, version, rest in found}


@pytest.mark.long("asks the package index for 250 packages")
@pytest.mark.parametrize("name", ["heavy", "infer"])
def test_a_lock_of_ours_is_complete_beside_the_cuda_build_of_torch(name: str, tmp_path: Path) -> None:
    uv = shutil.which("uv")
    assert uv
    pins = [str(path) for path in (ROOT / "docker" / f"cuda_{name}.txt",) if path.exists()]
    kept = {key: value for key, value in os.environ.items() if key not in ("UV_FIND_LINKS", "PIP_FIND_LINKS")}
    argv = [uv, "pip", "compile", str(LOCKS / f"{name}.txt"), str(ROOT / "docker" / "cuda_torch.txt"), *pins]
    argv += ["--python-version", "3.11", "--python-platform", "linux", "--generate-hashes", "--no-annotate"]
    done = subprocess.run(
        [*argv, "--no-header", "-q", "-o", str(tmp_path / "all.txt")],
        env={**kept, "UV_SYSTEM_CERTS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    ours, whole = entries((LOCKS / f"{name}.txt").read_text()), entries((tmp_path / "all.txt").read_text())
    assert {key: version for key, (version, _) in ours.items()}.items() <= {k: v for k, (v, _) in whole.items()}.items()
    assert [key for key, (_, hashes) in ours.items() if not hashes & whole[key][1]] == []
    rest = set(whole) - set(ours)
    assert "torch" in rest and [key for key in rest if not key.startswith(("torch", "nvidia-", "cuda-"))] == []
