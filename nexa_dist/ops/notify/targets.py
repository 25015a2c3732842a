"""Targets of messages: webhooks, whose addresses are secrets, and commands of the user's, which need consent."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nexa_dist.config.parts.notify import EVENTS, Notify, check_url, secret_of
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.node.webhook import Answer, body, post
from nexa_dist.ops.context import Context
from nexa_dist.run import dotenv, files, git
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh import consent
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact_text, remember

COMMAND_S = 10.0
COMMAND_BYTES = 64 << 10
"""Bytes that a command may say before it is ended."""


@dataclass(frozen=True)
class Target:
    """One who is told. `url` is empty for a command, and for a webhook whose address is not known here."""

    row: Mapping[str, Any]
    url: str = field(default="", repr=False)
    missing: str = ""
    """Why nothing can be sent there from here."""

    @property
    def id(self) -> str:
        """Name of the target in the marks, which says nothing of its address."""
        told = [self.row.get(key) for key in ("url", "url_env", "command", "format")]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The target in words for people."""
        if self.row.get("command"):
            return f"command {redact_text(shlex.join(self.row['command']))[:80]}"
        if self.row.get("url_env"):
            return f"${self.row['url_env']}"
        return f"webhook at {urlsplit(self.url).hostname}"

    def wants(self, event: str) -> bool:
        return event not in EVENTS or event in self.row.get("events", EVENTS)

    def send(self, runner: Runner, message: dict[str, Any]) -> Answer:
        """One try."""
        if self.missing:
            return Answer(False, False, self.missing)
        if command := self.row.get("command"):
            done = runner.run(
                tuple(command), stdin=json.dumps(message).encode(), timeout_s=COMMAND_S, most_bytes=COMMAND_BYTES
            )
            return Answer(done.code == 0, done.code not in (126, 127), "" if not done.code else
                          f"exit {done.code}: {redact_text(done.tail(2))[:200]}")  # fmt: skip
        return post(self.url, body(message, self.row.get("format", "json")), str(message["id"]))


def file_of(run: RunFolder) -> Path:
    return run.path / "notify" / "targets.json"


def of_cluster(ctx: Context, cluster: str, named: str | None = None) -> tuple[Notify, ...] | None:
    """`notify` of a cluster as it was provisioned; of hosts that were not, as their file (`named`) has it; None where
    neither is here."""
    path = ctx.workspace.cluster(cluster).path / "config.json"
    if path.exists():
        rows = files.read_object(path).get("notify") or []
        try:
            return tuple(Notify.model_validate_json(json.dumps(row)) for row in rows)
        except (ValueError, TypeError):
            hint = "nexa provision writes it anew"
            raise NexaError(f"{path} is damaged: notify is not what it should be", hint=hint) from None
    if named and named.endswith((".yaml", ".yml")):
        from nexa_dist.config.load import load_cluster

        return load_cluster(Path(named)).notify
    return None


def keep(ctx: Context, run: RunFolder, rows: Sequence[Notify]) -> None:
    """Write down whom a run tells. Raises UsageError, before anything is begun, where that cannot be done: a variable
    that is not set, a command that nobody agreed to."""
    refuse_unconsented(ctx.workspace.root, rows)
    told = [_plain(row) for row in rows]
    for target in resolved(ctx, told):
        if target.missing:
            raise UsageError(f"notify: {target.name}: {target.missing}", hint="set it, or take it out of notify")
    if told or file_of(run).exists():
        files.write_json(file_of(run), told, 0o600)


def of_run(ctx: Context, run: RunFolder) -> list[Target]:
    """Targets of a run. What is not known here (a variable in another terminal) is a target that says so. What cannot
    be read is said, and tells nobody: a message is no reason to leave a run alone."""
    path = file_of(run)
    try:
        rows = files.read_json(path) if path.exists() else []
        return resolved(ctx, [_plain(Notify.model_validate_json(json.dumps(row))) for row in rows])
    except (NexaError, ValueError, TypeError) as error:
        why = error if isinstance(error, NexaError) else f"{path} is damaged"
        ctx.say(f"warning: nobody is told of {run.run_id}: {why}")
        return []


def _plain(row: Notify) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude_none=True)


def resolved(ctx: Context, rows: Iterable[Mapping[str, Any]]) -> list[Target]:
    """Targets by their rows, with the addresses that are known here."""
    return [_target(ctx, row) for row in rows]


def _target(ctx: Context, row: Mapping[str, Any]) -> Target:
    if command := row.get("command"):
        allowed = _note(ctx.workspace.root, command).exists()
        return Target(row, missing="" if allowed else "nobody has agreed to this command (nexa trust CLUSTER.yaml)")
    if not (name := row.get("url_env")):
        return Target(row, str(row["url"]))
    url = os.environ.get(name, "")
    if not url:
        root = ctx.workspace.root
        url = dotenv.named(root, [name], lambda: git.tracks(ctx.runner, root, dotenv.NAME) != "").get(name, "")
    if not url:
        return Target(row, missing=f"{name} is neither in the environment nor in {ctx.workspace.root / dotenv.NAME}")
    remember([secret_of(url)])
    try:
        return Target(row, check_url(url))
    except ValueError as error:
        return Target(row, missing=f"{name} holds no address of a webhook: {error}")


def refuse_unconsented(root: Path, rows: Sequence[Notify]) -> None:
    """Raises Unconsented for commands that the user was never asked about."""
    asked = [row.command for row in rows if row.command and not _note(root, row.command).exists()]
    if asked:
        shown = "\n".join(consent.plain(shlex.join(command)) for command in asked)
        raise consent.Unconsented(
            f"notify names what nexa would start on this machine:\n{shown}",
            hint="nexa trust CLUSTER.yaml allows these words, in this workspace",
            allow=partial(allow, root, rows),
        )


def allow(root: Path, rows: Iterable[Notify]) -> None:
    """Keeps the user's word for the commands, in the workspace at `root`."""
    for row in rows:
        if row.command:
            consent.keep(str(root), _digest(row.command))


def _note(root: Path, command: Sequence[str]) -> Path:
    return consent.note(str(root), _digest(command))


def _digest(command: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(["notify", *command]).encode()).hexdigest()


def for_nodes(ctx: Context, run: RunFolder) -> list[dict[str, str]]:
    """Address and form of each webhook whose address the nodes may know."""
    return [to_node(target) for target in of_run(ctx, run) if target.row.get("from_nodes") and target.url]


def to_node(target: Target) -> dict[str, str]:
    """What an agent is told of a webhook."""
    form, events = str(target.row.get("format", "json")), target.row.get("events", EVENTS)
    return {"url": target.url, "format": form, "events": " ".join(events)}
