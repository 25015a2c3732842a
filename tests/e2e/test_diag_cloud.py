"""A rented node that goes bad: found by nexa diag, kept from running, replaced by the next provision, its cost told."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_dist.run import files
from tests.cloud.region import Running, Unable, region
from tests.e2e.conftest import Lab
from tests.e2e.test_region import CLUSTER, running

pytestmark = pytest.mark.e2e

BROKEN = "#!/bin/sh\necho 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15\n"


@pytest.fixture
def here() -> Iterator[Running]:
    try:
        with region(f"diag-{os.getpid()}") as made:
            yield made
    except Unable as error:
        pytest.skip(str(error))


@pytest.fixture
def cloud(here: Running, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, here.prefix, {**here.env, "NEXA_SETTLE_S": "3"})
    made.write("cloud.yaml", CLUSTER)
    yield made
    made.nexa("teardown", "--cluster", "cloud.yaml", "-y")


def test_a_rented_node_that_goes_bad_is_replaced(cloud: Lab, here: Running) -> None:
    cloud.nexa("provision", "--cluster", "cloud.yaml", "-y", timeout_s=400)
    first = running(here)
    folder = cloud.root / ".nexa/clusters/cloud"
    verdict = json.loads((folder / "diag.json").read_text())
    assert verdict["ok"] and verdict["nodes"] == {name: row["id"] for name, row in first.items()}

    cloud.nexa("ssh", "n1", "--", "sudo", "sh", "-c", f"printf %s {shlex.quote(BROKEN)} >/usr/bin/nvidia-smi")
    assert "error: n1: driver: nvidia-smi: Unable to determine" in cloud.nexa("diag", code=1).stderr
    refused = cloud.nexa("run", cloud.script("hello", "print('hello')\n"), code=1).stderr
    assert "n1: driver: nvidia-smi: Unable to determine" in refused

    said = cloud.nexa("provision", "--cluster", "cloud.yaml", "-y", timeout_s=400).stderr
    assert "another machine in the place of n1 (driver)" in said
    second = running(here)
    assert second["n0"]["id"] == first["n0"]["id"] and second["n1"]["id"] != first["n1"]["id"]
    told = [row for row in files.read_lines(folder / "ledger.jsonl") if row["event"] == "replaced"]
    assert [(row["node"], row["id"], row["causes"]) for row in told] == [("n1", first["n1"]["id"], ["driver"])]
    assert told[0]["minutes"] > 0 and told[0]["usd"] > 0
    cloud.nexa("run", "hello.yaml")
