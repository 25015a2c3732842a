"""What provision and teardown conclude from a claim, a state and a cloud that do not answer as they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexa_dist.errors import NexaError, StillRunning, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.cluster import teardown
from nexa_dist.ops.money.budget import allowance
from nexa_dist.ops.providers.aws import boot as aws_boot
from nexa_dist.ops.providers.aws import end as aws_end
from nexa_dist.ops.providers.aws.claim import Held, claim, reconcile, still_ours
from nexa_dist.ops.providers.aws.gang import Gang
from nexa_dist.ops.runs.stop import stop
from nexa_dist.plan.aws.given import Given
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run import files
from nexa_dist.run.aws import end_tagged, tagged
from nexa_dist.run.aws.client import Cloud, Refused
from nexa_dist.run.aws.tagged import TaggedResource
from nexa_dist.run.runner import CommandFailed, Result
from nexa_dist.run.terraform.stack import Terraform
from tests.unit.cloud_server import HOME, Desk, config, scope

OURS = {"nexa:workspace": "ann@desk/1", "nexa:cluster": "c", "nexa:owner": "ann"}
THEIRS = {**OURS, "nexa:workspace": "bob@desk/2"}
Tags = dict[str, str]


def thing(ident: str, tags: Tags | None = None, **how: Any) -> TaggedResource:
    kind = {"i": "instance", "vo": "volume", "ke": "key pair"}.get(ident.split("-")[0], "vpc")
    row = {"InstanceType": "g5.xlarge", "Placement": {"AvailabilityZone": "us-east-1a"}, **how.pop("row", {})}
    return TaggedResource(kind, ident, HOME, "running", how.pop("alive", True), OURS if tags is None else tags, row)


class Lab:
    """A gang whose cloud and Terraform say what they are told to say."""

    def __init__(self, desk: Desk, patch: pytest.MonkeyPatch) -> None:
        self.desk, self.patch = desk, patch
        self.things: list[TaggedResource] = []
        self.ended: list[str] = []
        folder = desk.ctx.workspace.cluster("c")
        folder.ssh.mkdir(parents=True)
        (folder.ssh / "client.pub").write_text("ssh-ed25519 AAAA")
        self.terraform = Terraform(desk.ctx.runner, "terraform", folder.terraform, "aws")
        self.gang = Gang(desk.ctx, folder, config(), scope(), self.terraform, lambda _: float("inf"))
        patch.setenv("NEXA_SETTLE_S", "10")
        patch.setattr(tagged, "find", lambda *_: [t for t in self.things if t.id not in self.ended])
        patch.setattr(end_tagged, "end", self.end)

    def end(self, gone: TaggedResource) -> str:
        self.ended.append(gone.id)
        return ""

    def holders(self, *answers: Tags | None) -> None:
        left = list(answers)
        self.patch.setattr(Cloud, "holder", lambda *_: left.pop(0) if len(left) > 1 else left[0])

    def state(self, *ids: str, error: str = "") -> None:
        def told(terraform: Terraform) -> set[str]:
            if error:
                raise CommandFailed("terraform state pull", Result((), 1, err=error.encode()))
            return set(ids)

        self.patch.setattr(Terraform, "ids", told)


@pytest.fixture
def lab(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(desk, monkeypatch)


@pytest.mark.parametrize("answer", [OURS, None])
def test_our_own_claim_is_ours_also_while_the_cloud_hides_it(lab: Lab, answer: Tags | None) -> None:
    lab.patch.setattr(Cloud, "claim", lambda *_: answer)
    lab.holders(None, None, OURS)
    claim(lab.gang)
    assert lab.desk.slept == ([2, 2] if answer is None else [])


@pytest.mark.parametrize(("answer", "said"), [(THEIRS, "held by bob@desk/2"), ({}, "no tags of nexa")])
def test_the_claim_of_another_stops_us(lab: Lab, answer: Tags, said: str) -> None:
    lab.patch.setattr(Cloud, "claim", lambda *_: answer)
    with pytest.raises(Held, match=said):
        claim(lab.gang)
    assert lab.ended == []


def test_a_claim_that_is_hidden_for_a_while_is_still_ours(lab: Lab) -> None:
    lab.things = [thing("i-0")]
    lab.holders(None, OURS)
    still_ours(lab.gang)
    assert lab.ended == []


@pytest.mark.parametrize("holder", [None, THEIRS])
def test_a_claim_that_was_taken_away_takes_our_part_with_it(lab: Lab, holder: Tags | None) -> None:
    lab.things = [thing("i-0"), thing("i-1", THEIRS)]
    lab.holders(holder)
    with pytest.raises(Held, match="torn down from elsewhere"):
        still_ours(lab.gang)
    assert lab.ended == ["i-0"]


def test_reconcile_keeps_what_the_state_knows_and_ends_the_rest(lab: Lab) -> None:
    lab.things = [thing("i-0"), thing("i-1"), thing("i-9", alive=False), thing("vpc-0"), thing("vpc-1"), thing("vo-1")]
    lab.state("i-0", "vpc-0", "i-9")
    assert reconcile(lab.gang, killed=False) == {"i-0"}
    assert lab.ended == ["i-1", "vpc-1"]  # the volume goes with its instance


def test_after_a_kill_it_waits_for_what_may_not_be_seen_yet(lab: Lab) -> None:
    lab.state()
    assert reconcile(lab.gang, killed=True) == set()
    assert lab.desk.slept == [10]


def test_what_another_workspace_made_is_not_touched(lab: Lab) -> None:
    lab.things = [thing("i-0"), thing("i-1", THEIRS)]
    lab.state()
    with pytest.raises(Held, match="bob@desk/2 made"):
        reconcile(lab.gang, killed=False)
    assert lab.ended == []


def test_a_torn_state_is_put_aside_and_all_is_made_anew(lab: Lab) -> None:
    lab.terraform.folder.mkdir(parents=True)
    lab.terraform.state.write_text("{")
    lab.things = [thing("i-0")]
    lab.state(error="unexpected end of JSON")
    assert reconcile(lab.gang, killed=False) == set()
    assert lab.ended == ["i-0"] and lab.terraform.state.with_suffix(".torn").exists()


def test_a_remote_state_out_of_reach_ends_nothing(lab: Lab) -> None:
    remote = Terraform(lab.desk.ctx.runner, "terraform", lab.terraform.folder, "aws", {"bucket": "b"})
    lab.things = [thing("i-0")]
    lab.state(error="api error AccessDenied")
    with pytest.raises(CommandFailed, match="AccessDenied"):
        reconcile(Gang(lab.desk.ctx, lab.gang.folder, config(), scope(), remote, lambda _: float("inf")), killed=False)
    assert lab.ended == []


def test_a_preemption_is_remembered(lab: Lab) -> None:
    row = {"StateReason": {"Code": "Server.SpotInstanceTermination"}, "InstanceLifecycle": "spot"}
    lab.things = [thing("i-0", alive=False, row=row)]
    lab.state("i-0")
    reconcile(lab.gang, killed=False)
    assert '"code": "Preempted"' in (lab.desk.root / ".nexa" / "capacity.jsonl").read_text()


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (Refused("listing instances", "RequestExpired", "old", "log in"), StillRunning),
        (NexaError("no route to host"), StillRunning),
        (UsageError("another account"), UsageError),
    ],
)
def test_a_teardown_that_cannot_ask_the_cloud_has_proven_nothing(
    lab: Lab, error: NexaError, wanted: type[NexaError]
) -> None:
    def destroy(*_: object) -> None:
        raise error

    lab.patch.setattr(aws_end, "destroy", destroy)
    with pytest.raises(wanted) as caught:
        teardown.teardown(lab.desk.ctx, lab.gang.folder, scope(), stop)
    assert type(caught.value) is wanted and caught.value.hint == error.hint
    assert lab.gang.folder.path.exists()


def test_a_whole_gang_that_no_state_knows_is_spared(lab: Lab) -> None:
    """Its state was lost or torn after it was proven whole: it may be training."""
    nodes = (Node("n0", "203.0.113.1", 2, instance_id="i-1"),)
    made = Cluster("c", "aws", nodes, Layout("python3", "/s", "/h", "/d"))
    files.write_json(lab.gang.folder.json, made.to_json())
    lab.state()
    lab.things = [thing("i-1"), thing("vpc-1")]
    with pytest.raises(NexaError, match="i-1 of cluster c are alive") as caught:
        reconcile(lab.gang, killed=False)
    assert lab.ended == []
    assert "nexa teardown" in caught.value.hint
    lab.things = [thing("i-1", alive=False), thing("i-2")]  # the gang is gone, and i-2 is what a killed apply left
    assert reconcile(lab.gang, killed=False) == set()
    assert lab.ended == ["i-2"]


def test_new_nodes_get_the_hours_that_the_budget_pays_for(lab: Lab) -> None:
    """On the node itself, so that it holds with nobody home: at 1.2 times the price of today."""
    offer = Candidate("g5.xlarge", "us-east-1a", "spot", 4, 2.0)
    said = (config(budget_usd=usd) for usd in (1000.0, 12.0, 0.4))
    ctx, folder = lab.desk.ctx, lab.gang.folder
    rich, poor, broke = (replace(lab.gang, config=one, hours=allowance(ctx, folder, one)) for one in said)
    lab.patch.setenv("NEXA_SSH_FROM", "198.51.100.7/32")
    assert lab.gang.variables(offer)["max_hours"] == rich.variables(offer)["max_hours"] == 6.0
    usd_per_hour = 2 * (2.0 + 200 * 0.08 / 730 + 0.005)
    assert poor.variables(offer)["max_hours"] == pytest.approx(12.0 / (usd_per_hour * 1.2), abs=1e-3)
    with pytest.raises(NexaError, match="used up before the nodes have booted"):
        broke.variables(offer)


@pytest.mark.parametrize(
    ("public", "silent", "tries"), [(False, ["n0", "n1"], 1), (True, ["n0", "n1"], 2), (False, ["n0"], 2)]
)
def test_nodes_that_nobody_can_reach_are_not_paid_for_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, public: bool, silent: list[str], tries: int
) -> None:
    """In a private network, all at once: this machine has no way there."""
    lab.things = [thing("i-0"), thing("i-1")]
    gang = replace(lab.gang, scope=scope(given=Given(public=public)))
    nodes = tuple(Node(name, "10.9.0.4", 4, instance_id=f"i-{name[1]}") for name in ("n0", "n1"))
    made = Cluster("c", "aws", nodes, Layout("p", "/s", "/h", "/d"))
    applied: list[Any] = []
    monkeypatch.setattr(aws_boot, "_cluster", lambda *_: made)
    monkeypatch.setattr(aws_boot, "await_ssh", lambda *_: silent)
    monkeypatch.setattr(aws_boot.keys, "forget_host_key", lambda *_: None)
    monkeypatch.setattr(aws_boot.keys, "ensure_cluster_keys", lambda *_: None)
    monkeypatch.setattr(Terraform, "apply", lambda *_, **how: applied.append(how["replace"]))
    with pytest.raises(NexaError, match=r"n0.* did not answer over ssh within") as caught:
        aws_boot.boot(gang, Candidate("g5.12xlarge", "us-east-1a", "on_demand", 4, 1.0), set())
    assert len(applied) == tries - 1 and ("twice" in str(caught.value)) == (tries == 2)
    assert ("reaches private addresses" in caught.value.hint) == (tries == 1)
    assert sorted(lab.ended) == ["i-0", "i-1"], "what was made is given back"
