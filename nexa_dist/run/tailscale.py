"""Tailscale's API: one-off keys for nodes, and the end of devices that no longer answer. Secrets stay in memory."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_dist.errors import NexaError, UsageError

ADDRESS = "https://api.tailscale.com"
KEY_LIFE_S = 600
"""A key that was minted for a node that never came is worthless after so long."""
TIMEOUT_S = 15.0
NO_CREDENTIALS = (
    "set TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET (scopes auth_keys and devices:core), "
    "or TS_AUTHKEY with a reusable, ephemeral, tagged key"
)


@dataclass(frozen=True)
class Tailnet:
    """The tailnet that an OAuth client belongs to, for the hour that its token lives."""

    address: str
    token: str = field(repr=False)

    def mint(self, tag: str, description: str) -> str:
        """A key that lets one machine in, once: ephemeral, approved beforehand, tagged."""
        create = {"reusable": False, "ephemeral": True, "preauthorized": True, "tags": [tag]}
        wanted = {
            "capabilities": {"devices": {"create": create}},
            "expirySeconds": KEY_LIFE_S,
            "description": description[:50],
        }
        return str(self._call("POST", "tailnet/-/keys", wanted)["key"])

    def delete_all(self, tag: str, hostnames: Sequence[str]) -> list[str]:
        """Ends the devices that have both the tag and one of the names; answers the names."""
        devices = self._call("GET", "tailnet/-/devices")["devices"]
        ours = [one for one in devices if tag in (one.get("tags") or ()) and one.get("hostname") in hostnames]
        for one in ours:
            self._call("DELETE", f"device/{urllib.parse.quote(str(one['id']), safe='')}")
        return [str(one["hostname"]) for one in ours]

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return _ask(method, f"{self.address}/api/v2/{path}", data, headers)


def open_tailnet(environ: Mapping[str, str]) -> Tailnet | None:
    """Open the tailnet by the OAuth client of the environment; None when there is none. NEXA_TAILSCALE_API names
    another server."""
    client, secret = environ.get("TS_OAUTH_CLIENT_ID", ""), environ.get("TS_OAUTH_CLIENT_SECRET", "")
    if not client and not secret:
        return None
    if not client or not secret:
        raise UsageError("TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET go together", hint=NO_CREDENTIALS)
    address = environ.get("NEXA_TAILSCALE_API", ADDRESS).rstrip("/")
    form = {"client_id": client, "client_secret": secret, "grant_type": "client_credentials"}
    told = _ask("POST", f"{address}/api/v2/oauth/token", urllib.parse.urlencode(form).encode(), {})
    return Tailnet(address, str(told["access_token"]))


def _ask(method: str, url: str, data: bytes | None, headers: dict[str, str]) -> Any:
    """The answer's JSON; None for an empty one. What is said of a failure never has a header or a body of ours."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname != "127.0.0.1":  # what is sent is secret
        raise UsageError(f"NEXA_TAILSCALE_API is no https address: {url}")
    what = f"tailscale: {method} {parts.path}"
    try:
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - the scheme is checked above
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        raise NexaError(f"{what}: {error.code} {_message(error)}", hint=_hint(error.code)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NexaError(f"{what}: {error}", hint="is the tailnet's API within reach from here?") from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["message"])[:200]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return str(error.reason)


def _hint(code: int) -> str:
    if code == 401:
        return "TS_OAUTH_CLIENT_ID or TS_OAUTH_CLIENT_SECRET is wrong, or was revoked"
    if code in (400, 403):
        return "the OAuth client needs the scopes auth_keys and devices:core, and the tag"
    return ""
