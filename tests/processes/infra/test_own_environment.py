"""An environment of the user's on two nodes: the programs for real, without ssh, with a uv that only takes notes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import environment
from nexa_dist.ops.work.bring import Brought
from nexa_dist.ops.work.environment import KEPT, make_ready
from nexa_dist.run.runner import Runner, Stream
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace
from tests.begun import begun
from tests.processes.node.rig import until

FAKE_UV = """#!/bin/sh
[ "$1" != --version ] || { echo "uv 99.0.0"; exit; }
echo "$*" >>"$NOTES"
while [ -e "$NOTES.hold" ]; do sleep 0.02; done
[ ! -e "$NOTES.index" ] || echo "index $UV_INDEX_URL" >>"$NOTES.heard"
if [ -e "$NOTES.fails" ] && [ "$2" = compile ]; then cat "$NOTES.fails" >&2; exit 1; fi
case "$*" in
*compile*) echo "Resolved 3 packages" >&2; { echo torch==9; cat "$3" "$4"; } >nexa/lock.txt ;;
*venv*)
    for env; do :; done
    mkdir -p "$env/bin"
    printf '#!/bin/sh\\necho %s\\ncat "$NOTES.proof" 2>/dev/null || :\\n' "'$PROOF'" >"$env/bin/python"
    chmod +x "$env/bin/python" ;;
*freeze*) printf 'torch==9\\ntomlkit==1.0\\n' ;;
esac
"""
PROOF = json.dumps({"python": "3.11.7", "torch": "9", "cuda": None, "blind": ""})
NODES = (Node("n0", "10.0.0.1", 1), Node("n1", "10.0.0.2", 1))


class Here(Runner):
    """What goes to a node runs here, with the node's own PATH."""

    def __init__(self, folder: Path) -> None:
        self.env = {"PATH": f"{folder}/bin:{os.defpath}", "NOTES": f"{folder}/notes", "PROOF": PROOF}

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        words = ["env", "-i", *(f"{name}={value}" for name, value in self.env.items()), *shlex.split(argv[-1])]
        return super().stream(words, stdin=stdin)


@dataclass
class Lab:
    folder: Path
    said: list[str] = field(default_factory=list)
    apart: bool = False
    """Whether the nodes share no disk."""

    @property
    def links(self) -> list[Link]:
        layout = Layout(sys.executable, "~/s", "~/shared" if self.apart else f"{self.folder}/shared", "~/d")
        cluster = Cluster("c", "stack", NODES, layout, env_hash="0" * 16)
        ssh = Ssh(Here(self.folder), cluster, str(self.folder))
        return [Link(ssh, node, f"{self.folder}/{node.name}") for node in NODES]

    def ready(self, wanted: Any, *, again: bool = False, dry: bool = False, **config: Any) -> Brought:
        ctx = Context(Workspace(self.folder), Runner(), self.said.append, dry=dry)
        train = TrainConfig.model_validate({"script": "a.py", "environment": wanted, **config})
        kept = None if dry else self.folder / "kept"
        secret = {"UV_INDEX_URL": "https://u:canary99@x.org"}
        return Brought(*make_ready(ctx, self.links, train, secret, kept, again=again))

    def notes(self, word: str) -> list[str]:
        text = (self.folder / "notes").read_text() if (self.folder / "notes").exists() else ""
        return [line for line in text.splitlines() if word in line]

    def mark(self, name: str, text: str = "") -> Path:
        path = self.folder / f"notes.{name}"
        path.write_text(text)
        return path


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bin", "shared", "kept"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "uv").write_text(FAKE_UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    (tmp_path / "requirements.txt").write_text("# what we need\ntomlkit>=1\n")
    yield Lab(tmp_path)


FILE = {"requirements": "requirements.txt"}


def test_it_is_built_once_and_there_at_once_the_next_time(lab: Lab) -> None:
    lab.mark("index")
    made = lab.ready(FILE)
    [python] = set(made.pythons.values())
    assert set(made.pythons) == {"n0", "n1"} and Path(python).exists()
    assert len(lab.notes("venv")) == 1 and "  n0: Resolved 3 packages" in lab.said
    assert made.environment["freeze"] == ["torch==9", "tomlkit==1.0"] and made.environment["name"] == "requirements.txt"
    assert made.env["n1"] == {"NEXA_PYTHON": sys.executable}
    before = lab.said.copy()
    assert lab.ready(FILE) == made and lab.said == before and len(lab.notes("venv")) == 1
    # An index's password is for uv alone: in no argument, no file that stays, no line that is said.
    assert "index https://u:canary99@x.org" in (lab.folder / "notes.heard").read_text()
    assert "canary99" not in (lab.folder / "notes").read_text() + "".join(lab.said) + str(made)
    left = [path for folder in ("shared", "kept") for path in (lab.folder / folder).rglob("*") if path.is_file()]
    assert left and not [path for path in left if "canary99" in path.read_text()]
    assert not list(lab.folder.glob("shared/envs/*.inputs"))


