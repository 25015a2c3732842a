"""Tailscale's API, asked on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.run import tailscale
from tests.unit.tailnet import SECRET, TOKEN, Api, serve

TAG = "tag:nexa"


@pytest.fixture
def api() -> Iterator[Api]:
    with serve() as made:
        yield made


def opened(api: Api) -> tailscale.Tailnet:
    made = tailscale.open_tailnet(api.environ)
    assert made is not None
    return made


def test_a_key_lets_one_machine_in_once(api: Api) -> None:
    made = opened(api)
    assert [made.mint(TAG, "nexa-c-n0"), made.mint(TAG, "x" * 99)] == [key for key, _ in api.keys]
    create = {"reusable": False, "ephemeral": True, "preauthorized": True, "tags": [TAG]}
    wanted = {"capabilities": {"devices": {"create": create}}, "expirySeconds": 600}
    assert api.keys[0][1] == {**wanted, "description": "nexa-c-n0"}
    assert api.keys[1][1] == {**wanted, "description": "x" * 50}, "the API takes no more"


def test_only_devices_with_tag_and_name_are_deleted(api: Api) -> None:
    api.devices |= {
        "1": {"hostname": "nexa-c-abc-n0", "tags": [TAG, "tag:x"]},
        "2": {"hostname": "nexa-c-abc-n0", "tags": ["tag:other"]},
        "3": {"hostname": "nexa-c-abc-n0"},
        "4": {"hostname": "nexa-c-abc-n00", "tags": [TAG]},
        "5": {"hostname": "nexa-c-abc-n1", "tags": [TAG]},
    }
    assert opened(api).delete_all(TAG, ["nexa-c-abc-n0", "nexa-c-abc-n1"]) == ["nexa-c-abc-n0", "nexa-c-abc-n1"]
    assert set(api.devices) == {"2", "3", "4"}


def test_without_an_oauth_client_there_is_no_tailnet() -> None:
    assert tailscale.open_tailnet({"TS_AUTHKEY": "tskey-x"}) is None
    for half in ("TS_OAUTH_CLIENT_ID", "TS_OAUTH_CLIENT_SECRET"):
        with pytest.raises(UsageError, match="go together"):
            tailscale.open_tailnet({half: "x"})


@pytest.mark.parametrize("address", ["http://api.example.com", "file:///etc/passwd", "ftp://127.0.0.2", "127.0.0.1:80"])
def test_secrets_are_sent_over_https_only(address: str) -> None:
    with pytest.raises(UsageError, match="no https address"):
        tailscale.open_tailnet(
            {"TS_OAUTH_CLIENT_ID": "a", "TS_OAUTH_CLIENT_SECRET": "b", "NEXA_TAILSCALE_API": address}
        )


def test_failures_are_said_without_secrets(api: Api) -> None:
    with pytest.raises(NexaError, match=r"401 who\?") as wrong:
        tailscale.open_tailnet({**api.environ, "TS_OAUTH_CLIENT_ID": "other"})
    made = opened(api)
    api.fails["POST /api/v2/tailnet/-/keys"] = 403
    with pytest.raises(NexaError, match="403 not today") as refused:
        made.mint(TAG, "n0")
    assert "scopes" in refused.value.hint
    gone = tailscale.Tailnet("http://127.0.0.1:1", TOKEN)
    with pytest.raises(NexaError, match="devices") as silent:
        gone.delete_all(TAG, ["n0"])
    for said in (wrong, refused, silent):
        assert SECRET not in f"{said.value} {said.value.hint}" and TOKEN not in f"{said.value} {said.value.hint}"
    assert TOKEN not in repr(made)
