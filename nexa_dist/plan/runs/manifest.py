"""The manifest of a run from its record and from what rank 0 left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexa_dist.config.manifest import Manifest, ManifestAttempt, ManifestNode
from nexa_dist.model import Cluster
from nexa_dist.plan.money.cost import cost_usd, gpu_hours


def build_manifest(record: Mapping[str, Any], result: Mapping[str, Any], config: dict[str, Any], logs: str) -> Manifest:
    """`record` is run.json after its last attempt ended, `result` rank 0's result.json (empty for a script that
    leaves none), `config` the redacted train config."""
    cluster = Cluster.from_json(dict(record["cluster"]))
    attempts = record["attempts"]
    seconds = sum(a["ended_unix"] - a["started_unix"] for a in attempts)
    last = attempts[-1]
    ranks = {name: tuple(span) for name, span in last["ranks"].items()}
    world_size = last["world_size"]
    program = config.get("backend") or next((n for n in ("script", "program") if config.get(n)), "module")
    experiment = [f"experiment:{config['experiment']}"] if config.get("experiment") else []
    return Manifest(
        run_id=record["run_id"],
        stage=config["stage"],
        status=last["state"],
        model=result.get("model"),
        dataset=result.get("dataset"),
        checkpoint=result.get("checkpoint"),
        logs=logs,
        eval_report=result.get("eval_report"),
        hardware={
            "provider": cluster.provider,
            "nodes": len(cluster.nodes),
            "world_size": world_size,
            "found": last["hardware"],
            "usd_per_hour": cluster.usd_per_hour,
        },
        cost_usd=round(cost_usd(cluster, seconds), 6),
        gpu_hours=round(gpu_hours(world_size, seconds), 6),
        tags=(f"backend:{program}", config["stage"], *experiment, *config.get("tags", ())),
        wandb_run_id=result.get("wandb_run_id"),
        config=config,
        config_file=record["config_file"],
        code_hash=record["code_hash"],
        package_hash=record["package_hash"],
        env_hash="" if config.get("image") else cluster.env_hash,
        environment=record.get("environment", {}),
        data=record.get("data", {}),
        snapshot=record.get("snapshot", {}),
        reproduces=record.get("reproduces", {}),
        git_commit=record["git_commit"],
        parallel=result.get("parallel"),
        sharding=result.get("sharding"),
        nodes=tuple(
            ManifestNode(name=node.name, address=node.address, ranks=ranks[node.name])
            for node in cluster.nodes
            if node.name in ranks
        ),
        attempts=tuple(_attempt(row) for row in attempts),
    )


def _attempt(row: Mapping[str, Any]) -> ManifestAttempt:
    end, decision = row.get("end") or {}, row.get("next") or {}
    known = {name: row[name] for name in ManifestAttempt.model_fields if name in row}
    derived = {"last_step": end.get("last_step"), "kind": end.get("kind"), "next": decision.get("action")}
    return ManifestAttempt(**{**known, **derived})
