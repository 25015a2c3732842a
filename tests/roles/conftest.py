"""A region's machines, booted as the tests ask for them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cloud import image
from tests.e2e.test_region_hosts import Lab, make_lab
from tests.roles.rig import Host


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := image.missing_here():
        pytest.skip(why)
    made = make_lab(tmp_path_factory.mktemp("roles"))
    try:
        yield made
    finally:
        made.machines.close()
        os.close(made.namespace)
    assert list((made.folder / "region" / "hosts").iterdir()) == []


@pytest.fixture(scope="module")
def _numbers() -> Iterator[int]:
    return iter(range(1, 10))


@pytest.fixture
def new_host(machines: Lab, tmp_path: Path, _numbers: Iterator[int]) -> Iterator[Callable[[], Host]]:
    made: list[Host] = []

    def make() -> Host:
        number = next(_numbers)
        machines.boot(number)
        folder = tmp_path / f"host{number}"
        folder.mkdir()
        made.append(Host(machines, number, folder, Path(tempfile.mkdtemp(prefix="nexa-ssh-"))))
        made[-1].said("cloud-init status --wait >/dev/null")
        return made[-1]

    yield make
    for host in made:
        host.close()
        shutil.rmtree(host.sockets)
