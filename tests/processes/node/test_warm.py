"""The warm interpreter: its forks are like fresh interpreters, and nothing of them is ever left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node import oslib, probe
from nexa_dist.node.machine import processes
from nexa_dist.node.warm import client as warm_client
from tests.processes.node.ranks import Node
from tests.processes.node.rig import until


@pytest.fixture
def node(tmp_path: Path, agent_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(warm_client, "agent_path", lambda: str(agent_file))
    monkeypatch.setattr(warm_client, "ANSWER_S", 90.0)
    short = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    made = Node(tmp_path, agent_file)
    yield made
    assert warm_client.release(str(made.run_dir), 90.0) == []
    assert processes.run_processes(str(made.run_dir), warm=True) == []
    assert list(short.iterdir()) == []


def both(node: Node, *words: str, **more: Any) -> tuple[str, int, str, int]:
    """Log and exit code of rank 0 from an interpreter of its own, and from a fork."""
    code = node.finish(*words, attempt=1, **more)
    warm_code = node.finish(*words, attempt=2, keep_warm=True, **more)
    starts = [e for e in node.all_events() if e["event"] == "rank_start"]
    assert [bool(e.get("warm")) for e in starts] == [False, True]
    return node.log(0, 1).replace("attempt_1", "attempt_2"), code, node.log(0, 2), warm_code


LOOK = """
import __main__, faulthandler, gc, json, os, signal, subprocess, sys, tempfile
print(json.dumps({
    "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path, "name": __name__, "file": __file__,
    "spec": str(__spec__).split(" object at ")[0], "package": __package__, "cached": __cached__,
    "loader": type(__loader__).__name__,
    "names": sorted(vars(__main__)), "main": __main__ is sys.modules["__main__"], "flags": list(sys.flags),
    "executable": sys.executable, "prefix": sys.prefix, "cwd": os.getcwd(), "umask": os.umask(0o22),
    "environment": dict(os.environ), "getenv": subprocess.getoutput("echo $RANK $NEXA_RUN_DIR"),
    "signals": [str(signal.getsignal(n)) for n in signal.valid_signals() if n not in (32, 33)],
    "mask": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "fault": faulthandler.is_enabled(),
    "stdin": sys.stdin.read(), "stdout": [sys.stdout.encoding, sys.stdout.write_through, sys.stdout.errors],
    "fds": [os.readlink("/proc/self/fd/" + n) for n in sorted(os.listdir("/proc/self/fd")) if int(n) < 3],
    "more_fds": len(os.listdir("/proc/self/fd")), "ours": [n for n in sys.modules if n.startswith("nexa_")],
    "tmp": tempfile.gettempdir(), "leader": os.getsid(0) in (os.getpid(), os.getppid()),
    "command": open("/proc/self/cmdline").read().rstrip("\\0"), "gc": gc.isenabled(),
}, indent=1, sort_keys=True))
"""


@pytest.mark.parametrize("words", [("sub/look.py", "--x", "a b"), ("-m", "sub.look", "--x")], ids=["script", "module"])
def test_a_fork_sees_what_a_fresh_interpreter_sees(node: Node, words: tuple[str, ...]) -> None:
    os.umask(0o077)  # as the agent, which starts both
    node.script(LOOK, "sub/look.py")
    node.environment["PYTHONPATH"] = f"/nonexistent:{node.work}"
    node.warm(*words)
    fresh, _, forked, _ = both(node, *words)
    assert forked.replace('"NEXA_ATTEMPT": "2"', "").splitlines() == [
        line.replace("r-1", "r-2") for line in fresh.replace('"NEXA_ATTEMPT": "1"', "").splitlines()
    ]
    assert json.loads(forked)["ours"] == []


ENDS = {
    "a code": "sys.exit(3)",
    "words": "sys.exit('enough of it')",
    "an exception": "def f(): raise ValueError('so')\nf()",
    "a cause": "try: 1/0\nexcept Exception as e: raise KeyError('x') from e",
    "at once": "os._exit(5)",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "no syntax": "def (",
    "a hook": "sys.excepthook = lambda t, v, tb: print('mine', t, tb.tb_lineno)\nraise OSError",
    "an abort": "faulthandler.disable(); os.abort()",
    "a thread goes on": "threading.Thread(target=lambda: (time.sleep(.1), print('thread'))).start()",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_fork_ends_as_a_fresh_interpreter_does(node: Node, end: str) -> None:
    head = "import atexit, faulthandler, os, signal, sys, threading, time\natexit.register(print, 'at exit')\n"
    script = node.script(f"{head}print('half', end='')\n{end}\n")
    node.warm(script)
    fresh, code, forked, warm_code = both(node, script)
    assert (forked, warm_code) == (fresh, code)
    exits = [{k: e[k] for k in ("code", "signal", "rank")} for e in node.all_events() if e["event"] == "rank_exit"]
    assert len(exits) == 2
    assert exits[0] == exits[1]


def test_random_numbers_differ_between_forks(node: Node) -> None:
    script = node.script("import os, random, uuid; print(random.random(), os.urandom(4), uuid.uuid4())")
    node.preload = ("random", "uuid")
    node.warm(script, world=3)
    assert node.finish(script, world=3, keep_warm=True) == 0
    words = [node.log(rank).split() for rank in range(3)]
    assert all(len({w[i] for w in words}) == 3 for i in range(3))


def test_workers_of_a_fork_start_anew_and_know_the_script(node: Node) -> None:
    script = node.script("""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def square(x):
    return x * x
