"""The exact torchrun command line and environment of each node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nexa_dist.config.train import TrainConfig
from nexa_dist.model import Cluster
from nexa_dist.plan.ranks import NodePlan, RankPlan

DEFAULT_ENVIRONMENT = {
    # Fewer out-of-memory ends from fragmentation; older and newer name of the same setting.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # A failed collective ends the rank instead of leaving it to wait.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    # Its last collectives are kept, which older versions of torch do only when told, and dumped when one times out; the
    # agent says where to (node/rank.py).
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "NCCL_DEBUG": "WARN",
    "PYTHONUNBUFFERED": "1",
    # The stacks of a rank that hangs are had by ending it with SIGABRT.
    "PYTHONFAULTHANDLER": "1",
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
}

SAME = (
    ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
)
"""Newer and older names of one setting of torch."""
FR_SINCE = (2, 9)
"""The torch from which on the recorder is known by its newer name for certain; it warns of the older one."""
_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True)
class Place:
    """Folders and files of a run on one node, as absolute paths there."""

    python: str
    agent: str
    scratch: str
    shared: str
    durable: str
    run_dir: str
    package: str
    """Folder that holds the `nexa_dist` package."""
    code: str
    """The user's project as it was sent; copied to `work` before the first attempt."""

    @property
    def work(self) -> str:
        return f"{self.run_dir}/work"


@dataclass(frozen=True)
class Program:
    """Program: arguments of every rank's interpreter; and a command line to run once per node before the ranks."""

    argv: tuple[str, ...]
    prepare: tuple[str, ...] = ()


def program(config: TrainConfig, place: Place) -> Program:
    """A user's script or module unchanged, or the trainer of a backend with its data prepared once per node."""
    if config.script:
        return Program(("-u", config.script, *config.args))
    if config.module:
        return Program(("-u", "-m", config.module, *config.args))
    if config.program:
        return Program(("-u", "-m", "nexa_dist.train.console_script", config.program, *config.args))
    trainer = ("-m", "nexa_dist.train.launcher", "--backend", str(config.backend))
    base = ("-u", *trainer, "--config", f"{place.run_dir}/train.json")
    return Program(base, (place.python, *base, "--prepare"))


def torchrun(plan: RankPlan, node: NodePlan, place: Place, what: Program, run_id: str, attempt: int) -> tuple[str, ...]:
    """The command line of one node. Ranks are started through the agent's `rank`, which owns their end."""
    if plan.rdzv_backend == "static":
        rendezvous = [
            "--rdzv_backend=static",
            f"--node_rank={node.node_rank}",
            f"--master_addr={plan.rdzv_host}",
            f"--master_port={plan.rdzv_port}",
        ]
    else:
        endpoint_host = f"[{plan.rdzv_host}]" if ":" in plan.rdzv_host else plan.rdzv_host
        rendezvous = [
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={endpoint_host}:{plan.rdzv_port}",
            f"--rdzv_id={run_id}-{attempt}",
            f"--local_addr={node.node.peer_address}",
        ]
    return (
        *(place.python, "-m", "torch.distributed.run"),
        *(f"--nnodes={len(plan.nodes)}", f"--nproc_per_node={node.nproc}", "--max_restarts=0"),
        f"--log_dir={place.run_dir}/torchrun",  # torchrun makes one in /tmp otherwise, and leaves it
        *rendezvous,
        *("--no_python", place.python, "-S", "-E", place.agent, "rank", "--", place.python, *what.argv),
    )


def ranks_argv(
    plan: RankPlan, node: NodePlan, place: Place, what: Program, run_id: str, attempt: int, launcher: str
) -> tuple[str, ...]:
    """Command that the agent of one node starts: torchrun, or (launcher direct) the same command for every rank."""
    if launcher == "direct":
        return (place.python, *what.argv)
    return torchrun(plan, node, place, what, run_id, attempt)


def bucket_environment(cluster: Cluster, script: str) -> dict[str, str]:
    """Variables by which a node finds the bucket that outlives it; `script` is run_sync.sh there. Empty without a
    bucket."""
    if not cluster.bucket:
        return {}
    return {"NEXA_BUCKET": cluster.bucket, "NEXA_SYNC": script, "AWS_DEFAULT_REGION": cluster.region}


def environment(
    plan: RankPlan,
    node: NodePlan,
    place: Place,
    *,
    run_id: str,
    attempt: int,
    interface: str,
    cpus: int,
    user: Mapping[str, str],
    resume: tuple[str, int] | None = None,
    bucket: Mapping[str, str] | None = None,
    data: bool = False,
    torch: str = "",
) -> dict[str, str]:
    """Environment that torchrun and every rank of one node inherit. The user's values win over the defaults.

    `interface` is the one on the route to the other nodes (empty: left to gloo and NCCL).
    `resume` is (folder of a verified checkpoint on this node, its step). `bucket` is what `bucket_environment` says,
    `data` whether the run has any, `torch` the version of the node's torch where it is known.
    """
    threads = max(1, cpus // node.nproc)
    made = {**DEFAULT_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    if (found := _RELEASE.match(torch)) and (int(found[1]), int(found[2])) < FR_SINCE:
        made["TORCH_NCCL_TRACE_BUFFER_SIZE"] = made.pop("TORCH_FR_BUFFER_SIZE")
    if interface:
        made |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    for names in SAME:  # which of two names wins is torch's affair: the user's is to be the only one
        if any(name in user for name in names):
            made = {name: value for name, value in made.items() if name not in names}
    made |= user
    made |= {
        "NEXA_RUN_ID": run_id,
        "NEXA_ATTEMPT": str(attempt),
        "NEXA_WORLD_SIZE": str(plan.world_size),
        "NEXA_NODE": node.node.name,
        "NEXA_NODE_RANK": str(node.node_rank),
        "NEXA_FIRST_RANK": str(node.first_rank),
        "NEXA_SCRATCH": place.scratch,
        "NEXA_RUN_DIR": place.run_dir,
        "NEXA_DURABLE": place.durable,
        "NEXA_SHARED": place.shared,
        "PYTHONPATH": ":".join(p for p in (place.package, place.work, user.get("PYTHONPATH", "")) if p),
    }
    made |= bucket or {}
    if data:
        made["NEXA_DATA"] = f"{place.run_dir}/data"  # node/start.py makes it
    if resume:
        made |= {"NEXA_RESUME_FROM": resume[0], "NEXA_RESUME_STEP": str(resume[1])}
    return made
