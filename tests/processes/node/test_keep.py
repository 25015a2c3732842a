"""The end of an attempt takes its outputs to the bucket, within its time. The script here is a fake, which copies to a
folder; S3 is in tests/emulated/test_kept_outputs.py."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import keep, outputs
from nexa_dist.node.oslib import boot_clock
from nexa_dist.node.protocol import Reason
from nexa_dist.node.watch.controller_lease import take_seat
from tests.processes.node.rig import Rig, until

SYNC = """
[ -n "$NEXA_PYTHON" ] && [ "$1 $2" = "keep r" ] || exit 2
mkdir -p "$NEXA_BUCKET/$3"
for path in "$4"/*; do
    [ "${path##*/}" = manifest.json ] || cp -L "$path" "$NEXA_BUCKET/$3/"
done
cp "$4/manifest.json" "$NEXA_BUCKET/$3/g$NEXA_ATTEMPT.json"
"""
HANGS = 'echo "$$" > "$NEXA_BUCKET.pid"; sleep 600'
DENIED = "echo 'An error occurred (AccessDenied) when calling PutObject' >&2; echo 'error: not uploaded' >&2; exit 1"
WRITE = "import os; os.makedirs('out', exist_ok=True); open('out/a','a').write('line\\n'); print('ready', flush=True)"


class Kept:
    def __init__(self, rig: Rig, script: str = SYNC) -> None:
        self.rig, self.folder = rig, rig.folder.parent / "bucket"
        self.sync = rig.folder.parent / "sync.sh"
        self.sync.write_text(script)

    def start(self, code: str = WRITE, **more: Any) -> None:
        env = {"NEXA_SYNC": str(self.sync), "NEXA_BUCKET": str(self.folder)}
        asked = {"named": ["out"], "python": "python3"}
        self.rig.start(code, world=1, env=env, outputs=asked, **more)

    def told(self) -> list[tuple[int, int, str]]:
        return [(event["files"], event["later"], event["why"]) for event in self.rig.events("kept")]

    def manifest(self, attempt: int) -> dict[str, Any]:
        """Files of a manifest by name, each of which is there, as it says."""
        rows = json.loads((self.folder / "n0" / f"g{attempt}.json").read_text())["files"]
        for row in rows:
            data = (self.folder / "n0" / row["sha256"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])
        return {row["name"]: row for row in rows}


def test_each_attempt_brings_what_is_new_and_names_all_of_it(rig: Rig) -> None:
    kept = Kept(rig)
    kept.start(
        f"{WRITE}; open('out/b','w').write('same\\n'); open('out/c','w').write('same\\n'); open('not named','w')"
    )
    rig.ended()
    assert set(kept.manifest(1)) == {"out/a", "out/b", "out/c"} and kept.told() == [(3, 0, "")]
    events = [event["event"] for event in rig.events()]
    assert events.index("kept") < events.index("ended")
    first = set(os.listdir(kept.folder / "n0"))
    assert len(first) == 3, "two equal files are one"
    kept.start(attempt=2)
    rig.ended()
    assert set(kept.manifest(2)) == {"out/a", "out/b", "out/c"} and kept.manifest(2)["out/a"]["bytes"] == 10
    assert len(set(os.listdir(kept.folder / "n0")) - first) == 2, "one file, and the manifest"
    rows = outputs.wrote(
        {"runs": [{"dir": str(rig.folder), "durable": "", "outputs": ["out"], "skip": 0}], "look_s": 9}
    )
    assert {row["name"]: row.get("kept") for row in rows["runs"][0]["files"]} == {
        "out/a": True, "out/b": True, "out/c": True, "not named": None
    }  # fmt: skip
    (rig.folder / "work" / "out" / "a").write_text("written to since")
    rows = outputs.wrote(
        {"runs": [{"dir": str(rig.folder), "durable": "", "outputs": ["out"], "skip": 0}], "look_s": 9}
    )
    assert not rows["runs"][0]["files"][0].get("kept")
    assert not (rig.folder / keep.STAGE).exists()


def test_a_failed_attempt_keeps_its_outputs_on_the_node_while_a_controller_decides(rig: Rig) -> None:
    kept = Kept(rig)
    rig.folder.mkdir()
    seat = take_seat(str(rig.folder))
    kept.start(f"{WRITE}; raise SystemExit(3)")
    assert rig.ended()["state"] == "failed" and not kept.told()
    told = rig.call("keep", str(rig.folder), message={"seconds": 30})
    assert (told["files"], told["later"], told["why"]) == (1, 0, "") and "out/a" in kept.manifest(1)
    os.close(seat)
    kept.start(f"{WRITE}; raise SystemExit(3)", attempt=2)
    assert rig.ended()["state"] == "failed" and kept.told() == [(1, 0, "")], "nobody is there who could ask for them"


def test_what_cannot_be_kept_is_said_and_fails_no_run(rig: Rig) -> None:
    kept = Kept(rig, DENIED)
    kept.start()
    assert rig.ended()["state"] == "completed"
    why = "not uploaded: An error occurred (AccessDenied) when calling PutObject"
    assert kept.told() == [(0, 1, why)]


def test_one_file_that_cannot_be_read_keeps_no_other_one_on_the_node(tmp_path: Path) -> None:
    sync = tmp_path / "sync.sh"
    sync.write_text(SYNC)
    env = {"NEXA_SYNC": str(sync), "NEXA_BUCKET": str(tmp_path / "bucket")}
    spec = {"run_id": "r", "node": "n0", "attempt": 1, "env": env, "outputs": {"named": ["out"], "python": "python3"}}
    (tmp_path / "run" / "work" / "out").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "run" / "work" / "out" / name).write_text(name)
    rows, _ = outputs.files_of(str(tmp_path / "run"), outputs.matcher(["out"]), float("inf"))
    gone = {**rows[0], "name": "out/gone", "path": "work/out/gone"}  # as one of another user would be
    kept = keep.Kept(str(tmp_path / "run"), spec)
    assert kept.bring([gone, *rows], boot_clock() + 1e6) == "out/gone: No such file or directory"
    assert set(kept.there) == {"out/a", "out/b"} == set(outputs.noted(str(tmp_path / "run")))
    assert (tmp_path / "bucket" / "n0" / "g1.json").is_file()


def test_a_stop_waits_for_the_bucket_no_longer_than_its_grace(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(rig, HANGS)
    kept.start(f"{WRITE}; import time; time.sleep(600)")
    rig.ready(0)
    began = boot_clock()
    assert rig.stop(grace_s=0)["left"] == []
    assert rig.status()["state"] == "stopped" and kept.told() == [(0, 1, "there was no time left for them")]
    assert keep.STOP_S - 1 < boot_clock() - began < 60
    pid = int(Path(f"{kept.folder}.pid").read_text())
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_kill_while_it_is_kept_leaves_nothing_that_is_named_and_not_there(rig: Rig) -> None:
    kept = Kept(rig, SYNC.replace("cp -L", "sleep 600; cp -L"))
    kept.start()
    until(lambda: (rig.folder / keep.STAGE / keep.MANIFEST).exists())
    os.kill(rig.agent_pid(), signal.SIGKILL)
    assert rig.stop()["left"] == []
    assert not list(kept.folder.glob("*/*")) and not outputs.noted(str(rig.folder))
    kept.sync.write_text(SYNC)
    with open(rig.folder / "kept.json.lock", "wb") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        assert rig.call("keep", str(rig.folder), message={"seconds": 30})["why"] == "another command brings them there"
    assert rig.call("keep", str(rig.folder), message={"seconds": 30})["files"] == 1
    assert "out/a" in kept.manifest(1)


def test_the_time_of_each_end(tmp_path: Path) -> None:
    folder = str(tmp_path)
    (tmp_path / "spec.json").write_text('{"attempt": 1}')
    assert keep.seconds(folder, "completed", "", None, 25, None) == keep.LONG_S
    assert keep.seconds(folder, "failed", Reason.TORCHRUN, None, 25, None) == keep.SHORT_S
    assert keep.seconds(folder, "stopped", Reason.DEADLINE, 1.0, 25, None) == keep.SHORT_S
    for reason in (Reason.FAILURE, Reason.HANG, Reason.NOTICE, Reason.SUPERSEDED):
        assert keep.seconds(folder, "stopped", reason, None, 25, None) == 0
    assert keep.seconds(folder, "stopped", Reason.NOTICE, None, 90, 40.0) == 40.0 - keep.LEAVE_S, "its own notice"
    (tmp_path / "stop.attempt_1").touch()
    left = keep.seconds(folder, "stopped", Reason.STOPPED, boot_clock() - 5, 25, None)
    assert 27 < left <= 25 + keep.STOP_S - 5
