"""Workspace, which the controller keeps on disk: clusters below .nexa/, runs below runs/."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from nexa_dist import shape
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.run import files, git, trust
from nexa_dist.run.record import Run
from nexa_dist.secrets import redact_text

USERS = "users.jsonl"
"""File in a cluster's folder: the workspaces that borrowed it."""
T = TypeVar("T")


def _checked(path: Path, kind: type[T], hint: str) -> T:
    """Read the JSON of `path`. Raises NexaError when it is torn, or is not what it should be."""
    return cast(T, files.read_shape(path, shape.of(cast(Hashable, kind)), hint))


@dataclass(frozen=True)
class ClusterFolder:
    """`.nexa/clusters/<name>/`. Terraform's state is the record of what exists; this points at it."""

    path: Path
    ending: bool = False
    """True while the journal's acts end things: a full disk must not keep them from it, so a line that cannot be
    written is missing."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def json(self) -> Path:
        return self.path / "cluster.json"

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
            files.append_json(self.path / name, record)
        except OSError:
            if not self.ending:
                raise

    @property
    def terraform(self) -> Path:
        return self.path / "terraform"

    @property
    def ssh(self) -> Path:
        return self.path / "ssh"

    @property
    def ssh_config(self) -> Path:
        return self.ssh / "ssh_config"

    @property
    def newest_snapshot(self) -> Path:
        """File with the name and time of the newest `nexa snapshot`."""
        return self.path / "snapshot.json"

    def may_exist(self) -> bool:
        """Tell whether something was ever begun from this folder: a plan alone leaves only keys and sources."""
        marks = (self.json, self.path / "config.json", self.path / "nodes", self.path / "journal.jsonl")
        return any(mark.exists() for mark in (*marks, self.terraform / "terraform.tfstate"))

    def load(self) -> Cluster:
        """The provisioned cluster. Raises NexaError when there is none."""
        if not self.json.exists():
            raise NexaError(
                f"cluster {self.name} is not provisioned here", hint="nexa provision --cluster FILE makes it"
            )
        hint = "nexa teardown does without this file"
        cluster = _checked(self.json, Cluster, hint)
        if not cluster.nodes:
            raise NexaError(f"{self.json} is damaged: it names no node", hint=hint)
        return cluster

    @contextlib.contextmanager
    def locked(self, verb: str) -> Iterator[None]:
        trust.claim(self.path.parents[2])
        with files.locked(self.path / "lock", verb):
            yield

    @contextlib.contextmanager
    def journalled(self, step: str, **details: Any) -> Iterator[dict[str, Any]]:
        """Writes the intent before and the outcome after, so that a killed command shows where it was. What is put
        into the dict is written with the outcome."""
        journal, began = "journal.jsonl", time.time()
        more: dict[str, Any] = {}
        self._append(journal, {"at": began, "step": step, "state": "intent", **details})
        try:
            yield more
        except BaseException as error:
            outcome = {"state": "failed", "error": redact_text(f"{type(error).__name__}: {error}")}
            self._append(journal, {"at": time.time(), "step": step, **outcome, **more})
            raise
        seconds = round(time.time() - began, 3)
        self._append(journal, {"at": time.time(), "step": step, "state": "done", "seconds": seconds, **more})

    def ledger(self, event: str, **details: Any) -> None:
        """Write one line of the ledger, from which the bill is made (plan/money/ledger.py reads it); `at` may be told,
        else it is now."""
        self._append("ledger.jsonl", {"at": time.time(), "event": event, **details})


@dataclass(frozen=True)
class RunFolder:
    """`runs/<run_id>/`: run.json (config, attempts, where it runs) and logs/<node>/ as they are on the nodes."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def json(self) -> Path:
        return self.path / "run.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def code(self) -> Path:
        """The packed code of its attempts, by hash."""
        return self.path / "code"

    @property
    def brought(self) -> Path:
        """File of what a later attempt needs of the work that the lab brought to the first one."""
        return self.path / "brought"

    @property
    def stop_wish(self) -> Path:
        """Why somebody wants the run to end; read by its supervisor where no agent is there to be told."""
        return self.path / "stop"

    @property
    def behind(self) -> Path:
        """Bytes of logs by node that were still there when an attempt ended: `nexa logs` fetches them."""
        return self.path / "behind.json"

    @property
    def manifest(self) -> Path:
        return self.path.parent / "manifests" / f"{self.run_id}.json"

    def load(self) -> Run:
        """The record of the run. Raises NexaError when it is torn."""
        record = _checked(self.json, Run, f"nexa goes on once {self.path} is moved away")
        record.path, record.run_id = self.json, record.run_id or self.run_id
        return record

    @contextlib.contextmanager
    def locked(self, verb: str) -> Iterator[None]:
        """Held by the one command that supervises the run; the kernel releases it when that dies."""
        with files.locked(self.path / "lock", verb):
            yield

    @property
    def supervised(self) -> bool:
        """True while a living command decides about the run."""
        return files.held(self.path / "lock")


