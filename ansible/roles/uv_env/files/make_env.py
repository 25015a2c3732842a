"""Builds one training environment on a node, once.

As a script, ours from a lock: reads a JSON object on stdin, prints one.
in:  env (folder to make), inputs (folder with lock.txt, torch.txt, uv.txt), tools (folder for uv itself),
     backend, find_links, cache
out: {"changed": bool}

As a program of the controller (nexa_dist/run/ssh/program.py), the user's own: `main` below.

A virtual environment cannot be moved, so it is built in place under a lock, and `.complete` is written last:
a folder without it is what a killed build left, and is made anew. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

LOCK_TIMEOUT_S = 1800.0
UV_AT_LEAST = (0, 9)
PROOF = """
# What a training imports is compiled here, once: else all ranks of the first run do it, at the same time.
import importlib.metadata as m, json, platform, pydantic, tokenizers, torch.distributed.run, yaml
from transformers import LlamaForCausalLM, Trainer
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
                  "transformers": m.version("transformers")}))
"""


OWN_PROOF = """
# What was asked for is imported, one after the other: who crashes was named before. Prints a JSON object a line.
import contextlib, importlib, importlib.metadata as m, io, json, platform, shutil, subprocess, sys
def tops(name):
    found = set()
    for path in m.distribution(name).files or ():
        top, more = path.parts[0], path.parts[1:]
        if not more or more[0] == "__init__.py" or more[0].startswith("__init__."):
            top = top.split(".")[0] if not more and top.endswith((".py", ".so")) else top if more else ""
            if top.isidentifier() and not top.startswith("_") and top not in ("test", "tests", "docs", "examples"):
                found.add(top)
    plain = name.replace("-", "_")
    return [t for t in found if t.lower() == plain] or sorted(found)[:3]
import torch, torch.distributed.run
said = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda, "blind": ""}
smi = shutil.which("nvidia-smi")
ask = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
driver = smi and subprocess.run(ask, capture_output=True, text=True)
if driver and not driver.returncode and driver.stdout.strip() and not torch.cuda.is_available():
    said["blind"] = driver.stdout.split()[0]
for name in json.loads(sys.argv[1]):
    for top in tops(name):
        print(json.dumps({"at": name}), flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(top)
        except BaseException as error:
            words = str(error).strip().partition("\\n")[0][:300]
            print(json.dumps({"at": name, "fails": f"import {top}: {type(error).__name__}: {words}"}), flush=True)
            break
print(json.dumps(said), flush=True)
"""
Say = Callable[..., None]


class Refused(Exception):
    """Why there is no environment: what is wrong, and uv's own words."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(said)
        self.what = what


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], object] = bool) -> Iterator[None]:
    """Held until this process and those that it started are gone: a killed build may leave uv at work. Calls `wait`
    when another one has it."""
    give_up = time.monotonic() + LOCK_TIMEOUT_S
    with open(path, "a") as file:
        os.set_inheritable(file.fileno(), True)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    sys.exit(f"{path} has been held by another build for {LOCK_TIMEOUT_S:.0f} s")
                wait()
                wait = bool
                time.sleep(0.1)
        yield


def run(argv: list[str], environment: dict[str, str]) -> str:
    """stdout of `argv`. On failure exits with the last lines that it said."""
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        sys.exit("\n".join([f"{Path(argv[0]).name} failed (exit {done.returncode}):", *said[-15:]]))
    return done.stdout


def uv_of_path() -> str | None:
    """The uv of PATH, if it is new enough to know every option used here."""
    found = shutil.which("uv")
    if found:
        done = subprocess.run([found, "--version"], capture_output=True, text=True)
        words = done.stdout.split()
        if len(words) > 1 and tuple(int(part) for part in words[1].split(".")[:2]) >= UV_AT_LEAST:
            return found
    return None


def pinned_uv(tools: Path, requirements: Path, environment: dict[str, str]) -> str:
    """uv in a virtual environment of its own, named by its version."""
    version = requirements.read_text().split("==", 1)[1].split()[0]
    folder = tools / f"uv-{version}"
    with locked(tools / f"uv-{version}.lock"):
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            run([sys.executable, "-m", "venv", str(folder)], environment)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            run([*pip, "--no-deps", "--require-hashes", "-r", str(requirements)], environment)
            (folder / ".complete").touch()
    return str(folder / "bin" / "uv")


