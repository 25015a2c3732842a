"""Where a cluster is and whose: asked once, kept, and refused when the world has changed under it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.aws import scope as scope_module
from nexa_dist.ops.providers.aws.scope import (
    open_scope,
    owner_wanted,
    region_wanted,
    ssh_sources,
)
from nexa_dist.ops.providers.scope_file import known_scope, scope_file
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.aws.given import Given
from nexa_dist.plan.aws.scope import AwsScope
from nexa_dist.run import files
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.workspace import ClusterFolder
from tests.unit.cloud_server import HOME, NOW, UNSET, Desk, config, scope

AMI, SUBNET = "ami-01234567", "subnet-01234567"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked: account 1, user ann."""
    for name in (*UNSET, "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(aws_client, "identity", lambda region: aws_client.Identity("1", "user/ann"))
    aws_client.session.cache_clear()


@pytest.fixture
def folder(desk: Desk) -> ClusterFolder:
    return desk.ctx.workspace.cluster("c")


def test_a_new_site_is_written_nowhere_and_lives_for_max_hours(desk: Desk, folder: ClusterFolder) -> None:
    made = open_scope(desk.ctx, folder, config(ami=AMI, bucket="b0b", state="s3://team"))
    assert (made.region, made.account, made.owner, made.image) == (HOME, "1", "user/ann", AMI)
    assert made.expires_unix - made.created_unix == 6 * 3600 and made.created_unix == NOW
    assert (made.bucket, made.state) == ("b0b", "s3://team")
    assert known_scope(folder) is None


def test_a_known_site_is_kept(desk: Desk, folder: ClusterFolder) -> None:
    before = scope(owner="somebody", image="ami-89abcdef")
    files.write_json(scope_file(folder), before.to_json())
    desk.slept.append(3600.0)
    assert open_scope(desk.ctx, folder, config()) == before  # the same deadline, image and owner
    assert open_scope(desk.ctx, folder, config(), planned=scope(created_unix=5.0)) == before


@pytest.mark.parametrize(
    ("known", "keys", "said"),
    [
        ({"account": "2"}, {}, "is in account 2, and the credentials are of 1"),
        ({"region": "us-west-2"}, {}, "region 'us-west-2', and the file says 'us-east-1'"),
        ({}, {"owner": "bob"}, "owner 'ann', and the file says 'bob'"),
        ({}, {"bucket": "b0b"}, "bucket ''"),
        ({"state": "s3://team"}, {}, "state 's3://team', and the file says ''"),
        ({}, {"ami": "ami-89abcdef"}, f"image '{AMI}'"),
        ({"labels": {"CostCenter": "1"}}, {"tags": {"CostCenter": "2"}}, "tags {'CostCenter': '1'}, and the file says"),
        ({"given": Given(subnets={"us-east-1a": SUBNET})}, {}, "was made in other subnets"),
        ({}, {"subnets": [SUBNET]}, "was made in other subnets"),
        ({"given": Given(reservation="cr-01234567")}, {"capacity_reservation": "cr-89abcdef"}, "other capacity_reserv"),
        ({"expires_unix": int(NOW)}, {}, "expired at 2027-01-15T08:00:00Z"),
    ],
)
def test_what_cannot_change_is_refused(
    desk: Desk, folder: ClusterFolder, known: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    files.write_json(scope_file(folder), scope(**known).to_json())
    with pytest.raises(UsageError, match=said) as caught:
        open_scope(desk.ctx, folder, config(**keys))
    assert caught.value.hint


def test_what_the_user_has_and_his_tags_are_kept_with_the_site(
    desk: Desk, folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Capacity Block ends before max_hours: so do the nodes, by their own deadline."""
    own = Given(vpc="vpc-1", subnets={"us-east-1a": SUBNET}, public=False, reservation="cr-01234567", ends_unix=5)
    monkeypatch.setattr(scope_module, "given", lambda *_: own)
    made = open_scope(desk.ctx, folder, config(ami=AMI, tags={"CostCenter": "1234"}))
    assert (made.given, made.labels, made.expires_unix) == (own, {"CostCenter": "1234"}, 5)
    files.write_json(scope_file(folder), made.to_json())
    assert known_scope(folder) == made


def test_an_owner_or_image_left_out_is_the_known_one(desk: Desk, folder: ClusterFolder) -> None:
    files.write_json(scope_file(folder), scope().to_json())
    assert open_scope(desk.ctx, folder, config(owner="ann", ami="/aws/any/parameter")).owner == "ann"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"cluster": 1}', '"x"', json.dumps({**scope().to_json(), "owner": None})]
)
def test_a_torn_site_is_said_to_be_damaged(folder: ClusterFolder, text: str) -> None:
    files.write_text(scope_file(folder), text)
    with pytest.raises(NexaError, match=r"site\.json"):
        known_scope(folder)


@pytest.mark.parametrize(
    ("named", "made"),
    [
        ("198.51.100.7/32", ("198.51.100.7/32",)),
        ("198.51.100.7", ("198.51.100.7/32",)),
        (" 198.51.100.7/24 , 203.0.113.0/24,", ("198.51.100.0/24", "203.0.113.0/24")),
    ],
)
def test_ssh_from_of_the_environment(monkeypatch: pytest.MonkeyPatch, named: str, made: tuple[str, ...]) -> None:
    monkeypatch.setenv("NEXA_SSH_FROM", named)
    assert ssh_sources(config().model_copy(update={"ssh_from": None})) == made
    assert ssh_sources(config(ssh_from=["10.0.0.0/8"])) == ("10.0.0.0/8",)  # the file's goes first


@pytest.mark.parametrize(
    "named", ["", " , ", "0.0.0.0/0", "::/0", "198.51.100.7/32,0.0.0.0/0", "0.0.0.0/1", "home", "$(curl x)/32"]
)
def test_the_world_is_no_default_and_no_choice(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("NEXA_SSH_FROM", named)
    with pytest.raises(UsageError, match="NEXA_SSH_FROM"):
        ssh_sources(config().model_copy(update={"ssh_from": None}))


ZONED = {"region": None, "offers": [{"type": "g5.xlarge", "zone": "us-west-2b"}]}


@pytest.mark.parametrize(
    ("keys", "env", "made"),
    [
        ({"region": "eu-west-1"}, {"AWS_REGION": "us-east-2"}, "eu-west-1"),
        (ZONED, {"AWS_REGION": "us-east-2"}, "us-west-2"),
        ({"region": None}, {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-east-1"}, "us-east-2"),
        ({"region": None}, {"AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
        ({"region": None}, {}, ""),
    ],
)
def test_the_file_names_the_region_else_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], env: dict[str, str], made: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if made:
        assert region_wanted(config(**keys)) == made
    else:
        with pytest.raises(UsageError, match="no AWS region"):
            region_wanted(config(**keys))


def test_the_file_names_the_owner_before_the_environment_and_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    who = aws_client.Identity("1", "user/ann")
    assert owner_wanted(None, who) == "user/ann"
    monkeypatch.setenv("NEXA_OWNER", "team")
    assert owner_wanted(config(), who) == "team"
    assert owner_wanted(config(owner="bob"), who) == "bob"
    monkeypatch.setenv("NEXA_OWNER", "*")
    with pytest.raises(UsageError, match=r"owner '\*'"):
        owner_wanted(None, who)


@pytest.mark.parametrize(
    ("arn", "who", "team"),
    [
        ("iam::1:user/ann", "user/ann", ""),
        ("iam::1:user/lab/ann", "user/lab/ann", ""),
        ("iam::1:root", "root", ""),
        ("sts::1:federated-user/ann", "federated-user/ann", ""),
        ("sts::1:assumed-role/Trainer/botocore-session-17", "assumed-role/Trainer", ""),
        ("sts::1:assumed-role/Nodes/i-0123456789", "assumed-role/Nodes", ""),
        ("sts::1:assumed-role/AWSReservedSSO_Gpu_0a1b/ann", "ann", "assumed-role/AWSReservedSSO_Gpu_0a1b"),
        ("sts::1:assumed-role/Saml/bob@example.org", "bob@example.org", "assumed-role/Saml"),
    ],
)
def test_who_we_are_is_a_person_where_the_session_names_one(arn: str, who: str, team: str) -> None:
    """One permission set is a whole team's: its resources would be everybody's orphans."""
    told = aws_client.Identity.of("1", f"arn:aws:{arn}")
    assert (told.who, told.team) == (who, team)
    assert owner_wanted(None, told) == who


def test_the_name_of_a_workspace_does_not_follow_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """cron and sudo have another USER, and a laptop another host name every day."""
    monkeypatch.setenv("USER", "ann")
    first = our_tag(desk.ctx)
    assert first.startswith("ann@")
    monkeypatch.setenv("USER", "root")
    assert our_tag(desk.ctx) == first
    assert our_tag(replace(desk.ctx, workspace=type(desk.ctx.workspace)(desk.root / "other"))) != first


def journal(folder: ClusterFolder, *records: dict[str, Any]) -> None:
    for record in records:
        files.append_json(folder.path / "journal.jsonl", {"at": NOW, **record})


CLAIM = {"step": "claim", "state": "intent", "region": "us-west-2", "account": "7", "owner": "bob", "name": "nexa-c-1"}


def test_teardown_knows_the_site_by_file_journal_or_config(desk: Desk, folder: ClusterFolder) -> None:
    assert aws_end.scope_of(desk.ctx, folder, None) is None  # nothing was ever made here
    journal(folder, CLAIM, {"step": "claim", "state": "done"})
    told = aws_end.scope_of(desk.ctx, folder, None)
    assert isinstance(told, AwsScope)
    assert (told.cluster, told.region, told.account, told.owner) == ("c", "us-west-2", "7", "bob")
    named = aws_end.scope_of(desk.ctx, folder, config(owner="eve"))
    assert named is not None and (named.region, named.owner, named.account) == (HOME, "eve", "1")
    files.write_json(scope_file(folder), scope().to_json())
    assert aws_end.scope_of(desk.ctx, folder, None) == scope()


@pytest.mark.parametrize("name", ["config.json", "cluster.json"])
def test_an_aws_cluster_is_never_taken_for_a_local_one(desk: Desk, folder: ClusterFolder, name: str) -> None:
    """Its receipt would say that nothing is left, of a place where nothing was."""
    files.write_json(folder.path / name, {"provider": "aws"})
    with pytest.raises(NexaError, match="provider aws") as caught:
        aws_end.scope_of(desk.ctx, folder, None)
    assert "--cluster FILE" in caught.value.hint
    files.write_json(folder.path / name, {"provider": "local"})
    assert aws_end.scope_of(desk.ctx, folder, None) is None


def test_a_torn_site_with_a_file_is_done_without(desk: Desk, folder: ClusterFolder) -> None:
    files.write_text(scope_file(folder), "{")
    told = aws_end.scope_of(desk.ctx, folder, config())
    assert told is not None and told.owner == "user/ann"
    with pytest.raises(NexaError):
        aws_end.scope_of(desk.ctx, folder, None)


def test_the_scope_stays_where_older_versions_wrote_it(folder: ClusterFolder, tmp_path: Path) -> None:
    assert scope_file(folder) == tmp_path / ".nexa" / "clusters" / "c" / "site.json"
