"""The protocol of the agent has a version for every state of it: what an older reader would not know raises it."""

from __future__ import annotations

import hashlib
import json

from nexa_dist import wire
from nexa_dist.node import protocol

RECORDED = {3: "52b61ff2180f6a28"}
"""Digest of each version. One that was ever on a node is never changed: a new version gets a line."""


def digest() -> str:
    reasons = sorted(value for key, value in vars(protocol.Reason).items() if key.isupper())
    events = {name: sorted(needed) for name, (needed, _) in wire._EVENTS.items()}
    spec = sorted(protocol.Spec.__annotations__)
    told = [events, reasons, spec, [*protocol.AT_WORK, *protocol.FINAL]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def test_what_the_agent_may_say_and_be_told_changes_with_the_version_alone() -> None:
    assert RECORDED.get(protocol.VERSION) == digest(), (
        f"events, their fields, reasons or keys of the spec differ from version {protocol.VERSION}: raise VERSION"
        f" in nexa_dist/node/protocol.py, and record {protocol.VERSION + 1}: {digest()!r} here"
    )


def test_every_version_was_another_protocol() -> None:
    assert len(set(RECORDED.values())) == len(RECORDED) and max(RECORDED) == protocol.VERSION


def test_each_event_has_a_shape_that_a_reader_demands() -> None:
    assert wire._EVENTS.keys() == protocol.EVENTS
