"""What AWS's refusals mean: by code, by Terraform's words, by botocore's exceptions."""

from __future__ import annotations

import inspect

import botocore.exceptions
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.refusal import Kind, denied_action, gravest, kind_of, of_exception, read, refusal
from nexa_dist.run.aws.client import Refused, spoken

TABLE: dict[Kind, str] = {
    "permanent": "VPCIdNotSpecified InvalidBlockDeviceMapping InvalidSubnet.Range InvalidSubnet.Conflict OptInRequired "
    "PendingVerification Blocked ParameterNotFound BucketAlreadyExists BucketAlreadyOwnedByYou InvalidAMIID.NotFound "
    "InvalidParameterValue InvalidParameterCombination MissingParameter UnsupportedOperation EntityAlreadyExists "
    "NoSuchBucket NoSuchEntity MalformedPolicyDocument InvalidVpcID.NotFound InvalidKeyPair.Duplicate "
    "DependencyViolation OperationNotPermitted PermanentRedirect ValidationError ResourceNotFoundException "
    "InvalidAction VolumeInUse",
    "quota": "VcpuLimitExceeded MaxSpotInstanceCountExceeded InstanceLimitExceeded VpcLimitExceeded "
    "AddressLimitExceeded SubnetLimitExceeded InternetGatewayLimitExceeded RouteTableLimitExceeded "
    "SecurityGroupLimitExceeded "
    "RulesPerSecurityGroupLimitExceeded NetworkInterfaceLimitExceeded VolumeLimitExceeded MaxIOPSLimitExceeded "
    "LimitExceeded LimitExceededException ServiceQuotaExceededException TooManyBuckets ResourceLimitExceeded",
    "capacity": "InsufficientInstanceCapacity InsufficientHostCapacity UnfulfillableCapacity SpotMaxPriceTooLow "
    "Unsupported InsufficientReservedInstanceCapacity ReservationCapacityExceeded Server.InsufficientInstanceCapacity",
    "passing": "RequestLimitExceeded Throttling ThrottlingException SlowDown InternalError ServiceUnavailable "
    "Unavailable TooManyRequestsException RequestTimeout OperationAborted InvalidPermission.NotFound "
    "RouteAlreadyExists 503",
    "credentials": "ExpiredToken ExpiredTokenException RequestExpired AuthFailure InvalidClientTokenId "
    "InvalidAccessKeyId UnrecognizedClientException InvalidGrantException IncompleteSignature "
    "MissingAuthenticationToken",
    "clock": "RequestTimeTooSkewed SignatureDoesNotMatch InvalidSignatureException RequestInTheFuture",
    "denied": "UnauthorizedOperation AccessDenied AccessDeniedException 403 Client.UnauthorizedOperation "
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted AuthorizationErrorException",
}
SENTENCE = "You have requested more vCPU capacity than your current vCPU limit of 0 allows."
USER = "User: arn:aws:iam::1:user/ann is not authorized to perform: "


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in TABLE.items() for code in codes.split()])
def test_each_code_of_aws_has_its_kind_and_cure(kind: Kind, code: str) -> None:
    told = refusal(code, SENTENCE)
    assert (told.kind, told.known) == (kind, True)
    assert SENTENCE in str(told) and told.cure


def test_only_what_passes_is_cured_by_repeating() -> None:
    for kind, codes in TABLE.items():
        for code in codes.split():
            assert ("again: it goes on" in refusal(code).cure) == (kind == "passing"), code
            assert "log in" not in refusal(code).cure or kind == "credentials", code


@pytest.mark.parametrize(("status", "kind"), [(400, "permanent"), (0, "permanent"), (500, "passing"), (503, "passing")])
def test_an_unknown_code_is_repeated_only_when_the_cloud_says_that_it_is_its_own_fault(status: int, kind: Kind) -> None:
    told = refusal("SomethingNewOfMonday", SENTENCE, status=status)
    assert (told.kind, told.known) == (kind, False)
    assert kind_of("SomethingNewOfMonday") is None and SENTENCE in str(told)


@pytest.mark.parametrize(
    ("code", "sentence", "kind"),
    [
        ("AccessDenied", "MultiFactorAuthentication failed with invalid MFA one time pass code.", "credentials"),
        ("RequestExpired", "Request has expired. Timestamp date is 2026-01-01T00:00:00Z", "clock"),
        ("RequestExpired", "The security token included in the request is expired", "credentials"),
    ],
)
def test_some_sentences_say_more_than_their_code(code: str, sentence: str, kind: Kind) -> None:
    assert refusal(code, sentence).kind == kind


@pytest.mark.parametrize(
    ("sentence", "operation", "action"),
    [
        (
            f"You are not authorized to perform this operation. {USER}ec2:RunInstances on resource: x",
            "",
            "ec2:RunInstances",
        ),
        (f"{USER}iam:ListInstanceProfiles on resource: y", "GetRole", "iam:ListInstanceProfiles"),
        ("You are not authorized to perform this operation.", "RunInstances", "ec2:RunInstances"),
        ("Forbidden", "HeadBucket", "s3:ListBucket"),
        ("no", "ListInstanceProfiles", "iam:ListInstanceProfiles"),
        ("no", "GetParameter", "ssm:GetParameter"),
        ("no", "AssumeRole", "sts:AssumeRole"),
        ("no", "GetServiceQuota", "servicequotas:GetServiceQuota"),
        ("no", "", ""),
    ],
)
def test_the_missing_right_is_named(sentence: str, operation: str, action: str) -> None:
    assert denied_action(sentence, operation) == action
    told = refusal("AccessDenied", sentence, operation)
    assert told.action == action and action in told.cure


