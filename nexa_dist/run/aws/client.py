"""AWS as the controller sees it: who we are, what is offered, what carries our tags. Terraform makes; this looks.

Every answer is the cloud's own. An expected refusal becomes a NexaError; credentials come from boto3's usual places,
go to Terraform alone, in its environment, and are never printed or written here.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.refusal import of_exception, refusal
from nexa_dist.run.aws import credentials

RETRIES = 8
LINUX = "Linux/UNIX"
NEVER_ASKED = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ConfigParseError", "ConfigNotFound"),
        *("InvalidConfigError", "InfiniteLoopConfigError", "UnknownCredentialError"),
    }
)
"""Errors on this machine before anybody could be asked: a matter of usage."""


class Refused(NexaError):
    """The cloud said no. `reason` is its error code, `told` what that means."""

    def __init__(self, what: str, reason: str, message: str, hint: str = "", operation: str = "") -> None:
        self.told = refusal(reason, message, operation)
        action = self.told.action
        unsaid = f" ({action} is denied)" if action not in str(self.told) else ""
        super().__init__(f"{what}: {self.told}{unsaid}", hint=hint or self.told.cure)
        self.reason = reason


@contextlib.contextmanager
def spoken(what: str) -> Iterator[None]:
    """boto3's exceptions in plain words."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        said = error.response["Error"]
        raise Refused(
            what, said.get("Code", "Unknown"), said.get("Message", ""), operation=error.operation_name
        ) from error
    except BotoCoreError as error:  # nobody was asked, or nobody answered
        told = of_exception(error)
        unset = told.code in NEVER_ASKED
        raise (UsageError if unset else NexaError)(f"{what}: {told.sentence}", hint=told.cure) from error
    except (OSError, ValueError) as error:  # of a credential_process, or a file that a profile names
        raise NexaError(f"{what}: {error}", hint="check AWS_PROFILE, and what it names in ~/.aws/config") from error


@functools.cache
def session() -> Any:
    """boto3's session of the environment. Imported late: boto3 takes longer to load than most verbs to run."""
    import boto3

    with spoken("AWS"):
        return boto3.session.Session(botocore_session=credentials.session())


def keys(renew: bool = False) -> dict[str, str]:
    """boto3's credentials as a program's environment. They last for LASTING_S, or are new with `renew`, when their
    source gives such."""
    held = session()._session
    with spoken("the credentials of AWS"):
        made = credentials.environment(held)
        if not renew and not credentials.short(held):
            return made
    try:
        with spoken("the credentials of AWS"):
            newer = credentials.session()
            made = credentials.environment(newer)
            held._credentials = newer.get_credentials()  # nobody is asked twice: new clients have them too
            _client.cache_clear()
    except NexaError:
        if renew:
            raise
    return made


def default_region() -> str:
    """Region of the environment or the profile; empty when none is set. boto3 itself does not know AWS_REGION."""
    return os.environ.get("AWS_REGION") or session().region_name or ""


_making = threading.Lock()


def client(service: str, region: str, brisk: bool = False) -> Any:
    """A client with bounded time and retries, made once. Threads may share it, but not make it at the same time. One
    that is `brisk` answers or fails within seconds: for who asks again."""
    with _making:
        return _client(service, region, brisk)


@functools.cache
def _client(service: str, region: str, brisk: bool) -> Any:
    from botocore.config import Config

    # Where Service Quotas is away, or a region has no such service, nobody waits for it.
    attempts = 1 if brisk else 2 if service == "service-quotas" else RETRIES
    retries: Any = {"total_max_attempts": attempts, "mode": "standard"}
    connect_s, read_s = (3, 5) if brisk else (10, 60)
    with spoken("AWS"):
        return session().client(
            service, region_name=region, config=Config(retries=retries, connect_timeout=connect_s, read_timeout=read_s)
        )


SSO = "AWSReservedSSO_"
"""Prefix by which IAM Identity Center names the roles of its permission sets."""


