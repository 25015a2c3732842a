"""The allocation of a cluster: what is submitted, and what Slurm says of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.errors import EXIT_BUDGET, NexaError
from nexa_dist.model import Layout
from nexa_dist.plan.slurm import allocation
from nexa_dist.plan.slurm.allocation import Asked, accounted, asking, digest, ended_unix, name_of

ASKED = Asked("nexa-lab-0f", "a1b2", SlurmConfig(nodes=2, gres="gpu:2", time="12:00:00", options=("--mail-type=END",)),
              "/w/slurm/a1b2", "/w/slurm/current", "/opt/py", "/w/slurm/a1b2/agent.pyz")  # fmt: skip


def config(**more: Any) -> ClusterConfig:
    told = {"name": "lab", "provider": "slurm", "nodes": 2, "gpus_per_node": 2, **more}
    told.setdefault("slurm", {"gres": "gpu:2", "time": 60, "usd_per_gpu_hour": 2.5})
    return ClusterConfig.model_validate(told)


def test_the_script_asks_holds_the_nodes_by_one_step_and_is_found_by_its_comment() -> None:
    assert ASKED.options[0] == "--job-name=nexa-lab-0f"
    assert {"--nodes=2", "--ntasks-per-node=1", "--no-requeue", "--signal=B:TERM@180"} < set(ASKED.options)
    assert ASKED.options[-2:] == ["--mail-type=END", "--comment=a1b2"], "no option of the user's changes it"
    lines = ASKED.script.splitlines()
    assert lines.index("submission=a1b2") < lines.index('[ "$(cat "$current" 2>/dev/null)" = "$submission" ] || exit 0')
    assert sum(line.startswith("srun ") for line in lines) == 1
    assert "module load x" in replace(ASKED, slurm=SlurmConfig(shell=("module load x",))).script


def test_two_workspaces_name_their_jobs_differently_and_each_always_alike() -> None:
    assert name_of("lab", "me@here:1") == name_of("lab", "me@here:1") != name_of("lab", "me@here:2")


@pytest.mark.parametrize(("hours", "time_"), [(math.inf, "60"), (2.0, "60"), (0.5, "30"), (0.999, "59")])
def test_the_time_limit_is_what_the_budget_pays_for_where_that_is_less(hours: float, time_: str) -> None:
    assert asking(config(), hours).time == time_
    assert asking(config(), hours).nodes == 2


def test_a_budget_gives_a_limit_where_the_file_has_none_and_one_too_small_is_refused() -> None:
    assert asking(config(slurm={"gres": "gpu:2"}), math.inf).time is None
    assert asking(config(slurm={"gres": "gpu:2"}), 3.0).time == "180"
    with pytest.raises(NexaError, match="pays for 3 min") as caught:
        asking(config(), 0.06)
    assert caught.value.code == EXIT_BUDGET


def test_the_same_wish_is_told_from_another_whatever_its_time() -> None:
    assert digest(asking(config(), math.inf)) == digest(asking(config(), 0.5))
    assert digest(asking(config(), math.inf)) != digest(asking(config(nodes=3), math.inf))


def test_the_nodes_are_those_of_the_holders_with_job_and_price() -> None:
    doors = [{"host": f"h{n}", "address": f"10.0.0.{n}", "port": 20000 + n} for n in range(2)]
    layout = Layout("/opt/py", "/w/scratch", "/w/shared", "/w/durable")
    made = allocation.cluster(config(scratch="/tmp/s"), "17", doors, layout, ssh_config="/c", user="me", created_unix=1)
    assert [(n.name, n.address, n.port, n.instance_id) for n in made.nodes] == [
        ("n0", "10.0.0.0", 20000, "h0@17"), ("n1", "10.0.0.1", 20001, "h1@17"),
    ]  # fmt: skip
    assert (made.usd_per_hour, made.world_size, made.layout.scratch, made.layout.shared) == (
        10,
        4,
        "/tmp/s",
        "/w/shared",
    )
    assert made.traits.scheduled and not made.traits.by_job


def test_what_the_accounting_and_slurmctld_say_of_the_end() -> None:
    assert accounted("17|CANCELLED by 0|61|a|b|cpu=4\n")["State"] == "CANCELLED by 0"
    assert accounted("") == accounted("sacct: error\n") == {}
    at = ended_unix({"EndTime": "2026-01-02T03:04:05"})
    assert at == time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    assert ended_unix({"EndTime": "Unknown"}) is ended_unix({}) is None
