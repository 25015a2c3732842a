"""Somebody is told of a real run: once each, across a killed controller, and by the nodes when nobody follows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import NO_TORCH, Lab, contents, kill, runs, until
from tests.e2e.test_recovery import again, machine
from tests.webhooks import Server, serving

pytestmark = pytest.mark.e2e


@pytest.fixture
def told(clean: Lab) -> Iterator[tuple[Lab, Server, Path]]:
    """The lab with a webhook that works and one that hangs, as its file would have had them."""
    path = clean.root / ".nexa" / "clusters" / "lab" / "config.json"
    before = path.read_text()
    with serving() as server:
        rows = [{"url_env": "HOOK", "from_nodes": True}, {"url": server.url("hang/alsosecret")}]
        path.write_text(json.dumps({**json.loads(before), "notify": rows}))
        try:
            yield clean, server, path
        finally:
            path.write_text(before)


def events(server: Server) -> list[str]:
    return sorted(message["event"] for path, message in server.got if path == "/ok/verysecret")


def test_each_node_says_whether_it_reaches_a_webhook(told: tuple[Lab, Server, Path]) -> None:
    """The address goes to none that may not know it, and stays in no file."""
    lab, server, path = told
    hook = {"HOOK": server.url("ok/verysecret")}
    config = json.loads(path.read_text())
    config["notify"][1] = {"url": server.url("ok/alsosecret")}
    path.write_text(json.dumps(config))
    done = lab.nexa("notify", "--test", "--from-nodes", "--json", **hook)
    rows = [(row["from"], row["to"], row["state"]) for row in json.loads(done.stdout)]
    expected = [("nexa", "$HOOK"), ("nexa", "webhook at 127.0.0.1"), ("n0", "$HOOK"), ("n1", "$HOOK")]
    assert rows == [(*row, "sent") for row in expected]
    got = [message for path, message in server.got if path == "/ok/verysecret"]
    assert sorted(message["from"] for message in got) == ["n0", "n1", "nexa"]
    assert len({message["id"] for message in got}) == 3 and server.count("ok/alsosecret") == 1

    refused = lab.nexa("notify", "--test", "--from-nodes", code=1, HOOK=server.url("echo/verysecret"))
    assert refused.stdout.count("failed\tHTTP 404: no such hook: ***") == 3
    assert "verysecret" not in refused.stdout + refused.stderr
    assert [str(path) for path, data in contents(lab.root) if b"verysecret" in data] == []
    config["notify"] = [{"url_env": "HOOK"}]
    path.write_text(json.dumps(config))
    assert "from_nodes" in lab.nexa("notify", "--test", "--from-nodes", code=2, **hook).stderr


@pytest.mark.long("processes/ops/test_outbox.py and processes/node/test_tell.py have each part")
def test_across_a_killed_controller_each_is_told_once(told: tuple[Lab, Server, Path]) -> None:
    lab, server, _ = told
    hook, hold = {"HOOK": server.url("ok/verysecret")}, lab.root / "notify-hold"
    child = lab.begin("run", again(lab, 6, 1, hold=hold), **hook)
    server.wait("ok/verysecret", seconds=300)  # the first attempt failed, and the second one waits
    kill(child.pid)
    child.wait()
    hold.touch()
    done = lab.nexa("attach", "--rank", "1", **hook)
    assert "could not be sent (webhook at 127.0.0.1) and are kept" in done.stderr
    told_of = {message["id"]: message["event"] for path, message in server.got if path == "/ok/verysecret"}
    assert sorted(told_of.values()) == ["attempt_failed", "run_ended"]  # of a kill between, twice
    ended = next(message for _, message in server.got if message["event"] == "run_ended")
    assert ended["state"] == "completed" and ended["usd"] > 0 and ended["next"] == f"nexa pull {lab.newest().name}"
    failed = next(message for _, message in server.got if message["event"] == "attempt_failed")
    assert failed["cause"] == "rank 1 on n1: exit code 1" and failed["why"]
    holds = [str(path) for path, data in contents(lab.root) if b"verysecret" in data]
    assert holds == []
    before = events(server)
    lab.nexa("notify", lab.newest().name, code=1, **hook)  # the one that hangs is tried once more
    assert events(server) == before


@pytest.mark.long("processes/ops/test_outbox.py and processes/node/test_tell.py have each part")
def test_a_run_that_nobody_follows_is_told_by_its_first_node(told: tuple[Lab, Server, Path]) -> None:
    lab, server, _ = told
    hook = {"HOOK": server.url("ok/verysecret")}
    go = lab.root / "alone"
    ends = f"import os, time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.05)\nraise SystemExit(3)"
    lab.nexa("run", lab.script("ends", ends, **NO_TORCH), "--detach", **hook)
    go.touch()
    [message] = server.wait("ok/verysecret", seconds=120)
    assert message["event"] == "attempt_failed" and message["from"] == "n0" and "attach" in message["next"]
    assert [path for path, data in contents(lab.root) if b"verysecret" in data] == []
    lab.nexa("attach", code=1, **hook)
    assert events(server) == ["attempt_failed", "run_ended"]

    waits = lab.script("waits", "import time; time.sleep(600)", **NO_TORCH)
    lab.nexa("run", waits, "--detach", **hook)
    lab.nexa("stop", lab.newest().name, "--grace", "0", **hook)
    told = server.wait("ok/verysecret", 3)[-1]
    assert (told["run"], told["state"], told["cause"]) == (lab.newest().name, "stopped", "stopped by the user")
    assert told["from"] == "nexa" and told["next"] == f"nexa run --resume {lab.newest().name}"


@pytest.mark.long("processes/ops/test_outbox.py and processes/node/test_tell.py have each part")
def test_a_node_that_is_lost_and_made_anew_is_told(told: tuple[Lab, Server, Path]) -> None:
    lab, server, _ = told
    hook, hold = {"HOOK": server.url("ok/verysecret")}, lab.root / "notify-lost"
    before = runs(lab)
    child = lab.begin("run", again(lab, 0, 0, hold=hold), **hook)
    until(lambda: runs(lab) > before and "attempt 1" in lab.log(1, "n1"), "the ranks began")
    while left := machine(lab, "n1"):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    hold.touch()
    said = child.communicate(timeout=600)[1]
    assert child.returncode == 0, said
    assert events(server) == ["attempt_failed", "replaced", "run_ended"]
    failed, replaced = server.wait("ok/verysecret")[:2]
    assert failed["text"].endswith("next: replace") and "n1" in failed["cause"]
    assert replaced["text"].endswith("n1 made anew after attempt 1")
