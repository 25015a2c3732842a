"""The images of docker/ are made of what the nodes' environments are made of, and say so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.ops import light

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PINS = yaml.safe_load((ROOT / "configs" / "pins.yaml").read_text())["nexa_pins"]
MATRIX = (DOCKER / "README.md").read_text().split("# Images")[1].split("\n\n")[2]
VARIANTS = {"train-light": ("light", "train"), "train-heavy": ("heavy", "heavy"), "infer": ("infer", "infer")}
"""Image → environment of train.yaml, name of its lock."""


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its words in one line."""
    text = re.sub(r"^#.*\n", "", (DOCKER / f"{name}.Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    rows = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return [(row.split(" ", 1)[0], row.split(" ", 1)[1]) for row in rows]


def of(name: str, kind: str) -> list[str]:
    return [words for found, words in instructions(name) if found == kind]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_of_pins_decides_the_versions(name: str) -> None:
    given = dict(row.split("=", 1) for row in of(name, "ARG") if "=" in row)
    pins = PINS["images"]
    assert (given["BASE"], given["PYTHON"], given["TORCH_BACKEND"]) == (
        pins["base"],
        pins["python"],
        pins["torch_backend"],
    )
    assert of(name, "FROM") == ["${BASE}"]
    assert re.fullmatch(r"docker\.io/nvidia/cuda:[\d.]+-runtime-ubuntu[\d.]+@sha256:[0-9a-f]{64}", pins["base"])
    cuda = re.search(r"cuda:(\d+)\.(\d+)", pins["base"])
    assert cuda and pins["torch_backend"] == f"cu{cuda[1]}{cuda[2]}", "torch is built for another CUDA than the base's"
    assert pins["python"].startswith("3.11."), "scripts/lock resolves for 3.11"


@pytest.mark.parametrize("name", VARIANTS)
def test_it_installs_the_files_of_the_nodes_environment(name: str) -> None:
    """The same lock with its hashes, the same pin of torch and what fits it alone, the same uv; nothing else."""
    environment, lock = VARIANTS[name]
    copied = {source for row in of(name, "COPY") for source in row.split()[:-1]}
    pins = {"docker/cuda_torch.txt"}
    if (DOCKER / f"cuda_{environment}.txt").exists():
        pins.add(f"docker/cuda_{environment}.txt")  # as ops/work/environment.py looks for it
    installed = {path for path in copied if path.endswith(".txt")}
    assert installed == {f"docker/lock/{lock}.txt", "ansible/roles/uv_env/files/uv.txt", *pins}
    if environment == "light":
        assert {str(light.LOCK), str(light.TORCH)} <= installed
    for path in copied:
        assert (ROOT / path).is_file(), path
    runs = " ".join(of(name, "RUN"))
    asked = re.findall(r"-r /opt/nexa/lock/([\w.]+)", runs)
    assert sorted(asked) == sorted(Path(path).name for path in installed)
    assert f"--no-deps --require-hashes -r /opt/nexa/lock/{lock}.txt" in runs
    assert "--no-deps --require-hashes -r /opt/nexa/lock/uv.txt" in runs
    assert not re.findall(r"(?:pip install|uv pip install)(?![^&]*-r )", runs), "a package that no lock has"


@pytest.mark.parametrize("name", VARIANTS)
def test_torch_comes_before_the_lock_and_what_changes_daily_last(name: str) -> None:
    order = [words for kind, words in instructions(name) if kind in ("RUN", "COPY", "LABEL", "USER")]
    place = {
        key: next(n for n, row in enumerate(order) if key in row)
        for key in ("cuda_torch", "/lock/" + VARIANTS[name][1])
    }
    assert place["cuda_torch"] < place["/lock/" + VARIANTS[name][1]]
    assert order[-1].startswith("org.opencontainers.image.title"), "labels with the date spoil no layer"


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_nobodys_root_with_a_health_command_labels_and_an_sbom(name: str) -> None:
    assert of(name, "USER") == ["1000:1000"]
    assert "useradd --create-home --uid 1000 --shell /bin/bash runner" in " ".join(of(name, "RUN"))
    assert "HF_HOME=/home/runner/.cache/huggingface" in " ".join(of(name, "ENV"))
    assert len(of(name, "HEALTHCHECK")) == 1 and "health.sh" in of(name, "HEALTHCHECK")[0]
    assert set(re.findall(r"org\.opencontainers\.image\.([\w.]+)", of(name, "LABEL")[0])) == {
        *("title", "description", "source", "version", "revision", "created", "base.name")
    }  # fmt: skip
    assert any("sbom.py >/opt/nexa/sbom.cdx.json" in row for row in of(name, "RUN"))
    assert not re.search(r"(?i)\b(token|secret|password|api_key)\w*=", " ".join(of(name, "ARG") + of(name, "ENV")))


def test_the_images_differ_in_what_they_are_for_alone() -> None:
    """So that a mended line is mended in all three."""
    shared = [set(instructions(name)) for name in VARIANTS]
    for kind, words in set.union(*shared) - set.intersection(*shared):
        assert kind in ("COPY", "LABEL", "EXPOSE", "ENTRYPOINT", "CMD", "HEALTHCHECK") or "/opt/nexa/lock/" in words, (
            words
        )


def test_the_matrix_says_what_the_files_say() -> None:
    base = re.search(r"cuda:([\d.]+)-runtime-ubuntu([\d.]+)@", PINS["images"]["base"])
    torch = re.search(r"^torch==(\S+)$", (DOCKER / "cuda_torch.txt").read_text(), re.M)
    assert base and torch
    assert f"NVIDIA CUDA {base[1]} runtime, Ubuntu {base[2]}" in MATRIX
    assert f"| torch {torch[1]}, build {PINS['images']['torch_backend']} |" in MATRIX
    assert MATRIX.count(PINS["images"]["python"]) == len(VARIANTS)
    for lock, package in (("train", "transformers"), ("heavy", "axolotl"), ("heavy", "deepspeed"), ("infer", "vllm")):
        found = re.search(rf"^{package}==(\S+) ", (DOCKER / "lock" / f"{lock}.txt").read_text(), re.M)
        assert found and f"{package} {found[1]}" in MATRIX
    assert f"| {PINS['nvidia_driver']['minimum']} or newer " in MATRIX


def test_compose_builds_all_three_and_gives_each_three_tags() -> None:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.publish.yaml").read_text())["services"]
    assert set(services) == set(VARIANTS)
    for name, service in services.items():
        assert service["build"]["dockerfile"] == f"docker/{name}.Dockerfile"
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        tags = [service["image"], *service["build"]["tags"]]
        assert [tag.split("}:", 1)[1] for tag in tags] == [name, f"{name}-latest", f"{name}-${{DATE:-undated}}"]
        assert (
            set(service["build"]["args"])
            == {"VERSION", "REVISION", "CREATED"}
            <= {row.split("=")[0] for row in of(name, "ARG")}
        )


def test_nothing_but_what_is_copied_can_get_into_an_image() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    copied = {source for name in VARIANTS for row in of(name, "COPY") for source in row.split()[:-1]}
    allowed = {str(path.relative_to(ROOT)) for rule in rules[1:] for path in ROOT.glob(rule.removeprefix("!"))}
    assert copied <= allowed and not any(path.startswith((".env", "runs")) for path in allowed)


def test_the_sbom_lists_what_is_installed_once_and_in_order() -> None:
    argv = [sys.executable, str(DOCKER / "sbom.py")]
    made = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=90).stdout)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    refs = [row["bom-ref"] for row in made["components"]]
    assert refs == sorted(set(refs))
    assert f"pkg:pypi/pyyaml@{yaml.__version__}" in refs
