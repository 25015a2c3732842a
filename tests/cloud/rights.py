"""IAM in the emulated region: which rights a call takes, which were used, and who has them.

Everything is allowed until a test says otherwise. A refusal is worded as AWS words it.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.faults import Call, Refused

WHO = "arn:aws:iam::123456789012:user/ann"
S3_BUCKET = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
S3_OBJECT = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject", "POST": "PutObject"}
S3_SETTINGS = {
    "accelerate": "AccelerateConfiguration",
    "acl": "BucketAcl",
    "cors": "BucketCORS",
    "encryption": "EncryptionConfiguration",
    "lifecycle": "LifecycleConfiguration",
    "location": "BucketLocation",
    "logging": "BucketLogging",
    "notification": "BucketNotification",
    "object-lock": "BucketObjectLockConfiguration",
    "ownershipControls": "BucketOwnershipControls",
    "policy": "BucketPolicy",
    "publicAccessBlock": "BucketPublicAccessBlock",
    "replication": "ReplicationConfiguration",
    "requestPayment": "BucketRequestPayment",
    "tagging": "BucketTagging",
    "versioning": "BucketVersioning",
    "website": "BucketWebsite",
}
"""Query of a bucket's settings, and what the right to them is called after Get or Put."""
S3_LISTS = {"versions": "ListBucketVersions", "uploads": "ListBucketMultipartUploads"}


def needed(call: Call, environ: dict[str, Any]) -> tuple[str, ...]:
    """The rights that IAM asks for when this call comes, its own first."""
    if call.service == "sts":
        return ()  # who somebody is he may always ask
    if call.service == "s3":
        return _of_s3(environ)
    more = []
    given = {key.partition(".")[0] for key in call.params}
    if call.service == "ec2" and "TagSpecification" in given and not call.describes:
        more.append("ec2:CreateTags")
    if call.name == "AddRoleToInstanceProfile" or (call.name == "RunInstances" and "IamInstanceProfile" in given):
        more.append("iam:PassRole")
    if call.service == "iam" and call.name.startswith("Create") and "Tags" in given:
        more.append(f"iam:Tag{call.name.removeprefix('Create')}")
    return (f"{call.service}:{call.name}", *more)


def _of_s3(environ: dict[str, Any]) -> tuple[str, ...]:
    method = environ["REQUEST_METHOD"]
    query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    path = environ["PATH_INFO"].strip("/")
    if not path:
        return ("s3:ListAllMyBuckets",)
    if "/" in path:
        version = "Version" if "versionId" in query and method in ("GET", "HEAD", "DELETE") else ""
        return (f"s3:{S3_OBJECT[method]}{version}",)
    if method == "POST" and "delete" in query:
        return ("s3:DeleteObject", "s3:DeleteObjectVersion")
    for word, name in S3_LISTS.items():
        if word in query:
            return (f"s3:{name}",)
    for word, name in S3_SETTINGS.items():
        if word in query:
            if method == "DELETE" and word in ("policy", "website"):
                return (f"s3:Delete{name}",)
            return (f"s3:{'Get' if method == 'GET' else 'Put'}{name}",)
    return (f"s3:{S3_BUCKET[method]}",)


@dataclass
class Rights:
    """`allow` is all that there is (None: everything), `deny` what is taken of it. Not locked: callers hold the
    region's lock. With `silent` a refusal says only that it is one, as many of AWS's did and a HEAD always does."""

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    silent: bool = False
    used: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def give(self, allow: Iterable[str] | None = None, deny: Iterable[str] = (), silent: bool = False) -> None:
        """From now on these, with nothing used yet."""
        self.allow, self.deny = None if allow is None else frozenset(allow), frozenset(deny)
        self.silent = silent
        self.used.clear()
        self.refused.clear()

    def check(self, call: Call, environ: dict[str, Any]) -> None:
        """Raises what AWS answers to who may not."""
        for right in needed(call, environ):
            if right in self.deny or (self.allow is not None and right not in self.allow):
                self.refused.add(right)
                raise Refused(*self._words(call, right), 400 if call.protocol == "json" else 403)
            self.used.add(right)

    def _words(self, call: Call, right: str) -> tuple[str, str]:
        why = f"because no identity-based policy allows the {right} action"
        if call.protocol == "ec2":
            told = "You are not authorized to perform this operation."
            return "UnauthorizedOperation", told if self.silent else (
                f"{told} User: {WHO} is not authorized to perform: {right} {why}"
            )
        code = "AccessDeniedException" if call.protocol == "json" else "AccessDenied"
        if self.silent:
            return code, "Access Denied"
        return code, f"User: {WHO} is not authorized to perform: {right} on resource: * {why}"
