"""Why there is no environment, for people: uv's own words, the lines that asked for it, and what mends it."""

from __future__ import annotations

import re

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.plan.environment import Asked, blamed
from nexa_dist.secrets import redact_text

BUILDS = ("torchvision", "torchaudio")
"""Packages of which each build fits one build of torch."""


def refusal(ask: Asked, node: str, kind: str, said: str, backend: str, pin: str) -> NexaError:
    """`kind` and `said` as make_env.py answers them; `pin` is the line with our torch."""
    name, said = redact_text(ask.what), redact_text(said)
    words = "\n".join(f"  {line}" for line in said.splitlines())
    asking = "\n".join(f"  {redact_text(str(line))}" for line in blamed(said, ask.lines))
    asking = f"\nasked for by\n{asking}" if asking else ""
    if kind == "conflict":
        wrong = "a package is nowhere to be had" if "was not found" in said else "these packages do not go together"
        if not ask.own_torch and re.search(r"\btorch\b", said):
            asking += f"\n  nexa's own: {pin} (where yours name another version of torch, that one is taken)"
        return UsageError(f"{name}: {wrong}. uv says on {node}:\n{words}{asking}")
    if kind == "lacks":
        return UsageError(
            f"{name}: backend: {backend} needs {said}, which it has not",
            hint="add what is missing, or take environment: {packages: […]}, which has light below",
        )
    if kind == "proof":
        cure = (
            "name torch===VERSION beside it, which is the index's own build of torch and no wheel of a folder"
            if any(one in said for one in BUILDS)
            else "take a version that fits; what cannot be imported by itself stands in unproven: of environment:"
        )
        if ask.kind == "ours":
            cure = f"{name} is nexa's own; where there is no GPU infer was never proven"
        return UsageError(
            f"{name}: built on {node}, and what was asked for cannot be imported there:\n{words}{asking}", hint=cure
        )
    if kind == "driver":
        return UsageError(
            f"{name}: {said} finds no GPU on {node}, which has one: its driver is too old for that CUDA",
            hint="pin a torch of an older CUDA in it, or none, to have the one that fits",
        )
    if kind == "input":
        return UsageError(f"{name}: uv cannot read it:\n{words}")
    why, hint = {
        "disk": ("the disk is full", f"make room: nexa env prune, or nexa ssh {node} -- df -h"),
        "network": (
            "the package index cannot be reached",
            f"{node} has to reach one: UV_DEFAULT_INDEX in env: or secrets: names another",
        ),
    }.get(kind, ("the build failed", ""))
    return NexaError(f"{node}: {name}: {why}. uv says:\n{words}{asking}", hint=hint)
