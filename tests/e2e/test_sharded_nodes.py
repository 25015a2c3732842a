"""Backends acc and ds on two nodes: a node dies, and its shards are on the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPO, Lab, until
from tests.e2e.test_lifecycle import tiny
from tests.e2e.test_recovery import machine

pytestmark = pytest.mark.e2e

# Python reads it in every process of a run, since the project is on PYTHONPATH. No durable folder, as on hosts of one's
# own; and in the first attempt of a run that asks for it no rank does a step after the 30th.
WAIT = """
import os
os.environ.pop("NEXA_DURABLE", None)
if os.environ.get("WAIT_AT_30") == os.environ.get("NEXA_ATTEMPT", "") != "":
    import signal, time
    from nexa_dist.train import progress
    told = progress.report
    def report(step, *more, **named):
        told(step, *more, **named)
        while step == 30 and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.05)
    progress.report = report
"""


def shards(lab: Lab, rank_0: str) -> dict[str, str]:
    """SHA-256 of what all ranks wrote of the last step, and of the whole model; `rank_0` is a file of the first."""
    checkpoint = lab.manifest()["checkpoint"]
    assert checkpoint["step"] == 60
    listed: dict[str, Any] = json.loads((Path(checkpoint["path"]) / "manifest.json").read_text())["shards"]["of"]
    assert {*(rank_0.replace("0", str(rank), 1) for rank in range(4)), "model/model.safetensors"} <= set(listed)
    return {name: entry["sha256"] for name, entry in listed.items() if "state" not in name or "rng" in name}


@pytest.mark.long("two trainings of four ranks; tests/processes/train holds the bits")
@pytest.mark.parametrize(
    ("backend", "file", "key", "parallel", "rank_0"),
    [
        ("acc", "acc/fsdp_cpu.yaml", "fsdp_offload_params", "FSDP2", "__0_0.distcp"),
        ("ds", "deepspeed/zero3.json", "overlap_comm", "ZeRO-3", "rng_state_0.pth"),
    ],
)
def test_a_lost_node_costs_the_steps_since_the_last_shards(
    clean: Lab, request: pytest.FixtureRequest, backend: str, file: str, key: str, parallel: str, rank_0: str
) -> None:
    request.addfinalizer((clean.root / clean.write("sitecustomize.py", WAIT)).unlink)
    plain, name = (REPO / "configs" / file).read_text(), Path(file).name
    clean.write(name, plain.replace(key, f"{key}s"))
    words = ["run", tiny(clean, async_save=backend == "acc"), "--set", f"backend={backend}", "--set", f"config={name}"]
    words += ["--set", "replicas=1", "--set", "restarts_per_hour=10"]
    refused = clean.nexa(*words, code=2).stderr
    assert f"{key}s: unknown key (hint: did you mean {key}?)" in refused
    clean.write(name, plain)
    clean.nexa(*words)
    first, unbroken, whole = clean.newest(), clean.manifest(), shards(clean, rank_0)
    assert (unbroken["parallel"], f"backend:{backend}" in unbroken["tags"]) == (parallel, True)
    held = unbroken["sharding"]["local_parameters"]
    assert len(held) == 4 and sum(held) >= unbroken["eval_report"]["parameters"] > 3 * max(held)

    child = clean.begin(*words, "--set", 'env.WAIT_AT_30="1"')
    homes = [clean.root / ".nexa" / "clusters" / "lab" / "nodes" / node for node in ("n0", "n1")]
    until(lambda: clean.newest() != first, "it began", 300)
    saved = f"{clean.newest().name}/checkpoints/step_00000020/manifest.json"
    until(lambda: all(list(home.rglob(saved)) for home in homes), "step 20 is on both", 300)
    while left := machine(clean, "n1"):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    said = child.communicate(timeout=900)[1]
    assert child.returncode == 0, said
    ended = clean.manifest()["attempts"][1]
    assert (ended["replaced"], ended["resume_step"]) == (["n1"], 20), said
    assert shards(clean, rank_0) == whole
    assert clean.manifest()["eval_report"]["eval_loss_nats"] == unbroken["eval_report"]["eval_loss_nats"]
