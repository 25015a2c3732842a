"""Credentials that AWS sees: those that boto3 finds, the same for Terraform. In memory only: no file of ours holds any.

boto3 knows every source (keys, profiles, roles with a one-time code, SSO, aws login, credential_process, the roles of
containers and instances). Terraform's own library knows fewer, and cannot ask.
"""

from __future__ import annotations

import getpass
import os
import sys
from typing import Any

from nexa_dist.errors import UsageError

LASTING_S = 20 * 60
"""A program that is started gets credentials that last so long, if their source gives such."""
OURS_ALONE = {
    **dict.fromkeys(("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"), ""),
    **dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull),
}
"""Variables that are cleared, so that a program that looks for itself finds the keys that it is given, and nothing
else."""
SETTINGS = {
    "ca_bundle": "AWS_CA_BUNDLE",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "use_fips_endpoint": "AWS_USE_FIPS_ENDPOINT",
    "use_dualstack_endpoint": "AWS_USE_DUALSTACK_ENDPOINT",
}
"""Settings that a profile may have besides, and the variables by which a program finds them."""


class Sessions(dict[str, Any]):
    """Roles that were assumed: those of this process, and those that the aws command has begun and left in its files.
    None is written: who has answered the aws command is not asked again, and no secret is in a file of ours."""

    def __init__(self, files: Any) -> None:
        super().__init__()
        self.files = files

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and key in self.files:
            try:
                self[str(key)] = self.files[key]
            except KeyError:
                return False  # torn
        return super().__contains__(key)


def one_time_code(prompt: str) -> str:
    """Ask for the code that the user's device shows. Raises UsageError where there is nobody to ask."""
    wants = "the role of this AWS profile wants a one-time code (MFA)"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{wants}, and there is no terminal to ask for it",
            hint="run `aws sts get-caller-identity` with this profile in a terminal: its session is used here too",
        )
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UsageError(f"{wants}, and none was given") from None


def session() -> Any:
    """A session of botocore that asks as above, and only once."""
    import botocore.session
    from botocore.utils import JSONFileCache

    made = botocore.session.Session()
    role = made.get_component("credential_provider").get_provider("assume-role")
    role.cache = Sessions(JSONFileCache(os.path.expanduser(os.path.join("~", ".aws", "cli", "cache"))))
    role._prompter = one_time_code  # botocore takes it at its making alone, which is not ours
    return made


def short(session: Any) -> bool:
    """Tell whether the session's credentials end before a program that takes them now may."""
    held = session.get_credentials()
    return hasattr(held, "refresh_needed") and bool(held.refresh_needed(LASTING_S))


def environment(session: Any) -> dict[str, str]:
    """Variables for a program that is started: the keys that `session` has now, and what its profile says besides.
    Empty when it has none."""
    held = session.get_credentials()
    if held is None:
        return {}
    keys, profile = held.get_frozen_credentials(), session.get_scoped_config()
    said = {name: str(profile[key]) for key, name in SETTINGS.items() if profile.get(key) and not os.environ.get(name)}
    return {
        **OURS_ALONE,
        **said,
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token or "",
    }
