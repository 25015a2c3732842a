"""An environment beside light on every node: built on one of them, handed to the others, there the next time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_dist.config.backends import BACKENDS
from nexa_dist.config.train import TrainConfig
from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops import light
from nexa_dist.ops.context import Context
from nexa_dist.ops.light import BACKEND, LOCK, TORCH
from nexa_dist.ops.work.hand_on import ALONE, hand_on
from nexa_dist.plan.environment import Asked, asked, name_of, ours
from nexa_dist.plan.environment_refusal import refusal
from nexa_dist.remote import ENVIRONMENTS
from nexa_dist.run import bundle, files
from nexa_dist.run.code.archive import Archive
from nexa_dist.run.ssh.connections import Link, by_node, on_all
from nexa_dist.run.ssh.program import run_program
from nexa_dist.secrets import redact, redact_text
from nexa_dist.shape import flag, maybe, number, record, rows, text, whole

UV_ENV = Path("ansible/roles/uv_env/files")
KEPT = "environment.json"
"""File in the run's folder: what was asked for, and what came of it."""
BUILD_VARIABLES = re.compile(r"(UV|PIP)_.*|NETRC|SSL_CERT_(FILE|DIR)|(https?|all|no)_proxy", re.IGNORECASE)
"""Of `env:` and `secrets:`: what uv is to know too (indexes, their passwords, proxies)."""
ROOM_BYTES = 6 << 30
"""Where less is free, old environments go before another one is built."""
QUIET_S = 600.0
"""Seconds after its last use for which an environment is not removed: a run may be about to start in it."""
ASKED_QUIET_S = 60.0
"""The same when a person asks for the removal."""
MOST_FILE = 8 << 20
LINES = rows(text(300), 5000)
MADE = record({"python": text(40), "torch": text(80), "cuda": maybe(text(40))}, {"freeze": LINES, "what": text(300)})
LOOK = record({"made": maybe(MADE), "python3": text(1000), "free_bytes": whole()})
BUILT = record({}, {"refused": text(20), "said": text(8000), "changed": flag, "python": text(40), "torch": text(80),
                    "cuda": maybe(text(40)), "freeze": LINES})  # fmt: skip
ROW = record({"name": text(16, "[0-9a-f]{16}"), "bytes": whole(), "used_unix": number(), "busy": flag,
              "made": maybe(record({}, {"what": text(300), "torch": text(80), "python": text(40)}))})  # fmt: skip
LISTED = record({"rows": rows(ROW, 1000), "free_bytes": whole()})
PRUNED = record({"removed": rows(ROW, 1000), "free_bytes": whole()})


Ready = tuple[dict[str, str], dict[str, dict[str, str]], dict[str, Any]]
"""Interpreter of the ranks and further variables by node name; and the environment, as the record of the run has it."""


def make_ready(
    ctx: Context,
    links: Sequence[Link],
    config: TrainConfig,
    hidden: Mapping[str, str],
    kept: Path | None = None,
    *,
    again: bool = False,
    project: Archive | None = None,
) -> Ready:
    """What `environment:` asks for, on every node. `hidden` are secrets of the run; `kept`, `again` and `project` as in
    `bring`. Raises UsageError for what cannot be, with uv's words and the lines that asked for it."""
    cluster, wanted = links[0].ssh.cluster, config.environment
    if wanted == "light":
        return {}, {}, light.told(cluster)
    if wanted == "none":
        return _none(links)
    before, freeze = _before(kept)
    ask = before if again and before else wished(ctx, wanted, project)
    key, what = _key(ask, cluster), redact_text(ask.what)
    if before and not again and _key(before, cluster) != key:
        ctx.say(f"warning: {what} is not what it was at the attempt before: this one gets another environment")
    for note in ask.notes:
        ctx.say(note)
    if not before or _key(before, cluster) != key:
        freeze = []
    folders = {link.node.name: f"{link.path(cluster.layout.shared)}/envs/{key}" for link in links}
    told = {"name": what, "hash": key, "files": ask.hashes}
    if ctx.dry:
        lack = [name for name, look in looked(links, folders, use=False).items() if not look["made"]]
        missing = f"missing on {', '.join(lack)}, and would be built before the ranks start" if lack else "there"
        ctx.say(f"environment {key} of {what}: {missing}")
    else:
        build = _Build(ctx, config, ask, folders, hidden, freeze)
        made = build.on(links)
        there = {name_of(line) for line in made.get("freeze", [])}
        if lacking := [name for name in _needs(config) if name not in there]:
            raise build.refusal(links[0].node.name, "lacks", ", ".join(lacking))
        told |= {name: made[name] for name in ("python", "torch", "cuda")} | {"freeze": redact(made.get("freeze", []))}
        if kept:
            files.write_json(kept / KEPT, {"asked": ask.to_json(), "freeze": made.get("freeze", [])}, 0o600)
    return {name: f"{folder}/bin/python" for name, folder in folders.items()}, _base(links), told


