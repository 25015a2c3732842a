"""Meaning of AWS's refusals, whatever library told them: one table of its error codes, and what a person does next.

Everything that asks AWS or lets Terraform ask looks here: what may be repeated, what costs money when it is, and whose
turn it is. Pure, and without AWS's libraries: their exceptions are known by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["permanent", "quota", "capacity", "passing", "credentials", "clock", "denied"]

REPEAT = "run the same command again: it goes on from what exists"
NETWORK, PREEMPTED = "network", "Preempted"
QUOTAS = "https://console.aws.amazon.com/servicequotas"
LOG_IN = "log in again (aws sso login, aws login, or new keys; AWS_PROFILE names the profile), then repeat the command"
EXPIRED = "the credentials have expired: log in again, then repeat the command (deadlines on the nodes hold)"
CURES: dict[Kind, str] = {
    "permanent": "mend what AWS's sentence names, then repeat: until then it answers the same",
    "quota": f"ask for a higher limit ({QUOTAS}), or end what uses it (nexa sweep); waiting changes nothing",
    "capacity": "nothing is left running; name more offers, or set wait_for_capacity_minutes",
    "passing": REPEAT,
    "credentials": f"the cloud refuses these credentials: {LOG_IN}",
    "clock": "compare this machine's clock with `date -u` elsewhere, and set it (timedatectl set-ntp true); "
    "if it is right, the secret key is wrong",
    "denied": "ask whoever runs the account for this right, or choose another AWS_PROFILE",
}
"""The next step by kind, where the code has none of its own."""

_CODES: dict[Kind, str] = {
    "capacity": """
        InsufficientInstanceCapacity InsufficientHostCapacity InsufficientCapacity InsufficientVolumeCapacity
        InsufficientReservedInstanceCapacity InsufficientCapacityOnOutpost ReservationCapacityExceeded
        UnfulfillableCapacity SpotMaxPriceTooLow Unsupported VolumeTypeNotAvailableInZone""",
    "quota": """
        MaxSpotInstanceCountExceeded MaxSpotFleetRequestCountExceeded TooManyBuckets LimitExceeded""",
    "passing": """
        RequestLimitExceeded Throttling ThrottlingException ThrottledException RequestThrottled
        RequestThrottledException EC2ThrottledException TooManyRequestsException TooManyRequests
        BandwidthLimitExceeded ConcurrentSnapshotLimitExceeded SnapshotCreationPerVolumeRateExceeded
        PriorRequestNotComplete TransactionInProgressException SlowDown Busy
        InternalError InternalFailure InternalServerError InternalServerException InternalServiceError
        InternalServiceException ServiceException ServiceFailure ServiceFailureException ServiceUnavailable
        ServiceUnavailableException Unavailable ServerInternal RequestTimeout RequestTimeoutException
        IDPCommunicationError OperationAborted ConditionalRequestConflict
        ConcurrentModification ConcurrentModificationException
        ConcurrentTagAccess EntityTemporarilyUnmodifiable InsufficientAddressCapacity InvalidPermission.NotFound
        RouteAlreadyExists IncorrectState IncorrectInstanceState 500 502 503 504""",
    "credentials": """
        ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired ExpiredTradeInTokenException AuthFailure
        InvalidClientTokenId InvalidAccessKeyId InvalidToken InvalidTokenId InvalidSecurity InvalidSecurityToken
        UnrecognizedClient UnrecognizedClientException MissingAuthenticationToken MissingAuthenticationTokenException
        IncompleteSignature IncompleteSignatureException NotSignedUp InvalidIdentityToken IDPRejectedClaim
        InvalidGrantException InvalidClientException UnauthorizedException UnauthorizedClientException 401""",
    "clock": """
        RequestTimeTooSkewed SignatureDoesNotMatch InvalidSignatureException InvalidSignature RequestInTheFuture""",
    "denied": """
        UnauthorizedOperation AccessDenied AccessDeniedException AuthorizationError AuthorizationErrorException
        NotAuthorized NotAuthorizedException AllAccessDisabled Forbidden ForbiddenException UnauthorizedAccess 403
        AuthFailure.ServiceLinkedRoleCreationNotPermitted KMSAccessDeniedException""",
    "permanent": """
        OptInRequired PendingVerification Blocked AccountProblem RegionDisabledException OperationNotPermitted
        DependencyViolation DeleteConflict BucketNotEmpty IllegalLocationConstraintException PermanentRedirect
        MovedPermanently AuthorizationHeaderMalformed IdempotentParameterMismatch FilterLimitExceeded UnknownParameter
        VPCIdNotSpecified NotImplemented NotFound 301 400 404""",
}
_KINDS: dict[str, Kind] = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
_RULES: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"(Limit|Limits|Quota)Exceeded(Exception|Fault)?$"), "quota"),
    (re.compile(r"Throttl|^RequestLimit"), "passing"),
    (re.compile(r"(NotFound|InUse|Duplicate|Malformed|Conflict|AlreadyExists)(Exception|Fault)?$"), "permanent"),
    (re.compile(r"^(Invalid|Missing|Malformed|Unsupported|NoSuch|Unknown|BucketAlready|Validation)"), "permanent"),
)
"""Rules for the codes that AWS makes by a pattern, and has more of every month."""
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
OF_INSTANCES = frozenset({"VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded"})
"""Quotas of one family and market: another zone cannot help, another type or market may."""

OF_INSTANCES_CURE = (
    f"ask for more vCPUs of this family and market ({QUOTAS}, service EC2; a new account has none), or name offers of "
    "another; waiting changes nothing"
)
_EXISTS = "names are global, and somebody else has this one: choose another bucket in the cluster's file"
_LIMIT = f"ask for more of them in this region ({QUOTAS}), or "
_CURES = {
    **dict.fromkeys(EXPIRED_CODES, EXPIRED),
    **dict.fromkeys(OF_INSTANCES, OF_INSTANCES_CURE),
    "AddressLimitExceeded": _LIMIT + "release some (quota L-0263D0A3, EC2-VPC Elastic IPs)",
    "VpcLimitExceeded": _LIMIT + "name one that you have: vpc in the cluster's file (quota L-F678F1CE)",
    "InternetGatewayLimitExceeded": _LIMIT + "name a VPC that has one: vpc in the cluster's file (quota L-A4707A72)",
    "VolumeLimitExceeded": _LIMIT + "make volume_gb smaller (storage of gp3 volumes, service EBS)",
    "TooManyBuckets": _LIMIT + "name one that you have: bucket in the cluster's file",
    "InvalidBlockDeviceMapping": "raise volume_gb: a node's disk may not be smaller than its image's",
    "InvalidSubnet.Range": "vpc_cidr must be a free part of the VPC's own network, and is not",
    "InvalidSubnet.Conflict": "vpc_cidr must be a free part of the VPC's own network: another subnet has it",
    "InsufficientFreeAddressesInSubnet": "the subnet has no address left: choose another vpc_cidr",
    "InvalidVpcID.NotFound": "the VPC is not in this region and account: check vpc, region and AWS_PROFILE",
    "InvalidAMIID.NotFound": "the image is not in this region, or not shared with this account: check ami and region",
    "InvalidAMIID.Unavailable": "the image is not ready or was taken back: name another ami",
    "InvalidAMIID.Malformed": "check ami in the cluster's file",
    "ParameterNotFound": "no such parameter in this region: check ami in the cluster's file, or leave it out",
    "OptInRequired": "this account has not accepted the terms: open the page that AWS's sentence names (the image's "
    "subscription, or the account's registration), accept, then repeat",
    "PendingVerification": "AWS is still checking this account: wait for its mail (mostly minutes, at most a day)",
    "Blocked": "AWS has blocked this account: answer its mail, or open a case with its support",
    "RegionDisabledException": "switch the region on in the account's settings, or choose another region",
    "AuthFailure": f"AWS does not know these credentials, or this machine's clock is wrong: {LOG_IN}",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": "once in the life of an account somebody with "
    "iam:CreateServiceLinkedRole runs: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    "BucketAlreadyExists": _EXISTS,
    "PermanentRedirect": "the bucket is in another region: choose one of the cluster's region",
    "IllegalLocationConstraintException": "the bucket is in another region: choose one of the cluster's region",
    "DependencyViolation": "something that is not the cluster's still uses it: end that, then repeat",
    "InternalError died": "mostly the key of an encrypted image that the instance may not use, or a broken image: "
    "name another ami, or let this account use the key",
}  # fmt: skip
_CURES |= {"MovedPermanently": _CURES["PermanentRedirect"], "301": _CURES["PermanentRedirect"]}

_EXCEPTIONS: dict[str, tuple[Kind, str]] = {
    "NoCredentialsError": ("credentials", "set AWS_PROFILE, or log in with the aws command"),
    "PartialCredentialsError": ("credentials", "set the missing half too, or use AWS_PROFILE"),
    "CredentialRetrievalError": ("credentials", f"run the command of credential_process by hand, or {LOG_IN}"),
    "ProfileNotFound": ("credentials", "check AWS_PROFILE: aws configure list-profiles shows those there are"),
    "ConfigParseError": ("credentials", "mend that file"),
    "ConfigNotFound": ("credentials", "check AWS_CONFIG_FILE"),
    "InvalidConfigError": ("credentials", "mend the profile in ~/.aws/config"),
    "InfiniteLoopConfigError": ("credentials", "mend source_profile of the profile in ~/.aws/config"),
    "UnknownCredentialError": ("credentials", "mend credential_source of the profile in ~/.aws/config"),
    "RefreshWithMFAUnsupportedError": ("credentials", LOG_IN),
    "MissingDependencyException": ("credentials", "aws login needs the package awscrt: scripts/setup installs it"),
    "MetadataRetrievalError": ("credentials", "the instance or container gives no role's credentials: has it one?"),
    "SSOTokenLoadError": ("credentials", "aws sso login, then repeat the command"),
    "UnauthorizedSSOTokenError": ("credentials", "aws sso login, then repeat the command"),
    "SSOError": ("credentials", "aws sso login, then repeat the command"),
    "TokenRetrievalError": ("credentials", "aws sso login, then repeat the command"),
    "NoAuthTokenError": ("credentials", "aws sso login, then repeat the command"),
    "UnknownTokenProviderError": ("credentials", LOG_IN),
    "LoginInsufficientPermissions": ("denied", "ask whoever runs the account for signin:CreateOAuth2Token"),
    "LoginError": ("credentials", "aws login, then repeat the command"),
    "NoRegionError": ("permanent", "set region in the cluster's file, or AWS_REGION"),
    "InvalidRegionError": ("permanent", "check the region"),
    "UnknownRegionError": ("permanent", "check the region"),
    "UnknownEndpointError": ("permanent", "check the region"),
    "ServiceNotInRegionError": ("permanent", "choose another region"),
    "SSLError": ("permanent", "something between here and AWS changes its certificates: AWS_CA_BUNDLE names your own"),
    "InvalidProxiesConfigError": ("permanent", "check HTTPS_PROXY"),
    "ProxyConnectionError": ("passing", "check HTTPS_PROXY, and NO_PROXY for 169.254.169.254"),
    "EndpointConnectionError": ("passing", f"check the network and the region, then {REPEAT}"),
    "HTTPClientError": ("passing", f"check the network and the region, then {REPEAT}"),
    "ConnectionError": ("passing", f"check the network and the region, then {REPEAT}"),
    "EndpointProviderError": ("permanent", "check the region"),
}
"""botocore's own exceptions by the name of their class or of one that it comes from: nobody at AWS was asked."""

