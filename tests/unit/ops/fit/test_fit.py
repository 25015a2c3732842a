"""What nexa preflight finds of a training: on the nodes of a file, and where nobody can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.fit import preflight as fit
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.workspace import Workspace
from tests.unit.plan.fit.known_models import KNOWN

OFFERS: dict[str, Any] = {"name": "c", "provider": "aws", "region": "us-east-1", "owner": "me", "nodes": 2,
                          "gpus_per_node": 1, "max_hours": 1.0, "offers": [{"type": "g5.xlarge"}]}  # fmt: skip


def training(**model: Any) -> TrainConfig:
    shape = model or {"vocab_size": 32000, "hidden_size": 1024, "layers": 12, "heads": 16, "intermediate_size": 2816}
    return TrainConfig.model_validate(
        {"backend": "hf", "model": shape, "dataset": {"sequence_length": 2048},
         "trainer": {"steps": 10, "batch_size": 1, "precision": "bf16"}}
    )  # fmt: skip


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(Workspace(tmp_path), FakeRunner(), lambda text: None)


def pretrained(folder: Path, name: str) -> TrainConfig:
    folder.joinpath("config.json").write_text(json.dumps({**KNOWN[name][0], "max_position_embeddings": 4096}))
    return training(path=str(folder))


def test_what_fits_has_a_time_and_a_price(ctx: Context) -> None:
    seen = fit.preflight(ctx, training(), ClusterConfig.model_validate(OFFERS))
    (there,) = seen.there
    assert there.fits and not seen.refused and there.world_size == 2
    assert there.hours is not None and there.usd == pytest.approx(there.hours * 2 * 1.006)
    assert seen.cheapest[0].usd is not None and [found.fits for found in seen.cheapest] == [True] * 3
    alone = fit.preflight(ctx, training(), None)
    assert alone.there == () and [fit.type for fit in alone.cheapest] == [fit.type for fit in seen.cheapest]
    assert alone.cheapest[0].usd == pytest.approx((seen.cheapest[0].usd or 0) / 2)  # half the tokens


def test_what_does_not_fit_is_told_by_how_much(ctx: Context, tmp_path: Path) -> None:
    seen = fit.preflight(ctx, pretrained(tmp_path, "Llama-2-7B"), ClusterConfig.model_validate(OFFERS))
    assert "and one A10G of g5.xlarge has 22.35 GiB" in seen.refused
    assert {found.type.gpu for found in seen.cheapest} == {"H200"}
    large = fit.preflight(ctx, pretrained(tmp_path, "Llama-3-70B"), ClusterConfig.model_validate(OFFERS))
    assert large.refused.startswith("the model has 70.6 B parameters, backend hf takes at most 15 B")
    assert large.cheapest == ()


def test_a_run_is_refused_or_warned_before_it_starts(tmp_path: Path) -> None:
    said: list[str] = []
    ctx = Context(Workspace(tmp_path), FakeRunner(), said.append)
    nodes = (Node("n0", "10.0.0.1", 1, offer="g5.xlarge us-east-1a spot", price_usd_per_hour=0.4),)
    cluster = Cluster("c", "aws", nodes, Layout("python3", "~/s", "~/h", "~/d"), region="us-east-1")
    fit.warn(ctx, cluster, training())
    fit.warn(ctx, cluster, training(path="/only/there"))
    assert said == []
    with pytest.raises(UsageError, match="backend hf takes at most 15 B"):
        fit.warn(ctx, cluster, pretrained(tmp_path, "Llama-3-70B"))
    tmp_path.joinpath("config.json").write_text(json.dumps({"model_type": "mamba"}))
    fit.warn(ctx, cluster, training(path=str(tmp_path)))
    assert said == []
    wide = {"vocab_size": 32000, "heads": 32, "intermediate_size": 11008, "hidden_size": 4096}
    fit.warn(ctx, cluster, training(**wide, layers=32))
    assert "warning: a rank needs" in said[0]
    with pytest.raises(UsageError, match="backend hf takes at most 15 B"):
        fit.warn(ctx, cluster, training(**wide, layers=90))


def test_what_nobody_can_know_is_said(ctx: Context, tmp_path: Path) -> None:
    script = TrainConfig.model_validate({"script": "train.py"})
    with pytest.raises(UsageError, match=r"the model of train.py is its own"):
        fit.preflight(ctx, script, None)
    with pytest.raises(UsageError, match="is not on this machine"):
        fit.preflight(ctx, training(path=str(tmp_path / "gone")), None)
    tmp_path.joinpath("config.json").write_text(json.dumps({**KNOWN["GPT-2"][0]}))
    short = fit.preflight(ctx, training(path=str(tmp_path)), None)
    assert short.refused == "sequence: windows of 2048 tokens, and the model has 1024 positions"


def test_what_no_cluster_of_the_book_holds_is_refused_with_what_would(ctx: Context, tmp_path: Path) -> None:
    seen = fit.preflight(ctx, pretrained(tmp_path, "Qwen2.5-32B"), None, "ds")
    assert not seen.refused and seen.cheapest[0].nodes > 0
    config = pretrained(tmp_path, "Llama-2-13B")
    assert config.trainer and not fit.preflight(ctx, config, None, "acc").refused
    many = config.model_copy(update={"trainer": config.trainer.model_copy(update={"batch_size": 512})})
    refused = fit.preflight(ctx, many, None)
    assert refused.refused.startswith("memory: no 16 nodes of a type in the price book, or fewer, hold it")


def test_of_offers_the_first_has_to_fit(ctx: Context) -> None:
    shape = {"vocab_size": 32000, "hidden_size": 2048, "layers": 22, "heads": 16, "intermediate_size": 5632}
    offers = [{"type": "g5.xlarge"}, {"type": "g6e.xlarge"}]
    seen = fit.preflight(ctx, training(**shape), ClusterConfig.model_validate({**OFFERS, "offers": offers}))
    assert [found.fits for found in seen.there] == [False, True]
    assert seen.refused == "offers: g5.xlarge may be taken first, and it does not fit"
    cheapest = fit.preflight(ctx, training(**shape), ClusterConfig.model_validate({**OFFERS, "offers": "cheapest"}))
    assert cheapest.there[0].type.name == "g4dn.xlarge" and len(cheapest.there) > 10 and cheapest.refused
    (row,) = [check for check in cheapest.checks if check.ok is False]
    assert row.next == "offers: [{type: g6e.xlarge}] in the cluster's file"


def test_a_teacher_is_reckoned_with_and_has_the_students_tokens(tmp_path: Path) -> None:
    said: list[str] = []
    ctx = Context(Workspace(tmp_path), FakeRunner(), said.append)
    for name, model, tokens in (("student", "GPT-2", {"a": 0}), ("teacher", "Llama-2-7B", {"a": 0, "b": 1})):
        (tmp_path / name).mkdir()
        known = {**KNOWN[model][0], "max_position_embeddings": 4096, "n_positions": 4096, "vocab_size": 32000}
        (tmp_path / name / "config.json").write_text(json.dumps(known))
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    alone = training(path="student")
    assert alone.trainer
    taught = alone.trainer.model_copy(update={"use_kd": True, "kd_teacher": "teacher"})
    config = alone.model_copy(update={"trainer": taught})
    one, two = (fit.preflight(ctx, each, None) for each in (alone, config))
    more = two.cheapest[0].memory.teacher
    assert more == 2 * 6_738_415_616 + 16 * 2048 * 32000 and not one.cheapest[0].memory.teacher
    (row,) = [check for check in two.checks if check.name == "teacher"]
    assert row.ok is False and f"'b': {tmp_path}/student has no such token, {tmp_path}/teacher 1" in row.said
    nodes = (Node("n0", "10.0.0.1", 1, offer="p5.48xlarge us-east-1a spot", price_usd_per_hour=0.4),)
    cluster = Cluster("c", "aws", nodes, Layout("python3", "~/s", "~/h", "~/d"), region="us-east-1")
    with pytest.raises(UsageError, match=r"trainer\.kd_teacher: the tokenizers of student and teacher differ"):
        fit.warn(ctx, cluster, config)
    (tmp_path / "student" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    fit.warn(ctx, cluster, config)
    assert {check.ok for check in fit.preflight(ctx, config, None).checks if check.name == "teacher"} == {True}
    scratch = {"tokenizer": "teacher", "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128}
    own = config.model_copy(update={"model": training(**scratch).model})
    seen = fit.preflight(ctx, own, None)
    assert seen.shape.vocabulary == 32000 and {check.ok for check in seen.checks if check.name == "teacher"} == {True}
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    assert {check.ok for check in fit.preflight(ctx, config, None).checks if check.name == "teacher"} == {None}


def test_adapters_of_train_yaml_are_reckoned_with(ctx: Context, tmp_path: Path) -> None:
    whole = fit.preflight(ctx, pretrained(tmp_path, "Llama-2-7B"), None)
    adapters = fit.preflight(ctx, training(path=str(tmp_path), lora={"rank": 8}), None)
    assert adapters.work.method.adapter is not None
    assert adapters.work.method.adapter.rank == 8
    assert adapters.cheapest[0].memory.needed < whole.cheapest[0].memory.needed / 2