@dataclass(frozen=True)
class Identity:
    """Identity: the account, and who we are in it."""

    account: str
    who: str
    """`user/ann`; `assumed-role/Trainer`, without the name of a session that changes; or the person that a session is
    named for."""
    team: str = ""
    """The role of a session that is named for a person: everybody with this permission set has it."""

    @classmethod
    def of(cls, account: str, arn: str) -> Identity:
        kind, *names = arn.split(":", 5)[5].split("/")
        if kind != "assumed-role":
            return cls(account, "/".join((kind, *names)))
        role, session = f"{kind}/{names[0]}", names[-1]
        person = names[0].startswith(SSO) or "@" in session  # Identity Center, or SAML with addresses
        return cls(account, session, role) if person else cls(account, role)


def identity(region: str) -> Identity:
    with spoken("asking AWS who we are"):
        answer = client("sts", region).get_caller_identity()
    return Identity.of(answer["Account"], answer["Arn"])


def rows(what: str, region: str, operation: str, path: str, **asked: Any) -> list[dict[str, Any]]:
    """All pages of a describe call; `path` is the JMESPath of its rows, `what` is said of an error."""
    return answered(what, region, operation, path, **asked)[0]


def answered(
    what: str, region: str, operation: str, path: str, *, service: str = "ec2", brisk: bool = False, **asked: Any
) -> tuple[list[dict[str, Any]], float | None]:
    """`rows`, and what time it was for the cloud when it answered; None when it does not say."""
    import jmespath

    made = client(service, region, brisk)
    found: list[dict[str, Any]] = []
    told = ""
    with spoken(what):
        paged = made.can_paginate(operation)
        pages = made.get_paginator(operation).paginate(**asked) if paged else [getattr(made, operation)(**asked)]
        for page in pages:
            found += jmespath.search(path, page) or []
            told = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return found, email.utils.parsedate_to_datetime(told).timestamp()
    except (TypeError, ValueError):
        return found, None


