"""The command line of docker and of podman, word by word."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.plan.runs.container import Host, argv, launcher, mounts
from nexa_dist.plan.runs.torchrun import Place

PLACE = Place("python3", "/h/shared/agent/ab/agent.pyz", "/s", "/h/shared", "/d", "/s/run1", "/h/shared/code/p", "/c")
DOCKER = Host("docker", "/usr/bin/docker", "sha256:77", 1000, 1001, 64 << 30, gpus=False)
PODMAN = dataclasses.replace(DOCKER, engine="podman", program="/usr/bin/podman", image="77")
COMMON = (
    *("run", "--rm", "--pull=never", "--network=host", "--pid=host", "--ipc=private"),
    *(f"--shm-size={32 << 30}", "--user=1000:1001", "--log-driver=none", "--no-healthcheck"),
    *("--security-opt=label=disable", "--label=nexa.run_dir=/s/run1", "--name=nexa-r-n0-1"),
)
MOUNTS = tuple(f"--mount=type=bind,source={path},target={path}" for path in ("/d", "/h/shared", "/s"))
HOME = ("--env=HOME=/h/shared/home", "--env=HF_HOME=/h/shared/home/.cache/huggingface", "--env=USER=runner")
END = ("--workdir=/s/run1/work", "--entrypoint=python3")
PINNED = ("--ulimit=memlock=-1:-1", "--ulimit=stack=67108864:67108864")


def made(host: Host, **more: Any) -> tuple[str, ...]:
    return argv(host, PLACE, ("-V",), **{"name": "nexa-r-n0-1", **more})


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (DOCKER, ()),
        (PODMAN, ("--userns=keep-id",)),
        (dataclasses.replace(DOCKER, gpus=True), ("--gpus=all", *PINNED)),
        (
            dataclasses.replace(PODMAN, gpus=True),
            ("--userns=keep-id", "--device=nvidia.com/gpu=all", *PINNED),
        ),
        (
            dataclasses.replace(DOCKER, devices=("/dev/infiniband/uverbs0", "/dev/infiniband/uverbs1")),
            ("--device=/dev/infiniband/uverbs0", "--device=/dev/infiniband/uverbs1", *PINNED),
        ),
    ],
    ids=["docker", "podman", "docker-gpu", "podman-gpu", "docker-efa"],
)
def test_every_word(host: Host, own: tuple[str, ...]) -> None:
    assert made(host) == (host.program, *COMMON, *own, *MOUNTS, *HOME, *END, host.image, "-V")


def test_root_is_root_in_it_too() -> None:
    """Who owns the files that a run leaves is who ran the agent."""
    words = made(dataclasses.replace(PODMAN, user=0, group=0))
    assert "--user=0:0" in words and "--userns=keep-id" not in words


def test_the_libraries_of_efa_come_from_the_host_and_cannot_be_written() -> None:
    words = made(dataclasses.replace(DOCKER, amazon=True))
    assert "--mount=type=bind,source=/opt/amazon,target=/opt/amazon,readonly" in words
    assert any(word.startswith("--env=LD_LIBRARY_PATH=/opt/amazon/efa/lib:") for word in words)


def test_no_value_of_a_variable_is_an_argument_and_the_users_own_wins() -> None:
    words = made(DOCKER, variables={"HF_TOKEN", "NEXA_RUN_DIR", "HF_HOME"})
    assert [word for word in words if word.startswith("--env=")] == [
        "--env=HOME=/h/shared/home", "--env=USER=runner", "--env=HF_HOME", "--env=HF_TOKEN", "--env=NEXA_RUN_DIR",
    ]  # fmt: skip


def test_the_launcher_runs_under_the_agents_inside() -> None:
    words = launcher(DOCKER, PLACE, ("python3", "-m", "torch.distributed.run", "x y"), name="n", variables=())
    at = words.index(DOCKER.image)
    assert words[at - 1] == "--entrypoint=python3"
    assert words[at + 1 :] == (
        *("-S", "-E", "/h/shared/agent/ab/agent.pyz", "inside", "--"),
        *("python3", "-m", "torch.distributed.run", "x y"),
    )


def test_a_folder_in_another_comes_with_that() -> None:
    place = dataclasses.replace(PLACE, scratch="/n/scratch", shared="/n", durable="/n-2", agent="/n/agent/a.pyz")
    assert mounts(place) == ("/n", "/n-2")


@pytest.mark.parametrize("sign", [",", '"'])
def test_a_path_that_no_engine_can_mount_is_refused(sign: str) -> None:
    with pytest.raises(UsageError, match="no engine mounts"):
        argv(DOCKER, dataclasses.replace(PLACE, durable=f"/d{sign}x"), ())
