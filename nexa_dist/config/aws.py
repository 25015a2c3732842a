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


Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")]
Cidr = Annotated[str, AfterValidator(check_cidr)]
MeshCidr = Annotated[str, AfterValidator(check_mesh_cidr)]
Owner = Annotated[str, Field(max_length=128), AfterValidator(check_owner)]
Ami = Annotated[str, StringConstraints(pattern=r"^(ami-[0-9a-f]{8,17}|/[A-Za-z0-9/._-]{1,512})$")]
VpcId = Annotated[str, StringConstraints(pattern=r"^vpc-[0-9a-f]{8,17}$")]
BucketName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
StatePlace = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9-]{1,61}[a-z0-9](/[A-Za-z0-9._-]{1,64}){0,8}$")
]
