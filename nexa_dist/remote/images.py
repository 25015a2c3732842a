"""The container image of a run on a node: its engine found, the image brought, and what a container may be given.

{"engine": auto, docker, podman or a path, "image", "pull": whether it may be brought}
    {"engine", "program", "version", "image": identifier or "", "digest", "user", "group", "memory_bytes", "gpus",
     "devices", "amazon"}

Standard library only, Python 3.9+.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

ALSO = ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/opt/bin")
"""Folders beside PATH, which is short in a session over ssh."""
ANSWER_S = 30
SAY_S = 2.0
CDI = ("/etc/cdi", "/var/run/cdi")
"""Where the container toolkit describes GPUs for podman."""


def main(message: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    kind, program, version = find(message["engine"])
    image = message["image"]
    there, words = identify(program, image)
    if not there and message["pull"]:
        pull(program, image, say)
        there, words = identify(program, image)
        if not there:
            raise RuntimeError("image %s was pulled, and is not there: %s" % (image, words))
    gpus = os.path.exists("/dev/nvidiactl")
    if gpus and kind == "podman" and not any(glob.glob(folder + "/*nvidia*") for folder in CDI):
        raise RuntimeError(
            "podman knows no GPU of this node: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml tells it"
        )
    return {
        "engine": kind,
        "program": program,
        "version": version[:100],
        "image": there,
        "digest": digest(program, image) if there else "",
        "user": os.getuid(),
        "group": os.getgid(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": gpus,
        "devices": sorted(glob.glob("/dev/infiniband/*")),
        "amazon": os.path.isdir("/opt/amazon"),
    }


def find(wanted: str) -> tuple[str, str, str]:
    """(docker or podman, program, version) of the first engine that answers. Raises RuntimeError with all that was
    tried."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *ALSO])
    tried = []
    for name in ("docker", "podman") if wanted == "auto" else (wanted,):
        program = shutil.which(name, path=path)
        if not program:
            tried.append("%s is not installed" % name)
            continue
        code, told = ask(program, "--version")
        kind = "podman" if "podman" in told.lower() else "docker"  # podman has a door with docker's name
        if not code:  # of docker the client answers that alone; the daemon may be down, or not be for this user
            code, told = ask(
                program, "version", "--format", "{{.Server.Version}}" if kind == "docker" else "{{.Version}}"
            )
        if not code and told:
            return kind, program, told
        tried.append("%s does not answer: %s" % (program, told[-300:] or "exit code %d" % code))
    raise RuntimeError("no container engine for image: %s" % "; ".join(tried))


def identify(program: str, image: str) -> tuple[str, str]:
    """(identifier of the image here or "", what the engine said)."""
    code, told = ask(program, "image", "inspect", "--format", "{{.Id}}", image)
    return ("", told) if code else (told.splitlines()[-1].strip(), told)


def digest(program: str, image: str) -> str:
    """The registry's name for these very bytes; none for an image that was made here."""
    code, told = ask(program, "image", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", image)
    return "" if code else next((line.strip()[:600] for line in told.splitlines() if "@sha256:" in line), "")


def pull(program: str, image: str, say: Callable[..., None]) -> None:
    """Bring the image, and say how far it is. Raises RuntimeError with the engine's last words."""
    puller = subprocess.Popen(
        [program, "pull", image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    assert puller.stdout
    last, said = [""], 0.0
    for line in puller.stdout:
        last = [*last[-4:], line.strip()]
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            say(say={"line": line.strip()[:300]})
    if puller.wait():
        raise RuntimeError("image %s cannot be had: %s" % (image, " ".join(last)[-800:].strip()))


def ask(*argv: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
