"""Instance profiles as a sweep lists them: below a path, with their tags."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult
from moto.iam.models import iam_backends
from moto.iam.responses import IamResponse


def list_instance_profiles(self: IamResponse) -> ActionResult:
    prefix = self._get_param("PathPrefix", "/")
    found = [p for p in self.backend.get_instance_profiles() if p.path.startswith(prefix)]
    return ActionResult({"InstanceProfiles": found, "IsTruncated": False})


def list_instance_profile_tags(self: IamResponse) -> ActionResult:
    profile = self.backend.get_instance_profile(self._get_param("InstanceProfileName"))
    return ActionResult({"Tags": profile.tags, "IsTruncated": False})


ACTIONS = {
    "list_instance_profiles": list_instance_profiles,
    "list_instance_profile_tags": list_instance_profile_tags,
}


def tagged() -> dict[str, dict[str, dict[str, str]]]:
    """Tags of every instance profile and role by name, of all accounts."""
    found: dict[str, dict[str, dict[str, str]]] = {"instance_profiles": {}, "roles": {}}
    for account in list(iam_backends.values()):
        for iam in list(account.values()):
            for kind, things in (("instance_profiles", iam.instance_profiles), ("roles", iam.roles)):
                found[kind].update({thing.name: plain(thing.tags) for thing in things.values()})
    return found


def plain(tags: list[dict[str, Any]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}
