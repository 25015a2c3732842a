"""Schema of runs/manifests/<run_id>.json: what was run, on what, what came out and what it cost."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


class ManifestAttempt(_Part):
    """One start of the run on its nodes."""

    attempt: int = Field(ge=1, description="1 for the first start, one more for each start after it.")
    state: str = Field(description="completed, failed or stopped.")
    cause: str = Field(description="Why it ended; empty when it completed.")
    started_unix: float = Field(description="Start, in seconds since 1970 (UTC).")
    ended_unix: float = Field(description="End, in seconds since 1970 (UTC).")
    rdzv: str = Field(description="Rendezvous endpoint, host:port.")
    resume_step: int | None = Field(description="Step of the checkpoint it went on from.")
    last_step: int | None = Field(None, description="Highest step that a rank reported; null when none was.")
    kind: str | None = Field(None, description="What kind of end it was: completed, stopped, rank, node, notice, hang…")
    why: str | None = Field(None, description="Which rank failed first and the known cause, in one line.")
    next: str | None = Field(None, description="What was decided then: done, stop, restart, replace, shrink or wait.")
    replaced: tuple[str, ...] = Field((), description="Nodes that were made anew for this attempt.")
    changed: tuple[str, ...] = Field((), description="What of the training was changed by hand for this attempt.")
    notices: dict[str, dict[str, float | None]] = Field(
        default_factory=dict,
        description="Spot notices by node, in unix seconds: seen by the node, when the cloud acts, checkpoint saved.",
    )


class ManifestNode(_Part):
    """One node and the ranks it ran."""

    name: str = Field(description="Name of the node.")
    address: str = Field(description="Address by which the controller reached it.")
    ranks: tuple[int, int] = Field(description="First and last global rank on this node.")


class Manifest(_Part):
    """The record of one run: what was run, on what, what came out, what it cost."""

    version: Literal[1] = Field(1, description="Version of this format.")
    run_id: str = Field(description="<stage>_YYYYMMDD_HHMMSS_<name>, UTC.")
    stage: str = Field(description="Stage of the pipeline, for instance train.")
    status: Literal["completed", "failed", "retry", "stopped"] = Field(description="How the last attempt ended.")
    model: str | None = Field(description="What was trained, in one line.")
    dataset: dict[str, Any] | None = Field(description="path, sha256, bytes and tokens of the data.")
    checkpoint: dict[str, Any] | None = Field(
        description="path, step and sha256 of the last whole checkpoint; uri where a bucket has it; of a sharded "
        "one also its digest and the number of nodes that hold it together."
    )
    logs: str = Field(description="Folder of all logs on the controller, relative to the workspace.")
    eval_report: dict[str, Any] | None = Field(description="Figures of the evaluation; losses in nats.")
    hardware: dict[str, Any] = Field(description="Provider, number of nodes, world size, GPUs found, USD per hour.")
    cost_usd: float = Field(ge=0, description="Price of the nodes for the time of the attempts, in US dollars.")
    gpu_hours: float = Field(ge=0, description="Ranks times hours of the attempts.")
    tags: tuple[str, ...] = Field(description="backend:…, the stage, experiment:…, and the user's own.")
    wandb_run_id: str | None = Field(description="Run id of Weights & Biases when it was on.")
    config: dict[str, Any] = Field(description="train.yaml as resolved, secrets redacted.")
    config_file: str = Field(description="Path of train.yaml as it was given; empty for nexa_dist.launch.")
    code_hash: str = Field(description="Hash of the project's files as sent to the nodes.")
    package_hash: str = Field(description="Hash of the nexa_dist package as sent to the nodes.")
    env_hash: str = Field(description="Hash of lock, torch pin and Python; empty for the user's own environment.")
    environment: dict[str, Any] = Field(
        default_factory=dict, description="The environment that the run asked for: its hash, and what is installed."
    )
    data: dict[str, Any] = Field(default_factory=dict, description="Each of data: its source, hash and bytes.")
    snapshot: dict[str, Any] = Field(
        default_factory=dict,
        description="SHA-256 and time of the cluster's newest snapshot when the run began (nexa snapshot).",
    )
    reproduces: dict[str, Any] = Field(
        default_factory=dict, description="Run that this one was to be the same as (nexa run --from), and what differs."
    )
    outputs: dict[str, Any] = Field(
        default_factory=dict, description="What came back of what the run wrote, and what did not."
    )
    git_commit: str | None = Field(
        description="Commit of the project; with -dirty when what was sent is not what it has. See code_hash too."
    )
    parallel: str | None = Field(description="How the model was spread: DDP, FSDP2, ZeRO-3.")
    sharding: dict[str, Any] | None = Field(
        None, description="What a sharded model really became: the parameters that each rank holds, precision, offload."
    )
    nodes: tuple[ManifestNode, ...] = Field(description="Nodes in rank order.")
    attempts: tuple[ManifestAttempt, ...] = Field(description="Every start, with the cause of its end.")
