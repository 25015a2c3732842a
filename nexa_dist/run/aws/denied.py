"""Right that was missing when the cloud refused, as IAM writes it (`ec2:DescribeVpcs`)."""

from __future__ import annotations

import re

from nexa_dist import refusal
from nexa_dist.run.aws.client import Refused

_OURS = re.compile(r"\b([a-z0-9-]+:\w+) is (?:denied|not allowed)")
_WHY = re.compile(r"explicit deny in an? [\w -]+?policy|no [\w -]+?policy allows")


def denied_action(error: Exception) -> str:
    """The right that was missing, in an error of boto3, of Terraform or of ours; empty when it was something else that
    went wrong."""
    if isinstance(error, Refused):
        return error.told.action
    text = str(error)
    if said := _OURS.search(text):
        return said[1]
    return next((one.action for one in refusal.read(text) if one.action), "") or refusal.denied_action(text)


def in_short(error: Exception) -> str:
    """The missing right and whose policy it is that lacks it or forbids it, else all that was said."""
    if not (action := denied_action(error)):
        return str(error)
    why = _WHY.search(str(error))
    return f"{action} is denied{f' ({why[0]})' if why else ''}"