@dataclass(frozen=True)
class Workspace:
    """A project's folder with what nexa keeps of it in `.nexa` and `runs`."""

    root: Path
    where: str = ""
    """The same in words, and how it was found."""
    above: bool = False
    """True when the workspace was found above the folder that nexa is called in."""

    @classmethod
    def here(cls) -> Workspace:
        """Workspace that NEXA_WORKSPACE names, else the nearest one from the folder that we are in upwards, else that
        folder. It is looked for no higher than the git repository goes: what lies above is of another project."""
        if named := os.environ.get("NEXA_WORKSPACE"):
            root = Path(named).absolute()
            if not root.is_dir():
                raise UsageError(f"NEXA_WORKSPACE: {root} is no folder")
            return cls(root, f"{root} (named by NEXA_WORKSPACE)")
        return cls.of(Path.cwd())

    @classmethod
    def of(cls, folder: Path) -> Workspace:
        """The one that this folder is in, or would be."""
        top = git.top(folder)
        looked = [p for p in (folder, *folder.parents) if top is None or p.is_relative_to(top)]
        root = next((p for p in looked if trust.is_workspace(p)), None)
        if root is None:
            end = f"{looked[-1]}, where the git repository ends" if top else str(looked[-1])
            return cls(folder, f"{folder}, nor in a workspace above it (looked up to {end})")
        return cls(root, f"{root} (the workspace above {folder})" if root != folder else str(root), root != folder)

    def __str__(self) -> str:
        return self.where or str(self.root)

    def near(self, path: Path) -> str:
        """Path as a person would type it from the folder that they are in."""
        try:
            return os.path.relpath(path)
        except OSError:  # that folder is gone
            return str(path)

    def close_to_others(self) -> None:
        """Close to others what we keep here: nobody else may look into it or lock it, and git leaves it alone."""
        files.close_to_others(self.root / ".nexa", self.root / "runs")
        for folder in (self.root / ".nexa", *([self.root / "runs"] if self.runs() else [])):
            files.hide_from_git(folder)

    def cluster(self, name: str) -> ClusterFolder:
        """Folder of a cluster, also of another workspace when it was borrowed."""
        path = self.root / ".nexa" / "clusters" / name
        return ClusterFolder(path.resolve() if path.is_symlink() else path)

    def knows(self, name: str) -> bool:
        return name in [folder.name for folder in self.clusters()]

    def others(self, name: str = "") -> list[Workspace]:
        """Other workspaces of ours that have a cluster (of this name), and have not borrowed it."""
        found = [Workspace(root) for root in trust.roots() if root.resolve() != self.root.resolve()]
        return [
            one
            for one in found
            if any(
                name in ("", folder.name) and folder.path.resolve().is_relative_to(one.root.resolve())
                for folder in one.clusters()
            )
        ]

    def borrow(self, name: str, owner: Workspace) -> None:
        """Makes the other workspace's cluster known here too, by a link, so that its runs can be here. The owner gets a
        line that says who uses it. Raises UsageError when this name is taken here."""
        link, target = self.root / ".nexa" / "clusters" / name, owner.cluster(name).path.resolve()
        if self.cluster(name).path.resolve() == target:
            return
        if link.exists():
            raise UsageError(
                f"{self.root} has a cluster called {name} of its own, beside that of {owner.root}",
                hint=f"run it from {owner.root}, or give one of them another name",
            )
        trust.claim(self.root)
        files.make_folder(link.parent)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        files.append_json(target / USERS, {"root": str(self.root)})

    def users(self, name: str) -> list[Workspace]:
        """The workspaces that have runs on this cluster: this one, its owner's, and those that borrowed it."""
        folder = self.cluster(name).path
        roots = [str(folder.parents[2]), *(str(row.get("root", "")) for row in files.read_lines(folder / USERS))]
        others = {Path(root) for root in roots} - {self.root}
        return [self, *(Workspace(root) for root in sorted(others) if trust.is_ours(root))]

    def clusters(self) -> list[ClusterFolder]:
        folder = self.root / ".nexa" / "clusters"
        return [ClusterFolder(p) for p in sorted(folder.iterdir()) if p.is_dir()] if folder.is_dir() else []

    def only_cluster(self) -> ClusterFolder:
        """The one known cluster. Raises UsageError when there is none or a choice."""
        known = self.clusters()
        if len(known) == 1:
            return known[0]
        if not known:
            elsewhere = [f"{found.name} in {other.root}" for other in self.others() for found in other.clusters()]
            more = f"; known elsewhere: {', '.join(elsewhere[:5])}" if elsewhere else ""
            raise UsageError(
                f"no cluster is known in {self}{more}",
                hint="nexa provision --cluster FILE makes one; --cluster FILE|NAME or NEXA_WORKSPACE=DIR names one of "
                "another folder",
            )
        raise UsageError(f"which cluster? {', '.join(c.name for c in known)}", hint="name it with --cluster")

    def runs(self) -> list[RunFolder]:
        """Oldest first: run ids begin with their time."""
        folder = self.root / "runs"
        found = [RunFolder(p) for p in folder.iterdir() if (p / "run.json").exists()] if folder.is_dir() else []
        return sorted(found, key=lambda run: run.run_id)

    def run(self, run_id: str = "") -> RunFolder:
        """A run by its id, by a unique part of it, or the newest. Raises UsageError."""
        known = self.runs()
        if not known:
            raise UsageError(f"no run is known in {self}", hint="nexa run TRAIN.yaml starts one")
        if not run_id:
            return known[-1]
        found = [r for r in known if r.run_id == run_id] or [r for r in known if run_id in r.run_id]
        if len(found) != 1:
            raise UsageError(
                f"{'no' if not found else 'more than one'} run matches {run_id!r}", hint="nexa runs lists them"
            )
        return found[0]

    def new_run(self, stage: str, name: str) -> RunFolder:
        """`<stage>_YYYYMMDD_HHMMSS_<name>`; the folder is made, so two at once get two names."""
        trust.claim(self.root)
        for tie in range(100):
            stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(time.time() + tie))
            path = self.root / "runs" / f"{stage}_{stamp}_{name}"
            files.make_folder(path.parent)
            files.hide_from_git(path.parent)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                return RunFolder(path)
        raise NexaError(f"cannot make a run folder in {self.root / 'runs'}")
