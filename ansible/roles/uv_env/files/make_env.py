"""Builds one training environment on a node, once: reads a JSON object on stdin, prints one.

in:  env (folder to make), inputs (folder with lock.txt, torch.txt, uv.txt), tools (folder for uv itself),
     backend, find_links, cache
out: {"changed": bool}

A virtual environment cannot be moved, so it is built in place under a lock, and `.complete` is written last:
a folder without it is what a killed build left, and is made anew. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held until this process and those that it started are gone: a killed build may leave uv at work."""
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


def build(spec: dict[str, Any], env: Path) -> None:
    inputs = Path(spec["inputs"])
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


def main() -> int:
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
    sys.exit(main())
