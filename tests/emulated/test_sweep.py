"""nexa sweep: what of an owner nobody will ever end, and that only that is ended."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.cluster.sweep import Found, end, survey
from nexa_dist.ops.providers.scope_file import scope_file
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.run import files
from nexa_dist.run.aws import end_tagged, tagged
from tests.unit.cloud_server import HOME, NOW, Desk, Emulated, scope

LATER, PAST = "2099-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


class Lab:
    """Key pairs of one owner, each of a cluster; the account is the emulated one."""

    def __init__(self, desk: Desk, region: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk, self.region, self.owner = desk, region, region.name()
        monkeypatch.setenv("NEXA_OWNER", self.owner)
        self.ctx = replace(desk.ctx, sleep=lambda _: time.sleep(0.01))
        self.ours = our_tag(desk.ctx)

    def key_pair(self, cluster: str, workspace: str = "", expires: str = LATER, owner: str = "") -> str:
        given = {"nexa:cluster": cluster, "nexa:owner": owner or self.owner, "nexa:expires": expires}
        given["nexa:workspace"] = workspace or self.ours
        tags = [{"Key": key, "Value": value} for key, value in given.items()]
        spec = [{"ResourceType": "key-pair", "Tags": tags}]
        made = self.region.ec2.create_key_pair(KeyName=self.region.name(), KeyType="ed25519", TagSpecifications=spec)
        return str(made["KeyPairId"])

    def known(self, cluster: str, account: str = "123456789012") -> None:
        folder = self.ctx.workspace.cluster(cluster)
        files.write_json(scope_file(folder), scope(cluster, self.owner, account=account).to_json())

    def survey(self) -> dict[str, Found]:
        mine, found, silent = survey(self.ctx, [HOME])
        assert silent == []
        assert mine.owners[0] == self.owner
        return {entry.thing.id: entry for entry in found}


@pytest.fixture
def lab(desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(desk, emulated_region, monkeypatch)


def test_only_what_nobody_will_end_is_an_orphan_and_only_that_goes(lab: Lab) -> None:
    lab.known("living")
    torn = lab.ctx.workspace.cluster("torn")
    files.write_text(scope_file(torn), "{")
    living, forgotten, damaged = (lab.key_pair(name) for name in ("living", "forgotten", "torn"))
    elsewhere = lab.key_pair("theirs", workspace="bob@desk/2")
    expired = lab.key_pair("old", workspace="bob@desk/2", expires=PAST)
    undated = lab.key_pair("undated", workspace="bob@desk/2", expires="soon")

    found = lab.survey()
    assert {ident for ident, entry in found.items() if entry.orphan} == {forgotten, expired}
    assert set(found) == {living, forgotten, damaged, elsewhere, expired, undated}
    assert (found[living].holder, found[elsewhere].holder) == ("this workspace", "bob@desk/2")

    assert end(lab.ctx, [entry for entry in found.values() if entry.orphan]) == []
    assert set(lab.survey()) == {living, damaged, elsewhere, undated}


def test_another_account_s_cluster_is_left_out(lab: Lab) -> None:
    """A cluster of that name was made from here in another account: what is found now is not what was recorded."""
    lab.known("c", account="999999999999")
    lab.key_pair("c", expires=PAST)
    assert lab.survey() == {}


def test_what_does_not_go_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_tagged, "sweep", functools.partial(end_tagged.sweep, rounds=2))
    ident = lab.key_pair("stuck")
    lab.region.control.fault("error", call="DeleteKeyPair", code="UnauthorizedOperation", status=403)
    errors = end(lab.ctx, list(lab.survey().values()))
    assert len(errors) == 1 and ident in errors[0] and "UnauthorizedOperation" in errors[0]


def test_an_instance_has_an_age_and_a_price(lab: Lab) -> None:
    given = {"nexa:cluster": "c", "nexa:owner": lab.owner, "nexa:expires": LATER, "nexa:workspace": "bob@desk/2"}
    tags = [{"Key": key, "Value": value} for key, value in given.items()]
    made = lab.region.ec2.run_instances(
        ImageId=lab.region.image,
        InstanceType="g5.xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    launched = made["Instances"][0]["LaunchTime"].timestamp()
    lab.desk.slept.append(launched + 2 * 3600 - NOW)  # two hours later
    found = lab.survey()[made["Instances"][0]["InstanceId"]]
    assert found.age_hours == pytest.approx(2.0, abs=0.01)
    assert found.usd == pytest.approx(2 * 1.006, rel=0.01)  # the book's g5.xlarge in us-east-1
    assert found.to_json()["offer"].endswith(" on_demand") and not found.orphan


def test_a_region_that_does_not_answer_is_said_and_hides_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = lab.key_pair("living"), tagged.look

    def look(region: str, *words: Any) -> tuple[list[tagged.TaggedResource], list[tagged.Unseen]]:
        if region != HOME:
            raise NexaError("denied")
        return real(region, *words)

    monkeypatch.setattr(tagged, "look", look)
    _, found, silent = survey(lab.ctx, [HOME, "eu-west-1"])
    assert [entry.thing.id for entry in found] == [made]
    assert silent == ["eu-west-1: denied"]


def test_all_that_is_yours_is_what_files_and_records_name(lab: Lab) -> None:
    """Resources of a cluster with `owner:` in its file were never seen: only the identity's were looked for."""
    team, recorded, gone, alien = (lab.region.name() for _ in range(4))
    files.write_text(lab.ctx.workspace.root / "team.yaml", f"name: t\nprovider: aws\nowner: {team}\n")
    files.write_text(lab.ctx.workspace.root / "odd.yaml", "owner: [aws\n")
    files.write_json(scope_file(lab.ctx.workspace.cluster("r")), scope("r", recorded, account="123456789012").to_json())
    lab.known("far", account="999999999999")
    claim = {"step": "claim", "state": "intent", "region": HOME, "account": "123456789012", "owner": gone}
    files.append_json(lab.ctx.workspace.root / ".nexa/history/g_2026/journal.jsonl", claim)
    made = {owner: lab.key_pair("x", owner=owner) for owner in (lab.owner, team, recorded, gone, alien)}

    mine, found, _ = survey(lab.ctx, [HOME])
    assert {entry.thing.id for entry in found} == set(made.values()) - {made[alien]}
    assert mine.owners == (lab.owner, "user/moto", recorded, gone, team)
    said = " | ".join(mine.unlooked)
    assert "cluster far" in said and "account 999999999999" in said and "odd.yaml" in said
    assert f"regions other than {HOME}" in said

    mine, found, _ = survey(lab.ctx, [HOME], [alien])
    assert [entry.thing.id for entry in found] == [made[alien]] and mine.owners == (alien,)
    assert found[0].to_json()["owner"] == alien
    assert f"owner {team} of team.yaml (--owner {team!r})" in mine.unlooked
    with pytest.raises(UsageError, match=r"--owner '\*'"):
        survey(lab.ctx, [HOME], ["*"])