_WORDS: tuple[tuple[re.Pattern[str], str, Kind, str], ...] = (
    (
        re.compile(
            r"[^\n]*(?:No valid credential sources|no EC2 IMDS role found|failed to refresh cached credentials|"
            r"AssumeRoleTokenProvider|failed to get shared config profile|SSO token|credential_process)[^\n]*", re.I
        ),
        "credentials", "credentials", LOG_IN,
    ),
    (
        re.compile(r"[^\n]*x509: [^\n]*"),
        "certificate", "permanent", _EXCEPTIONS["SSLError"][1],
    ),
    (
        re.compile(
            r"[^\n]*(?:no such host|connection refused|connection reset|i/o timeout|TLS handshake timeout|"
            r"network is unreachable|no route to host|request send failed|server misbehaving|"
            r"decomposing response)[^\n]*"
        ),
        NETWORK, "passing", f"check the network, then {REPEAT}",
    ),
)  # fmt: skip
"""Words of Terraform's library when no answer of AWS came."""

_TOLD = re.compile(
    r"(?:operation error (?P<service>[\w ]+): (?P<operation>\w+), [^\n]*?)??"
    r"(?:StatusCode: (?P<status>\d+), RequestID: [^,\n]*,(?: HostID: [^,\n]*,)? (?:api error )?|api error )"
    r"(?P<code>[A-Za-z][\w.]*): ?(?P<sentence>[^\n]*)"
)
"""Form in which Terraform's library words an answer of AWS: `api error` stands before codes that it has no type for."""
_DIED = re.compile(
    r"unexpected state '(?:terminated|shutting-down)'[^\n]*?(?:last error: (Client|Server)\.([\w.]+)(?:: ([^\n]*))?)?$",
    re.M,
)
_ACTION = re.compile(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)")
_ENCODED = re.compile(r"\s*Encoded authorization failure message: \S+")
_SERVICES = (
    (re.compile(r"^Describe"), "ec2"),
    (re.compile(r"RoleCredentials"), "sso"),
    (re.compile(r"Assume|CallerIdentity"), "sts"),
    (re.compile(r"InstanceProfile|Role"), "iam"),
    (re.compile(r"Parameter"), "ssm"),
    (re.compile(r"Bucket|Object"), "s3"),
    (re.compile(r"Quota"), "servicequotas"),
)
_RIGHTS = {"HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "HeadObject": "GetObject"}


@dataclass(frozen=True)
class Refusal:
    """One refusal: AWS's code and its own sentence, what kind it is, and the next step for a person."""

    code: str
    kind: Kind
    sentence: str
    cure: str
    known: bool = True
    """True when the table knows the code. An unknown refusal is never repeated on its own."""
    action: str = ""
    """The right that is missing, such as ec2:RunInstances, when it is denied."""

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}" if self.sentence else self.code


