"""Text that names machines and things of AWS. A check returns the text or raises ValueError."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from nexa_dist.config.paths import bad_characters
from nexa_dist.secrets import is_secret_name, redact_text

NAME_PATTERN = "^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"
USER_PATTERN = "^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$"
HOST_PATTERN = "^[A-Za-z0-9:_][A-Za-z0-9:._-]{0,252}$"

_NAME = re.compile(NAME_PATTERN[1:-1])
_USER = re.compile(USER_PATTERN[1:-1])
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LOGIN = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@:/\s]+)@)?(?P<host>\[.+\]|[^@:\s]+|[0-9A-Fa-f:.]+)(?::(?P<port>[0-9]{1,5}))?/?"
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_SHOWN = re.compile(r"[0-9]{3,5} (SHA256:[A-Za-z0-9+/]{43}) .*\([A-Z0-9-]+\)")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_ENDPOINT = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^:]*)):(?P<port>[1-9][0-9]{0,4})")


class Misplaced(ValueError):
    """A value that is right elsewhere; `hint` says where."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("expected 1 to 32 of a-z, 0-9 and '-', with no '-' at either end")
    return text


def check_user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError("expected a login name: a letter or '_', then up to 63 letters, digits and any of _ . @ -")
    return text


def check_host(text: str) -> str:
    """Check a host as `check_address` does an address; a login name and a port in it are told where they belong."""
    try:
        return check_address(text)
    except ValueError as error:
        found = _LOGIN.fullmatch(text)
        parts = {key: found[key] for key in ("host", "user", "port") if found and found[key]}
        if len(parts) < 2:
            raise
        parts["host"] = parts["host"].removeprefix("[").removesuffix("]")
        try:
            check_address(parts["host"])
            check_user(parts.get("user", "u"))
        except ValueError:
            raise error from None
        raise Misplaced(str(error), "write " + ", ".join(f"{key}: {value}" for key, value in parts.items())) from None


def check_address(text: str) -> str:
    """An IPv4 or IPv6 address without zone, a host name or a name of ssh_config: never an option of ssh."""
    try:
        # isascii: Python takes other scripts' digits for digits in some versions.
        address = ipaddress.ip_address(text) if text.isascii() and "%" not in text else None
    except ValueError:
        address = None
    if address is not None:
        if address.is_unspecified or address.is_multicast:
            raise ValueError("expected the address of one machine")
        return text
    labels = text.split(".")
    named = len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    # A last label of digits is an address to the resolver: 127.1 is 127.0.0.1.
    if not named or _NUMBER.fullmatch(labels[-1]):
        raise ValueError("expected an IPv4 or IPv6 address, or a host name (letters, digits, '-', '_' and '.')")
    return text


def same_host(text: str) -> str:
    """One spelling of a host, to compare with."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower()


def check_endpoint(text: str) -> str:
    """`host:port` or `[IPv6]:port`."""
    found = _ENDPOINT.fullmatch(text)
    if not found or int(found["port"]) > 65535 or (found["six"] is not None and ":" not in found["six"]):
        raise ValueError("expected host:port (an IPv6 address in brackets: [::1]:29500)")
    check_address(found["host"] if found["six"] is None else found["six"])
    return text


def check_local_path(text: str) -> str:
    """A path on this machine."""
    if not text or len(text) > 1024 or text.startswith("-"):
        raise ValueError("expected a path of 1 to 1024 characters that does not begin with '-'")
    if bad_characters(text):
        raise ValueError('expected a path without control characters and without any of " \\ $ ` % { }')
    if text.startswith("~") and not text.startswith("~/"):
        raise ValueError("expected a path without another user's home (~name)")
    return text


def check_node_path(text: str) -> str:
    """A path on a node: absolute or in the home folder, with nothing that leads back up."""
    check_local_path(text)
    below = text.removeprefix("~").split("/")
    if not text.startswith(("/", "~/")) or ".." in below or not any(below):
        raise ValueError("expected a folder below / or ~/, without '..'")
    return text


def check_program(text: str) -> str:
    """A program name to be found on PATH, or a path on a node."""
    if "/" not in text and not _PROGRAM.fullmatch(text):
        raise ValueError("expected the name of a program, or a path that begins with / or ~/")
    return check_node_path(text) if "/" in text else text


def check_host_key(text: str) -> str:
    """The fingerprint of a host key, also in the whole line that ssh-keygen -l shows, or the key itself as in a .pub
    file; without the comment."""
    if line := _SHOWN.fullmatch(text.strip()):
        return line[1]
    kind, _, rest = text.strip().partition(" ")
    if not rest and _FINGERPRINT.fullmatch(kind):
        return kind
    blob = rest.split()[0] if rest.split() else ""
    try:
        raw = base64.b64decode(blob, validate=True) if kind in _KEY_TYPES else b""
    except binascii.Error:
        raw = b""
    # The first field of the key names its type once more: half a key that was copied, or another's, is found here.
    if len(raw) < 32 or not raw.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise ValueError("expected a fingerprint (SHA256:…, as ssh-keygen -l shows it) or a key (ssh-ed25519 AAAA…)")
    return f"{kind} {blob}"


def _shape(pattern: str) -> object:
    return Field(json_schema_extra={"pattern": pattern})


Name = Annotated[str, AfterValidator(check_name), _shape(NAME_PATTERN)]
User = Annotated[str, AfterValidator(check_user), _shape(USER_PATTERN)]
HostName = Annotated[str, AfterValidator(check_host), _shape(HOST_PATTERN)]
HostKeyText = Annotated[str, AfterValidator(check_host_key), _shape("^(([0-9]+ )?SHA256:|ssh-|ecdsa-)")]
ImageDigest = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9._/:-]{0,200}@sha256:[0-9a-f]{64}$")]
Endpoint = Annotated[str, AfterValidator(check_endpoint), _shape("^[^ ]+:[1-9][0-9]{0,4}$")]
LocalPath = Annotated[str, AfterValidator(check_local_path)]
NodePath = Annotated[str, AfterValidator(check_node_path), _shape("^(/|~/)")]
Program = Annotated[str, AfterValidator(check_program)]
Port = Annotated[int, Field(ge=1, le=65535)]
Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]

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


def check_stack_variables(given: dict[str, Any]) -> dict[str, Any]:
    """Variables of the user's own stack: none that nexa gives, and no secret, since they are written to files."""
    for name, value in given.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name):
            raise ValueError(f"{name[:40]!r} is no name of a Terraform variable")
        if name in GIVEN_TO_STACK:
            raise Misplaced(f"{name} is given by nexa", "remove it")
        if _has_secret(name, value):
            raise Misplaced(
                f"{name} is or holds a secret, which would be written to files",
                f"remove it, and put it into TF_VAR_{name} of your environment",
            )
    return given


def _has_secret(name: str, value: Any) -> bool:
    """Tell whether a value, or any within it, is a secret by its name or its shape."""
    if isinstance(value, dict):
        return is_secret_name(name) or any(_has_secret(key, inner) for key, inner in value.items())
    if isinstance(value, list):
        return is_secret_name(name) or any(_has_secret(name, inner) for inner in value)
    return is_secret_name(name) or (isinstance(value, str) and redact_text(value, name) != value)


GIVEN_TO_STACK = (
    "cluster", "node_names", "node_count", "gpus_per_node", "ssh_public_key", "tags", "deadline_unix", "deadline",
)  # fmt: skip
StackVariables = Annotated[dict[str, Any], Field(max_length=100), AfterValidator(check_stack_variables)]
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
