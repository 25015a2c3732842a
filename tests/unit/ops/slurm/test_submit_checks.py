"""What a job of Slurm's cannot be is refused before anything is made, with what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import End
from nexa_dist.node.protocol import Reason
from nexa_dist.ops.slurm.outcome import judged
from nexa_dist.ops.slurm.submit import asked, ready


def config(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"script": "a.py", "slurm": {"gres": "gpu:2"}, **more})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data": {"x": "/d"}}, "data: not for a job"),
        ({"apt": ("git",)}, "apt: "),
        ({"environment": "none"}, "environment: "),
        ({"nodes": ("n0",)}, "nodes: "),
        ({"launcher": "direct"}, "launcher: direct"),
        ({"on_disconnect": "kill"}, "on_disconnect: kill"),
        ({"budget_usd": 5.0}, "budget_usd: "),
        ({"min_nodes": 1}, "min_nodes: "),
    ],
)
def test_a_key_that_needs_a_controller_or_nodes_of_ours_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        ready(config(**more), 2)
    assert str(refused.value).startswith(words)
    assert refused.value.hint


def test_a_training_as_its_job_runs_it() -> None:
    made = ready(config(), 2)
    assert (made.nproc_per_node, made.environment, made.replicas) == (2, "light", 0)
    assert ready(config(replicas=1), 2).replicas == 1
    assert ready(config(launcher="direct", preload=False), 2).launcher == "direct"


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ([config(slurm=None)], "has no section slurm"),
        ([config(slurm={})], "nobody says how many ranks"),
        ([config(), config(slurm={"gres": "gpu:4"})], "share what they ask of Slurm"),
        ([config(nproc_per_node=1), config()], "differ in nproc_per_node"),
        ([config(secrets=("A",)), config()], "share secrets and files"),
    ],
)
def test_what_is_not_said_or_not_the_same_for_all_elements(configs: list[TrainConfig], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(configs)


def test_the_ranks_of_a_node_are_its_gpus_unless_said() -> None:
    assert asked([config()])[1] == 2
    assert asked([config(nproc_per_node=1)])[1] == 1


STOPPED = End("notice", Reason.SCHEDULER)


@pytest.mark.parametrize(
    ("state", "end", "why", "wanted"),
    [
        ("completed", End("completed"), "time limit", ("completed", "completed")),
        ("completed", End("completed"), "cancelled", ("completed", "completed")),
        ("stopped", STOPPED, "preempted", ("failed", "notice")),
        ("stopped", STOPPED, "cancelled", ("stopped", "stopped")),
        ("stopped", STOPPED, "", ("stopped", "stopped")),
        ("failed", End("agent", "node n1: the node agent is gone", "n1"), "requeued", ("failed", "notice")),
        ("failed", End("rank", "rank 1 on n0: exit code 1", "n0", 1), "", ("failed", "rank")),
        ("stopped", End("deadline", "deadline"), "", ("stopped", "deadline")),
    ],
)
def test_slurms_word_is_added_to_that_of_the_agents(state: str, end: End, why: Any, wanted: tuple[str, str]) -> None:
    told, made = judged(state, end, why)
    assert (told, made.kind) == wanted
