"""The agent tells of a run itself, when no controller follows it and the user allowed that."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist import wire
from nexa_dist.node import control
from nexa_dist.node.oslib import start_time
from nexa_dist.node.watch import tell
from nexa_dist.node.watch.controller_lease import take_seat
from tests.processes.node.rig import Rig, events_of, until
from tests.webhooks import Server, certificates, proxying, serving

FAILS = "import sys; print('ready', flush=True); sys.exit(3)"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def how(
    server: Server, path: str = "ok/verysecret", events: str = "run_ended attempt_failed notice deadline", **more: float
) -> Any:
    targets = [{"url": server.url(path), "format": "json", "events": events}]
    return {"targets": targets, "run": "train_x", "cluster": "lab", "usd": 1.5, "usd_per_hour": 3600.0,
            "near_s": 60.0, "deadline_key": "deadline:run:1", **more}  # fmt: skip


def begin(rig: Rig, code: str, told: Any, **more: Any) -> None:
    rig.call("start", str(rig.folder), message={"spec": rig.spec(code, **more), "secrets": {}, "notify": told})
    control.go(str(rig.folder))


def test_the_end_of_an_attempt_that_nobody_follows_is_told_once(rig: Rig, server: Server) -> None:
    begin(rig, FAILS, how(server, gone_s=0.5))
    [message] = server.wait("ok/verysecret", seconds=60)
    assert message["event"] == "attempt_failed" and message["next"] == "nexa attach train_x"
    assert message["cause"].endswith("exit code 3") and message["usd"] > 1.5 and message["from"] == "n0"
    [told] = until(lambda: rig.events("told"))
    assert told["key"] == "attempt_failed:1" and told["sent"] is True
    assert wire.event(json.dumps(told).encode())["key"] == told["key"]
    assert server.count("ok/verysecret") == 1
    holds = [path for path in rig.folder.rglob("*") if path.is_file() and b"verysecret" in path.read_bytes()]
    assert holds == []  # the address is in the memory of the agent alone


def test_no_rank_sees_the_address_and_a_stop_does_not_wait_for_a_server(rig: Rig, server: Server) -> None:
    code = "import os, sys; print('ready', sorted(os.environ.items()), flush=True); sys.exit(3)"
    begin(rig, code, how(server, "hang/verysecret", gone_s=0.5), world=1)  # of two, one may end before it has begun
    server.wait("hang/verysecret", seconds=60)
    pid = rig.agent_pid()
    assert b"verysecret" not in Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert "verysecret" not in rig.log().read_text()
    began = time.monotonic()
    rig.stop()
    assert time.monotonic() - began < 10 and start_time(pid) is None
    assert rig.status()["state"] == "failed"


def test_a_node_obeys_the_proxy_and_the_certificates_of_the_runs_env(tmp_path: Path) -> None:
    authority, context = certificates(tmp_path, "hooks.example.test")
    with serving(context) as secure, proxying(secure) as proxy:
        told = how(secure)
        told["targets"][0]["url"] = "https://hooks.example.test/ok/verysecret"
        env = {"HTTPS_PROXY": proxy.url(), "SSL_CERT_FILE": str(authority)}
        clock = Clock(tmp_path, told, node_rank=0, env=env)
        clock.pass_s(1, notice=NOTICE)
        clock.pass_s(12)
        assert [message["event"] for message in secure.wait("ok/verysecret")] == ["notice"]
        assert [method for method, *_ in proxy.asked] == ["CONNECT"]
        assert [(event["sent"], event["why"]) for event in clock.told()] == [(True, "")]


def test_a_test_says_of_each_webhook_what_became_of_it(rig: Rig, server: Server) -> None:
    targets = [
        {"url": server.url(path), "format": "json", "events": ""} for path in ("ok/verysecret", "echo/verysecret")
    ]
    said = rig.call("tell", "-", message={"targets": targets, "message": {"id": "x", "text": "a test"}})
    assert said == {"told": [{"sent": True, "why": ""}, {"sent": False, "why": "HTTP 404: no such hook: ***, ***"}]}
    assert wire.answer("n0", "tell", json.dumps(said).encode(), failed=False) == said


class Clock:
    """A teller whose clock is moved by hand."""

    def __init__(self, folder: Path, told: Any, **spec: Any) -> None:
        self.folder, self.now = folder, 1000.0
        self.teller = tell.Teller(str(folder), {"node": "n1", "attempt": 2, **spec}, told)  # type: ignore[typeddict-item]

    def pass_s(self, seconds: float, deadline: float | None = None, notice: Any = None) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.teller.look(self.now, deadline, notice)
        for thread in self.teller.threads:
            thread.join(30)

    def told(self) -> list[dict[str, Any]]:
        return [event for event in events_of(self.folder) if event["event"] == "told"]


NOTICE = {"action": "terminate", "at_unix": 1.8e9}


def test_a_notice_that_a_controller_heard_of_is_not_told(tmp_path: Path, server: Server) -> None:
    clock = Clock(tmp_path, how(server), node_rank=1)
    seat = take_seat(str(tmp_path))
    clock.pass_s(3)
    clock.pass_s(20, notice=NOTICE)
    os.close(seat)
    assert server.got == [] and clock.told() == []


def test_a_notice_is_told_by_its_node_once_the_controller_has_been_gone_a_while(tmp_path: Path, server: Server) -> None:
    clock = Clock(tmp_path, how(server), node_rank=1)
    clock.pass_s(1, notice=NOTICE)
    clock.pass_s(tell.GONE_S - 2)
    assert server.got == []
    clock.pass_s(5)
    [message] = server.wait("ok/verysecret")
    assert message["event"] == "notice" and "n1 was given notice: terminate" in message["text"]
    assert [event["key"] for event in clock.told()] == ["notice:n1:1800000000"]


def test_a_near_deadline_is_told_by_the_first_node_alone(tmp_path: Path, server: Server) -> None:
    for rank, folder in ((1, tmp_path / "n1"), (0, tmp_path / "n0")):
        folder.mkdir()
        clock = Clock(folder, how(server), node_rank=rank)
        clock.pass_s(20, deadline=1100.0)
        assert server.got == []
        clock.pass_s(60, deadline=1100.0)
        assert len(clock.told()) == (rank == 0)
    [message] = server.wait("ok/verysecret")
    assert message["event"] == "deadline" and message["id"] == "train_x/deadline:run:1"


def test_without_leave_nothing_is_ever_sent(tmp_path: Path) -> None:
    clock = Clock(tmp_path, None)
    clock.pass_s(30, deadline=1001.0, notice=NOTICE)
    clock.teller.end(clock.now, "failed", "", "")
    clock.teller.linger(lambda: clock.now)
    assert clock.told() == []
