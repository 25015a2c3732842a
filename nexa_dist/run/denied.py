"""Which right was missing when the cloud refused, as IAM writes it (`ec2:DescribeVpcs`)."""

from __future__ import annotations

import re

CODES = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "403", "Forbidden")
_SAID = re.compile(r"not authorized to perform:? ([a-z0-9-]+:\w+)|\b([a-z0-9-]+:\w+) is denied")
_BY_TERRAFORM = re.compile(r"operation error (\w+): (\w+),[^\n]*?\b(?:403|UnauthorizedOperation|AccessDenied)")
_WHY = re.compile(r"explicit deny in an? [\w -]+?policy|no [\w -]+?policy allows")
_SERVICES = (("s3", r"Bucket|Object"), ("iam", r"Role|InstanceProfile"), ("ssm", r"Parameter"))
_OTHER_NAMES = {"HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "HeadObject": "GetObject"}
"""Calls whose right has another name, of those that boto3 makes here."""


def denied_action(error: BaseException | str) -> str:
    """The right that was missing; empty when it was something else that went wrong. AWS says it in most answers; where
    it does not (a HEAD has no body, older ones say only that it is so), the call tells it."""
    from botocore.exceptions import ClientError

    cause = error.__cause__ if isinstance(error, Exception) and error.__cause__ else error
    text = f"{error}"
    if said := _SAID.search(text) or _SAID.search(f"{cause}"):
        return said[1] or said[2]
    if isinstance(cause, ClientError) and cause.response["Error"].get("Code") in CODES:
        return _right(cause.operation_name)
    called = _BY_TERRAFORM.search(text)
    return _right(called[2], called[1].lower()) if called else ""


def _right(call: str, service: str = "") -> str:
    of = service or next((name for name, words in _SERVICES if re.search(words, call)), "ec2")
    return f"{of}:{_OTHER_NAMES.get(call, call)}"


def in_short(error: BaseException) -> str:
    """The missing right and whose policy it is that lacks it or forbids it, else all that was said."""
    if not (action := denied_action(error)):
        return str(error)
    why = _WHY.search(str(error))
    return f"{action} is denied{f' ({why[0]})' if why else ''}"
