"""The least policy of AWS rights: `python -m tests.bench.rights` records it, `--docs` only writes docs/IAM.md anew,
`--deny` takes each right of a provision away in turn, and ends with 1 where no message names it.

Lives of clusters are led in the emulated region, without hosts: boto3's calls and those of Terraform's provider are
counted as the rights that they take. What was recorded is docs/iam.json; tests/emulated/test_rights.py proves it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster
from nexa_dist.ops.cluster import plan as planning
from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.ops.cluster import sweep
from nexa_dist.ops.cluster import teardown as destroying
from nexa_dist.ops.context import Context
from nexa_dist.ops.health import acceptance
from nexa_dist.ops.money import record_usage as usage
from nexa_dist.ops.providers import table
from nexa_dist.ops.providers.aws import boot as aws_boot
from nexa_dist.ops.providers.aws import bucket, capacity
from nexa_dist.ops.providers.aws import make as making
from nexa_dist.ops.providers.aws.gang import Gang
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.ops.runs.stop import stop
from nexa_dist.plan.aws.offers import Candidate
from nexa_dist.run import trust
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import end_tagged, tagged
from nexa_dist.run.aws import images as aws_images
from nexa_dist.run.runner import Runner
from nexa_dist.run.workspace import Workspace
from tests.unit.cloud_server import HOME, Emulated, config, emulated

DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "iam.json", DOCS / "IAM.md"
VERBS = ("plan", "provision", "run", "teardown", "sweep", "image")
Recorded = dict[str, dict[str, list[str]]]
"""Rights by feature and verb."""

FEATURES = {
    "base": "every cluster",
    "spot": "`market: spot` (the default) or `spot_then_on_demand`",
    "moving": "several offers, zones or markets: a gang that does not fit moves on",
    "image": "no `ami: ami-…` in the file",
    "network": "neither `vpc:` nor `subnets:` in the file: nexa makes a network",
    "making-subnets": "no `subnets:` in the file: nexa makes one in each zone",
    "reservation": "`capacity_reservation:`",
    "gang": "`nodes: 2` or more: a placement group",
    "efa": "`efa: true` on types with several network cards",
    "bucket": "`bucket:`",
    "new-bucket": "`bucket:` that is not there yet: nexa makes it",
    "state": "`state: s3://…`",
}


@dataclass(frozen=True)
class Plot:
    """A life that uses these features. What it takes beyond `after` belongs to the first of `tells` that matches."""

    keys: Mapping[str, Any]
    features: tuple[str, ...]
    after: str = ""
    tells: Mapping[str, str] = field(default_factory=dict)
    verbs: tuple[str, ...] = VERBS
    beside: str = ""
    """A life that does without these `tells`: what both take belongs to every cluster."""


G5, P4D = {"type": "g5.12xlarge", "zone": f"{HOME}a"}, {"type": "p4d.24xlarge", "zone": f"{HOME}a"}
CIDR = "10.77.0.0/16"
ALONE = {"nodes": 1, "market": "on_demand", "offers": [G5], "ami": "an image", "vpc": "a network"}
USUAL = {"nodes": 2, "market": "spot", "offers": [G5]}
FULL = {"market": "spot_then_on_demand", "offers": [P4D], "gpus_per_node": 8, "efa": True, "bucket": "nexa-durable"}
OWN = {"subnets": "a private one", "tags": {"CostCenter": "1234"}}
PRIVATE = {key: value for key, value in ALONE.items() if key != "vpc"} | OWN
RESERVED = {key: value for key, value in PRIVATE.items() if key != "offers"} | {"capacity_reservation": "a reservation"}
PLOTS = {
    "alone": Plot(ALONE, ("base", "making-subnets"), tells={"making-subnets": ""}, beside="private"),
    "private": Plot(PRIVATE, ("base",), "alone"),
    "reserved": Plot(RESERVED, ("base", "reservation"), "private", {"reservation": ""}),
    "state": Plot(
        {**ALONE, "state": "s3://nexa-states/team"},
        ("base", "making-subnets", "state"),
        "alone",
        {"state": ""},
        ("plan", "provision", "teardown"),
    ),
    "usual": Plot(
        USUAL,
        ("base", "making-subnets", "spot", "image", "network", "gang"),
        "alone",
        {"spot": "Spot", "gang": "PlacementGroup", "image": "ssm:|DescribeImages", "network": ""},
    ),
    "all": Plot(
        {**USUAL, **FULL},
        ("base", "making-subnets", "spot", "image", "network", "gang", "moving", "efa", "bucket", "new-bucket"),
        "usual",
        {"bucket": "iam:|^run |s3:ListBucket$", "new-bucket": "s3:", "efa": "Address", "moving": ""},
    ),
}


def rights(data: Recorded, features: Collection[str], *verbs: str) -> set[str]:
    """What the verbs take for a file with these features."""
    return {right for feature in features for verb in verbs for right in data[feature].get(verb, ())}


def known() -> Recorded:
    return dict(json.loads(DATA.read_text()))


@dataclass
class Life:
    """One cluster, led through its verbs by the real controller and the real Terraform; only its hosts are missing."""

    region: Emulated
    ctx: Context
    config: ClusterConfig

    @classmethod
    def of(cls, region: Emulated, root: Path, keys: Mapping[str, Any]) -> Life:
        root.mkdir(exist_ok=True)
        trust.claim(root)
        told = dict(keys)
        if "ami" in told:
            told["ami"] = region.image
        if "vpc" in told:
            told |= {"vpc": _network(region.ec2), "vpc_cidr": CIDR}
        if "subnets" in told:
            told["subnets"] = [_private(region.ec2)]
        if "capacity_reservation" in told:
            told["capacity_reservation"] = _reserved(region.ec2)
        if "state" in told:
            aws_client.client("s3", HOME).create_bucket(Bucket=told["state"].split("/")[2])
        made = config(**{"name": region.name(), **told})
        ctx = Context(Workspace(root), Runner(), lambda _: None, sleep=lambda _: time.sleep(0.05))
        return cls(region, ctx, made)

    @property
    def folder(self) -> Any:
        return self.ctx.workspace.cluster(self.config.name)

    def plan(self) -> None:
        planning.plan(self.ctx, self.config, None)

    def provision(self) -> Cluster:
        return provisioning.provision(self.ctx, self.config)

    def moved(self) -> None:
        """Spot has room for a part of the gang alone, which is given back; the file's other market has it."""
        if self.config.market == "spot_then_on_demand":
            self.region.control.fault("capacity", market="spot", after=1, times=2)  # as often as it is tried
        if self.config.tags:  # somebody's policy puts its tags in the place of the template's
            self.region.control.fault("overwritten", times=1)
        self.provision()

    def run(self) -> None:
        made = self.folder.load()
        bucket.before_attempt(self.ctx, made, "train_1", 1)
        usage.refresh(self.ctx, self.folder)
        table.is_off(self.ctx, made, made.nodes[0])

    def mark(self) -> None:
        """An attempt that nobody began, which a run takes away."""
        place = self.folder.load().bucket.removeprefix("s3://")
        if place:
            name, _, prefix = place.partition("/")
            aws_client.client("s3", HOME).put_object(Bucket=name, Key=f"{prefix}/train_1/generation/000009", Body=b"")

    def teardown(self) -> None:
        destroying.teardown(self.ctx, self.folder, known_scope(self.folder), stop)

    def lose(self) -> None:
        """The folder and the state in it go, and what that never knew is there: a volume and a network interface."""
        scope = known_scope(self.folder)
        assert scope
        tags = [{"Key": key, "Value": value} for key, value in scope.tags.items()]
        self.region.ec2.create_volume(
            AvailabilityZone=f"{HOME}a", Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
        )
        card = [{"ResourceType": "network-interface", "Tags": tags}]
        made = (t.id for t in tagged.find(HOME, scope.owner, scope.cluster) if t.kind == "subnet")
        subnet = self.config.subnets[0] if self.config.subnets else next(made)
        self.region.ec2.create_network_interface(SubnetId=subnet, TagSpecifications=card)
        shutil.rmtree(self.folder.path)

    def sweep(self) -> None:
        """All that there is of the lost cluster is an orphan."""
        mine, found, silent = sweep.survey(self.ctx)
        silent += sweep.images_kept(self.ctx, mine.owners)[1]
        orphans = [entry for entry in found if entry.thing.cluster == self.config.name and entry.orphan]
        assert orphans and silent == []
        assert sweep.end(self.ctx, orphans) == []

    def image(self) -> None:
        node, scope = self.folder.load().nodes[0], known_scope(self.folder)
        assert scope
        aws_images.make(HOME, node.instance_id, scope.name, {tagged.OWNER: scope.owner, aws_images.ENV: "e"})
        for image in aws_images.found(HOME, scope.owner):
            aws_images.delete(HOME, image)