def kind_of(code: str) -> Kind | None:
    """None for a code that neither the table nor a pattern knows."""
    for named in (code, code.partition(".")[0]):
        if named in _KINDS:
            return _KINDS[named]
        for pattern, kind in _RULES:
            if pattern.search(named):
                return kind
    return None


def refusal(code: str, sentence: str = "", operation: str = "", status: int = 0) -> Refusal:
    """Meaning of `code`, told by `operation` (RunInstances) with the HTTP status."""
    code = code.removeprefix("Client.").removeprefix("Server.")
    sentence = _ENCODED.sub("", sentence).strip()
    kind, cure = kind_of(code), _CURES.get(code, "")
    if kind == "denied" and "MultiFactorAuthentication" in sentence:
        kind, cure = "credentials", "the one-time code was wrong or used already: wait for the next one, then repeat"
    if kind == "credentials" and re.search(r"(?i)timestamp|signature (expired|not yet current)", sentence):
        kind, cure = "clock", ""
    action = denied_action(sentence, operation) if kind == "denied" else ""
    if action and not cure:
        cure = f"{action} is not allowed here: {CURES['denied']}"
    known, kind = kind is not None, kind or ("passing" if status >= 500 else "permanent")
    unknown = "" if known or kind == "passing" else f"nexa does not know this code; once it is mended, {REPEAT}"
    return Refusal(code, kind, sentence, cure or unknown or CURES[kind], known, action)