def test_nodes_that_share_nothing_get_the_same_versions(lab: Lab) -> None:
    lab.apart = True
    made = lab.ready(FILE)
    assert [Path(python).is_relative_to(lab.folder / name) for name, python in made.pythons.items()] == [True, True]
    assert ["--constraint" in line for line in lab.notes("compile")] == [False, True]
    subprocess.run(["rm", "-r", str(lab.folder / "n0")], check=True)  # made anew
    assert lab.ready(FILE) == made and ["--constraint" in line for line in lab.notes("compile")][2:] == [True]


def test_a_later_attempt_gets_the_same_one_though_the_file_was_edited(lab: Lab) -> None:
    made = lab.ready(FILE)
    (lab.folder / "requirements.txt").write_text("tomlkit>=2\n")
    assert lab.ready(FILE, again=True) == made
    subprocess.run(["rm", "-r", str(lab.folder / "shared")], check=True)  # the nodes were lost
    assert lab.ready(FILE, again=True) == made
    assert "--constraint nexa/freeze.txt" in lab.notes("compile")[-1] and "--constraint" not in lab.notes("compile")[0]
    again = lab.ready(FILE)
    assert again.environment["hash"] != made.environment["hash"]
    assert any("requirements.txt is not what it was at the attempt before" in line for line in lab.said)
    (lab.folder / "kept" / KEPT).write_text("{}")
    with pytest.raises(NexaError, match="is damaged"):
        lab.ready(FILE, again=True)


def test_a_conflict_is_shown_as_uv_says_it_with_the_line_that_asked(lab: Lab) -> None:
    lab.mark("fails", "No solution found:\nBecause tomlkit>=1 and you require torch==2.13.0, we can conclude …\n")
    with pytest.raises(UsageError) as caught:
        lab.ready(FILE)
    assert "requirements.txt: these packages do not go together. uv says on n0:\n  No solution found" in str(
        caught.value
    )
    assert "asked for by\n  requirements.txt:2: tomlkit>=1\n  nexa's own: torch==" in str(caught.value)
    assert not list(lab.folder.glob("shared/envs/*[0-9a-f]"))


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (
            "error: Request failed\n Caused by: Failed to fetch: https://x.org/tomlkit",
            NexaError,
            "index cannot be reached",
        ),
        ("error: No space left on device (os error 28)", NexaError, "the disk is full"),
        ("Couldn't parse requirement in `requirements.txt`", UsageError, "uv cannot read it"),
        ("error: Because tomlkit was not found, No solution found", UsageError, "a package is nowhere to be had"),
        ("error: Failed to build `tomlkit`", NexaError, "the build failed"),
    ],
)
def test_what_goes_wrong_has_a_name(lab: Lab, words: str, kind: type[NexaError], told: str) -> None:
    lab.mark("fails", words)
    with pytest.raises(kind, match=told) as caught:
        lab.ready(FILE)
    assert caught.value.code == (2 if kind is UsageError else 1)


def test_what_cannot_be_imported_is_named_before_a_rank_starts(lab: Lab) -> None:
    lab.mark("proof", json.dumps({"at": "tomlkit", "fails": "import tomlkit: OSError: no"}) + "\n" + PROOF)
    with pytest.raises(UsageError, match=r"tomlkit: import tomlkit: OSError: no\nasked for by\n  requirements.txt:2"):
        lab.ready(FILE)
    lab.mark("proof", json.dumps({"at": "tomlkit"}))  # and then it crashed
    with pytest.raises(UsageError, match="tomlkit: ended with 0"):
        lab.ready(FILE)
    lab.mark("proof", PROOF.replace('"blind": ""', '"blind": "535.1"'))
    with pytest.raises(UsageError, match=r"torch 9 .* finds no GPU on n0, which has one"):
        lab.ready(FILE)


def test_a_backend_of_ours_says_what_it_lacks_before_anything_is_installed(lab: Lab) -> None:
    sections = {
        "model": {"path": "x"},
        "dataset": {},
        "trainer": {"steps": 1},
    }
    with pytest.raises(UsageError, match=r"backend: hf needs accelerate, numpy, .*transformers"):
        lab.ready(FILE, script=None, backend="hf", **sections)
    assert not lab.notes("install")
    lab.ready(FILE)  # built for a script, which needs nothing of ours
    with pytest.raises(UsageError, match=r"backend: hf needs accelerate"):
        lab.ready(FILE, script=None, backend="hf", **sections)


