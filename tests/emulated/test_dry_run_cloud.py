"""--dry-run of the verbs that end things of a cloud: every call of it reads."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.client import BaseClient

from tests.unit.cloud_server import HOME, Emulated
from tests.unit.test_dry_run import CASES, Desk, desk, dry

__all__ = ["desk"]


def test_no_call_of_a_dry_run_changes_the_cloud(
    desk: Desk, emulated_region: Emulated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXA_OWNER", "ann")
    tags = {"nexa:owner": "ann", "nexa:cluster": "gone", "nexa:workspace": "x", "nexa:expires": "2020-01-01T00:00:00Z"}

    def tagged(kind: str, **more: str) -> list[dict[str, Any]]:
        pairs = [{"Key": key, "Value": value} for key, value in {**tags, **more}.items()]
        return [{"ResourceType": kind, "Tags": pairs}]

    ec2 = emulated_region.ec2
    ec2.create_key_pair(KeyName="nexa-gone", TagSpecifications=tagged("key-pair"))
    machine = ec2.run_instances(ImageId=emulated_region.image, InstanceType="g6e.12xlarge", MinCount=1, MaxCount=1)
    image = ec2.create_image(
        InstanceId=machine["Instances"][0]["InstanceId"],
        Name="image",
        TagSpecifications=tagged("image", **{"nexa:env": "e"}),
    )["ImageId"]
    called, make = list[str](), BaseClient._make_api_call

    def counted(self: BaseClient, name: str, how: Any) -> Any:
        called.append(name)
        return make(self, name, how)

    monkeypatch.setattr(BaseClient, "_make_api_call", counted)
    for words, said in (*CASES["sweep"], *CASES["image"]):
        told = dry(desk, words.format(image=image), capsys)
        for part in said:
            assert part.format(image=image) in told
    assert called and {name for name in called if not name.startswith(("Describe", "Get", "List"))} == set()
    assert HOME in told
