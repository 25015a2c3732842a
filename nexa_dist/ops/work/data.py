"""`data:` of train.yaml: each on every node before the ranks start, brought into the cluster once.

A file or folder of this machine goes to the node that has most of it, what is in S3 is fetched by one node with its own
credentials, and the others get it from there. A node has it whole or not at all (remote/data_store.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_dist import remote, wire
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import NexaError
from nexa_dist.ops.context import Context
from nexa_dist.ops.work.hand_on import hand_on
from nexa_dist.run import files
from nexa_dist.run.code.content import Content, content, found, human
from nexa_dist.run.ssh.connections import Link, by_node, on_all
from nexa_dist.run.ssh.program import Refused, run_program
from nexa_dist.shape import Check, Strange, record, rows, table, text, whole

KEPT = "data.json"
Feed = Callable[[dict[str, Any]], Iterator[bytes] | None]
PROGRESS_S = 5.0
LINES = 10
"""Lines about what is left out; the rest is counted."""
_BYTES = whole()
_KNOWN = {"sha256": wire.SHA256, "bytes": _BYTES, "files": whole()}
_SINGLE = text(1024, r"(?!\.\.?\Z)[^/\x00-\x1f\x7f]*")
_TOLD = record({"id": wire.SHA256, "files": whole(), "bytes": _BYTES, "single": _SINGLE},
               {"region": text(30, r"[a-z0-9-]*")})  # fmt: skip
_LOOK = record({"whole": table(wire.SHA256, record(_KNOWN), 100), "part": table(wire.SHA256, _BYTES, 100)})
_SAID = record({}, {"removed": text(100), "what": text(40), "bytes": _BYTES, "at": _BYTES,
                    "lacks": rows(text(4096, "[0-9a-f]*"), 1000)})  # fmt: skip
CURES = (
    (r"NoSuchBucket|does not exist|\(404\)", "is the name of the bucket right, and its place?"),
    (r"AccessDenied|Forbidden|\(403\)|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken",
     "the node reads it with its own credentials: docs/RUNS.md, Data, says which rights they need"),
    (r"Unable to locate credentials|NoCredentials|InvalidToken",
     "the node has no credentials of AWS: docs/RUNS.md, Data, says how it gets some"),
    (r"No space left|no room", "take less data or larger disks (volume_gb); what a run uses is never taken away"),
    (r"Could not connect|endpoint URL|timed out", "does the node reach S3? nexa diag looks at its network"),
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One line of `data:` as it is now known. `row` is what the record and the manifest say of it."""

    name: str
    row: Mapping[str, Any]
    content: Callable[[], Content] | None = None
    """Content that is sent, read when it has to be; None for S3."""
    keep: tuple[str, ...] = ()
    """Names of all data of the run: none of it makes room for another."""

    @property
    def id(self) -> str:
        return str(self.row["id"])


def bring_data(
    ctx: Context, links: Sequence[Link], config: TrainConfig, kept: Path | None, *, again: bool
) -> dict[str, Any]:
    """Bring each of `data:`; returns it by name, as the manifest names it, when every node has it. `again`: what the
    attempt before had, also where its source has changed since."""
    if not config.data:
        return {}
    if kept is None:
        return {name: _planned(ctx, name, source) for name, source in config.data.items()}
    before = files.read_object(kept / KEPT) if again and (kept / KEPT).exists() else {}
    items = [
        _of_before(ctx, name, before[name]) if name in before else _of_now(ctx, links[0], name, source)
        for name, source in config.data.items()
    ]
    items = [replace(item, keep=tuple(other.id for other in items)) for item in items]
    there = by_node(links, lambda link: _look(ctx, link, items))
    rows = {item.name: _spread(ctx, links, item, there, kept.parent.name) for item in items}
    files.write_json(kept / KEPT, rows)
    return rows