def variables(spec: dict[str, Any]) -> dict[str, str]:
    """The environment of uv."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment |= {
        "UV_CACHE_DIR": spec["cache"],
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "1",
        "UV_NO_PROGRESS": "1",
        "PIP_NO_CACHE_DIR": "1",  # it would be in the home, which may be somebody's own
        "NO_COLOR": "1",
    }
    if spec["find_links"]:
        environment["UV_FIND_LINKS"] = spec["find_links"]
    return environment


def build(spec: dict[str, Any], env: Path) -> None:
    inputs, environment = Path(spec["inputs"]), variables(spec)
    uv = uv_of_path() or pinned_uv(Path(spec["tools"]), inputs / "uv.txt", environment)
    shutil.rmtree(env, ignore_errors=True)
    run([uv, "venv", "--no-project", "--python", sys.executable, str(env)], environment)
    python = str(env / "bin" / "python")
    install = [uv, "pip", "install", "--python", python]
    run([*install, "--no-deps", "--require-hashes", "-r", str(inputs / "lock.txt")], environment)
    if spec["find_links"]:
        torch = ["--no-deps"]
    else:
        # A CUDA build brings libraries that the lock cannot know; what the lock knows stays as locked.
        torch = ["--constraint", str(inputs / "lock.txt"), f"--torch-backend={spec['backend']}"]
    run([*install, *torch, "-r", str(inputs / "torch.txt")], environment)
    versions = json.loads(run([python, "-I", "-c", PROOF], environment))
    (env / "nexa-env.json").write_text(json.dumps({"env_hash": env.name, **versions}) + "\n")
    (env / ".complete").touch()


def heard(argv: Sequence[str], environment: dict[str, str], say: Say, cwd: Path | None = None) -> str:
    """What uv says on stderr, told line by line. Raises Refused, with what kind of failure it is."""
    uv = subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        close_fds=False,  # the lock is held while it lives
    )
    said = []
    for line in uv.stderr or ():
        said.append(line.rstrip())
        if re.match("Resolved|Downloading|Prepared|Installed|Building|Updating|Updated", line.strip()):
            say(say={"line": line.strip()[:300]})
    if uv.wait():
        text = "\n".join(said[-60:])[-6000:]
        kinds = (what for what, words in FAILURES if any(word in text for word in words))
        raise Refused(next(kinds, "failed"), text or f"uv ended with exit code {uv.returncode}")
    return "\n".join(said)


FAILURES = (
    ("disk", ("No space left on device", "os error 28")),
    ("conflict", ("No solution found", "unsatisfiable", "conflict")),
    ("network", ("Failed to fetch", "error sending request", "Could not connect", "dns error", "Failed to download")),
    ("input", ("Couldn't parse", "Failed to parse", "Unable to find lockfile", "is incompatible with the project")),
)
"""Kinds of failure by words of uv's; the first that fits."""


def main(message: dict[str, Any], say: Say) -> dict[str, Any]:
    """The environment `env` beside light. Answers what is in it, or {"refused", "said"}: the kind of failure, uv's
    words.

    message: env, tools, cache, find_links, backend as above; uv (text of uv.txt), torch (text of the pin; empty where
    the user's files have theirs), base (text of our lock, below packages of the user's), kind (lock, requirements,
    packages; ours: a lock of ours with hashes, and pins of what comes in a build for that torch), files (text by name),
    extras, freeze (what an earlier build came to), needs (names that must be there), proof (names to import),
    what (the environment in a word), index (variables for uv).
    """
    if message["find_links"] and "://" not in message["find_links"] and not os.path.isdir(message["find_links"]):
        message["find_links"] = ""
    env, inputs = Path(message["env"]), Path(message["env"] + ".inputs")
    env.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(env.with_name(env.name + ".lock"), lambda: say(say={"line": "waits for another build of it"})):
            changed = not (env / ".complete").exists()
            if changed:
                try:
                    own(message, env, inputs, say)
                except BaseException:
                    shutil.rmtree(env, ignore_errors=True)  # the disk may be full
                    raise
                finally:
                    shutil.rmtree(inputs, ignore_errors=True)  # an address may have a password
            return {"changed": changed, **json.loads((env / "nexa-env.json").read_text())}
    except Refused as refused:
        return {"refused": refused.what, "said": str(refused)}
    except OSError as error:
        return {"refused": "disk" if error.errno == 28 else "failed", "said": str(error)}


