"""host.py's decisions, without sshd."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.begun import begun
from tests.processes.node.rig import until

HOST_PY = Path(__file__).resolve().parents[3] / "terraform" / "modules" / "local_node" / "host.py"


sys.path.insert(0, str(HOST_PY.parent))
folder, host, processes, sshd = map(importlib.import_module, ("folder", "host", "processes", "sshd"))


@pytest.mark.parametrize("root", ["", "nodes", "~/nodes", "/", "/tmp/a\nb", "/tmp/a\x7f", "-o/x", "/tmp/../"])
def test_roots_that_are_refused(root: str) -> None:
    with pytest.raises(processes.HostError):
        folder.checked_root(root)


@pytest.mark.parametrize(
    "root", ["/tmp/it's a root", '/tmp/a"b', "/tmp/$(id)", "/tmp/{{ x }}", "/tmp/-oProxyCommand=x"]
)
def test_odd_roots_are_only_paths(root: str) -> None:
    assert str(folder.checked_root(root)) == root


def test_quotes_in_sshd_config() -> None:
    assert sshd.quoted('a "b" \\c') == '"a \\"b\\" \\\\c"'


def test_descendants_are_found_at_any_depth() -> None:
    table = {pid: processes.Process(parent, 0, "S") for pid, parent in {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}.items()}
    assert processes.descendants(table, 2) == {3, 4}
    assert processes.descendants(table, 9) == set()


def test_n1_is_not_n10(tmp_path: Path) -> None:
    env = {**os.environ, "NEXA_HOST": str(tmp_path / "n10")}
    sleeper = begun(["sleep", "600"], env=env)
    try:
        assert sleeper.pid in processes.members(tmp_path / "n10")
        assert processes.members(tmp_path / "n1") == set()
        assert host.nodes_under(tmp_path) == ["n10"]  # its folder is gone, its process is not
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_reused_pid_is_not_the_daemon(tmp_path: Path) -> None:
    ticks = processes.processes()[os.getpid()].start_ticks
    record = {"pid": os.getpid(), "start_ticks": ticks, "boot_id": processes.boot_id()}
    for change, expected in (({}, os.getpid()), ({"start_ticks": ticks - 1}, None), ({"boot_id": "x"}, None)):
        (tmp_path / "daemon.json").write_text(json.dumps({**record, **change}))
        assert folder.daemon_pid(tmp_path) == expected
    (tmp_path / "daemon.json").write_text("{half a file")
    assert folder.daemon_pid(tmp_path) is None


@pytest.mark.parametrize("verb", ["down", "sweep"])
def test_a_folder_that_is_not_ours_is_not_touched(tmp_path: Path, verb: str) -> None:
    (tmp_path / "n0").mkdir()
    (tmp_path / "n0" / "thesis.txt").write_text("mine")
    with pytest.raises(processes.HostError, match="not a folder of local nodes"):
        host.down(tmp_path, "n0") if verb == "down" else host.sweep(tmp_path)
    assert (tmp_path / "n0" / "thesis.txt").exists()


def test_a_marker_whose_writer_was_killed_stands_in_nobodys_way(tmp_path: Path) -> None:
    root = tmp_path / "nodes"
    root.mkdir()
    (root / f"{folder.MARKER}.tmp").write_text('{"made_')
    assert host.sweep(root) == []
    folder.make_folder(folder.Settings("one", "n0", root, "127.0.0.2", 2200, tmp_path))
    (root / f"{folder.MARKER}.tmp").write_text('{"made_')
    assert host.down(root, "n0") == set()
    assert not root.exists()


def test_another_clusters_root_is_refused(tmp_path: Path) -> None:
    def settings(cluster: str) -> object:
        return folder.Settings(cluster, "n0", tmp_path / "nodes", "127.0.0.2", 2200, tmp_path)

    folder.make_folder(settings("one"))
    folder.make_folder(settings("one"))
    with pytest.raises(processes.HostError, match="cluster one"):
        folder.make_folder(settings("two"))


def test_removal_takes_closed_folders_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    root = tmp_path / "nodes"
    folder.make_folder(folder.Settings("one", "n0", root, "127.0.0.2", 2200, tmp_path))
    (root / "n0" / "home" / "link").symlink_to(outside)
    closed = root / "n0" / "scratch" / "closed"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0)
    folder.remove_folder(root, "n0")
    assert not root.exists()
    assert outside.stat().st_mode & 0o777 == 0o755


def test_removal_takes_what_a_killed_agent_left_elsewhere(tmp_path: Path) -> None:
    made, other, warm = tmp_path / "nexa-run-1", tmp_path / "precious", tmp_path / "nexa-warm-1"
    for number, path in enumerate((made, other)):
        (path / "in it").mkdir(parents=True)
        run = tmp_path / "nodes" / "n0" / "scratch" / f"run {number}"
        run.mkdir(parents=True)
        (run / "tmp.json").write_text(json.dumps(str(path)))
    warm.mkdir()
    (run / "warm.json").write_text(json.dumps({"pid": 1, "socket": str(warm / "s")}))
    (tmp_path / "nodes" / "n0" / "tmp.json").write_text("torn")
    (tmp_path / "nodes" / "n0" / "warm.json").write_text('{"refused": "no such module"}')
    folder.remove_folder(tmp_path / "nodes", "n0")
    assert not made.exists() and not warm.exists() and (other / "in it").is_dir()
    assert not (tmp_path / "nodes" / "n0").exists()


def test_a_taken_port_names_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(folder: str, listed: Callable[[str], list[str]] = os.listdir) -> list[str]:
        """Everybody closes a file just after we have seen it in the list."""
        return ["99999999", *listed(folder)] if str(folder).endswith("/fd") else listed(folder)

    monkeypatch.setattr(os, "listdir", closing)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(processes.HostError, match=rf"127.0.0.1:{port} is taken by pid {os.getpid()} "):
            sshd.check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAX_S", "-1"),
        ("LEASE_S", "1.5"),
        ("IDLE_S", "x"),
        ("NODE", "../n0"),
        ("NODE", "n01"),
        ("ADDRESS", "0.0.0.0"),
        ("PORT", "22; id"),
        ("ROOT", "x"),
        ("SSH_DIR", ""),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, key: str, value: str) -> None:
    good = {"CLUSTER": "c", "NODE": "n0", "ROOT": str(tmp_path / "r"), "ADDRESS": "127.0.0.2", "PORT": "2200"}
    env = {f"NEXA_LOCAL_{name}": text for name, text in {**good, "SSH_DIR": str(tmp_path), key: value}.items()}
    done = subprocess.run([sys.executable, "-I", str(HOST_PY), "up"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "r").exists()


def test_a_node_without_a_limit_has_no_clock(tmp_path: Path) -> None:
    settings = folder.Settings("one", "n0", tmp_path, "127.0.0.2", 2200, tmp_path)
    (tmp_path / "n0" / "due").mkdir(parents=True)
    (tmp_path / "n0" / "due" / "due_unix").write_text("1")  # of a time when it had one
    host.arm(settings)
    assert host.watch(tmp_path / "n0", lambda: None) is None


@pytest.mark.parametrize(
    ("limits", "ends"), [((2, 0, 0), True), ((0, 2, 0), True), ((0, 0, 2), True), ((300, 300, 300), False)]
)
def test_a_node_ends_itself_and_never_the_machine(tmp_path: Path, limits: tuple[int, int, int], ends: bool) -> None:
    """Its clock has none of the machine's own programs but four: of the poweroff that it finds only ours."""
    root = tmp_path / "it's: a root"  # a colon in PATH would split it
    settings = folder.Settings("one", "n0", root, "127.0.0.2", 2200, tmp_path, limits)
    host.arm(settings)
    code = "import pathlib, signal, sys; sys.path.insert(0, sys.argv[1]); import host; "
    code += "host.watch(pathlib.Path(sys.argv[2]), lambda: None); signal.pause()"
    argv = [sys.executable, "-c", code, str(HOST_PY.parent), str(root / "n0")]
    machine = subprocess.Popen(argv, start_new_session=True)
    try:
        if ends:
            assert machine.wait(90) == -signal.SIGTERM
        else:
            until((root / "n0/due/acts_unix").exists)
            assert 200 < int((root / "n0/due/acts_unix").read_text()) - time.time() < 302
            assert machine.poll() is None
        names = ["date", "mv", "poweroff", "sleep", "stat"]
        assert sorted(path.name for path in (root / "n0/due/bin").iterdir()) == names
    finally:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()
