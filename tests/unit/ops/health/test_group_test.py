"""The group test's controller: no clock of the wires runs before every node is ready for it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from nexa_dist.ops.health import group_test as health_group_test
from nexa_dist.run.runner import Stream

FACTS = {"gpus": [], "environment": {}, "test_port": 2000, "peers": {}}


class Nodes:
    """Nodes that say these lines, by their name; what they are sent is kept."""

    def __init__(self, **lines: Sequence[dict[str, Any]]) -> None:
        self.lines, self.sent, self.ended = lines, dict.fromkeys(lines, b""), 0

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        name = argv[0]

        def send(data: bytes) -> None:
            self.sent[name] += data

        def end() -> None:
            self.ended += 1

        said = b"".join(json.dumps(line).encode() + b"\n" for line in self.lines[name])
        return Stream(io.BytesIO(said), end, send)

    def try_group(self) -> dict[str, Any]:
        links: Any = [
            SimpleNamespace(
                node=SimpleNamespace(name=name, peer_address="127.0.0.1"),
                python="python",
                ssh=SimpleNamespace(argv=lambda node: (node.name,)),
            )
            for name in self.lines
        ]
        ctx: Any = SimpleNamespace(runner=self)
        return health_group_test.try_group(ctx, links, dict.fromkeys(self.lines, FACTS), deep=False, floor_gbps=0.0)


def test_nobody_starts_before_all_have_imported() -> None:
    nodes = Nodes(n0=[{"stage": "imported"}], n1=[{"error": "ImportError: No module named 'torch'"}])
    assert nodes.try_group() == {"errors": {"n1": "ImportError: No module named 'torch' (after stage 'none')"}}
    assert nodes.sent == {"n0": b"", "n1": b""} and nodes.ended == 2


def test_all_start_when_the_last_one_has_imported() -> None:
    came = [{"stage": "imported"}, {"stage": "met"}]
    nodes = Nodes(n0=came, n1=[*came, {"stage": "joined"}])
    assert nodes.try_group()["errors"] == {"n0": "it ended without a word (after stage 'met')"}
    assert nodes.sent == {"n0": b"\n", "n1": b"\n"} and nodes.ended == 2
