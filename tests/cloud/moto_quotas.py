"""Service quotas of EC2, which moto does not know, with room for any test; and of more VPCs than AWS gives at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

VALUES = {
    **dict.fromkeys(("L-DB2E81BA", "L-417A185B", "L-3819A6DF", "L-7212CCBC", "L-C4BD4855"), 100_000.0),
    "L-0263D0A3": 1000.0,
    "L-F678F1CE": 1000.0,
}
Get = Callable[[Any, str, str], dict[str, Any]]


def knows_ec2(plain: Get) -> Get:
    def get(self: Any, service_code: str, quota_code: str) -> dict[str, Any]:
        if quota_code in VALUES:
            return {"ServiceCode": service_code, "QuotaCode": quota_code, "Value": VALUES[quota_code]}
        return plain(self, service_code, quota_code)

    return get
