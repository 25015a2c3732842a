"""docs/IAM.md is the least that nexa takes in AWS: it is enough, nothing of it is too much, and what lacks is named."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from nexa_dist.errors import NexaError
from tests.bench.rights import (
    DATA,
    FEATURES,
    PAGE,
    PLOTS,
    VERBS,
    Life,
    known,
    lead,
    page,
    rights,
    unnamed,
    without_hosts,
)
from tests.cloud import provider
from tests.unit.cloud_server import Emulated


@pytest.fixture(autouse=True)
def _without_hosts() -> Iterator[None]:
    with without_hosts():
        yield


def test_the_page_is_what_was_recorded() -> None:
    data = known()
    assert PAGE.read_text() == page(data), "python -m tests.bench.rights --docs"
    assert set(data) == set(FEATURES) and {verb for of in data.values() for verb in of} == set(VERBS)
    assert DATA.read_text() == json.dumps(data, indent=1) + "\n"
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]
    for policy in blocks:
        assert len(json.dumps(policy, separators=(",", ":"))) <= 6144  # IAM takes no longer one
        sids = [row["Sid"] for row in policy["Statement"]]
        assert len(sids) == len(set(sids)) and all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in sids)
        assert not [right for row in policy["Statement"] for right in row["Action"] if "*" in right]
    whole = {right for row in blocks[0]["Statement"] for right in row["Action"]}
    assert whole == rights(data, FEATURES, *(verb for verb in VERBS if verb != "image"))


@pytest.mark.long("leads whole lives by the real Terraform")
@pytest.mark.parametrize("name", ["all", "reserved", "usual"])  # `python -m tests.bench.rights` leads every one
def test_a_life_takes_what_is_listed_and_all_of_it(emulated_region: Emulated, tmp_path: Path, name: str) -> None:
    data, plot = known(), PLOTS[name]
    used: dict[str, set[str]] = {verb: set() for verb in VERBS}

    @contextlib.contextmanager
    def during(verb: str) -> Iterator[None]:
        emulated_region.control.rights(allow=rights(data, plot.features, verb))
        yield
        used[verb] |= emulated_region.control.used()
        emulated_region.control.rights()

    # One of them counts how often the provider of its instances tries.
    with provider.running() if name != "all" else contextlib.nullcontext():
        lead(Life.of(emulated_region, tmp_path, plot.keys), during, plot.verbs)
    used["teardown"] |= used["sweep"]  # it takes that where its state is lost
    for verb in plot.verbs:
        assert rights(data, plot.tells or ["base"], verb) <= used[verb]  # nothing of it is too much


@pytest.mark.long("an apply for each kind of right")
@pytest.mark.parametrize(("name", "known_by"), [("usual", ""), ("all", "usual")], ids=["usual", "all"])
def test_a_provision_without_one_right_names_it(
    emulated_region: Emulated, tmp_path: Path, name: str, known_by: str
) -> None:
    """One of each kind, as ec2:Create… and s3:Put…, but for kinds of the simpler life that was led already: all of a
    kind are refused alike. `python -m tests.bench.rights --deny` takes away every one."""

    def kinds(features: Collection[str]) -> dict[str, str]:
        every = sorted(rights(known(), features, "provision"), reverse=True)
        return {re.sub(r"(?<=:[A-Z])([a-z]+).*", r"\1", right): right for right in every}  # the first of each

    mine, had = kinds(PLOTS[name].features), kinds(PLOTS[known_by].features) if known_by else {}
    denied = [right for kind, right in mine.items() if kind not in had]
    assert len(denied) >= 10
    with provider.running():
        assert unnamed(emulated_region, tmp_path, PLOTS[name], denied) == {}


def test_a_right_that_lacks_is_named_before_anything_is_made(emulated_region: Emulated, tmp_path: Path) -> None:
    life = Life.of(emulated_region, tmp_path, PLOTS["usual"].keys)
    before = emulated_region.ids()
    for right in ("ssm:GetParameter", "ec2:DescribeVolumes", "ec2:DescribeKeyPairs"):
        emulated_region.control.rights(deny=[right])
        with pytest.raises(NexaError, match=right):
            life.provision()
        assert emulated_region.ids() == before
    assert not emulated_region.control.used() & {"ec2:ImportKeyPair", "iam:ListRoles", "iam:ListInstanceProfiles"}