if __name__ == "__main__":
    for method in ("spawn", "fork", "forkserver"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            print(method, list(pool.map(square, range(4))))
""")
    node.preload = ("multiprocessing.pool", "concurrent.futures.process")
    node.environment["TMPDIR"] = tempfile.gettempdir()  # a forkserver's socket has room for 107 bytes, as in a run
    node.warm(script)
    fresh, _, forked, code = both(node, script)
    assert (forked, code) == (fresh, 0)
    assert fresh.count("[0, 1, 4, 9]") == 3


def test_what_an_import_puts_into_the_environment_is_there(node: Node) -> None:
    site = node.folder / "site"
    site.mkdir()
    (site / "setter.py").write_text("import os\nos.environ['BY_IMPORT'] = 'x'\nos.environ.pop('OMP_NUM_THREADS')\n")
    node.environment["NEXA_SITE"], node.preload = str(site), ("setter",)
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(site)!r})\n")
    node.environment["PYTHONPATH"] = f"{site}"
    script = node.script("import os; print(os.environ['BY_IMPORT'], os.environ.get('OMP_NUM_THREADS'))")
    node.warm(script)
    (site / "sitecustomize.py").unlink()
    (site / "setter.py").unlink()  # where it comes from is not on trial here
    assert node.finish(script, keep_warm=True) == 0
    assert node.log(0) == "x None\n"


def test_what_was_imported_without_a_module_finds_it_later(node: Node) -> None:
    node.preload = ("-_statistics", "statistics")
    script = node.script("import statistics, _statistics; print(statistics._normal_dist_inv_cdf.__module__)")
    node.warm(script)
    assert node.finish(script, keep_warm=True) == 0
    assert node.log(0) == "statistics\n"


def test_a_module_that_hides_a_loaded_one_asks_for_a_fresh_interpreter(node: Node) -> None:
    node.preload = ("colorsys",)
    script = node.script("import colorsys; print(colorsys.__file__)")
    node.warm(script)
    (node.work / "colorsys.py").write_text("")
    assert node.finish(script, keep_warm=True) == 0
    assert node.log(0) == f"{node.work}/colorsys.py\n"
    assert "colorsys.py in" in (node.run_dir / "torchrun.log").read_text()


def test_an_interpreter_with_a_thread_is_never_forked(node: Node) -> None:
    site = node.folder / "site"
    site.mkdir()
    (site / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    node.environment["PYTHONPATH"], node.preload = str(site), ("threaded",)
    script = node.script("print('ran')")
    node.warm(script)
    assert node.warm_file()["refused"] == "importing threaded left 1 threads that a fork would lose"
    until(lambda: warm_client.pid(str(node.run_dir)) is None)
    assert node.finish(script, keep_warm=True) == 0
    assert node.log(0) == "ran\n"
    before = node.all_events()
    node.warm(script)  # not tried again in this run
    assert node.all_events() == before


def test_an_interpreter_that_began_to_use_cuda_is_never_forked(node: Node) -> None:
    site = node.folder / "site"
    site.mkdir()
    (site / "torch.py").write_text("class cuda:\n    is_initialized = staticmethod(lambda: True)\n")
    node.environment["PYTHONPATH"], node.preload = str(site), ("torch",)
    node.warm(node.script("pass"))
    assert node.warm_file()["refused"] == "importing torch opened CUDA"


def test_an_import_that_fails_leaves_the_ranks_to_show_it(node: Node) -> None:
    node.preload = ("no_such_module",)
    script = node.script("import no_such_module")
    node.warm(script)
    assert node.warm_file()["refused"].startswith("import no_such_module: ModuleNotFoundError")
    assert node.finish(script, keep_warm=True) == 1
    assert "No module named 'no_such_module'" in node.log(0)


def test_what_the_interpreter_says_of_itself_is_never_written_over(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(subprocess.Popen[bytes]):
        """Whoever starts the interpreter goes on only when that has ended."""

        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    node.preload = ("no_such_module",)
    spec = node.spec(node.script("pass"))
    warm_client.ensure(spec, spec["env"], str(node.run_dir))
    assert node.warm_file()["refused"].startswith("import no_such_module: ModuleNotFoundError")


def test_an_interpreter_that_cannot_be_started_leaves_nothing(node: Node) -> None:
    spec = node.spec(node.script("pass"))
    warm_client.ensure({**spec, "argv": ["/nonexistent/python", "x.py"]}, spec["env"], str(node.run_dir))
    assert node.warm_file() == {}
    assert "/nonexistent/python" in (node.run_dir / "warm.log").read_text()


def test_other_variables_ask_for_another_interpreter(node: Node) -> None:
    script = node.script("import os; print(os.environ['OMP_NUM_THREADS'])")
    node.warm(script)
    first = warm_client.pid(str(node.run_dir))
    node.warm(script, attempt=2, port=29599)
    assert warm_client.pid(str(node.run_dir)) == first
    node.environment["OMP_NUM_THREADS"] = "2"
    assert node.finish(script, attempt=3, keep_warm=True) == 0
    assert node.log(0, 3) == "2\n"
    assert [bool(e.get("warm")) for e in node.all_events() if e["event"] == "rank_start"] == [False]
    node.warm(script, attempt=3)
    assert warm_client.pid(str(node.run_dir)) != first
    assert first is not None
    assert oslib.start_time(first) is None


ORPHANS = """
import os, subprocess, time
rank = os.environ["RANK"]
subprocess.Popen(["setsid", "env", "-i", "sleep", "600"])
if os.fork() == 0:
    os.setsid()
    os.environ.clear()
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == middle:
        time.sleep(0.01)
    open("ready" + rank, "a").close()
time.sleep(600)
"""


def orphaned(node: Node) -> list[int]:
    """Two ranks, two daemons and two grandchildren without parents, once they are that."""
    until(lambda: all((node.work / f"ready{rank}").exists() for rank in range(2)))
    found = node.alive()
    assert len(found) == 6
    return found


def test_what_was_forked_is_found_as_part_of_the_run_and_the_interpreter_is_not(node: Node) -> None:
    script = node.script(ORPHANS)
    node.warm(script)
    server = warm_client.pid(str(node.run_dir))
    assert server
    with node.start(script, world=2, keep_warm=True) as ranks:
        found = orphaned(node)
        assert set(ranks.pids) < set(found)
        assert server not in found
        assert sorted(warm_client.ranks(str(node.run_dir))) == found
        mark = f"\0NEXA_RUN_DIR={node.run_dir}\0".encode()
        assert all(mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() for pid in ranks.pids)
        _, left = processes.kill_run(str(node.run_dir))
        assert left == []
        until(lambda: ranks.poll() is not None)
        assert ranks.returncode == 137
    assert warm_client.pid(str(node.run_dir)) == server
    assert node.finish(node.script("pass"), attempt=2, keep_warm=True) == 0


@pytest.mark.parametrize("victim", ["agent", "interpreter", "both"])
def test_nothing_is_left_when_the_agent_or_the_interpreter_is_killed(node: Node, victim: str) -> None:
    script = node.script(ORPHANS if victim == "agent" else "import time; time.sleep(600)")
    node.warm(script, world=2)
    server = warm_client.pid(str(node.run_dir))
    assert server
    with node.held(script, world=2, keep_warm=True) as agent:
        until(lambda: len(node.events("rank_start")) == 2)
        if victim == "agent":
            orphaned(node)
        for pid in {"agent": [agent], "interpreter": [server], "both": [agent, server]}[victim]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: node.alive() == [])
        if victim == "interpreter":
            until(lambda: node.events("rank_exit") == [("rank_exit", 0, -9), ("rank_exit", 1, -9)])
        if victim != "agent":  # without the agent it has no ranks any more, whether its own signal has come or not
            until(lambda: oslib.start_time(server) is None)
        assert warm_client.pid(str(node.run_dir)) == (server if victim == "agent" else None)


def test_a_frozen_interpreter_is_ended_and_the_ranks_start_without_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_client, "ANSWER_S", 0.2)
    script = node.script("print('ran')")
    node.warm(script)
    server = warm_client.pid(str(node.run_dir))
    assert server
    os.kill(server, signal.SIGSTOP)
    assert node.finish(script, keep_warm=True) == 0
    assert node.log(0) == "ran\n"
    assert oslib.start_time(server) is None
    assert "it gives no answer" in (node.run_dir / "torchrun.log").read_text()


def test_a_stop_before_the_answer_starts_nothing(node: Node) -> None:
    script = node.script("open('ran', 'w')")
    node.warm(script)
    server = warm_client.pid(str(node.run_dir))
    assert server
    os.kill(server, signal.SIGSTOP)
    with node.start(script, keep_warm=True) as ranks:
        assert ranks.poll() is None
        ranks.terminate()
        assert ranks.poll() == 143
    assert not (node.work / "ran").exists()
    assert warm_client.pid(str(node.run_dir)) is None


def test_a_rank_of_an_older_attempt_does_not_run(node: Node) -> None:
    script = node.script("open('ran', 'w')")
    node.warm(script)
    (node.run_dir / "generation").write_text("2")
    assert node.finish(script, attempt=1, keep_warm=True) == 78
    assert not (node.work / "ran").exists()


def test_the_interpreter_goes_when_the_run_folder_does(node: Node) -> None:
    node.warm(node.script("pass"))
    server, folder = warm_client.pid(str(node.run_dir)), Path(node.warm_file()["socket"]).parent
    assert server
    assert folder.stat().st_mode & 0o777 == 0o700
    moved = node.folder / "moved"
    node.run_dir.rename(moved)
    until(lambda: oslib.start_time(server) is None)
    assert not folder.exists()
    moved.rename(node.run_dir)


TORCH = """
import json, os, sys, time
import numpy, torch, torch.distributed as dist
from torch.utils.data import DataLoader
dist.init_process_group("gloo")
x = torch.ones(1)
dist.all_reduce(x)
seen = [None] * dist.get_world_size()
dist.all_gather_object(seen, [torch.initial_seed(), float(numpy.random.rand())])
batches = sorted(int(b) for b in DataLoader(range(8), num_workers=2))
elastic = dist.is_torchelastic_launched()
print(json.dumps([x.item(), elastic, torch.get_num_threads(), len({str(s) for s in seen}), batches]))
dist.destroy_process_group()
"""


@pytest.mark.long("ten CPU seconds of imports; train/test_hf_resume.py trains in forks")
def test_torch_works_in_forks_as_in_fresh_interpreters(node: Node) -> None:
    pytest.importorskip("torch")
    node.preload = ("torch",)
    script = node.script(TORCH)
    node.warm(script, world=2)
    port, _ = probe.free_port("127.0.0.1", 0)
    code = node.finish(script, world=2, keep_warm=True, port=port)
    assert code == 0, node.log(0)
    starts = [e for e in node.all_events() if e["event"] == "rank_start"]
    assert all(e["warm"] for e in starts)
    for rank in range(2):
        assert json.loads(re.sub(r".*\n(?=\[)", "", node.log(rank))) == [2.0, True, 1, 2, list(range(8))]
