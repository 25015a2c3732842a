"""The facts of this very machine, as a node tells them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata

import pytest

from nexa_dist import remote
from nexa_dist.ops.cluster.snapshot import FACTS
from nexa_dist.remote import snapshot


def test_this_machine_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretverysecret")
    told = FACTS(snapshot.main({}, print))
    assert told["kernel"] == platform.release() and told["python"] == platform.python_version()
    assert told["freeze"]["pydantic"] == metadata.version("pydantic")
    listed = subprocess.run(["dpkg-query", "-W", "libc6"], capture_output=True, text=True)
    if listed.returncode == 0:
        assert listed.stdout.split("\t")[1].strip() in told["packages"].values()
    assert "verysecret" not in json.dumps(told)
    assert snapshot.main({}, print) == told  # nothing in it changes by itself


def test_programs_that_are_not_there_or_fail_leave_it_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert snapshot.said("no-such-program-of-nexa") == ""
    assert snapshot.said("false") == ""
    assert snapshot.said(sys.executable, "-c", "print('said')") == "said\n"
    monkeypatch.setenv("PATH", os.devnull)
    told = FACTS(snapshot.main({}, print))
    assert told["packages"] == {} and told["driver"] == "" and told["gpus"] == []


def test_it_is_whole_by_itself() -> None:
    room: dict[str, object] = {"__name__": "program"}
    exec(compile(remote.SNAPSHOT.read_bytes(), "program", "exec"), room)
    assert callable(room["main"])
