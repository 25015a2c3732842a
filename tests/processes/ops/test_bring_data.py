"""Data of a run on its way to the nodes: each node is a folder of this machine, without ssh."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import pytest

from nexa_dist import wire
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.data import bring_data, folders
from nexa_dist.remote import data_store
from nexa_dist.run.code.content import content
from nexa_dist.run.runner import Result, Runner, Stream
from nexa_dist.run.ssh.connections import Link, Ssh
from nexa_dist.run.workspace import Workspace
from tests.begun import begun

CORPUS = {"a.txt": b"one", "deep/b.bin": bytes(range(256)) * 10_000, "deep/\u00fc \udcff\n.txt": b"", "same": b"one"}


class Here(Runner):
    """What goes to a node runs here; the acts of the store, by node, and bytes that were fed."""

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.fed = 0

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] = b"", **how: Any) -> Result:
        words = shlex.split(argv[-1])
        self.acts.append(words[-1])
        return super().run(words, stdin=stdin, **how)

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Stream:
        self.acts.append(re.findall(rb'"act": "(\w+)"', stdin)[-1].decode())
        made = super().stream(shlex.split(argv[-1]), stdin=stdin)

        def send(data: bytes) -> None:
            self.fed += len(data)
            made.send(data)

        return Stream(made.out, made.end, send)


class Lab:
    """Two nodes, a workspace with data, and what was said."""

    def __init__(self, root: Path, provider: Literal["aws", "static"] = "aws", first: str = "127.0.0.1") -> None:
        self.root, self.said, self.runner = root, list[str](), Here()
        nodes = (Node("n0", first, 1), Node("n1", "127.0.0.1", 1))
        cluster = Cluster("c", provider, nodes, Layout(sys.executable, "~/s", "~/h", "~/d"))
        self.links = [Link(Ssh(self.runner, cluster, str(root)), node, str(root / node.name)) for node in nodes]
        self.ctx = Context(Workspace(root / "w"), self.runner, self.said.append)
        for name, data in CORPUS.items():
            self.write(name, data)

    def write(self, name: str, data: bytes) -> None:
        path = os.path.join(self.root, "w", "corpus", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(data)
        os.utime(path, (1e9, 1e9))

    def bring(self, source: str = "corpus", run: str = "r1", again: bool = False) -> dict[str, Any]:
        self.runner.acts, self.runner.fed = [], 0
        config = TrainConfig.model_validate({"script": "t.py", "data": {"text": source}})
        rows = bring_data(self.ctx, self.links, config, self.root / "w/runs" / run / "brought", again=again)
        return dict(rows["text"])

    def seen(self, node: str, row: dict[str, Any]) -> Path:
        return Path(*folders(str(self.root / node / "h"), {"text": row})["text"])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def read(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(p, folder): Path(p).read_bytes() for p in map(str, folder.rglob("*")) if os.path.isfile(p)}


def test_it_is_sent_once_handed_on_and_at_once_there_for_the_next_run(lab: Lab) -> None:
    row = lab.bring()
    assert [read(lab.seen(node, row)) for node in ("n0", "n1")] == [CORPUS, CORPUS]
    total = sum(map(len, CORPUS.values()))
    assert (row["bytes"], row["files"], row["source"], lab.runner.fed) == (total, 4, "corpus", total)
    assert lab.runner.acts.count("take") == 2, "sent to one node, taken from it by the other"
    assert lab.bring(run="r2") == row and lab.runner.acts == ["look", "look"]


def test_what_has_not_changed_is_not_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, cache = lab.root / "w/corpus", lab.root / "cache"
    made = content(corpus, cache, print)
    assert list(read(cache).values()) == [b"{}\n"], "all of it is younger than a clock can tell apart"
    monkeypatch.setattr("nexa_dist.run.code.content.YOUNG_NS", -(10**12))
    content(corpus, cache, print)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert content(corpus, cache, print) == made
    lab.write("a.txt", b"two")  # of the same size and time
    with pytest.raises(TypeError):
        content(corpus, cache, print)


def test_one_file_is_itself_and_only_what_changed_is_sent(lab: Lab) -> None:
    row = lab.bring("corpus/a.txt")
    assert lab.seen("n1", row).read_bytes() == b"one"
    first = lab.bring()
    lab.write("a.txt", b"two")
    row = lab.bring()
    assert row["id"] != first["id"] and read(lab.seen("n1", row))["a.txt"] == b"two"
    assert lab.runner.fed == 3
    assert read(lab.seen("n0", first)) == CORPUS


def test_hosts_of_ones_own_get_it_once_where_they_have_a_private_network_and_else_each(tmp_path: Path) -> None:
    for first, times in (("127.0.0.1", 1), ("203.0.113.7", 2)):
        (tmp_path / first).mkdir()
        lab = Lab(tmp_path / first, "static", first)
        row = lab.bring()
        assert lab.runner.fed == times * row["bytes"] and read(lab.seen("n1", row)) == CORPUS, first
        assert any("203.0.113.7 is a public address" in line for line in lab.said) == (times == 2)


def test_what_was_cut_off_goes_on_where_it_was_and_nothing_torn_has_the_name(lab: Lab) -> None:
    made = content(lab.root / "w/corpus", lab.root / "cache", print)
    store = str(lab.root / "n1/h/data")
    sent = b"".join(made.chunks([0, 1], 0))[:1_000_000]
    message = {"act": "take", "keep": [], "folder": store, "id": made.id, "files": made.rows}
    with pytest.raises(data_store.Refused, match="ended early"):
        data_store.main(message, lambda **_: None, io.BytesIO(sent))
    assert not os.path.exists(f"{store}/{made.id}")
    row = lab.bring()
    assert lab.runner.fed == made.size - len(sent), "the node that had some got the rest"
    assert [read(lab.seen(node, row)) for node in ("n0", "n1")] == [CORPUS, CORPUS]


def test_what_a_run_wrote_to_comes_again(lab: Lab) -> None:
    row = lab.bring()
    for node in ("n0", "n1"):
        seen = lab.seen(node, row)
        (seen / "a.txt").chmod(0o600)
        (seen / "a.txt").write_bytes(b"ONE")
        os.utime(seen.parent, (1e9, 1e9))
    os.utime(lab.seen("n0", row) / "same", (2e9, 2e9))  # touched, and as it was
    lab.bring()
    assert lab.runner.fed == 3 and [read(lab.seen(node, row)) for node in ("n0", "n1")] == [CORPUS, CORPUS]
    (lab.seen("n0", row) / "a.txt").chmod(0o600)
    (lab.seen("n0", row) / "a.txt").write_bytes(b"ONE")
    (lab.root / "names").mkdir()
    (lab.root / "names/text").symlink_to(lab.seen("n0", row))
    rank = begun(["sleep", "600"], env={**os.environ, "NEXA_DATA": str(lab.root / "names")})
    try:
        with pytest.raises(NexaError, match=r"data: text: n0: .*a\.txt was written to, and a run uses it"):
            lab.bring()
    finally:
        rank.kill()
        rank.wait()


def test_a_later_attempt_has_what_the_first_had(lab: Lab) -> None:
    row = lab.bring()
    lab.write("a.txt", b"changed since")
    shutil.rmtree(lab.root / "n1")  # another machine in its place
    assert lab.bring(again=True) == row and lab.runner.fed == 0
    assert read(lab.seen("n1", row)) == CORPUS
    for node in ("n0", "n1"):
        shutil.rmtree(lab.root / node)
    with pytest.raises(NexaError, match="corpus is not what it was when the run began"):
        lab.bring(again=True)
    assert lab.bring()["id"] != row["id"], "and by hand it is taken as it is"


def test_a_file_that_changes_meanwhile_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.bring("corpus/a.txt")
    made = content(lab.root / "w/corpus", lab.root / "w/.nexa/data", print)
    os.truncate(lab.root / "w/corpus/deep/b.bin", 5)
    with pytest.raises(NexaError, match=r"b\.bin changed while it was read"):
        list(made.chunks([1], 0))
    lab.write("deep/b.bin", b"x" * 2_560_000)
    monkeypatch.setattr("nexa_dist.ops.work.data.content", lambda *_: made)
    with pytest.raises(NexaError, match=r"data: text: n0: deep/b\.bin is not what it was when it was listed"):
        lab.bring()
    assert not [p for p in (lab.root / "n0/h/data").iterdir() if p.name == made.id]


@pytest.mark.parametrize(
    ("source", "words"), [("nothing", "does not exist"), ("empty", "holds no file"), ("pipe", "does not exist")]
)
def test_what_is_no_data_is_said_before_a_node_is_asked(source: str, words: str, lab: Lab) -> None:
    (lab.root / "w/empty").mkdir()
    os.mkfifo(lab.root / "w/pipe")
    with pytest.raises(UsageError, match=f"data: text: .*{source} {words}"):
        lab.bring(source)
    assert lab.runner.acts == []


def test_links_are_followed_and_what_leads_nowhere_is_said(lab: Lab) -> None:
    corpus = lab.root / "w/corpus"
    (corpus / "out").symlink_to(lab.root / "w/elsewhere")
    (lab.root / "w/elsewhere").mkdir()
    (lab.root / "w/elsewhere/x").write_text("x")
    (corpus / "round").symlink_to(corpus)
    (corpus / "gone").symlink_to("nowhere")
    row = lab.bring()
    assert read(lab.seen("n0", row)) == {**CORPUS, "out/x": b"x"}
    assert [line for line in lab.said if "not sent" in line] == [
        "data text: not sent: gone: No such file or directory",
        "data text: not sent: round: a link to a folder that it lies in",
    ]


def test_room_is_made_by_what_nobody_uses_the_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {name: letter * 64 for name, letter in zip(("old", "older", "used", "named", "wanted"), "abcde", strict=True)}
    for age, name in ((2e3, "old"), (3e3, "older"), (60, "used"), (4e3, "named")):
        (tmp_path / ids[name] / "files").mkdir(parents=True)
        (tmp_path / ids[name] / "files" / "x").write_bytes(b"x" * 100)
        os.utime(tmp_path / ids[name], (time.time() - age,) * 2)
    (tmp_path / ("f" * 32)).mkdir()  # of something else
    os.utime(tmp_path / ("f" * 32), (1, 1))
    monkeypatch.setattr(data_store, "named", lambda: {ids["named"]})
    spare = data_store.SPARE_BYTES

    def usage(_: str) -> Any:
        return shutil._ntuple_diskusage(0, 0, spare + 1000 - sum(p.stat().st_size for p in tmp_path.glob("*/files/x")))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    store = data_store.Store(str(tmp_path), lambda **_: None, [ids["old"]])
    assert store.room(ids["wanted"], 600) == {"removed": []}
    assert store.room(ids["wanted"], 650) == {"removed": [ids["older"]]}
    with pytest.raises(data_store.Refused, match=r"there is no room for 701 B .* in use"):
        store.room(ids["wanted"], 701)
    store.keep = []
    assert store.room(ids["wanted"], 701) == {"removed": [ids["old"]]}
    assert sorted(p.name[0] for p in tmp_path.iterdir()) == ["c", "d", "f"]


def test_two_commands_do_not_bring_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_store, "LOCK_S", 0.0)
    store = data_store.Store(str(tmp_path), lambda **_: None, [])
    with store.locked("a" * 64), pytest.raises(data_store.Refused, match="another command"), store.locked("a" * 64):
        pass


def test_a_node_that_lies_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = lab.root / "lie.py"
    monkeypatch.setattr("nexa_dist.remote.DATA_STORE", lie)
    for body, what in (
        ("say(say={'lacks': ['zz'], 'at': 0})", "what it says of data"),
        ("return {'whole': {'x': 1}, 'part': {}}", "what a program of nexa's says there"),
    ):
        lie.write_text(f"def main(message, say, source=None):\n    {body}\n    return {{}}\n")
        with pytest.raises(wire.Faulty, match=f"n0: {what}"):
            lab.links = lab.links[:1]
            lab.bring()


def test_a_dry_run_reads_nothing_and_says_what_it_would_bring(lab: Lab) -> None:
    config = TrainConfig.model_validate({"script": "t.py", "data": {"text": "corpus", "far": "s3://bucket/x"}})
    told = bring_data(lab.ctx, lab.links, config, None, again=False)
    assert lab.runner.acts == [] and told["text"]["files"] == 4 and told["far"] == {"source": "s3://bucket/x"}
    assert any("data text: corpus, 4 files, 2.44 MiB" in line for line in lab.said)