def denied_action(sentence: str, operation: str = "") -> str:
    """The right that a refusal is about: AWS's sentence names it, else the operation does. Empty when neither does."""
    if told := _ACTION.search(sentence):
        return told[1]
    service = next((name for pattern, name in _SERVICES if pattern.search(operation)), "ec2")
    return f"{service}:{_RIGHTS.get(operation, operation)}" if operation else ""


def read(text: str) -> list[Refusal]:
    """Every refusal in Terraform's words. Those of its own library only where no answer of AWS is told."""
    found = [_death(told) for told in _DIED.finditer(text)]
    for told in _TOLD.finditer(text):
        found.append(refusal(told["code"], told["sentence"], told["operation"] or "", int(told["status"] or 0)))
    if not found:
        rows = ((pattern.search(text), code, kind, cure) for pattern, code, kind, cure in _WORDS)
        found = [Refusal(code, kind, told[0].strip(), cure) for told, code, kind, cure in rows if told]
    return found


def only_read(text: str) -> bool:
    """True when Terraform's words name the calls that failed, and none of them can have changed anything."""
    calls = re.findall(r"operation error [\w ]+: (\w+)", text)
    return bool(calls) and all(re.match("Describe|Get|List|Head", call) for call in calls)


def _death(told: re.Match[str]) -> Refusal:
    """An instance that died at its launch: the cloud took it back, unless it says that it was our doing."""
    side, code, sentence = told.groups(default="")
    if side != "Client":
        return Refusal(PREEMPTED, "capacity", sentence, CURES["capacity"])
    if code == "InternalError":
        return Refusal(code, "permanent", sentence, _CURES["InternalError died"])
    return refusal(code, sentence)


def gravest(found: Iterable[Refusal]) -> Refusal | None:
    """The one that decides: what no other try can change goes before what another offer, or a moment, may."""
    return min(found, key=_gravity, default=None)


def _gravity(one: Refusal) -> int:
    if one.kind == "permanent" and not (one.code in _CURES or one.code in _KINDS):
        return 9  # by a pattern alone: it may be what another refusal left behind
    order = ("credentials", "clock", "denied", "permanent", "quota", "capacity", "passing")
    return order.index(one.kind) + (1 if one.code in OF_INSTANCES else 0)


def of_exception(error: Exception) -> Refusal:
    """Refusal of one of botocore's own exceptions: nobody at AWS was asked, or nobody answered."""
    names = [kind.__name__ for kind in type(error).__mro__]
    name = next((name for name in names if name in _EXCEPTIONS), "")
    kind, cure = _EXCEPTIONS.get(name, ("permanent", f"check AWS_PROFILE, the region and the network, then {REPEAT}"))
    return Refusal(names[0], kind, " ".join(str(error).split()), cure, bool(name))
