"""A run that is to be had again: its code, config, environment and data, and what of it cannot be had any more."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nexa_dist.config.load import recorded_train
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.ops.work import data as datasets
from nexa_dist.ops.work.environment import KEPT as ENVIRONMENT
from nexa_dist.plan.ranks import assign_ranks
from nexa_dist.run import files
from nexa_dist.run.code import archive
from nexa_dist.run.record import Run
from nexa_dist.run.workspace import RunFolder

State = Literal["same", "unsure", "differs", "gone"]


@dataclass(frozen=True)
class Part:
    """One thing that a run consisted of. `unsure`: only the nodes can tell, and do so before anything begins."""

    name: str
    state: State
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


@dataclass(frozen=True)
class Origin:
    """The run that is had again; `parts` is what was found out about it."""

    folder: RunFolder
    record: Run
    codes: tuple[archive.Code, archive.Code]
    parts: tuple[Part, ...]
    config: TrainConfig
    """Config of the new run."""
    changed: tuple[str, ...] = field(default=())
    """What the user changed of it."""

    def of(self, *states: State) -> list[Part]:
        return [part for part in self.parts if part.state in states]

    def seed(self, brought: Path) -> None:
        """Gives a new run what was brought to this one, so that it is the same again and not as it would be now. What
        the user changed is brought as it is now."""
        before = recorded_train(self.record.config, self.record.run_id)
        kept = self.folder.brought / ENVIRONMENT
        if kept.exists() and self.config.environment == before.environment:
            files.write_json(brought / ENVIRONMENT, files.read_object(kept), 0o600)
        data = {name: row for name, row in self.record.data.items() if self.config.data.get(name) == row.get("source")}
        if data:
            files.write_json(brought / datasets.KEPT, data)

    def told(self) -> dict[str, Any]:
        """What the new run's record says of it."""
        differs = [str(part) for part in self.of("differs")]
        return {"run": self.record.run_id, "differs": differs, "changed": list(self.changed)}


def find(ctx: Context, folder: RunFolder, config: TrainConfig, cluster: Cluster, changed: list[str]) -> Origin:
    """What there is of a run. Raises UsageError with all that is gone for good."""
    record = folder.load()
    if not record.attempts or not record.code_hash:
        raise UsageError(
            f"{folder.run_id} has not begun, so there is nothing to have again", hint="nexa runs lists them"
        )
    parts = [Part("config", "same", "as run.json has it" + (f", but for {', '.join(changed)}" if changed else ""))]
    project = _code(folder, record.code_hash, lambda: archive.project(ctx.runner, ctx.workspace.root, config.files))
    package = _code(folder, record.package_hash, archive.package)
    parts.append(_told("code", record.code_hash, project, record.git_commit))
    parts.append(_told("nexa_dist", record.package_hash, package, None))
    parts.append(_environment(folder, record, config, cluster))
    parts += [_data(ctx, name, row) for name, row in record.data.items() if config.data.get(name) == row.get("source")]
    was, now = record.last.world_size, assign_ranks(cluster, 0, config.nproc_per_node).world_size
    parts.append(Part("ranks", "same", str(now)) if was == now else Part("ranks", "differs", f"{was} then, {now} now"))
    if gone := [str(part) for part in parts if part.state == "gone"]:
        raise UsageError(
            f"{folder.run_id} cannot be had again:\n" + "\n".join(gone),
            hint="nexa run TRAIN.yaml runs what is there now",
        )
    assert project and package
    return Origin(folder, record, (project, package), tuple(parts), config, tuple(changed))


def _code(folder: RunFolder, name: str, of_now: Any) -> archive.Code | None:
    """Code of this hash: as it was kept, or as it is here if that is the same."""
    kept = archive.Kept(folder.code / f"{name}.tar.gz")
    if kept.path.is_file():
        return kept
    try:
        found: archive.Code = of_now()
    except NexaError:
        return None
    return found if found.hash == name else None


def _told(name: str, wanted: str, found: archive.Code | None, commit: str | None) -> Part:
    if isinstance(found, archive.Kept):
        return Part(name, "same", f"{wanted}, as it was kept")
    if found:
        return Part(name, "same", f"{wanted}, which is what is here now")
    cure = f"; git checkout {commit[:12]} has it" if commit and not commit.endswith("-dirty") else ""
    return Part(name, "gone", f"the archive {wanted} was removed, and what is here now is another{cure}")


def _environment(folder: RunFolder, record: Run, config: TrainConfig, cluster: Cluster) -> Part:
    if config.environment != recorded_train(record.config, record.run_id).environment:
        return Part("environment", "same", "as --set says")
    was = record.environment.get("hash") or record.cluster.env_hash
    if config.environment == "none":
        return Part("environment", "unsure", "none: whatever python3 each node has")
    if config.environment == "light":
        now = cluster.env_hash or "the hosts' own python"
        if was == cluster.env_hash:
            return Part("environment", "same", f"light {now}")
        return Part("environment", "differs", f"light was {was or 'not known'}, and is {now} on {cluster.name}")
    if not (folder.brought / ENVIRONMENT).is_file():
        return Part("environment", "gone", f"what {was} was made from is no longer beside the run")
    try:
        files.read_object(folder.brought / ENVIRONMENT)
    except NexaError as error:
        return Part("environment", "gone", f"what {was} was made from is damaged: {error}")
    count = len(record.environment.get("freeze", []))
    return Part("environment", "unsure", f"{was}: there, or built anew from its {count} packages as they were")


def _data(ctx: Context, name: str, row: dict[str, Any]) -> Part:
    source, what = str(row.get("source", "")), f"data {name}"
    if source.startswith("s3://"):
        return Part(what, "unsure", f"{source}: taken only if it is what it was")
    try:
        same = datasets.read_now(ctx, name, source).id == row.get("id")
        words = f"{source} is {'what it was' if same else 'not what it was: a node may still have that'}"
    except NexaError as error:
        same, words = False, f"{source} cannot be read here ({error}): a node may still have it"
    return Part(what, "same" if same else "unsure", words)