def test_a_message_for_machines_is_left_out() -> None:
    told = refusal("UnauthorizedOperation", f"{USER}ec2:X. Encoded authorization failure message: {'a1_-' * 500}")
    assert len(str(told)) < 200 and told.action == "ec2:X"


HTTP = "https response error StatusCode: 400, RequestID: 0-0, "
RUN, NONE = f"operation error EC2: RunInstances, {HTTP}api error ", "failed to refresh cached credentials"
DIED = "unexpected state 'terminated', wanted 'running'. last error: "


@pytest.mark.parametrize(
    ("text", "wanted", "kind"),
    [
        (f"{RUN}VcpuLimitExceeded: {SENTENCE}", f"VcpuLimitExceeded: {SENTENCE}", "quota"),
        (f"error IAM: CreateRole, {HTTP}EntityAlreadyExists: x exists.", "EntityAlreadyExists: x exists.", "permanent"),
        (f"{HTTP}HostID: h/+=, BucketAlreadyExists: taken", "BucketAlreadyExists: taken", "permanent"),
        (f"{RUN}UnauthorizedOperation: no", "UnauthorizedOperation: no", "denied"),
        (f"Error: No valid credential sources found: {NONE}", "credentials: Error: No valid", "credentials"),
        ("Error: AssumeRoleTokenProvider session option not set", "credentials: Error: Assume", "credentials"),
        ("request send failed, Post: dial tcp: lookup x: no such host", "network: request send", "passing"),
        (f"{NONE}, {HTTP}api error AccessDenied: no", "AccessDenied: no", "denied"),
        (f"{DIED}Client.InternalError: on launch", "InternalError: on launch", "permanent"),
        (f"{DIED}Client.VolumeLimitExceeded: too much", "VolumeLimitExceeded: too much", "quota"),
        ("unexpected state 'shutting-down', wanted 'running'.", "Preempted", "capacity"),
    ],
)
def test_the_words_of_terraform(text: str, wanted: str, kind: Kind) -> None:
    (told,) = read(text)
    assert told.kind == kind and str(told).startswith(wanted)
    assert told.action == ("ec2:RunInstances" if "RunInstances" in text and kind == "denied" else "")


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ("InsufficientInstanceCapacity AddressLimitExceeded", "AddressLimitExceeded"),  # the next offer meets it too
        ("RequestLimitExceeded InsufficientInstanceCapacity", "InsufficientInstanceCapacity"),
        ("InsufficientInstanceCapacity ExpiredToken", "ExpiredToken"),
        ("InvalidInstanceID.NotFound InsufficientInstanceCapacity", "InsufficientInstanceCapacity"),
        ("InsufficientInstanceCapacity VcpuLimitExceeded", "InsufficientInstanceCapacity"),
        ("NewOfMonday InsufficientInstanceCapacity", "InsufficientInstanceCapacity"),
    ],
)
def test_of_several_the_one_that_no_other_try_can_change_decides(codes: str, first: str) -> None:
    told = gravest(refusal(code) for code in codes.split())
    assert told and told.code == first and gravest([]) is None


def test_every_exception_of_botocore_about_credentials_or_the_network_has_its_cure() -> None:
    words = ("Credential", "SSO", "Login", "Token", "Profile", "Config", "Connect", "Timeout", "SSL", "Proxy", "Region")
    other = (
        "S3",
        "Retry",
        "Waiter",
        "Discovery",
        "Defaults",
        "EndpointConfiguration",
        "Checksum",
        "STSRegional",
    )
    seen = 0
    for name, kind in inspect.getmembers(botocore.exceptions, inspect.isclass):
        if issubclass(kind, BotoCoreError) and any(w in name for w in words) and not any(w in name for w in other):
            error = kind.__new__(kind)
            error.args = ("words of botocore",)
            told = of_exception(error)
            assert told.known and told.cure and told.sentence == "words of botocore", name
            assert "network" not in told.cure or told.kind == "passing", name
            seen += 1
    assert seen > 25


def test_what_is_wrong_on_this_machine_is_a_matter_of_usage() -> None:
    with pytest.raises(UsageError, match="nobody was found") as missing, spoken("asking"):
        raise botocore.exceptions.ProfileNotFound(profile="nobody was found")
    assert "AWS_PROFILE" in missing.value.hint
    with pytest.raises(NexaError, match=r"asking: .*SSO") as old, spoken("asking"):
        raise botocore.exceptions.UnauthorizedSSOTokenError()
    assert "aws sso login" in old.value.hint and "network" not in old.value.hint
    answer = {"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}
    with pytest.raises(Refused, match="asking: UnauthorizedOperation: no") as denied, spoken("asking"):
        raise ClientError(answer, "DescribeVpcs")
    assert (denied.value.told.action, denied.value.told.kind) == ("ec2:DescribeVpcs", "denied")