def _network(ec2: Any) -> str:
    """A VPC with a gateway, as the user's own."""
    vpc = str(ec2.create_vpc(CidrBlock=CIDR)["Vpc"]["VpcId"])
    gate = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gate, VpcId=vpc)
    return vpc


def _private(ec2: Any) -> str:
    """A subnet whose way out is a NAT gateway, as the user's own."""
    vpc = ec2.create_vpc(CidrBlock=CIDR)["Vpc"]["VpcId"]
    subnet = str(ec2.create_subnet(VpcId=vpc, CidrBlock=CIDR, AvailabilityZone=G5["zone"])["Subnet"]["SubnetId"])
    address = ec2.allocate_address()["AllocationId"]
    gate = ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address)["NatGateway"]["NatGatewayId"]
    (main,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=gate)
    return subnet


def _reserved(ec2: Any) -> str:
    made = ec2.create_capacity_reservation(
        InstanceType=G5["type"], InstancePlatform="Linux/UNIX", AvailabilityZone=G5["zone"], InstanceCount=1
    )
    return str(made["CapacityReservation"]["CapacityReservationId"])


def _booted(gang: Gang, chosen: Candidate, kept: set[str]) -> tuple[Cluster, dict[str, str]]:
    """What boot asks of the cloud, of hosts that are not there."""
    gang.find("instance")
    return aws_boot._cluster(gang, chosen), {}


