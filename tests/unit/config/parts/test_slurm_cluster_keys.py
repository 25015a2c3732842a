"""The section `slurm:` of a cluster: what it may say, and with which keys beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist.config.load import load_cluster
from nexa_dist.errors import ConfigError

GOOD = {"name": "lab", "provider": "slurm", "nodes": 2, "gpus_per_node": 2,
        "slurm": {"gres": "gpu:2", "time": "1:00:00", "usd_per_gpu_hour": 2.5}}  # fmt: skip


def written(folder: Path, told: dict[str, Any]) -> Path:
    (folder / "c.yaml").write_text(yaml.safe_dump(told))
    return folder / "c.yaml"


def test_what_a_node_costs_is_its_gpus(tmp_path: Path) -> None:
    made = load_cluster(written(tmp_path, {**GOOD, "budget_usd": 5.0}))
    assert (made.node_usd_per_hour, made.node_names, made.traits.scheduled) == (5.0, ("n0", "n1"), True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"slurm": {**GOOD["slurm"], "partitoin": "x"}},
            "slurm.partitoin: unknown key (hint: did you mean partition?)",
        ),
        ({"slurm": {**GOOD["slurm"], "nodes": 2}}, "slurm.nodes: `nodes` of the cluster says it"),
        ({"slurm": {"gres": "gpu:h100:4"}}, "slurm.gres: asks for 4 GPUs a node, and gpus_per_node is 2"),
        ({"slurm": {"options": ["--comment=x"]}}, "--comment is how the job is found again"),
        ({"slurm": {"gres": "gpu:2"}, "budget_usd": 5}, "budget_usd: nobody knows what the nodes cost"),
        (
            {"price_usd_per_hour": 1},
            "price_usd_per_hour: means nothing for provider slurm (hint: give usd_per_gpu_hour",
        ),
        ({"max_hours": 1}, "max_hours: means nothing for provider slurm (hint: slurm.time is the limit"),
        ({"idle_minutes": 5}, "idle_minutes: means nothing for provider slurm"),
        ({"on_failure": "keep 5m"}, "on_failure: its nodes have no clock"),
        ({"slurm": {"time": 2}}, "leaves less than a minute before notice_s"),
    ],
)
def test_what_does_not_go_together_is_said_by_its_key(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster(written(tmp_path, {**GOOD, **more}))
    assert said in str(caught.value)


def test_without_its_section_the_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slurm"):
        load_cluster(written(tmp_path, {key: value for key, value in GOOD.items() if key != "slurm"}))