def own(message: dict[str, Any], env: Path, inputs: Path, say: Say) -> None:
    environment = {**variables(message), **message["index"], "GIT_TERMINAL_PROMPT": "0"}
    shutil.rmtree(inputs, ignore_errors=True)
    shutil.rmtree(env, ignore_errors=True)
    texts = {**message["files"], "nexa/uv.txt": message["uv"], "nexa/torch.txt": message["torch"]}
    texts["nexa/freeze.txt"] = "\n".join(message["freeze"])
    for name, text in texts.items():
        (inputs / name).parent.mkdir(parents=True, exist_ok=True)
        (inputs / name).write_text(text)
    uv = uv_of_path() or pinned_uv(Path(message["tools"]), inputs / "nexa" / "uv.txt", environment)
    base = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    lock = inputs / "nexa" / "lock.txt"
    if message["kind"] not in ("lock", "ours"):
        compiled(message, uv, base, lock, environment, say)
    heard([uv, "venv", "--no-project", "--python", base, str(env)], environment, say)
    python = str(env / "bin" / "python")
    backend = [] if message["find_links"] else [f"--torch-backend={message['backend']}"]
    install = [uv, "pip", "install", "--python", python, *backend]
    if message["kind"] == "ours":
        top, *pins = message["files"]
        heard([*install[:5], "--no-deps", "--require-hashes", "-r", top], environment, say, inputs)
        rest = ["--no-deps"] if message["find_links"] else ["--constraint", top]
        wanted = [word for name in ("nexa/torch.txt", *pins) for word in ("-r", name)]
        heard([*install, *rest, *wanted], environment, say, inputs)
    elif message["kind"] == "lock":
        extras = [word for extra in message["extras"] for word in ("--extra", extra)]
        sync = [uv, "sync", "--frozen", "--no-install-workspace", "--python", python, *extras]
        heard(sync, {**environment, "UV_PROJECT_ENVIRONMENT": str(env)}, say, inputs)
        frozen = run([uv, "pip", "freeze", "--python", python], environment)
        (inputs / "nexa" / "freeze.txt").write_text(frozen)
        if not re.search("^torch(==| @)", frozen, re.M):  # it starts the ranks
            pin = ["-r", "nexa/torch.txt", "--constraint", "nexa/freeze.txt"]
            heard([*install, *pin], environment, say, inputs)
    else:
        heard([*install, "--no-deps", "-r", str(lock)], environment, say, inputs)
    freeze = run([uv, "pip", "freeze", "--python", python], environment).split("\n")[:-1]
    installed = {canonical(re.split("==| @ ", line)[0]) for line in freeze}
    if lacking := [name for name in message["needs"] if name not in installed]:
        raise Refused("lacks", ", ".join(lacking))
    versions = proven(python, [name for name in message["proof"] if name in installed], say)
    made = {"env_hash": env.name, **versions, "what": message["what"], "freeze": freeze}
    (env / "nexa-env.json").write_text(json.dumps(made) + "\n")
    (env / ".complete").touch()


def compiled(message: dict[str, Any], uv: str, base: str, lock: Path, environment: dict[str, str], say: Say) -> None:
    """One resolve of all that is asked for, into `lock`."""
    names = ["nexa/torch.txt"] if message["torch"] else []
    if message["base"]:
        # Our versions are kept where nothing speaks against them: uv prefers what the file has that it is to write.
        lock.write_text(message["base"])
        (lock.parent / "light.txt").write_text(
            "\n".join(re.findall("^([a-z0-9][a-z0-9._-]*)==", message["base"], re.M))
        )
        names += ["nexa/light.txt"]
    names += [message["top"], *(["--constraint", "nexa/freeze.txt"] if message["freeze"] else [])]
    backend = [] if message["find_links"] else [f"--torch-backend={message['backend']}"]
    shape = ["--no-header", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "-o", "nexa/lock.txt"]
    heard([uv, "pip", "compile", *names, "--python", base, *backend, *shape], environment, say, lock.parent.parent)
    # The same version with +cpu behind it, from a folder of wheels, is another build: what fits one fits not the other.
    text = re.sub(r"^(torch\w*)==([^=+\s]+)$", r"\1===\2", lock.read_text(), flags=re.M)
    lock.write_text(text)
    there = {canonical(name) for name in re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:===?| @)", text, re.M)}
    if lacking := [name for name in message["needs"] if name not in there]:
        raise Refused("lacks", ", ".join(lacking))


def proven(python: str, names: list[str], say: Say) -> dict[str, Any]:
    """Versions, once everything that was asked for can be imported. Raises Refused."""
    say(say={"line": f"importing {', '.join(names) or 'torch'}"[:300]})
    argv = [python, "-I", "-c", OWN_PROOF, json.dumps(names)]
    limit = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False, timeout=900)
    told = [json.loads(line) for line in limit.stdout.splitlines() if line.startswith("{")]
    if failed := [f"{row['at']}: {row['fails']}" for row in told if "fails" in row]:
        raise Refused("proof", "\n".join(failed))
    if limit.returncode or not told or "torch" not in told[-1]:
        at = next((row["at"] for row in reversed(told) if "at" in row), "torch")
        raise Refused("proof", f"{at}: {limit.stderr.strip()[-600:] or f'ended with {limit.returncode}'}")
    if told[-1].pop("blind"):
        raise Refused("driver", f"torch {told[-1]['torch']} (CUDA {told[-1]['cuda']})")
    return told[-1]


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def light() -> int:
    os.umask(0o077)
    spec = json.load(sys.stdin)
    env = Path(spec["env"])
    with locked(env.with_name(env.name + ".lock")):
        changed = not (env / ".complete").exists()
        if changed:
            build(spec, env)
    print(json.dumps({"changed": changed}))
    return 0


if __name__ == "__main__":
    sys.exit(light())
