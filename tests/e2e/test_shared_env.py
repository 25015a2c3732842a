"""A node that lacks the training environment gets it from another one; nothing outside of the region answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.region import Running, Unable, region
from tests.e2e.conftest import Lab

pytestmark = pytest.mark.e2e

CLUSTER = """\
name: share
provider: aws
nodes: 2
gpus_per_node: 1
max_hours: 1
offers: [{type: g5.12xlarge, zone: us-east-1a}]
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    try:
        with region(f"share-{os.getpid()}") as running:
            yield running
    except Unable as error:
        pytest.skip(str(error))


def test_a_node_without_the_environment_gets_it_from_the_other(here: Running, tmp_path: Path) -> None:
    lab = Lab(tmp_path, here.prefix, {**here.env, "NEXA_SETTLE_S": "3"})
    lab.write("share.yaml", CLUSTER)
    try:
        lab.nexa("provision", "--cluster", "share.yaml", "-y", timeout_s=400)

        def node(name: str, command: str) -> str:
            return lab.nexa("ssh", name, "--", "sh", "-c", command).stdout.strip()

        look = "ls -d /opt/nexa/shared/envs/*/.complete"
        there = node("n0", look)
        node("n1", f"rm -rf {os.path.dirname(there)}")
        said = lab.nexa("provision", "--cluster", "share.yaml", "-y", timeout_s=400).stderr
        assert "1 tasks changed" in said and "task: Build it" not in said
        assert node("n1", look) == there
        assert node("n0", "pgrep -f '[h]mac.compare_digest' || echo none") == "none"
        assert f"{os.path.dirname(there)}/bin/python" in node("n1", f"head -1 {os.path.dirname(there)}/bin/torchrun")
    finally:
        lab.nexa("teardown", "--cluster", "share.yaml", "-y", timeout_s=300)
