"""The right that was missing is named, however the cloud and the library word it."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from nexa_dist.errors import NexaError
from nexa_dist.run.aws.client import Refused, spoken
from nexa_dist.run.aws.denied import denied_action, in_short

TOLD = "User: arn:aws:iam::1:user/ann is not authorized to perform: {} because no identity-based policy allows it"
TERRAFORM = (
    "terraform apply failed: creating EC2 VPC: operation error EC2: CreateVpc, https response error StatusCode: 403, "
    "RequestID: 1, api error UnauthorizedOperation: You are not authorized to perform this operation."
)


@pytest.mark.parametrize(
    ("code", "message", "call", "right"),
    [
        ("UnauthorizedOperation", TOLD.format("ec2:DescribeVpcs"), "DescribeVpcs", "ec2:DescribeVpcs"),
        ("UnauthorizedOperation", "You are not authorized.", "TerminateInstances", "ec2:TerminateInstances"),
        ("UnauthorizedOperation", TOLD.format("ec2:CreateTags"), "ImportKeyPair", "ec2:CreateTags"),
        ("AccessDenied", "Access Denied", "ListInstanceProfiles", "iam:ListInstanceProfiles"),
        ("AccessDenied", "Access Denied", "GetBucketTagging", "s3:GetBucketTagging"),
        ("AccessDeniedException", "", "GetParameter", "ssm:GetParameter"),
        ("403", "Forbidden", "HeadBucket", "s3:ListBucket"),
        ("RequestLimitExceeded", "Request limit exceeded.", "DescribeVpcs", ""),
        ("VpcLimitExceeded", "The maximum number of VPCs has been reached.", "CreateVpc", ""),
    ],
)
def test_the_missing_right_is_read_from_botos_error(code: str, message: str, call: str, right: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": message}}, call)
    with pytest.raises(Refused) as caught, spoken("x"):
        raise error
    assert denied_action(caught.value) == right
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (TERRAFORM, "ec2:CreateVpc"),
        (TERRAFORM.replace("operation.", "operation. " + TOLD.format("ec2:CreateTags")), "ec2:CreateTags"),
        (TERRAFORM.replace("EC2: CreateVpc", "IAM: CreateRole"), "iam:CreateRole"),
        (TERRAFORM.replace("403", "400").replace("UnauthorizedOperation", "VpcLimitExceeded"), ""),
        ("vpcs in us-east-1 could not be listed: no (ec2:DescribeVpcs is denied)", "ec2:DescribeVpcs"),
        ("no route to host", ""),
    ],
)
def test_what_terraform_says(text: str, right: str) -> None:
    assert denied_action(NexaError(text)) == right


def test_in_short_it_says_whose_policy() -> None:
    by_a_company = TOLD.format("ec2:DescribeVpcs").replace("because no identity-based policy allows it", "with an")
    told = NexaError(f"{by_a_company} explicit deny in a service control policy")
    assert in_short(told) == "ec2:DescribeVpcs is denied (explicit deny in a service control policy)"
    assert in_short(NexaError("no route")) == "no route"
