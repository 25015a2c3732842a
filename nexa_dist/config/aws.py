"""Text that names things of AWS. A check returns the text or raises ValueError."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from nexa_dist.config.paths import bad_characters

ZONE_PATTERN = r"^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$"
_ZONE = re.compile(ZONE_PATTERN)
WIDEST = 8
MAX_TAGS = 40
"""AWS takes 50 a resource, ours among them."""
_TAG_TEXT = re.compile(r"[A-Za-z0-9 +=._:/@-]*")


def region_of(zone: str) -> str:
    """The region of an availability zone (us-east-1a is in us-east-1); empty when it is none."""
    return zone[:-1] if _ZONE.fullmatch(zone) else ""


def check_cidr(text: str) -> str:
    """An IPv4 network (nodes have no other addresses), never all the world or half of it."""
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError("expected an IPv4 network such as 198.51.100.7/32") from None
    if network.prefixlen < WIDEST:
        raise ValueError(f"a network wider than /{WIDEST} is refused: name your own, such as 198.51.100.7/32")
    return str(network)


def check_mesh_cidr(text: str) -> str:
    """A private IPv4 network that holds all the nodes there may be."""
    network = ipaddress.IPv4Network(check_cidr(text))
    if not network.is_private or network.is_loopback or network.is_link_local or network.prefixlen > 25:
        raise ValueError("expected a private IPv4 network of /25 or wider, such as 10.231.7.0/24")
    return str(network)


def check_owner(text: str) -> str:
    """The characters that AWS takes in a tag, none of which means anything to Terraform or a shell."""
    if (
        bad_characters(text)
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 +=._:/@-]{0,127}", text)
        or text != text.strip()
    ):
        raise ValueError(
            "expected 1 to 128 letters, digits, spaces and any of + - = . _ : / @, the first a letter or digit"
        )
    return text


def check_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags that every service takes, none of which is AWS's own or ours. IAM does not tell upper from lower case."""
    seen: set[str] = set()
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or key != key.strip():
            raise ValueError(f"tag {key[:40]!r}: expected a name of 1 to 128 and a value of at most 256 characters")
        if not _TAG_TEXT.fullmatch(key) or not _TAG_TEXT.fullmatch(value):
            raise ValueError(f"tag {key[:40]!r}: expected letters, digits, spaces and any of + - = . _ : / @")
        if key.lower() == "name" or key.lower().startswith(("nexa:", "aws:")):
            raise ValueError(f"tag {key!r}: Name and what begins with nexa: or aws: is not yours to give")
        if key.lower() in seen:
            raise ValueError(f"tag {key!r} is given twice: IAM does not tell upper from lower case")
        seen.add(key.lower())
    return tags


Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")]
Cidr = Annotated[str, AfterValidator(check_cidr)]
MeshCidr = Annotated[str, AfterValidator(check_mesh_cidr)]
Owner = Annotated[str, Field(max_length=128), AfterValidator(check_owner)]
Ami = Annotated[str, StringConstraints(pattern=r"^(ami-[0-9a-f]{8,17}|/[A-Za-z0-9/._-]{1,512})$")]
VpcId = Annotated[str, StringConstraints(pattern=r"^vpc-[0-9a-f]{8,17}$")]
SubnetId = Annotated[str, StringConstraints(pattern=r"^subnet-[0-9a-f]{8,17}$")]
ReservationId = Annotated[str, StringConstraints(pattern=r"^c[rb]-[0-9a-f]{8,17}$")]
Tags = Annotated[dict[str, str], Field(max_length=MAX_TAGS), AfterValidator(check_tags)]
BucketName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
StatePlace = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9-]{1,61}[a-z0-9](/[A-Za-z0-9._-]{1,64}){0,8}$")
]
