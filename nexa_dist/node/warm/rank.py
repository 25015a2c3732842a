"""A fork of the warm interpreter becomes what `python [-u] SCRIPT …` or `python [-u] -m MODULE …` would be.

Same variables, paths, arguments, log, random state, signals and exit code; uncaught exceptions show the program's
frames alone. Where that cannot be had, `refusal` says why, and the rank gets an interpreter of its own.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import importlib
import importlib.machinery
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import types
from typing import Any

from ..machine import cgroup
from ..oslib import die_with_parent, log_to, read_json
from ..rank import EXIT_WRONG_WORLD, wrong_generation
from .client import split

STORE_WAIT_S = 0.25
MARK, MARKED = (b"NEXA_WARM_DIR=", b"\0NEXA_RUN_DIR=")
"""Two marks of the same length: the second takes the first one's place in what /proc/<pid>/environ shows."""


def refusal(request: dict[str, Any]) -> str:
    """Why these ranks need interpreters of their own; empty when they can be forked."""
    words = split(request["argv"])
    if words is None:
        return "the command is neither a script nor a module"
    if gpu_files():
        return "CUDA is in use in the warm interpreter"
    if words[1][0] != "-m" and not words[1][0].endswith(".py"):
        return "%s is no Python source" % words[1][0]
    first = _first_path(words[1], request["cwd"])
    others = request["environment"].get("PYTHONPATH", "").split(":")
    return next(filter(None, map(_hidden, {first, *filter(None, others)})), "")


def gpu_files() -> list[str]:
    """Device files of GPUs that are open here. CUDA works in no fork of a process that began to use it, and torch
    knows only of what it began itself."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return ["CUDA"]
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink("/proc/self/fd/" + name))
    return sorted(path for path in found if path.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri/")))


def _hidden(folder: str) -> str:
    """A module in `folder` that a fresh interpreter might load instead of one that is loaded here."""
    try:
        names = os.listdir(folder)
    except OSError:
        return ""
    for name in names:
        stem, _, suffix = name.partition(".")
        loaded = stem in sys.modules or stem in ("sitecustomize", "usercustomize")
        if not loaded or stem in sys.builtin_module_names or stem == "__main__":
            continue
        is_package = not suffix and os.path.exists(os.path.join(folder, name, "__init__.py"))
        if is_package or name[len(stem) :] in importlib.machinery.all_suffixes():
            return "%s in %s may not be the module %s that is loaded already" % (name, folder, stem)
    return ""


def become(run_dir: str, task: dict[str, Any]) -> int:
    """Runs the rank's program. Returns or raises as the program ends, for the interpreter to end with."""
    request, rank = task["request"], task["rank"]
    os.setsid()
    die_with_parent(task["parent"])
    cgroup.enter(read_json(os.path.join(run_dir, "cgroup.json")))
    log_to(rank["log"])
    environment = {**request["environment"], **rank["environment"]}
    os.environ.clear()  # first, so that the C library points to nothing of what is written over next
    _show(request["argv"])
    os.environ.update(environment)
    for name, value in task["changed"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    wrong = wrong_generation(run_dir, int(environment["NEXA_ATTEMPT"]))
    if wrong:
        print("nexa: " + wrong, file=sys.stderr, flush=True)
        os._exit(EXIT_WRONG_WORLD)
    os.chdir(request["cwd"])
    _reseed()
    _await_store(environment)
    words = split(request["argv"])
    assert words is not None
    _clean_modules()
    if hasattr(sys, "orig_argv"):  # Python 3.10
        sys.orig_argv = list(request["argv"])
    sys.path[0] = _first_path(words[1], request["cwd"])
    _run(words[1])
    return 0


def _show(argv: list[str]) -> None:
    """/proc/<pid>/environ then marks this process as one of the run, and ps shows the rank's command. Both read the
    memory where the kernel put them when the interpreter was started; setting a variable does not change them."""
    with open("/proc/self/stat") as file:
        fields = [int(word) for word in file.read().rsplit(")", 1)[1].split()[45:49]]
    arguments, end_of_arguments, variables, end_of_variables = fields
    if not 0 < arguments < end_of_arguments <= variables < end_of_variables:
        return
    words = b"\0".join(map(os.fsencode, argv))[: end_of_arguments - arguments - 1]
    ctypes.memmove(arguments, words.ljust(end_of_arguments - arguments, b"\0"), end_of_arguments - arguments)
    at = (b"\0" + ctypes.string_at(variables, end_of_variables - variables)).find(b"\0" + MARK)
    if at >= 0:
        ctypes.memmove(variables + at, MARKED, len(MARKED))


def _reseed() -> None:
    """Seed anew what a fresh interpreter takes from the system. (`random` sees to itself after a fork; torch's CUDA
    generators begin with a fixed seed everywhere.)"""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    tempfile.tempdir = None


def _await_store(environment: dict[str, str]) -> None:
    """Rank 0 opens the store. Who dials a moment too early is refused, and torch tries again after 0.3 to 0.6 s."""
    end = time.monotonic() + (STORE_WAIT_S if environment["RANK"] != "0" else 0)
    address = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=STORE_WAIT_S).close()
            return
        time.sleep(0.003)


def _clean_modules() -> None:
    """Ours go, and __main__ is empty, as before the first line of a program."""
    package = __name__.rsplit(".", 2)[0]
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    importlib.invalidate_caches()


def _first_path(words: list[str], cwd: str) -> str:
    return cwd if words[0] == "-m" else os.path.dirname(os.path.realpath(os.path.join(cwd, words[0])))


def _run(words: list[str]) -> None:
    failed = False
    try:
        if words[0] == "-m":
            sys.argv = ["-m", *words[2:]]
            runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]  # what `python -m` itself calls
        else:
            sys.argv = list(words)
            _run_script(os.path.abspath(words[0]))
    except SystemExit:
        raise
    except BaseException as error:
        frames = error.__traceback__
        while frames and frames.tb_frame.f_globals is globals():
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        if isinstance(error, KeyboardInterrupt):
            atexit._run_exitfuncs()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        failed = True
    if failed:
        sys.exit(1)


def _run_script(path: str) -> None:
    main = sys.modules["__main__"].__dict__
    main.update(__file__=path, __loader__=importlib.machinery.SourceFileLoader("__main__", path), __cached__=None)
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print("%s: can't open file %r: %s" % (sys.executable, path, error), file=sys.stderr)
        sys.exit(2)
    exec(compile(source, path, "exec", dont_inherit=True), main)  # noqa: S102  (this is the rank's program)
