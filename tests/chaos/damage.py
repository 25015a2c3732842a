"""Our own files, damaged at random: every verb that reads them says what is wrong, or does without; none falls over.

`python -m tests.chaos.damage [--seed N] [--count N]`: each round damages one file of a workspace and calls one verb.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from unittest import mock

from nexa_dist import cli
from nexa_dist.config.train import TrainConfig
from nexa_dist.run import trust
from nexa_dist.run.runner import Result, Stream

NOW = 1_790_000_000.0
SLOW_S = 60.0
"""A verb that takes longer hangs: each takes milliseconds, on a machine that does other things too."""
MOST_GROWTH = 1 << 29
"""Of memory, beyond what the process took before: as a test, it shares one with tests that import torch."""
CODES = (0, 1, 2, 3, 4)
READ = (
    ("timeline", "--cluster", "{}", "--json"),
    ("status", "--json"),
    ("status",),
    ("cost", "{}", "--json"),
    ("cost", "{}"),
    ("cost", "train_1", "--json"),
    ("cost", "old", "--json"),
    ("runs", "--json"),
    ("why", "train_1"),
    ("logs", "train_1", "--tail", "3"),
    ("budget", "--cluster", "{}"),
    ("teardown", "--cluster", "{}", "--dry-run"),
)
TEARDOWN = ("teardown", "--cluster", "{}", "-y", "--keep-nothing")
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    5,
    -1,
    True,
    "",
    "x" * 5000,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    [[]],
    {"a": 1},
    "\udc80",
    "\0",
    "../../x",
    "²",
)
WHOLE = (
    b"",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"\xff\xfe\0",
    b"\0" * 4096,
    b"1" + b"0" * 9000,
)


class Nobody:
    """A runner for a machine on which nothing answers."""

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] = b"", **_: Any) -> Result:
        if "sweep" in argv:
            return Result(tuple(argv), 0, b"[]")
        return Result(tuple(argv), 255 if argv[0] == "ssh" else 1, b"", b"nobody answers")

    def run_logged(self, argv: Sequence[str], log: Path, **_: Any) -> Result:
        """Terraform, which can only destroy."""
        if log.name != "destroy.jsonl":
            return Result(tuple(argv), 1, b"", b"nobody answers")
        put(log.parent, "terraform.tfstate", b'{"version": 4, "resources": []}')
        return Result(tuple(argv), 0)

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        raise OSError("nobody answers")


def _lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def workspace() -> dict[str, bytes]:
    """The files of a workspace by their paths: a local cluster, hosts of one's own, a run, a cluster that is gone."""
    node = {"name": "n0", "address": "127.0.0.2", "gpus": 1, "port": 2200, "price_usd_per_hour": 3.6}
    layout = {"python": "/p", "scratch": "~/s", "shared": "~/h", "durable": "~/d"}
    cluster = {"name": "lab", "provider": "local", "nodes": [node], "layout": layout, "created_unix": NOW}
    journal = [
        {"at": NOW + at, "step": step, "state": state, **more}
        for at, step, state, more in (
            (0, "create", "intent", {"nodes": ["n0"]}),
            (9, "create", "done", {"seconds": 9.0}),
            (10, "bootstrap", "intent", {}),
            (20, "bootstrap", "failed", {"error": "x"}),
            (21, "stop", "intent", {}),
        )
    ]
    start = {
        "event": "node_start",
        "node": "n0",
        "id": "n0@1",
        "offer": "local",
        "usd_per_hour": 3.6,
        "source": "clock",
    }
    ledger = [
        {"at": NOW, **start},
        {"at": NOW + 5, "event": "phase", "node": "n0", "phase": "idle", "id": "n0@1"},
        {"at": NOW + 6, "event": "budget", "usd": 50.0, "by": "file"},
        {"at": NOW + 7, "event": "seen"},
        {"at": NOW + 900, "event": "node_stop", "node": "n0", "id": "n0@1", "why": "teardown", "source": "clock"},
    ]
    end = {"kind": "rank", "words": "rank 0 on n0: exit code 1", "node": "n0", "rank": 0, "last_step": 7}
    row = {
        "attempt": 1,
        "state": "failed",
        "started_unix": NOW + 30,
        "ended_unix": NOW + 90,
        "world_size": 1,
        "rdzv": "x:1",
        "resume_step": None,
        "ranks": {"n0": [0, 0]},
        "hardware": {"n0": {"cpus": 2}},
        "skew_s": {"n0": 0.1},
        "end": end,
        "cause": end["words"],
        "next": {"action": "stop", "why": "x", "nodes": [], "after_s": 0.0},
        "commands": {},
    }
    config = TrainConfig.model_validate({"name": "t", "script": "train.py"}).model_dump(mode="json")
    run = {
        "version": 1,
        "run_id": "train_1",
        "created_unix": NOW,
        "config_file": "t.yaml",
        "config": config,
        "cluster": cluster,
        "git_commit": None,
        "nodes": {"n0": {"run_dir": "/s/train_1"}},
        "attempts": [row],
        "code_hash": "a",
        "package_hash": "b",
    }
    going = {**run, "run_id": "train_2", "attempts": [{**row, "state": "running", "ended_unix": None, "end": None}]}
    key = {"place": "h0", "kind": "ssh-ed25519", "blob": "AAAA"}
    host = {
        "adopted": {"node": "h0", "address": "10.0.0.1:22", "key": key, "by": "the file"},
        "user": "u",
        "claimed": True,
    }
    events = [
        {"event": "started", "at": NOW + 31, "attempt": 1, "pid": 7},
        {"event": "progress", "at": NOW, "steps": {"0": 7}},
        {"event": "rank_exit", "at": NOW + 89, "rank": 0, "code": 1, "signal": 0, "step": 7, "oom": False},
        {
            "event": "ended",
            "at": NOW + 90,
            "state": "failed",
            "code": 1,
            "reason": "torchrun",
            "left": [],
            "attempt": 1,
        },
    ]
    state = {
        "version": 4,
        "resources": [
            {
                "mode": "managed",
                "type": "terraform_data",
                "name": "node",
                "instances": [{"index_key": "n0", "attributes": {"id": "x"}}],
            }
        ],
        "outputs": {"nodes": {"value": []}},
    }
    lab, own, gone = ".nexa/clusters/lab", ".nexa/clusters/own", ".nexa/history/old_2026-09-21T120000Z"
    whole: dict[str, Any] = {
        f"{lab}/cluster.json": cluster,
        f"{lab}/config.json": {"name": "lab", "provider": "local", "nodes": 1, "budget_usd": 50.0, "max_hours": 2},
        f"{lab}/mesh.json": {"tailscale": {"n0": "lab-n0"}},
        f"{lab}/terraform/terraform.tfstate": state,
        f"{lab}/terraform/nexa.tfvars.json": {"nodes": {"n0": {"address": "127.0.0.2", "port": 2200}}},
        f"{lab}/terraform/src/stacks/local/backend_override.tf.json": {"terraform": {"backend": {}}},
        f"{lab}/diag.json": {"at_unix": NOW, "ok": True, "nodes": {}, "findings": []},
        f"{own}/own.json": {
            "id": "x.own",
            "hosts": {"h0": host},
            "cluster": {**cluster, "name": "own", "provider": "static"},
        },
        f"{own}/config.json": {"name": "own", "provider": "static"},
        f"{gone}/receipt.json": {"cluster": "old", "at": "2026-09-21T12:00:00Z", "region": "us-east-1"},
        "runs/train_1/run.json": run,
        "runs/train_1/behind.json": {"n0": 5},
        "runs/train_2/run.json": going,
        "runs/manifests/train_1.json": {"tags": ["a"], "eval_report": {"steps": 7, "tokens": 100}},
    }
    made = {path: json.dumps(data).encode() for path, data in whole.items()}
    made |= {
        f"{lab}/journal.jsonl": _lines(*journal),
        f"{lab}/ledger.jsonl": _lines(*ledger),
        f"{lab}/lock": b"u@h nexa",
    }
    made |= {f"{own}/journal.jsonl": _lines(*journal), f"{gone}/ledger.jsonl": _lines(*ledger)}
    made |= {f"{gone}/journal.jsonl": _lines(*journal), "runs/train_1/logs/n0/agent.jsonl": _lines(*events)}
    made |= {"runs/train_1/logs/n0/rank_0/attempt_1.log": b"step 7\nValueError: x\n", "runs/train_2/stop": b"me"}
    return made


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The bytes of a file, not as they were."""
    kind = chance.randrange(7)
    if kind == 0:
        return chance.choice(WHOLE)
    if kind == 1:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 2:
        bits = bytearray(data)
        for _ in range(chance.randrange(1, 9)):
            bits[chance.randrange(len(bits))] ^= 1 << chance.randrange(8)
        return bytes(bits)
    if kind == 3:
        lines = data.splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(WHOLE) + b"\n")
        return b"".join(chance.sample(lines, len(lines)) if chance.random() < 0.3 else lines)
    lines = data.splitlines()
    place = chance.randrange(len(lines))
    try:
        changed = replaced(chance, json.loads(lines[place]))
        lines[place] = json.dumps(changed).encode()
    except ValueError:
        return chance.randbytes(50)
    return b"\n".join(lines) + b"\n"


def replaced(chance: random.Random, value: Any) -> Any:
    """The same JSON with another value at one place, or without it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        rest = {key: inner for key, inner in value.items() if key != name}
        return rest if chance.random() < 0.15 else {**rest, name: replaced(chance, value[name])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], replaced(chance, value[place]), *value[place + 1 :]]
    return chance.choice(ODD)