def _base(links: Sequence[Link]) -> dict[str, dict[str, str]]:
    """The interpreter of light, for what of nexa's own runs beside the ranks."""
    return {link.node.name: {"NEXA_PYTHON": link.python} for link in links}


def wished(ctx: Context, wanted: OwnEnvironment | str, project: Archive | None = None) -> Asked:
    """What the files of the project, or our lock of that name, ask for now; those that `project` has as they are there.
    Raises UsageError."""
    if isinstance(wanted, str):
        pins = bundle.root() / f"docker/cuda_{wanted}.txt"
        lock = (bundle.root() / f"docker/lock/{wanted}.txt").read_text(encoding="utf-8")
        return ours(wanted, lock, pins.read_text(encoding="utf-8") if pins.exists() else "")
    frozen = {file.name: file.content for file in project.files} if project else {}
    return asked(wanted, lambda name: _text(ctx.workspace.root, name, frozen.get(os.path.normpath(name))))


def _none(links: Sequence[Link]) -> Ready:
    """Each node's own python3."""
    found = {name: look["python3"] for name, look in looked(links, {}, use=False).items()}
    if bare := [name for name, python in found.items() if not python]:
        raise NexaError(
            f"{', '.join(bare)}: no python3 is on the PATH there", hint="environment: light has one of its own"
        )
    return found, _base(links), {"name": "none"}


def looked(links: Sequence[Link], folders: Mapping[str, str], *, use: bool = True) -> dict[str, dict[str, Any]]:
    """What each node says of the environment in its folder; with `use` it is in use from now on."""

    def look(link: Link) -> dict[str, Any]:
        shared = link.path(link.ssh.cluster.layout.shared)
        message = {"act": "look", "env": folders.get(link.node.name, ""), "room": shared, "use": use}
        return run_program(link, ENVIRONMENTS.read_bytes(), message, LOOK, reads=not use)

    return by_node(links, look)


def _before(kept: Path | None) -> tuple[Asked | None, list[str]]:
    """What the attempt before asked for, and what came of it."""
    if kept is None or not (kept / KEPT).exists():
        return None, []
    try:
        data = files.read_object(kept / KEPT)
        return Asked.from_json(data["asked"]), list(data["freeze"])
    except (KeyError, TypeError) as error:
        raise NexaError(
            f"{kept / KEPT} is damaged: {error}", hint="nexa run --resume does without it once it is removed"
        ) from None


def _text(root: Path, name: str, content: bytes | None = None) -> str:
    path = root / name
    try:
        if (path.stat().st_size if content is None else len(content)) > MOST_FILE:
            raise UsageError(f"{name}: more than 8 MiB, so it is no list of packages")
        return (path.read_bytes() if content is None else content).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"environment: {name}: {error.strerror} (in {root})", hint="paths are relative to this folder"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"environment: {name}: not UTF-8 text (in {root})") from None


def _key(ask: Asked, cluster: Cluster) -> str:
    root = bundle.root()
    below = (LOCK, TORCH) if ask.kind == "packages" else (TORCH,)
    texts = [(root / file).read_text(encoding="utf-8") for file in below]
    return ask.key(BACKEND, cluster.env_hash or cluster.layout.python, *texts)