@dataclass(frozen=True)
class Cloud:
    """One region."""

    region: str

    def gpus(self, types: Sequence[str]) -> dict[str, int]:
        """NVIDIA GPUs by instance type; of every type of the region when `types` is empty."""
        arguments: dict[str, Any] = {"Filters": [{"Name": "instance-type", "Values": list(types)}]} if types else {}
        what, operation = "asking for instance types", "describe_instance_types"
        found = rows(what, self.region, operation, "InstanceTypes[]", **arguments)
        return {
            row["InstanceType"]: sum(g["Count"] for g in row["GpuInfo"]["Gpus"] if g["Manufacturer"] == "NVIDIA")
            for row in found
            if row.get("GpuInfo") and "x86_64" in row["ProcessorInfo"]["SupportedArchitectures"]
        }

    def zones(self, types: Sequence[str]) -> dict[str, list[str]]:
        """Zones of the region that offer each type."""
        asked: dict[str, Any] = {"LocationType": "availability-zone"}
        asked["Filters"] = [{"Name": "instance-type", "Values": list(types)}]
        made: dict[str, list[str]] = {}
        operation, path = "describe_instance_type_offerings", "InstanceTypeOfferings[]"
        for row in rows("asking for zones", self.region, operation, path, **asked):
            made.setdefault(row["InstanceType"], []).append(row["Location"])
        return made

    def _spot_prices(self, types: Sequence[str], **more: Any) -> list[dict[str, Any]]:
        asked = {"InstanceTypes": list(types), "ProductDescriptions": [LINUX], **more}
        operation, path = "describe_spot_price_history", "SpotPriceHistory[]"
        return rows("asking for spot prices", self.region, operation, path, **asked)

    def spot_prices(self, types: Sequence[str], at: Any) -> dict[tuple[str, str], float]:
        """Newest USD/h by (type, zone) at the time `at`; what is not known is absent."""
        newest = sorted(self._spot_prices(types, StartTime=at), key=lambda row: row["Timestamp"])
        return {(r["InstanceType"], r["AvailabilityZone"]): p for r in newest if (p := float(r["SpotPrice"])) > 0}

    def spot_moves(self, kind: str, zone: str, since: Any, until: Any) -> list[tuple[float, float]]:
        """(since unix, USD/h), oldest first, of one type in one zone: the price in force at `since` and all moves."""
        found = self._spot_prices([kind], AvailabilityZone=zone, StartTime=since, EndTime=until)
        told = {(row["Timestamp"].timestamp(), float(row["SpotPrice"])) for row in found}
        return sorted((at, usd) for at, usd in told if usd > 0)

    def spot_ends(self, requests: Sequence[str]) -> dict[str, float]:
        """Unix times at which the instances of the spot requests ended, by request; those that live or are forgotten
        lack."""
        wanted = [{"Name": "spot-instance-request-id", "Values": list(requests)}]
        what, operation = "asking for spot requests", "describe_spot_instance_requests"
        found = rows(what, self.region, operation, "SpotInstanceRequests[]", Filters=wanted)
        ended = [row for row in found if row.get("State") not in ("open", "active")]
        told = {row["SpotInstanceRequestId"]: row.get("Status") or {} for row in ended}
        return {
            ident: status["UpdateTime"].timestamp()
            for ident, status in told.items()
            if status.get("UpdateTime") and status.get("Code") != "request-canceled-and-instance-running"
        }

    def image(self, named: str) -> str:
        """An image id: `named` itself, or what the SSM parameter of that name holds now."""
        if named.startswith("ami-"):
            return named
        with spoken(f"reading the SSM parameter {named}"):
            return str(client("ssm", self.region).get_parameter(Name=named)["Parameter"]["Value"])

    def reservation(self, named: str) -> dict[str, Any] | None:
        """A capacity reservation by its id (cr-…), or the roomiest of a Capacity Block (cb-…); None when there is none.

        No filter has these ids, and an unknown one in a list is an error.
        """
        operation, path = "describe_capacity_reservations", "CapacityReservations[]"
        found = rows(f"looking at {named}", self.region, operation, path)
        held = [row for row in found if named in (row["CapacityReservationId"], row.get("CapacityBlockId"))]
        return max(held, key=lambda row: int(row.get("AvailableInstanceCount", 0)), default=None)

    def state(self, instance_id: str) -> str:
        """State of an instance, such as running or terminated; `unknown` for one that the cloud has forgotten. Asked
        once: who wants to know asks again."""
        wanted: Any = [{"Name": "instance-id", "Values": [instance_id]}]  # an unknown id as a filter is no error
        operation, path = "describe_instances", "Reservations[].Instances[]"
        found = rows(f"asking for {instance_id}", self.region, operation, path, brisk=True, Filters=wanted)
        return str(found[0]["State"]["Name"]) if found else "unknown"

    def failed_check(self, instance_id: str) -> str:
        """Status check of the cloud that fails for a running instance; empty when none does."""
        what, wanted = f"asking for the checks of {instance_id}", {"InstanceIds": [instance_id]}
        found = rows(what, self.region, "describe_instance_status", "InstanceStatuses[]", brisk=True, **wanted)
        checks = {"system": "SystemStatus", "instance": "InstanceStatus"}
        failed = [name for row in found for name, key in checks.items() if row[key]["Status"] == "impaired"]
        return f"its {' and '.join(failed)} status check fails" if failed else ""

    def claim(self, name: str, public_key: str, tags: dict[str, str]) -> dict[str, str] | None:
        """Imports the key pair `name`, whose name only one controller can have. Answers the holder's tags: ours when
        it was free, None when it is taken and the cloud does not show it yet. EC2 refuses a second key pair of one
        name at once, which makes it the lock of the cluster.
        """
        specification: Any = [{"ResourceType": "key-pair", "Tags": tag_list(tags)}]
        try:
            with spoken(f"claiming {name}"):
                client("ec2", self.region).import_key_pair(
                    KeyName=name, PublicKeyMaterial=public_key.encode(), TagSpecifications=specification
                )
            return tags
        except Refused as error:
            if error.reason != "InvalidKeyPair.Duplicate":
                raise
        return self.holder(name)

    def holder(self, name: str) -> dict[str, str] | None:
        """Tags of the key pair `name`; None when there is none."""
        wanted = [{"Name": "key-name", "Values": [name]}]
        what = f"reading the key pair {name}"
        found = rows(what, self.region, "describe_key_pairs", "KeyPairs[]", Filters=wanted)
        return tags_of(found[0]) if found else None


def regions(region: str) -> list[str]:
    """Every region that the account can use."""
    with spoken("asking for regions"):
        return sorted(row["RegionName"] for row in client("ec2", region).describe_regions()["Regions"])


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(row: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in row.get("Tags") or row.get("TagSet") or ()}