@dataclass
class Tally:
    """What came of it. `faults` are tracebacks, hangs and exit codes that no verb has."""

    rounds: int = 0
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    ended: int = 0
    """Teardowns that proved that nothing is left."""

    def line(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        return (
            f"{self.rounds} damaged files, {len(self.faults)} faults, slowest {self.slowest_s:.2f} s, peak {peak} MiB"
        )


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    settings = {
        "NEXA_WORKSPACE": str(root),
        "HOME": str(root),
        "NEXA_TERRAFORM": "/bin/false",
        "XDG_RUNTIME_DIR": "/tmp",
    }
    with (
        mock.patch.dict(os.environ, settings),
        mock.patch("nexa_dist.verbs._shared.Runner", Nobody),
        mock.patch("signal.signal"),
        mock.patch("time.sleep"),
    ):
        yield


def call(words: Sequence[str]) -> tuple[int | str, str]:
    """Exit code, or the traceback, and what was said."""
    said = io.BytesIO()
    out = io.TextIOWrapper(said, encoding="utf-8", write_through=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.main(list(words))
        return code, said.getvalue().decode(errors="replace")[-600:]
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1, ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return traceback.format_exc(limit=-6), ""


def no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def put(root: Path, path: str, data: bytes) -> None:
    target = root / path
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif target.exists() or target.is_symlink():
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


SPECIAL: tuple[Callable[[Path], object], ...] = (
    Path.mkdir,
    lambda path: path.symlink_to(path),
    os.mkfifo,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: None,
)
"""What may be where a file was; the last is nothing."""


def spoil(root: Path, path: str, data: bytes, chance: random.Random) -> str:
    """Damages one file; in words, how."""
    if chance.random() < 0.12:
        (root / path).unlink()
        which = chance.randrange(len(SPECIAL))
        SPECIAL[which](root / path)
        return f"{path}: {('a folder', 'a loop', 'a pipe', '/dev/zero', 'nothing')[which]}"
    put(root, path, bad := damaged(chance, data))
    return f"{path}: {bad[:300]!r}"


def rounds(root: Path, seed: int, count: int) -> Tally:
    chance, files, tally = random.Random(f"damage {seed}"), workspace(), Tally()
    for path, data in files.items():
        put(root, path, data)
    trust.adopt(root)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with _alone(root):
        for number in range(count):
            path = chance.choice(list(files))
            what = spoil(root, path, files[path], chance)
            name = "own" if "/own/" in path else "lab"
            ends = number % 5 == 0
            words = [word.replace("{}", name) for word in (TEARDOWN if ends else chance.choice(READ))]
            full = ends and chance.random() < 0.3
            began = time.monotonic()
            with mock.patch("os.fsync", side_effect=no_space) if full else contextlib.nullcontext():
                code, said = call(words)
            took = time.monotonic() - began
            tally.rounds, tally.slowest_s = number + 1, max(tally.slowest_s, took)
            tally.ended += ends and code == 0
            what += f", on a full disk\n  {said}" if full else f"\n  {said}"
            # What nothing else tells (own.json) is asked for; a state that cannot be read is left to the sweep.
            must_end = ends and name == "lab"
            if code not in CODES or took > SLOW_S or (must_end and code != 0):
                tally.faults.append(f"round {number}: nexa {' '.join(words)} ({took:.1f} s): {code}\n  {what}")
            for each in files if ends else (path, f".nexa/clusters/{name}/ledger.jsonl"):
                if each in files:
                    put(root, each, files[each])
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before > MOST_GROWTH:
        tally.faults.append("too much memory")
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.damage", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nexa-damage-") as folder:
        tally = rounds(Path(folder), asked.seed, asked.count)
    for fault in tally.faults[:20]:
        print(fault)
    print(tally.line())
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