@contextlib.contextmanager
def without_hosts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXA_SETTLE_S", "0")
        patch.setattr(making, "boot", _booted)
        patch.setattr(end_tagged, "PAUSE_S", 0.05)
        patch.setattr(capacity, "BUSY_WAITS_S", (0.1,))
        patch.setattr(provisioning, "bootstrap", lambda *_: None)
        patch.setattr(acceptance, "proven", lambda ctx, folder, config, made, *_, **__: (made, None))
        patch.setattr(acceptance, "refuse", lambda _: None)
        yield


def lead(
    life: Life, during: Callable[[str], contextlib.AbstractContextManager[None]], verbs: Collection[str] = VERBS
) -> None:
    """The whole life, or these verbs of it; each happens within `during(verb)`, all else with every right."""

    def act(verb: str, what: Callable[[], object]) -> None:
        if verb in verbs:
            with during(verb):
                what()

    act("plan", life.plan)
    act("provision", life.moved)
    for verb, again in (("plan", life.plan), ("provision", life.provision)):  # of what is there
        act(verb, again)
    life.mark()
    act("run", life.run)
    act("image", life.image)
    act("teardown", life.teardown)
    if "sweep" in verbs:
        life.provision()
        life.lose()
        act("sweep", life.sweep)


Used = dict[str, set[str]]
"""Rights by verb."""


def used_by(region: Emulated, root: Path, plot: Plot) -> Used:
    """What a life takes that may take everything."""
    used: Used = {verb: set() for verb in VERBS}

    @contextlib.contextmanager
    def during(verb: str) -> Iterator[None]:
        region.control.rights()
        yield
        used[verb] |= region.control.used()

    began = time.monotonic()
    lead(Life.of(region, root, plot.keys), during, plot.verbs)
    print(f"{root.name}: {time.monotonic() - began:.0f} s", flush=True)
    return used


PASSED_OVER = "ec2:DescribeNetworkAcls"
"""Terraform's provider does without it, and does not say so."""


