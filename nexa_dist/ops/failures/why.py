"""Why a run ended as it did: evidence from what the controller has of it, also after its nodes are gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import ACTIVE, End, Kind
from nexa_dist.node.protocol import FREQUENT, Event
from nexa_dist.plan.failures.diagnose import Diagnosis, judge
from nexa_dist.plan.failures.evidence import Evidence, NodeEvidence, RankEvidence
from nexa_dist.plan.failures.known.signature import Exit
from nexa_dist.plan.failures.log_tail import TAIL_BYTES
from nexa_dist.run.code.archive import Kept, look
from nexa_dist.run.logs.mirror import EVENTS, log_tail
from nexa_dist.run.record import Attempt, Run
from nexa_dist.run.workspace import RunFolder

EVENTS_BYTES = 8 << 20
"""Bytes of a node's events that are read, from the end."""
BY_A_RANK = ("rank", "killed", "oom")


@dataclass(frozen=True)
class Story:
    """One attempt: how it ended, and why. `step` is the highest that a rank reported."""

    attempt: int
    state: str
    cause: str
    step: int | None
    verdict: Diagnosis

    @property
    def line(self) -> str:
        return _line(self.verdict)


def _line(verdict: Diagnosis) -> str:
    return f"{verdict.who}: {verdict.words}" if verdict.who else verdict.words


def why(run: RunFolder, record: Run, attempt: int | None = None) -> tuple[Story, list[Story]]:
    """The attempt to explain (default: the newest that ended badly, else the newest) and the others, oldest first.

    Raises UsageError when there is no such attempt.
    """
    stories = [_story(run, row) for row in record.attempts]
    if not stories:
        raise UsageError(f"{run.run_id} was never started", hint="nexa run starts it; its words said why it did not")
    if attempt is None:
        bad = [s for s in stories if s.state not in ("completed", *ACTIVE)]
        chosen = bad[-1] if bad else stories[-1]
    else:
        found = [s for s in stories if s.attempt == attempt]
        if not found:
            raise UsageError(f"{run.run_id} has no attempt {attempt}", hint=f"attempts: 1 to {stories[-1].attempt}")
        chosen = found[0]
    return _not_sent(run, record, chosen), [s for s in stories if s is not chosen]


def _not_sent(run: RunFolder, record: Run, story: Story) -> Story:
    """Name the line of train.yaml that sends a file which was missing on a node and which the project has here."""
    verdict, root = story.verdict, run.path.parent.parent
    if verdict.name != "file_missing" or verdict.first is None:
        return story
    with contextlib.suppress(KeyError, NexaError):
        name = os.path.normpath(verdict.detail.removeprefix(f"{record.run_dir(verdict.first[0])}/work/"))
        sent, _ = look(Kept(run.code / f"{record.code_hash}.tar.gz"), "")
        inside = not os.path.isabs(name) and not name.startswith("..") and (root / name).exists()
        if inside and not any(f"{one}/".startswith(f"{name}/") for one in sent):
            fix = f"{name} is in the project here and was not sent: it is ignored by git, or by .nexaignore: add it to"
            return replace(story, verdict=replace(verdict, fix=f"{fix} files: in train.yaml: files: [{name}]"))
    return story


def blamed(run: RunFolder, row: Attempt, end: End) -> tuple[End, str]:
    """End of an attempt, with the rank that by its logs failed first, and the cause in one line. The nodes only tell
    when which rank ended: one that lost its peer may end before the one that it lost."""
    verdict = judge(collect(run, row))
    (node, rank), how = verdict.first or ("", None), verdict.exit
    if rank is not None and how and rank != end.rank >= 0 and end.kind in BY_A_RANK:
        what = f"signal {how.signal}" if how.signal else f"exit code {how.code}"
        kind: Kind = "oom" if how.oom else "killed" if how.signal else "rank"
        more = ", out of memory" if how.oom else "" if how.bad else " while others still worked"
        end = replace(end, kind=kind, node=node, rank=rank, words=f"rank {rank} on {node}: {what}{more}")
    return end, _line(verdict)


def _story(run: RunFolder, row: Attempt) -> Story:
    evidence = collect(run, row)
    told = [
        step
        for node in evidence.nodes
        for event in node.of(Event.PROGRESS)
        for step in event["steps"].values()
        if step is not None
    ]
    told += [r.exit.step for r in evidence.ranks if r.exit and r.exit.step is not None]
    verdict = judge(evidence)
    return Story(row.attempt, evidence.state, evidence.cause, max(told, default=None), verdict)


def collect(run: RunFolder, row: Attempt) -> Evidence:
    """Collects the evidence of one attempt: bounded reads of each node's mirrored logs."""
    number, spans = row.attempt, row.ranks
    folders = sorted(path for path in run.logs.iterdir() if path.is_dir()) if run.logs.is_dir() else []
    nodes: list[NodeEvidence] = []
    ranks: list[RankEvidence] = []
    for folder in folders:
        if spans and folder.name not in spans:
            continue
        events = _events(folder / EVENTS, number)
        exits = {
            event["rank"]: Exit(event["at"], event["code"], event["signal"], event.get("step"), event.get("oom", False))
            for event in events
            if event["event"] == Event.RANK_EXIT
        }
        first, last = spans.get(folder.name, (0, 1 << 30))
        logs = {n: path for n, path in _rank_logs(folder, number) if first <= n <= last}
        for rank in sorted({*exits, *logs}):
            failed = rank not in exits or exits[rank].bad
            tail = log_tail(logs[rank], TAIL_BYTES if failed else 4096) if rank in logs else b""
            ranks.append(RankEvidence(folder.name, rank, tail, exits.get(rank)))
        phases = [
            log_tail(folder / f"{name}.attempt_{number}.log", TAIL_BYTES) for name in ("prepare", "torchrun", "setup")
        ]
        agent, skew_s = log_tail(folder / "agent.err", 4096), row.skew_s.get(folder.name, 0.0)
        nodes.append(NodeEvidence(folder.name, events, phases[0], phases[1], agent, skew_s, phases[2]))
    return Evidence(tuple(nodes), tuple(ranks), row.state, row.cause)


def _rank_logs(folder: Path, attempt: int) -> Iterator[tuple[int, Path]]:
    for path in folder.glob(f"rank_*/attempt_{attempt}.log"):
        name = path.parent.name[5:]
        if name.isascii() and name.isdigit():
            yield int(name), path


def _events(path: Path, attempt: int) -> tuple[dict[str, Any], ...]:
    """The events of one attempt, oldest first, of those that come often only the last."""
    current: int | None = None
    found: dict[int | None, list[dict[str, Any]]] = {}
    often: dict[tuple[int | None, int], bytes] = {}
    for line in log_tail(path, EVENTS_BYTES).split(b"\n"):
        kind = next((i for i, name in enumerate(FREQUENT) if name in line), None)
        if kind is not None:
            often[current, kind] = line
            continue
        for event in wire.events([line]):
            if event["event"] == Event.STARTED:
                current = event["attempt"]
            found.setdefault(current, []).append(event)
    if attempt not in found and None in found:  # its beginning lies before what was read
        found[attempt] = found[None]
        often |= {(attempt, kind): line for (key, kind), line in often.items() if key is None}
    last = wire.events(line for (key, _), line in often.items() if key == attempt)
    return tuple(sorted([*found.get(attempt, []), *last], key=lambda event: event["at"]))
