"""The container image of a run, on every node and on all of them the same."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.plan.runs.container import Host
from nexa_dist.remote import IMAGES
from nexa_dist.run import files
from nexa_dist.run.ssh.connections import Link, by_node
from nexa_dist.run.ssh.program import Refused, run_program
from nexa_dist.secrets import redact_text
from nexa_dist.shape import flag, one_of, record, rows, text, whole

KEPT = "image.json"
"""File in the run's folder: identifiers of the image, by engine."""
PATH = text(1024, r"/[^\x00-\x1f\x7f]*")
FOUND = record({
    "engine": one_of("docker", "podman"), "program": PATH, "version": text(100),
    "image": text(80, r"((sha256:)?[0-9a-f]{12,64})?"), "digest": text(600, r"[^\x00-\x1f\x7f]*"),
    "user": whole(), "group": whole(), "memory_bytes": whole(1), "gpus": flag, "devices": rows(PATH, 256),
    "amazon": flag,
})  # fmt: skip
CURES = (
    ("permission denied", "this user may not use docker there: sudo usermod -aG docker USER; or engine: podman"),
    ("no container engine", "every node needs docker or podman: containers: true in the cluster's file and nexa"
     " provision, or apt-get install podman"),
    ("cannot be had", "is its name right? A private one wants a login on each node: nexa ssh NODE -- docker login"),
)  # fmt: skip


def make_ready(
    ctx: Context, links: Sequence[Link], config: TrainConfig, kept: Path | None
) -> tuple[dict[str, Host], dict[str, Any]]:
    """The image on every node, brought where it lacks; a dry run brings nothing. Answers engine and image by node name,
    and what the record of the run says of them. `kept` is the folder of the run, for which the image stays what it was.
    Raises NexaError where an engine or the image cannot be had, or is not the same everywhere."""
    image = config.image or ""
    began = time.monotonic()

    def look(link: Link) -> dict[str, Any]:
        message = {"engine": config.engine, "image": image, "pull": not ctx.dry}

        def heard(said: Any) -> None:
            if isinstance(said, dict) and isinstance(line := said.get("line"), str):
                ctx.detail(f"{link.node.name}: {redact_text(line[:300])}")

        try:
            return run_program(link, IMAGES.read_bytes(), message, FOUND, heard, reads=ctx.dry)
        except Refused as error:
            why = str(error)
            hint = next((cure for sign, cure in CURES if sign in why), "nexa ssh NODE looks at it there")
            raise Refused(why, hint=hint) from None

    found = by_node(links, look)
    if time.monotonic() - began > 5:
        ctx.say(f"  image ready in {time.monotonic() - began:.1f} s")
    lack = [name for name, row in found.items() if not row["image"]]
    if lack:  # in a dry run alone
        ctx.say(f"image {image}: missing on {', '.join(lack)}, and would be pulled before the ranks start")
    same = _same(image, found, kept)
    if kept and not ctx.dry:
        files.write_json(kept / KEPT, same)
    hosts = {
        name: Host(
            row["engine"], row["program"], row["image"] or image, row["user"], row["group"], row["memory_bytes"],
            row["gpus"], tuple(row["devices"]), row["amazon"],
        )
        for name, row in found.items()
    }  # fmt: skip
    first = found[links[0].node.name]
    told = {"name": "image", "image": image, "digest": first["digest"], "ids": same}
    return hosts, told | {"engines": {name: f"{row['engine']} {row['version']}" for name, row in found.items()}}


def _same(image: str, found: Mapping[str, Mapping[str, Any]], kept: Path | None) -> dict[str, str]:
    """Identifier of the image by engine: engines name the same image differently. Raises NexaError for two of them."""
    before = files.read_object(kept / KEPT) if kept and (kept / KEPT).exists() else {}
    known = {str(engine): str(ident) for engine, ident in before.items()}
    by = dict.fromkeys(known, "the attempt before")
    for name, row in found.items():
        engine, ident = row["engine"], row["image"]
        if ident and known.setdefault(engine, ident) != ident:
            raise NexaError(
                f"image {image} is not the same everywhere: {ident[:19]} on {name}, {known[engine][:19]} "
                f"{'at' if by.get(engine, '').startswith('the') else 'on'} {by.get(engine)}",
                hint=f"name it by digest (image: NAME@sha256:…), or bring the same to all: {engine} pull {image}",
            )
        by.setdefault(engine, name)
    return known