@dataclass(frozen=True)
class _Build:
    """One environment on its way to all nodes. `folders` by node name; `freeze`: what it came to before."""

    ctx: Context
    config: TrainConfig
    ask: Asked
    folders: Mapping[str, str]
    hidden: Mapping[str, str]
    freeze: Sequence[str]

    def on(self, links: Sequence[Link]) -> dict[str, Any]:
        """What is in it, once every node has it."""
        looks = looked(links, self.folders)
        have = [link for link in links if looks[link.node.name]["made"]]
        lack = [link for link in links if link not in have]
        if not lack:
            return dict(looks[links[0].node.name]["made"])
        began = time.monotonic()
        self.ctx.say(f"▸ environment of {redact_text(self.ask.what)} for {', '.join(link.node.name for link in lack)}")
        if have:
            source, made = have[0], looks[have[0].node.name]["made"]
        else:
            source, made = lack[0], self.build(lack[0], looks[lack[0].node.name]["free_bytes"])
            lack = lack[1:]
        if lack and not have:  # they may share that disk
            looks = looked(lack, self.folders)
            lack = [link for link in lack if not looks[link.node.name]["made"]]
        if lack:
            self._to_others(source, lack, made.get("freeze", []))
        self.ctx.say(f"  environment ready in {time.monotonic() - began:.1f} s")
        return dict(made)

    def _to_others(self, source: Link, lack: Sequence[Link], freeze: Sequence[str]) -> None:
        """An environment works at the path that it was built at alone."""
        alike = [link for link in lack if self.folders[link.node.name] == self.folders[source.node.name]]
        why = hand_on(self.ctx, source, alike, self.folders, "environment") if alike else {}
        rest = [link for link in lack if why.get(link.node.name, ALONE)]
        for link in rest:
            if (said := why.get(link.node.name, ALONE)) != ALONE:
                self.ctx.detail(f"{link.node.name}: {said}; it is built there")
        same = _Build(self.ctx, self.config, self.ask, self.folders, self.hidden, freeze)
        on_all(rest, lambda link: same.build(link, ROOM_BYTES))

    def build(self, link: Link, free_bytes: int) -> dict[str, Any]:
        """What was built on this node. Raises UsageError, NexaError."""
        if free_bytes < ROOM_BYTES:
            for row in pruned(link, need_bytes=ROOM_BYTES)["removed"]:
                self.ctx.detail(f"{link.node.name}: removed environment {row['name']}, unused, since the disk is full")
        name = link.node.name

        def heard(said: Any) -> None:
            if isinstance(said, dict) and isinstance(line := said.get("line"), str):
                self.ctx.detail(f"{name}: {redact_text(line[:300])}")

        source = (bundle.root() / UV_ENV / "make_env.py").read_bytes()
        answer = run_program(link, source, self._message(link), BUILT, heard)
        if "refused" in answer:
            raise self.refusal(name, answer["refused"], answer.get("said", ""))
        return answer

    def _message(self, link: Link) -> dict[str, Any]:
        root, traits = bundle.root(), link.ssh.cluster.traits
        shared, here = link.path(link.ssh.cluster.layout.shared), traits.one_machine or traits.users_ssh
        wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
        torch = "" if self.ask.own_torch and self.ask.kind != "lock" else (root / TORCH).read_text(encoding="utf-8")
        known = {**self.config.env, **self.hidden}
        return {
            "env": self.folders[link.node.name],
            "tools": shared,
            "cache": (traits.one_machine and os.environ.get("UV_CACHE_DIR")) or f"{shared}/uv-cache",
            "find_links": wheels if here else "",
            "backend": BACKEND,
            "uv": (root / UV_ENV / "uv.txt").read_text(encoding="utf-8"),
            "torch": torch,
            "base": (root / LOCK).read_text(encoding="utf-8") if self.ask.kind == "packages" else "",
            "kind": self.ask.kind,
            "what": redact_text(self.ask.what),
            "files": self.ask.files,
            "top": next(iter(self.ask.files)),
            "extras": self.ask.extras,
            "freeze": self.freeze,
            "needs": _needs(self.config),
            "proof": self.ask.names,
            "index": {
                name: value
                for name, value in known.items()
                if BUILD_VARIABLES.fullmatch(name) or any(f"${{{name}}}" in text for text in self.ask.files.values())
            },
        }

    def refusal(self, node: str, kind: str, said: str) -> NexaError:
        pin = (bundle.root() / TORCH).read_text(encoding="utf-8").splitlines()[-1]
        return refusal(self.ask, node, kind, said, self.config.backend or "", pin)


def pruned(link: Link, *, need_bytes: int = 0, dry: bool = False) -> dict[str, Any]:
    """Removes environments of the user's that nobody uses on this node, all or until so much is free."""
    shared = link.path(link.ssh.cluster.layout.shared)
    message = {
        "act": "prune",
        "envs": f"{shared}/envs",
        "keep": [link.ssh.cluster.env_hash],
        "need_bytes": need_bytes,
        "quiet_s": QUIET_S if need_bytes else ASKED_QUIET_S,
        "dry": dry,
        "tools": shared,
        "cache": f"{shared}/uv-cache",
    }
    return run_program(link, ENVIRONMENTS.read_bytes(), message, PRUNED, reads=dry)


def listed(link: Link) -> dict[str, Any]:
    """Every environment on this node."""
    envs = f"{link.path(link.ssh.cluster.layout.shared)}/envs"
    return run_program(link, ENVIRONMENTS.read_bytes(), {"act": "list", "envs": envs}, LISTED, reads=True)


def _needs(config: TrainConfig) -> tuple[str, ...]:
    """Packages that the training cannot do without."""
    return BACKENDS[config.backend].needs if config.backend else ()
