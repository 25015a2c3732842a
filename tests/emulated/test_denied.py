"""What may not be asked hides nothing else: the rest is shown and ended, and the missing right is named."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass, replace

import pytest

from nexa_dist import cli
from nexa_dist.errors import EXIT_STILL_RUNNING, NexaError, StillRunning
from nexa_dist.ops.cluster import sweep
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.aws.gang import Gang
from nexa_dist.ops.providers.scope_file import scope_file
from nexa_dist.ops.runs.stop import stop
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.run import files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import end_tagged, tagged
from nexa_dist.run.aws.denied import in_short
from nexa_dist.run.workspace import ClusterFolder
from tests.emulated.test_leftovers import Maker
from tests.unit.cloud_server import HOME, NOW, Desk, Emulated, config, scope

PROFILES = ("iam:ListInstanceProfiles", "iam:ListRoles")


@dataclass
class Lab:
    """A cluster in the region with one of nearly everything, and its folder here. IAM knows it only with a bucket."""

    region: Emulated
    ctx: Context
    folder: ClusterFolder
    scope: AwsScope
    made: Maker

    def there(self) -> set[str]:
        return {ident for idents in self.made.made.values() for ident in idents} & self.region.ids()

    def may(self, *deny: str, silent: bool = False) -> None:
        self.region.control.rights(deny=deny, silent=silent)


@pytest.fixture
def lab(desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Lab:
    monkeypatch.setenv("NEXA_SETTLE_S", "0")
    monkeypatch.setattr(aws_end, "FEWER", 4)
    monkeypatch.setattr(aws_end, "_terraform_destroy", lambda *_: [])
    bucket = getattr(request, "param", "")
    name, owner = emulated_region.name(), emulated_region.name()
    monkeypatch.setenv("NEXA_OWNER", owner)
    ctx = replace(desk.ctx, sleep=lambda _: time.sleep(0.02))
    account = aws_client.identity(HOME).account
    mine = scope(name, owner, account=account, bucket=bucket, workspace=our_tag(ctx), expires_unix=int(NOW) - 60)
    made = Maker(emulated_region, mine.tags)
    _, subnet = made.network()
    made.rest(subnet)
    made.instance(SubnetId=subnet)
    made.key_pair()
    if bucket:
        made.profile(f"/nexa/{name}/")
    folder = ctx.workspace.cluster(name)
    files.write_json(scope_file(folder), mine.to_json())
    return Lab(emulated_region, ctx, folder, mine, made)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("lab", ["a-bucket"], indirect=True)
def test_one_denied_kind_hides_no_other(lab: Lab, silent: bool) -> None:
    everything = tagged.find(HOME, lab.scope.owner, lab.scope.cluster)
    lab.may("iam:ListInstanceProfiles", "ec2:DescribeVolumes", "iam:ListRoleTags", silent=silent)
    found, unseen = tagged.look(HOME, lab.scope.owner, lab.scope.cluster)
    dark = {"instance profile": "iam:ListInstanceProfiles", "volume": "ec2:DescribeVolumes", "role": "iam:ListRoleTags"}
    why = "" if silent else " (no identity-based policy allows)"
    told = {kind.kind: in_short(kind.error) for kind in unseen}
    assert told == {kind: f"{right} is denied{why}" for kind, right in dark.items()}
    assert {t.id for t in found} == {t.id for t in everything if t.kind not in dark}
    with pytest.raises(NexaError) as all_of_them:
        tagged.find(HOME, lab.scope.owner, lab.scope.cluster)
    assert all(right in str(all_of_them.value) for right in dark.values())
    lab.region.control.rights(allow=())
    with pytest.raises(NexaError, match="ec2:DescribeInstances"):  # nothing seen is no answer
        tagged.look(HOME, lab.scope.owner, lab.scope.cluster)


def test_without_a_bucket_no_profile_is_asked_for_and_the_receipt_says_so(lab: Lab) -> None:
    lab.may(*PROFILES)
    told = Gang(lab.ctx, lab.folder, config(), lab.scope, None, None).find()  # type: ignore[arg-type]
    assert {t.id for t in told} >= lab.there()
    receipt = destroying.teardown(lab.ctx, lab.folder, lab.scope, stop)
    assert lab.there() == set() and receipt["left"] == {"cloud": [], "errors": []}
    assert receipt["not_asked"] == ["instance profile", "role"]
    assert not {right for right in lab.region.control.used() if right.startswith("iam:")}


@pytest.mark.parametrize(("lab", "by_file"), [("a-bucket", False), ("", True)], indirect=["lab"])
def test_a_teardown_ends_what_it_sees_and_names_what_it_does_not(lab: Lab, by_file: bool) -> None:
    """Also by the file from elsewhere: that it names no bucket today does not say that the cluster had none. A role
    cannot go before its profile, and while something is known to be left the claim stays."""
    lab.may("iam:ListInstanceProfiles")
    mine = replace(lab.scope, created_unix=0) if by_file else lab.scope
    with pytest.raises(StillRunning, match=r"instance profiles .* iam:ListInstanceProfiles") as caught:
        destroying.teardown(lab.ctx, lab.folder, mine, stop)
    assert caught.value.code == EXIT_STILL_RUNNING
    left = [*lab.made.made.get("instance profile", ()), *lab.made.made["key pair"]] if lab.scope.bucket else []
    assert lab.there() == set(left)
    kept = json.loads((lab.folder.path / "receipt.json").read_text())
    assert [row for row in kept["left"]["unseen"] if "iam:ListInstanceProfiles" in row] and not kept["not_asked"]
    lab.may()
    receipt = destroying.teardown(lab.ctx, lab.folder, mine, stop)
    assert not any(receipt["left"].values()) and lab.there() == set()


def test_what_was_seen_once_and_then_hidden_is_not_called_gone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_end, "_terraform_destroy", lambda *_: lab.may("ec2:DescribeKeyPairs") or [])
    with pytest.raises(StillRunning, match="ec2:DescribeKeyPairs"):
        destroying.teardown(lab.ctx, lab.folder, lab.scope, stop)
    (pair,) = lab.made.made["key pair"]
    rows = json.loads((lab.folder.path / "receipt.json").read_text())["resources"]
    assert {row["id"]: row["state"] for row in rows}[pair] == "?" and lab.there() == {pair}


def test_a_claim_that_may_not_be_read_is_no_end_of_a_teardown(lab: Lab) -> None:
    lab.may("ec2:DescribeKeyPairs")
    assert "ec2:DescribeKeyPairs is denied" in aws_end.holder_elsewhere(lab.ctx, lab.scope)


@pytest.mark.parametrize("lab", ["a-bucket"], indirect=True)
def test_a_sweep_shows_and_ends_what_it_sees(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(lab.ctx.workspace.root)
    monkeypatch.setattr(
        "nexa_dist.ops.providers.aws.owners.known_scope", lambda _: None
    )  # this workspace knows it no more
    monkeypatch.setattr(end_tagged, "PAUSE_S", 0.03)
    monkeypatch.setattr(end_tagged, "sweep", functools.partial(end_tagged.sweep, rounds=5))
    lab.may("iam:ListInstanceProfiles", "ec2:DescribeRegions", "ec2:DescribeImages", "ec2:DescribeSpotPriceHistory")
    assert cli.main(["sweep", "--delete", "-y"]) == EXIT_STILL_RUNNING
    out, err = capfd.readouterr()
    assert "is counted at the on-demand price" in err and "ec2:DescribeSpotPriceHistory" in err
    for line in (
        f"regions other than {HOME}: ec2:DescribeRegions is denied",
        f"instance profiles in {HOME}: iam:ListInstanceProfiles is denied",
        f"images in {HOME}: ec2:DescribeImages is denied",
    ):
        assert err.count(line) == 1
    assert all(ident in out for ident in lab.made.made["instance"] | lab.made.made["vpc"])
    assert lab.there() == lab.made.made["instance profile"]


def test_a_right_that_lacks_everywhere_is_one_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.may("ec2:DescribeVolumes", *PROFILES)
    monkeypatch.setattr(aws_client, "regions", lambda _: [HOME, "us-west-2", "eu-west-1"])
    _, found, silent = sweep.survey(lab.ctx)
    assert {entry.thing.kind for entry in found} > {"instance", "vpc"}
    why = " (no identity-based policy allows)"
    everywhere = f"volumes in eu-west-1, {HOME}, us-west-2: ec2:DescribeVolumes is denied{why}"
    once = [f"{kind}s in {HOME}: {right} is denied{why}" for kind, right in zip(tagged.IAM, PROFILES, strict=True)]
    assert silent == sorted([everywhere, *once])
