"""The exact command line by which docker or podman runs the launcher of one node in an image. Pure.

The container shares the node's network and its process ids (decision 170): ranks find each other by the nodes'
addresses, and the agent sees, signals and ends them as it does without a container. Everything that a run writes lies
in folders of the node that are mounted at the same paths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from nexa_dist.errors import UsageError
from nexa_dist.plan.runs.torchrun import Place

PYTHON = "python3"
"""Interpreter of an image: the first of that name on its PATH."""
LABEL = "nexa.run_dir"
"""The agent finds a run's containers by it (node/machine/container.py)."""
AMAZON = "/opt/amazon"
"""Folder of EFA's libfabric and of its plugin for NCCL, which belong to the host's kernel and not to an image."""
AMAZON_LIBRARIES = f"{AMAZON}/efa/lib:{AMAZON}/ofi-nccl/lib:{AMAZON}/ofi-nccl/lib/x86_64-linux-gnu"
SHM_SHARE = 2
"""Shared memory of a container is the memory of its node divided by this, as Linux does it for a node."""


@dataclass(frozen=True)
class Host:
    """Engine of one node and what it can hand to a container, as remote/images.py found it there."""

    engine: str
    """docker or podman, which differ in a few words."""
    program: str
    image: str
    """Identifier of the image in this engine: a name may mean another one a minute later."""
    user: int
    group: int
    memory_bytes: int
    gpus: bool
    devices: tuple[str, ...] = ()
    """Devices of RDMA (EFA, InfiniBand)."""
    amazon: bool = False


def for_agent(host: Host, place: Place) -> dict[str, Any]:
    """What the agent has to know: the engine, the words that end and remove a container at once, the folders that have
    to be there."""
    at_once = ("--time=0",) if host.engine == "podman" else ()  # which else gives it ten seconds after SIGTERM
    return {"program": host.program, "remove": ("rm", "--force", *at_once), "folders": (*mounts(place), _home(place))}


def mounts(place: Place) -> tuple[str, ...]:
    """Folders of the node that a container gets, at the same paths: data and code lie in the shared one. One that is in
    another comes with that."""
    found = sorted({place.scratch, place.shared, place.durable, place.agent.rpartition("/")[0]})
    return tuple(path for path in found if not any(path.startswith(f"{above}/") for above in found))


def argv(
    host: Host, place: Place, command: Iterable[str], *, name: str = "", variables: Collection[str] = ()
) -> tuple[str, ...]:
    """Command line of the engine's client, which stays until `command`, arguments of the image's interpreter, has
    ended. `variables` are names that the client has in its own environment: no value is in an argument. Raises
    UsageError for a path that cannot be mounted."""
    home = _home(place)
    given = {"HOME": home, "HF_HOME": f"{home}/.cache/huggingface", "USER": "runner"}
    if host.amazon:
        given["LD_LIBRARY_PATH"] = AMAZON_LIBRARIES
    words = [
        *(host.program, "run", "--rm", "--pull=never", "--network=host", "--pid=host", "--ipc=private"),
        f"--shm-size={host.memory_bytes // SHM_SHARE}",
        f"--user={host.user}:{host.group}",
        # What ranks say is in their own logs; an engine's copy of it would only fill its disk.
        *("--log-driver=none", "--no-healthcheck", "--security-opt=label=disable", f"--label={LABEL}={place.run_dir}"),
    ]
    if name:
        words.append(f"--name={name}")
    if host.engine == "podman" and host.user:
        words.append("--userns=keep-id")
    if host.gpus:
        words += ["--device=nvidia.com/gpu=all"] if host.engine == "podman" else ["--gpus=all"]
    words += [f"--device={device}" for device in host.devices]
    if host.gpus or host.devices:  # pages that a card reads are pinned
        words += ["--ulimit=memlock=-1:-1", "--ulimit=stack=67108864:67108864"]
    for folder in mounts(place):
        words.append(_mount(folder))
    if host.amazon:
        words.append(_mount(AMAZON) + ",readonly")
    words += [f"--env={key}={value}" for key, value in given.items() if key not in variables]
    words += [f"--env={key}" for key in sorted(variables)]
    words += [f"--workdir={place.work if name else '/'}", f"--entrypoint={PYTHON}"]
    return (*words, host.image, *command)


def launcher(
    host: Host, place: Place, command: tuple[str, ...], *, name: str, variables: Collection[str]
) -> tuple[str, ...]:
    """Wrap a command line that begins with the image's interpreter: it runs under the agent's `inside`, which ends it
    with the agent."""
    inside = ("-S", "-E", place.agent, "inside", "--", *command)
    return argv(host, place, inside, name=name, variables=variables)


def _home(place: Place) -> str:
    """Home of all containers of a node, so that caches of the Hub and of kernels stay for the next run."""
    return f"{place.shared}/home"


def _mount(folder: str) -> str:
    if bad := next((sign for sign in ',"' if sign in folder), ""):
        raise UsageError(f"image: the path {folder} has a {bad}, and no engine mounts that", hint="choose another path")
    return f"--mount=type=bind,source={folder},target={folder}"
