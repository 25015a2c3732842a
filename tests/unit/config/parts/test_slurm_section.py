"""The section slurm of train.yaml: every fault with its line, and times and GPUs as Slurm counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.config.load import load_train
from nexa_dist.config.parts.slurm import SlurmConfig, seconds_of
from nexa_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("12:00:00", 43200), ("2-00", 172800), ("1-02:30", 95400), ("0-1:0:5", 3605)],
)
def test_a_time_is_what_slurm_takes_it_for(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        *(("gpu:4", 4), ("gpu", 1), ("gpu:h100:8", 8), ("gpu:h100", 1), ("gpu:a:2,gpu:b:3", 5), ("nvme:2,gpu:2", 2)),
        *(("nvme:2", None), (None, None)),
    ],
)
def test_the_gpus_of_a_node(gres: str | None, gpus: int | None) -> None:
    assert SlurmConfig(gres=gres).gpus == gpus


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tim: 3", "slurm.tim: unknown key (hint: did you mean time?)"),
        ("options: [--output=x]", "--output is set by nexa"),
        ("options: ['-p x']", "slurm.options[0]"),
        ("partition: 'gpu; rm'", "slurm.partition"),
        ("account: '$(id)'", "slurm.account"),
        ("time: soon", "expected a time as Slurm takes it"),
        ("time: 3", "leaves less than a minute before notice_s"),
        ("time: 1:00:00", "quote it"),
        ("python: python3", "slurm.python"),
        ("nodes: 0", "slurm.nodes"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(f"script: a.py\nslurm:\n  {text}\n")
    with pytest.raises(ConfigError) as refused:
        load_train(file)
    assert words in str(refused.value)
    assert f"{file}:" in str(refused.value)