def unnamed(region: Emulated, root: Path, plot: Plot, denied: Collection[str]) -> dict[str, str]:
    """What is said by a provision without a right that it does not name: one right after the other is taken away.
    Each life has a bucket of its own, since one that is there is made by nobody."""
    found: dict[str, str] = {}
    for number, right in enumerate(sorted(denied)):
        own = {"bucket": f"nexa-durable-{number}"} if "bucket" in plot.keys else {}
        life = Life.of(region, root / str(number), {**plot.keys, **own})
        said: list[str] = []
        life.ctx = replace(life.ctx, say=said.append)
        region.control.rights(deny=[right])
        try:
            life.provision()
            told = "\n".join(said)  # what is not vital is a warning
        except NexaError as error:
            told = str(error)
        refused = region.control.refused()
        region.control.rights()
        if refused and right not in told and right != PASSED_OVER:
            found[right] = told
    return found


SWEEPS_OWN = {"ec2:DescribeRegions", "ec2:DescribeImages", "iam:ListRoles", "iam:ListInstanceProfiles"}
"""What a sweep asks for beside what it ends. All else a teardown takes too, when its state is lost."""


def sorted_out(used: Mapping[str, Used]) -> Recorded:
    """To each feature what a life with it takes beyond one without."""
    data: dict[str, dict[str, set[str]]] = {feature: {} for feature in FEATURES}
    for mine in used.values():
        mine["teardown"] |= mine["sweep"] - SWEEPS_OWN
    for name, plot in PLOTS.items():
        for verb in VERBS:
            for right in used[name][verb] - (used[plot.after][verb] if plot.after else set()):
                if plot.beside and right in used[plot.beside][verb]:
                    data["base"].setdefault(verb, set()).add(right)
                    continue
                match = (feature for feature, words in plot.tells.items() if re.search(words, f"{verb} {right}"))
                data[next(match, "base")].setdefault(verb, set()).add(right)
    return {feature: {verb: sorted(found) for verb, found in of.items()} for feature, of in data.items() if of}


TAGGED = {"ec2:TerminateInstances", "ec2:DeleteVolume", "ec2:DeregisterImage", "ec2:DeleteSnapshot"}
"""What holds somebody's work: only where our tag is."""
OBJECTS = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"}


def statements(sid: str, given: Collection[str], where: str = "BUCKET") -> list[dict[str, Any]]:
    """The rights as statements of a policy, each as narrow as IAM lets us say it beforehand."""
    kinds: dict[str, tuple[Callable[[str], bool], dict[str, Any]]] = {
        "Tagged": (
            TAGGED.__contains__,
            {"Resource": "*", "Condition": {"Null": {"aws:ResourceTag/nexa:owner": "false"}}},
        ),
        "Pass": (
            lambda right: right == "iam:PassRole",
            {
                "Resource": "arn:aws:iam::*:role/nexa/*",
                "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
            },
        ),
        "Roles": (
            lambda right: right.startswith("iam:") and right not in ("iam:ListRoles", "iam:ListInstanceProfiles"),
            {"Resource": ["arn:aws:iam::*:role/nexa/*", "arn:aws:iam::*:instance-profile/nexa/*"]},
        ),
        "Image": (lambda right: right.startswith("ssm:"), {"Resource": "arn:aws:ssm:*::parameter/aws/service/*"}),
        "Objects": (OBJECTS.__contains__, {"Resource": f"arn:aws:s3:::{where}/*"}),
        "Bucket": (lambda right: right.startswith("s3:"), {"Resource": f"arn:aws:s3:::{where}"}),
        "": (lambda _: True, {"Resource": "*"}),
    }
    left, made = set(given), []
    for name, (holds, more) in kinds.items():
        if mine := sorted(right for right in left if holds(right)):
            title = "".join(word.capitalize() for word in sid.split("-"))
            made.append({"Sid": f"{title}{name}", "Effect": "Allow", "Action": mine, **more})
        left.difference_update(mine)
    return made


def policy(data: Recorded, features: Collection[str], *verbs: str) -> str:
    """JSON of a policy: a group of statements for each feature, with what the ones before do not hold. The bucket of
    states is another one."""
    rows: list[dict[str, Any]] = []
    had: set[str] = set()
    for feature in (name for name in FEATURES if name in features):
        mine = rights(data, [feature], *verbs)
        ours = {right for right in mine if right not in had or (feature == "state" and right.startswith("s3:"))}
        rows += statements(feature, ours, "STATES" if feature == "state" else "BUCKET")
        had |= mine
    return json.dumps({"Version": "2012-10-17", "Statement": rows}, indent=2)


