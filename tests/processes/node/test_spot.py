"""The notice of the cloud, from a metadata service that also fails in all the ways that one can."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nexa_dist.node.watch import spot
from nexa_dist.node.watch.watcher import NOTICE_MARGIN_S
from tests.processes.node.rig import Rig

SAVING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
time.sleep(600)
"""


class Service:
    """`mode` is how it answers: none, notice, expired, error, junk, refuse, hang."""

    def __init__(self) -> None:
        self.mode, self.in_s, self.tokens, self.asked = "none", 120.0, 0, 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if service.mode in ("refuse", "hang"):
                    return self.say(403) if service.mode == "refuse" else self.hang()
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
                service.tokens += 1
                return self.say(200, f"token-{service.tokens}")

            def do_GET(self) -> None:
                assert self.path == "/latest/meta-data/spot/instance-action"
                service.asked += 1
                if service.mode == "hang":
                    return self.hang()
                token = self.headers["X-aws-ec2-metadata-token"]
                if token != f"token-{service.tokens}" or (service.mode == "expired" and service.tokens < 2):
                    return self.say(401)
                if service.mode in ("error", "junk"):
                    return self.say(500) if service.mode == "error" else self.say(200, "<html>log in here</html>")
                if service.mode == "none":
                    return self.say(404)
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + service.in_s))
                return self.say(200, json.dumps({"action": "terminate", "time": at}))

            def say(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def hang(self) -> None:
                service.closing.wait(5)

            def log_message(self, *_: object) -> None: ...

        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(spot, "TIMEOUT_S", 60.0)
    made = Service()
    yield made
    made.close()


def test_no_notice_and_then_one(service: Service) -> None:
    imds = spot.Imds(service.url)
    assert imds.notice() is None
    service.mode = "notice"
    found = imds.notice()
    assert found is not None
    assert found["action"] == "terminate"
    assert 60 < found["at_unix"] - time.time() < 121
    assert service.tokens == 1  # one token for all


def test_an_expired_token_is_renewed(service: Service) -> None:
    service.mode = "expired"
    assert spot.Imds(service.url).notice() is not None
    assert service.tokens == 2


@pytest.mark.parametrize("mode", ["error", "junk", "refuse", "hang"])
def test_what_is_no_answer_is_not_read_as_no_notice(
    service: Service, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "TIMEOUT_S", 0.1)
    service.mode = mode
    with pytest.raises(spot.Unanswered):
        spot.Imds(service.url).notice()


def test_a_service_that_is_not_there_is_said_to_be_off_and_asked_again(service: Service) -> None:
    poller = spot.Poller(service.url)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        poller.imds.port = nobody.getsockname()[1]
        for now in (100.0, 102.0, 109.9):
            assert not poller.step(now)
        assert not poller.news
        for now in (110.0, 112.0):
            assert not poller.step(now)
        assert len(poller.news) == 1
        name, fields = poller.news.popleft()
        assert (name, fields["state"]) == ("imds", "off")
        assert "refused" in fields["why"]
    poller.imds.port = int(service.url.rsplit(":", 1)[1])
    assert not poller.step(114.0)
    assert poller.news.popleft() == ("imds", {"state": "on", "why": ""})
    service.mode = "error"
    assert not poller.step(116.0)
    assert not poller.step(123.0)
    service.mode = "notice"
    assert poller.step(127.0)
    assert [name for name, _ in poller.news] == ["notice"]


def test_a_notice_lets_the_ranks_save_in_the_time_that_is_left(rig: Rig, service: Service) -> None:
    service.mode = "notice"
    rig.start(SAVING, env={"NEXA_IMDS": service.url}, spot=True, prepare=["sleep", "600"], grace_s=25)
    status = rig.ended()  # also before the ranks run
    assert (status["state"], status["reason"]) == ("stopped", "spot notice")
    service.mode = "none"
    rig.start(SAVING, attempt=2, env={"NEXA_IMDS": service.url}, spot=True, grace_s=200)
    rig.ready(0, 1, attempt=2)
    service.mode = "notice"
    status = rig.ended()
    assert (status["state"], status["reason"], status["left"]) == ("stopped", "spot notice", [])
    notice, stopping = rig.events("notice")[-1], rig.events("stopping")[-1]
    assert 60 < notice["at_unix"] - notice["seen_unix"] <= 120
    assert (stopping["reason"], 0 < stopping["grace_s"] <= 120 - NOTICE_MARGIN_S) == ("spot notice", True)
    assert status["notice"]["action"] == "terminate"
    assert [e["state"] for e in rig.events("imds")] == ["on", "on"]


def test_a_service_that_hangs_holds_up_nothing(rig: Rig, service: Service) -> None:
    service.mode = "hang"
    rig.start("pass", env={"NEXA_IMDS": service.url}, spot=True)
    assert rig.ended()["state"] == "completed"
    assert rig.events("notice") == []
