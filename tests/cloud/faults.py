"""Faults that a test asks of the emulated region: what they are, when they strike, how AWS words them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal
from xml.sax.saxutils import escape

KINDS = (
    "capacity",
    "throttle",
    "error",
    "lost_reply",
    "hidden",
    "expired_credentials",
    "no_boot",
    "slow",
    "overwritten",
)
FAULTED_ON_SERVER = ("InsufficientInstanceCapacity", "UnfulfillableCapacity", "InternalError", "Unavailable")
Protocol = Literal["ec2", "query", "json", "s3"]


class Refused(Exception):
    """An API call that ends in an error of this code. `status` is the HTTP status; 0 derives it from the code."""

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or (500 if code in FAULTED_ON_SERVER else 400)


@dataclass(frozen=True)
class Call:
    """One API call as the fault book and the ledger see it."""

    name: str
    service: str
    protocol: Protocol
    region: str
    params: Mapping[str, str]

    @property
    def describes(self) -> bool:
        return self.protocol == "ec2" and self.name.startswith("Describe")


@dataclass
class Fault:
    """What was asked for, and how often it has struck.

    `times` is the number of strikes (None: always). `after` lets the first N matching instances succeed, `after_calls`
    the first N calls. `rate` is the share of calls that strike (0.25: every fourth). `nth` counts launches from 1.
    """

    kind: str
    call: str | None = None
    type: str | None = None
    zone: str | None = None
    market: str | None = None
    code: str | None = None
    message: str = "An error was injected into this call."
    status: int = 0
    seconds: float = 0.0
    after: int = 0
    after_calls: int = 0
    nth: int | None = None
    rate: float = 1.0
    times: int | None = None
    passed: int = 0
    struck: int = 0
    share: float = 0.0

    @property
    def spent(self) -> bool:
        return self.times is not None and self.struck >= self.times

    def meets(self, **facts: str) -> bool:
        """Every fact that the fault names is as it names it; call names may be patterns (Describe*)."""
        for key, value in facts.items():
            wanted = getattr(self, key)
            if wanted is not None and not fnmatch.fnmatchcase(value, wanted):
                return False
        return True

    def strikes(self, weight: int = 1) -> bool:
        """Counts one matching event of `weight` instances, and says whether the fault strikes it."""
        if self.spent:
            return False
        grace = self.after or self.after_calls
        if self.passed + weight <= grace:
            self.passed += weight
            return False
        self.share += self.rate
        if self.share < 1.0 - 1e-9:
            return False
        self.share -= 1.0
        self.struck += 1
        return True


INPUTS = frozenset(f.name for f in fields(Fault)) - {"passed", "struck", "share"}


class FaultBook:
    """The active faults, in the order in which they were added. Not locked: callers hold the region's lock."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, asked: Mapping[str, Any]) -> Fault:
        """ValueError names an unknown kind or key, so that a test's typing error is not a test that passes."""
        unknown = sorted(set(asked) - INPUTS)
        if unknown or asked.get("kind") not in KINDS:
            raise ValueError(f"a fault has one of the kinds {', '.join(KINDS)}, and no {', '.join(unknown) or 'other'}")
        fault = Fault(**asked)
        if fault.kind in ("error", "lost_reply", "slow") and fault.call is None:
            raise ValueError(f"a fault {fault.kind} needs the name of a call")
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        self.faults.clear()

    def strike(self, kind: str, weight: int = 1, **facts: str) -> Fault | None:
        """The first fault of the kind that meets the facts and strikes now."""
        for fault in self.faults:
            if fault.kind == kind and fault.meets(**facts) and fault.strikes(weight):
                return fault
        return None

    def refuse(self, call: Call) -> None:
        """Raises what an expired credential, a throttle or an injected error answers this call."""
        if self.strike("expired_credentials", call=call.name):
            raise Refused(EXPIRED[call.protocol], "The security token included in the request is expired")
        if self.strike("throttle", call=call.name):
            code, status = THROTTLED[call.protocol]
            raise Refused(code, "Request limit exceeded.", status)
        fault = self.strike("error", call=call.name)
        if fault:
            status = fault.status or 500
            raise Refused(fault.code or "InternalError", fault.message, status)

    def refuse_launch(self, *, type: str, zone: str, market: str, count: int) -> None:  # noqa: A002
        """Raises when this zone has no room for `count` instances of the type and market."""
        fault = self.strike("capacity", weight=count, type=type, zone=zone, market=market)
        if fault:
            code = fault.code or "InsufficientInstanceCapacity"
            told = (
                f"We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone})."
            )
            raise Refused(code, told, fault.status)

    def boots(self, *, type: str, zone: str) -> bool:  # noqa: A002
        """Whether the machine of a new instance comes up. Every no_boot fault counts every launch."""
        up = True
        for fault in self.faults:
            if fault.kind != "no_boot" or fault.spent or not fault.meets(type=type, zone=zone):
                continue
            fault.passed += 1
            if fault.nth in (None, fault.passed):
                fault.struck += 1
                up = False
        return up


THROTTLED: dict[Protocol, tuple[str, int]] = {
    "ec2": ("RequestLimitExceeded", 503),
    "query": ("Throttling", 400),
    "json": ("ThrottlingException", 400),
    "s3": ("SlowDown", 503),
}
EXPIRED: dict[Protocol, str] = {
    "ec2": "RequestExpired",
    "query": "ExpiredToken",
    "json": "ExpiredTokenException",
    "s3": "ExpiredToken",
}


def error_reply(call: Call, refused: Refused) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an error in the words of the call's protocol."""
    code, message = escape(refused.code), escape(refused.message)
    request = "00000000-0000-4000-8000-000000000000"
    if call.protocol == "json":
        body = json.dumps({"__type": refused.code, "message": refused.message})
        return refused.status, {"Content-Type": "application/x-amz-json-1.1"}, body.encode()
    error = f"<Code>{code}</Code><Message>{message}</Message>"
    if call.protocol == "ec2":
        body = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>{request}</RequestID></Response>"
    elif call.protocol == "query":
        kind = "Receiver" if refused.status >= 500 else "Sender"
        body = (
            f"<ErrorResponse><Error><Type>{kind}</Type>{error}</Error><RequestId>{request}</RequestId></ErrorResponse>"
        )
    else:
        body = f"<Error>{error}<RequestId>{request}</RequestId></Error>"
    return refused.status, {"Content-Type": "text/xml"}, f'<?xml version="1.0" encoding="UTF-8"?>{body}'.encode()