def test_a_killed_build_is_made_anew_and_two_at_once_build_one(lab: Lab) -> None:
    hold = lab.mark("hold")
    key = lab.ready(FILE, dry=True).environment["hash"]
    env = lab.folder / "shared" / "envs" / key
    first = threading.Thread(target=_fails, args=(lab,))
    first.start()
    until((lab.folder / "notes").exists)
    [pid] = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and _runs(p, str(env))]
    os.kill(pid, 9)
    first.join(30)
    assert not (env / ".complete").exists()
    both = [threading.Thread(target=lab.ready, args=(FILE,)) for _ in range(2)]
    for thread in both:
        thread.start()
    until(lambda: any("waits for another build" in line for line in lab.said))
    hold.unlink()
    for thread in both:
        thread.join(30)
    assert (env / ".complete").exists() and len(lab.notes("venv")) == 1


def _fails(lab: Lab) -> None:
    with pytest.raises(NexaError, match="fell silent"):
        lab.ready(FILE)


def _runs(process: Path, env: str) -> bool:
    """Whether it is the program that builds `env`: the lock is in its hands."""
    try:
        return any(os.readlink(file) == f"{env}.lock" for file in (process / "fd").iterdir()) and b"-I" in (
            process / "cmdline"
        ).read_bytes().split(b"\0")
    except OSError:
        return False


def test_a_dry_run_builds_nothing(lab: Lab) -> None:
    made = lab.ready(FILE, dry=True)
    assert not list((lab.folder / "shared").iterdir()) and not (lab.folder / "notes").exists()
    said = f"environment {made.environment['hash']} of requirements.txt: "
    assert lab.said == [f"{said}missing on n0, n1, and would be built before the ranks start"]
    lab.ready(FILE)
    assert lab.ready(FILE, dry=True).pythons == made.pythons and lab.said[-1] == f"{said}there"


def test_a_lock_of_ours_is_installed_as_it_is_and_torch_in_the_build_of_the_node(lab: Lab) -> None:
    made = lab.ready("infer")
    assert made.environment["name"] == "infer" and set(made.environment["files"]) == {"infer.txt", "pins.txt"}
    assert lab.notes("compile") == []
    first, second = lab.notes("pip install")
    assert "--no-deps --require-hashes -r infer.txt" in first and "torch" not in first
    assert "--torch-backend=auto --constraint infer.txt -r nexa/torch.txt -r pins.txt" in second
    assert lab.ready("infer") == made and len(lab.notes("pip install")) == 2
    assert lab.ready("heavy").environment["hash"] != made.environment["hash"]
    assert "--constraint heavy.txt -r nexa/torch.txt" in lab.notes("pip install")[-1]
    lab.mark("proof", json.dumps({"at": "vllm", "fails": "import vllm: OSError: libcuda"}) + "\n" + PROOF)
    subprocess.run(["rm", "-r", str(lab.folder / "shared")], check=True)
    with pytest.raises(
        UsageError, match=r"vllm: import vllm: OSError: libcuda\nasked for by\n  infer.txt:\d+"
    ) as caught:
        lab.ready("infer")
    assert "where there is no GPU infer was never proven" in caught.value.hint


def test_none_is_the_python3_of_each_node(lab: Lab) -> None:
    (lab.folder / "bin" / "python3").symlink_to(sys.executable)
    made = lab.ready("none")
    assert made.pythons == dict.fromkeys(("n0", "n1"), f"{lab.folder}/bin/python3")
    assert made.environment == {"name": "none"}


def test_those_that_nobody_uses_are_removed_and_never_one_in_use(lab: Lab) -> None:
    names = [
        Path(lab.ready({"packages": [name]}).pythons["n0"]).parents[1].name for name in ("tomlkit", "torch", "idna")
    ]
    envs = lab.folder / "shared" / "envs"
    old = time.time() - 9000
    for name in names:
        os.utime(envs / name / ".complete", (old, old))
    os.utime(envs / names[2] / ".complete")  # a run is about to start in it
    (envs / ("1" * 16)).mkdir()  # what a killed build left
    (envs / ("0" * 16)).mkdir()  # the cluster's own
    (envs / ("0" * 16) / ".complete").touch()
    (envs / ("0" * 16) / "nexa-env.json").write_text('{"python": "3.11", "torch": "9", "cuda": null}')
    (envs / ("2" * 16 + ".gone")).mkdir()
    link = lab.links[0]
    busy = begun([sys.executable, "-c", "import time; time.sleep(60)", f"{envs}/{names[0]}/bin/python"])
    try:
        rows = {row["name"]: row for row in environment.listed(link)["rows"]}
        assert set(rows) == {*names, "0" * 16, "1" * 16}
        assert (
            rows[names[0]]["busy"] and not rows[names[1]]["busy"] and rows[names[1]]["made"]["what"] == "packages torch"
        )
        would = environment.pruned(link, dry=True)["removed"]
        assert {row["name"] for row in would} == {names[1], "1" * 16} and (envs / names[1]).exists()
        assert environment.pruned(link)["removed"] == would
    finally:
        busy.kill()
        busy.wait()
    assert {path.name for path in envs.iterdir() if path.suffix != ".lock"} == {names[0], names[2], "0" * 16}
    assert environment.pruned(link, need_bytes=1)["removed"] == []  # the disk has room
