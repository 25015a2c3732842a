"""Sharded trainings on two nodes: a node dies for good, and what the other holds is enough. What is not sharded,
test_axolotl.py loses a node of, and test_lifecycle.py stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import held, libaio
from tests.e2e.conftest import REPO, Lab, until
from tests.e2e.test_lifecycle import tiny
from tests.e2e.test_recovery import machine

pytestmark = pytest.mark.e2e

# As on hosts of one's own.
NOT_DURABLE = 'os.environ.pop("NEXA_DURABLE", None)'


@pytest.fixture
def clean(clean: Lab) -> Iterator[Lab]:
    """Without a durable folder, and with ranks that can be held at a step."""
    with held.at_a_step(clean.root, NOT_DURABLE):
        yield clean


@dataclass(frozen=True)
class Kind:
    """A backend with one file of configs/."""

    backend: str
    parallel: str
    config: str
    rank_0: str
    """A file of the last checkpoint that rank 0 wrote, beside which those of the others are."""
    typo: str
    on_disk: bool = False
    """Whether the optimizer lies on a disk, too, of a model large enough to leave the memory."""
    ranks: int = 4


# Nodes do not see which stage it is, or what is offloaded: tests/processes/train/test_ds.py has the others.
KINDS = {
    "acc": Kind(
        "acc", "FSDP2", "acc/fsdp_cpu.yaml", "__0_0.distcp", "fsdp_offload_params"
    ),
    "zero3 on nvme": Kind(
        "ds", "ZeRO-3", "deepspeed/zero3_nvme_offload.json", "rng_state_0.pth", "overlap_comm",
        on_disk=True, ranks=2,
    ),
}  # fmt: skip


def files(lab: Lab, step: int, kind: Kind) -> dict[str, str]:
    """SHA-256 of what all ranks wrote of the last step, and of the whole model."""
    checkpoint = lab.manifest()["checkpoint"]
    assert checkpoint["step"] == step
    told: dict[str, Any] = json.loads((Path(checkpoint["path"]) / "manifest.json").read_text())
    listed = told["shards"]["of"]
    ranks = {kind.rank_0.replace("0", str(rank), 1) for rank in range(kind.ranks)}
    assert ranks | {"model/model.safetensors"} <= set(listed)
    return {name: entry["sha256"] for name, entry in listed.items() if "state" not in name or "rng" in name}


def on_a_disk(plain: str) -> str:
    """A DeepSpeed file, with the optimizer on the disk as well, and with buffers for a model of a test."""
    asked = json.loads(plain)
    zero = asked["zero_optimization"] | {"sub_group_size": 300_000}
    zero["offload_param"]["buffer_size"] = 1_000_000
    zero["offload_optimizer"] = {"device": "nvme", "nvme_path": "auto", "pin_memory": True, "buffer_count": 8}
    return json.dumps(asked | {"zero_optimization": zero})


def loses_a_node(lab: Lab, words: list[str], *, wait_at: int, saved: int, everywhere: bool) -> None:
    """Begin a run, end the machine of n1 once the step `saved` is on rank 0's node, or `everywhere`, and see the run
    to its end on another machine."""
    before = lab.newest()
    child = lab.begin(*words, "--set", f'env.WAIT_AT="{wait_at}"')
    homes = [lab.root / ".nexa" / "clusters" / "lab" / "nodes" / node for node in ("n0", "n1")[: 1 + everywhere]]
    until(lambda: lab.newest() != before, "it began", 300)
    name = f"{lab.newest().name}/checkpoints/step_{saved:08d}/manifest.json"
    until(
        lambda: all((home / "home/scratch" / name).exists() for home in homes),
        f"step {saved} is on {len(homes)} nodes",
        300,
    )
    while left := machine(lab, "n1"):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    said = child.communicate(timeout=900)[1]
    assert child.returncode == 0, said
    ended = lab.manifest()["attempts"][1]
    assert (ended["replaced"], ended["resume_step"]) == (["n1"], saved), said


@pytest.mark.long("two trainings of up to four ranks; tests/processes/train holds the bits")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_lost_node_costs_the_steps_since_the_last_shards(clean: Lab, kind: Kind) -> None:
    train = tiny(clean, kind.ranks // 2, steps=40, async_save=kind.backend == "acc")
    words = ["run", train, "--set", f"backend={kind.backend}", "--set", "restarts_per_hour=10"]
    plain, name = (REPO / "configs" / kind.config).read_text(), Path(kind.config).name
    if kind.on_disk:
        plain, compiled_with = on_a_disk(plain), libaio.variables()
        if compiled_with is None:
            pytest.skip(libaio.NONE)
        given = {"model.hidden_size": 256, "model.intermediate_size": 512, "model.layers": 2}
        given |= {f"env.{variable}": value for variable, value in compiled_with.items()}
        words += [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words += ["--set", f"config={name}", "--set", "replicas=1"]
    clean.write(name, plain.replace(kind.typo, f"{kind.typo}s"))
    refused = clean.nexa(*words, code=2).stderr
    assert f"{kind.typo}s: unknown key (hint: did you mean {kind.typo}?)" in refused
    clean.write(name, plain)
    clean.nexa(*words, timeout_s=2400)  # with what DeepSpeed compiles for a disk, once
    unbroken, whole = clean.manifest(), files(clean, 40, kind)
    assert (unbroken["parallel"], f"backend:{kind.backend}" in unbroken["tags"]) == (kind.parallel, True)
    parts = unbroken["sharding"]["local_parameters"]
    assert len(parts) == kind.ranks, "an equal part of the model on each"
    assert sum(parts) >= unbroken["eval_report"]["parameters"] > 0.75 * kind.ranks * max(parts)
    if kind.backend == "ds":
        assert any(line.startswith("deepspeed==") for line in unbroken["environment"]["freeze"])
    if kind.on_disk:
        places = ("offload_param", "offload_optimizer")
        assert [unbroken["sharding"][place] for place in places] == ["nvme", "nvme"]
        assert {name.split("/")[-2] for name in whole if name.endswith(".swp")} == {"rank00", "rank01"}

    loses_a_node(clean, words, wait_at=30, saved=20, everywhere=True)
    assert files(clean, 40, kind) == whole
    assert clean.manifest()["eval_report"]["eval_loss_nats"] == unbroken["eval_report"]["eval_loss_nats"]