HEAD = """\
# The rights that nexa takes in AWS

`docs/iam.json` holds them by feature of cluster.yaml and by verb. They are not thought up:
`python -m tests.bench.rights` leads the lives of clusters in the emulated region and writes down which rights the calls
of boto3 and of Terraform's provider take. Tests prove it: with every other right denied the lives pass, each right that
is listed is used, and one that is taken away is named by the error (tested with one for each first word of an action of
a service; `--deny` takes away each). What the emulation does not judge: `Resource` and
`Condition` below, organisations' own policies (SCPs), permission boundaries. Mesh, disks, deadlines, logs and own hosts
take no right of AWS; nodes have a role of their own, with the bucket alone (terraform/modules/aws_profile).

A right that is missing is named by the command (`… ec2:DescribeVolumes …`, exit 1, or 4 where something may be left).
But ec2:DescribeNetworkAcls: Terraform's provider does without it, and does not say so.
One read that is denied hides nothing else: `nexa teardown` and `nexa sweep` show and end what they can see, name what
they cannot, and write no receipt that says more. Roles and instance profiles are looked for where a bucket was given,
where another workspace had a part in the cluster, where only its file is left, and by `nexa sweep`.

`subnets:` and `tags:` take nothing of their own: their lives are led with what every cluster takes.

Once an account, by whoever may: `aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`. With a
customer-managed key as the default of EBS, that key's policy has to let the caller use it (kms:CreateGrant and others).
In other partitions `arn:aws:` is `arn:aws-cn:` or `arn:aws-us-gov:`.
"""


def page(data: Recorded) -> str:
    """docs/IAM.md."""
    every = [name for name in FEATURES if name in data]
    life = ("plan", "provision", "run", "teardown", "sweep")
    parts = [
        HEAD,
        "## All of a cluster's life\n\n`nexa plan`, `provision`, `run`, `teardown`, `sweep`. Who provisions has to be "
        "able to end; a run that makes a lost\nnode anew provisions. Statements are named by "
        "feature: leave out those that your files do not use.\nBUCKET and STATES are "
        "the buckets of `bucket:` and `state:`.\n",
        "\n".join(f"- {name.title().replace('-', '')}…: {FEATURES[name]}" for name in every) + "\n",
        f"```json\n{policy(data, every, *life)}\n```\n",
        "## Looking only\n\n`nexa plan`, all features but `state:`.\n",
        f"```json\n{policy(data, [name for name in every if name != 'state'], 'plan')}\n```\n",
        "## Cleaning up only\n\n`nexa teardown` and `nexa sweep` of whatever was made.\n",
        f"```json\n{policy(data, every, 'teardown', 'sweep')}\n```\n",
        "## Images\n\n`nexa image bake` provisions and tears down a node too; this comes on top. `list` and `delete` "
        "take no more.\n",
        f"```json\n{policy({'base': {'image': data['base']['image']}}, ['base'], 'image')}\n```\n",
        "## By verb\n",
        *(
            f"**{verb}**\n\n"
            + "\n".join(f"- {name}: {', '.join(data[name][verb])}" for name in every if data[name].get(verb))
            + "\n"
            for verb in VERBS
        ),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the rights that nexa takes in AWS, and write docs/IAM.md.")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--docs", action="store_true", help="only write docs/IAM.md from docs/iam.json")
    only.add_argument("--deny", action="store_true", help="only take each right of a provision away in turn")
    asked = parser.parse_args()
    if not asked.docs:
        with tempfile.TemporaryDirectory(prefix="nexa-rights-") as root, without_hosts():
            for region in emulated():
                if asked.deny:
                    plot = PLOTS["all"]
                    found = unnamed(region, Path(root), plot, rights(known(), plot.features, "provision"))
                    raise SystemExit(json.dumps(found, indent=1) if found else 0)
                used = {name: used_by(region, Path(root, name), plot) for name, plot in PLOTS.items()}
        DATA.write_text(json.dumps(sorted_out(used), indent=1) + "\n")
    PAGE.write_text(page(known()))


if __name__ == "__main__":
    main()