def folders(shared: str, data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Folders by the data's name: where it lies on a node, and what in it a script sees."""
    return {
        name: [_place(shared, row["id"]), "/".join(filter(None, ("files", row["single"])))]
        for name, row in data.items()
        if "id" in row
    }


def _place(shared: str, ident: str) -> str:
    return f"{shared}/data/{ident}"


def _path(ctx: Context, source: str) -> Path:
    return ctx.workspace.root / os.path.expanduser(source)


def _planned(ctx: Context, name: str, source: str) -> dict[str, Any]:
    """Row of a dry run: the data that would be brought, as far as it is known without reading it."""
    if source.startswith("s3://"):
        ctx.detail(f"data {name}: {source}, which one node would list and fetch")
        return {"source": source}
    sizes = [info.st_size for info in found(_path(ctx, source))[0].values()]
    ctx.detail(f"data {name}: {source}, {len(sizes)} files, {human(sum(sizes))}")
    return {"source": source, "files": len(sizes), "bytes": sum(sizes)}


def _of_now(ctx: Context, first: Link, name: str, source: str) -> Item:
    if source.startswith("s3://"):
        billed = first.ssh.cluster.traits.priced
        told = _program(ctx, first, name, {"act": "list", "region": billed, **_s3(first, source)}, _TOLD)
        return Item(name, {"source": source, **told})
    made = read_now(ctx, name, source)
    for one in made.left_out[:LINES]:
        ctx.say(f"data {name}: not sent: {one}")
    if len(made.left_out) > LINES:
        ctx.say(f"data {name}: not sent: {len(made.left_out) - LINES} more")
    row = {"source": source, "id": made.id, "sha256": made.id, "files": len(made.rows), "bytes": made.size}
    return Item(name, {**row, "single": made.single}, lambda: made)


def read_now(ctx: Context, name: str, source: str) -> Content:
    """The data as it is on this machine now. Raises NexaError when it cannot be read."""
    cache = ctx.workspace.root / ".nexa" / "data"
    try:
        return content(_path(ctx, source), cache, ctx.detail)
    except NexaError as error:
        raise type(error)(f"data: {name}: {error}", hint=error.hint) from error


def _of_before(ctx: Context, name: str, row: Mapping[str, Any]) -> Item:
    """Data of an attempt before. It is read again only where no node has it any more."""

    def unchanged() -> Content:
        made = read_now(ctx, name, row["source"])
        if made.id != row["id"]:
            raise NexaError(
                f"data: {name}: {row['source']} is not what it was when the run began, and no node has that any more",
                hint="nexa run --resume, or nexa run TRAIN.yaml, takes it as it is now",
            )
        return made

    return Item(name, row, None if row["source"].startswith("s3://") else unchanged)


def _spread(
    ctx: Context, links: Sequence[Link], item: Item, there: Mapping[str, Mapping[str, Any]], run_id: str
) -> dict[str, Any]:
    """Brings one of them to all nodes that lack it. Answers what the manifest says."""
    row = dict(item.row)
    having = [link for link in links if item.id in there[link.node.name]["whole"]]
    if having:
        told = there[having[0].node.name]["whole"][item.id]
    else:
        having = [max(links, key=lambda link: there[link.node.name]["part"].get(item.id, 0))]
        told = _fetched(ctx, having[0], item, run_id)
    if item.content is None:
        row |= told  # what was read here needs no node's word
    lacking = [link for link in links if link not in having and item.id not in there[link.node.name]["whole"]]
    traits = links[0].ssh.cluster.traits
    if lacking and (traits.one_machine or traits.shared_home):  # they may have one disk between them
        again = on_all(lacking, lambda link: _look(ctx, link, [item]))
        lacking = [link for link, seen in zip(lacking, again, strict=True) if item.id not in seen["whole"]]
    if not lacking:
        return row
    places = {link.node.name: _place(_shared(link), item.id) for link in links}
    on_all(lacking, lambda link: _act(ctx, link, item, {"act": "room", "bytes": row["bytes"]}, record({})))
    said = f"data {item.name} ({human(row['bytes'])})"
    why = hand_on(ctx, having[0], lacking, places, said, row["bytes"])

    def settle(link: Link) -> None:
        if not why[link.node.name]:
            _act(ctx, link, item, {"act": "settle"}, record({}))
            return
        ctx.detail(f"{link.node.name}: {said} cannot come from {having[0].node.name}: {why[link.node.name]}")
        _fetched(ctx, link, item, run_id)

    on_all(lacking, settle)
    return row


def _look(ctx: Context, link: Link, items: Sequence[Item]) -> dict[str, Any]:
    named = ", ".join(item.name for item in items)
    return _program(ctx, link, named, {"act": "look", "ids": [item.id for item in items]}, _LOOK)


def _fetched(ctx: Context, link: Link, item: Item, run_id: str) -> dict[str, Any]:
    """Brings it to one node from where it is. Answers what is known of it then."""
    began = time.monotonic()
    if item.content is None:
        what = {key: item.row[key] for key in ("bytes", "single")}
        known = _act(ctx, link, item, {"act": "fetch", **what, **_s3(link, item.row["source"])}, record(_KNOWN))
        _charge(ctx, link, item, run_id)
    else:
        known = _sent(ctx, link, item, item.content())
    took = time.monotonic() - began
    ctx.detail(f"{link.node.name}: data {item.name}, {human(item.row['bytes'])} in {took:.1f} s")
    return known


def _sent(ctx: Context, link: Link, item: Item, made: Content) -> dict[str, Any]:
    def feed(said: dict[str, Any]) -> Iterator[bytes] | None:
        said = _heard(link, said)
        return made.chunks(_numbers(said["lacks"], len(made.rows)), said.get("at", 0)) if "lacks" in said else None

    return _act(ctx, link, item, {"act": "take", "bytes": made.size, "files": made.rows}, record(_KNOWN), feed)


def _numbers(lines: Sequence[str], count: int) -> list[int]:
    """The files that a node lacks: a bit each, as hexadecimal digits."""
    flags = bytes.fromhex("".join(lines))
    return [n for n in range(min(count, 8 * len(flags))) if flags[n // 8] >> n % 8 & 1]


def _charge(ctx: Context, link: Link, item: Item, run_id: str) -> None:
    """Record the price of data from a bucket of another region; what comes from here, or from the same region, costs
    nothing."""
    cluster, region = link.ssh.cluster, item.row.get("region", "")
    if cluster.traits.priced and region and cluster.region and region != cluster.region:
        said = f"data {item.name} from {region}"
        ctx.workspace.cluster(cluster.name).ledger(
            "traffic", at=ctx.now(), run=run_id, what=said, bytes=item.row["bytes"], usd_per_gb=None
        )
        ctx.say(f"warning: {said} to {cluster.region}: AWS bills {human(item.row['bytes'])} of traffic between regions")


def _shared(link: Link) -> str:
    return link.path(link.ssh.cluster.layout.shared)


def _s3(link: Link, source: str) -> dict[str, Any]:
    region = link.ssh.cluster.region
    given = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    env = {name: os.environ[name] for name in given if os.environ.get(name)}
    return {"url": source, "env": env | ({"AWS_DEFAULT_REGION": region} if region else {})}


def _heard(link: Link, said: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(_SAID(said))
    except Strange as error:
        raise wire.Faulty(link.node.name, "what it says of data", error) from None


def _act(
    ctx: Context, link: Link, item: Item, message: dict[str, Any], check: Check, feed: Feed | None = None
) -> dict[str, Any]:
    return _program(ctx, link, item.name, {"id": item.id, "keep": item.keep, **message}, check, feed)


def _program(
    ctx: Context, link: Link, name: str, message: dict[str, Any], check: Check,
    feed: Feed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run one act of the node's store, with what it tells meanwhile. Raises NexaError with the data's name and a
    cure."""
    last = [time.monotonic()]

    def hear(words: dict[str, Any]) -> None:
        said = _heard(link, words)
        if "removed" in said:
            ctx.detail(f"{link.node.name}: data {said['removed'][:8]}, which no run uses, makes room")
        elif "what" in said and time.monotonic() - last[0] > PROGRESS_S:
            last[0] = time.monotonic()
            of = f" of {human(message['bytes'])}" if "bytes" in message else ""
            ctx.detail(f"{link.node.name}: data {name}: {said['what']} {human(said.get('bytes', 0))}{of}")

    whole_message = {"folder": f"{_shared(link)}/data", "keep": (), **message}
    try:
        return run_program(link, remote.DATA_STORE.read_bytes(), whole_message, check, hear, feed=feed)
    except Refused as error:
        hint = next((cure for words, cure in CURES if re.search(words, str(error))), "")
        raise Refused(f"data: {name}: {error}", hint=hint) from None
