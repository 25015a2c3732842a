"""What a node of the emulated region need not make again: an image has it. Nothing outside answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cloud.region import Running
from tests.e2e.conftest import NO_TORCH, rented

pytestmark = pytest.mark.e2e

CLUSTER = """\
name: img
provider: aws
nodes: 1
gpus_per_node: 1
max_hours: 1
offers: [{type: g5.12xlarge, zone: us-east-1a}]
"""


def changed(said: str) -> int:
    """Tasks that the bootstrap had to do."""
    found = re.search(r"(\d+) tasks changed", said)
    assert found, said
    return int(found[1])


@pytest.mark.long("two clusters and an image; tests/emulated/test_image.py asks the API alone")
@pytest.mark.usefixtures("one_provider")
def test_a_baked_image_is_taken_and_holds_nobodys_keys(here: Running, tmp_path: Path) -> None:
    lab = rented(here, tmp_path)
    lab.write("img.yaml", CLUSTER)
    assert "one node would be rented" in lab.nexa("image", "bake", "--cluster", "img.yaml", code=2).stderr
    baked = lab.nexa("image", "bake", "--cluster", "img.yaml", "-y", "--json", timeout_s=400)
    told = json.loads(baked.stdout)
    ami = told["image"]["id"]
    assert not any(told["receipt"]["left"].values())
    mine = [row for row in here.client.state()["instances"] if row["tags"]["nexa:cluster"] == "img-bake"]
    assert [row["state"] for row in mine] == ["terminated"]
    assert [row["id"] for row in lab.json("image", "list", "--cluster", "img.yaml")] == [ami]
    try:
        made = lab.nexa("provision", "--cluster", "img.yaml", "-y", timeout_s=400)
        assert f"image {ami}, baked 0.0 days ago" in made.stderr
        assert changed(made.stderr) < changed(baked.stderr)

        def node(command: str) -> str:
            return lab.nexa("ssh", "n0", "--", "sh", "-c", command).stdout

        keys = node("cat ~/.ssh/authorized_keys").splitlines()
        assert len([key for key in keys if key.strip()]) == 1
        assert node("ls /opt/nexa/scratch") == "" and int(node("cat /var/lib/nexa/acts_unix")) > 0
        said = lab.script("hello", "print('hello from a baked node')", **NO_TORCH)
        lab.nexa("run", said, timeout_s=600)
        assert "hello from a baked node" in lab.log(0, "n0")
    finally:
        lab.nexa("teardown", "--cluster", "img.yaml", "-y", "--keep-nothing", timeout_s=600)
    lab.nexa("image", "delete", ami, "--cluster", "img.yaml", "-y")
    assert lab.json("image", "list", "--cluster", "img.yaml") == []
