"""The end of an attempt: run.json, what rank 0 left, the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nexa_dist import wire
from nexa_dist.config.load import recorded_train, resolved
from nexa_dist.errors import NexaError
from nexa_dist.model import Decision
from nexa_dist.ops.context import Context
from nexa_dist.ops.runs.checkpoints import newest_in_bucket
from nexa_dist.ops.runs.watch import Outcome
from nexa_dist.ops.work import kept, results
from nexa_dist.ops.work.come import come
from nexa_dist.plan.runs.manifest import build_manifest
from nexa_dist.run import files
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact, redact_text
from nexa_dist.shape import record as record_of


def close(run: RunFolder, record: Run, outcome: Outcome, decision: Decision | None = None) -> Outcome:
    """Writes down how the newest attempt ended, before anything is decided from it (unless that was: `decision`);
    answers that with the rank that failed first."""
    attempt, why = record.last, None
    if outcome.state == "failed":
        from nexa_dist.ops.failures.why import blamed  # its table of causes is of no use to a run that goes well

        ended = replace(attempt, state=outcome.state, cause=redact_text(outcome.cause))
        end, words = blamed(run, ended, outcome.end)
        why = redact_text(words)
        if end != outcome.end:
            source = (end.node, f"rank_{end.rank}/attempt_{attempt.attempt}.log")
            outcome = replace(outcome, cause=end.words, end=end, failed_source=source)
    if outcome.behind:
        files.write_json(run.behind, dict(outcome.behind))
    notices = {
        name: {
            "seen_unix": notice.get("seen_unix", notice.get("at")),
            "acts_unix": notice.get("at_unix"),
            "saved_unix": outcome.saved_unix,
        }
        for name, notice in outcome.leaving.items()
    }
    record.close(outcome.state, outcome.cause, outcome.end, why=why, notices=notices, next=decision)
    return outcome


def finish(
    ctx: Context, run: RunFolder, links: Sequence[Link], record: Run, outcome: Outcome, then: Decision | None = None
) -> None:
    """Closes the run, writes its manifest, and brings its outputs here. Safe to do again. `then`: another decision than
    was written down."""
    decision = then or record.last.next
    if record.last.end is None:
        outcome = close(run, record, outcome, decision)
    record.close(outcome.state, outcome.cause, next=decision)
    result = results.read_result(ctx, links, record) if links else {}
    if links and outcome.saved is not None and not result.get("checkpoint"):  # it did not get to its own end
        result["checkpoint"] = _saved(links[0], record, outcome.saved) or newest_in_bucket(links, record.run_id)
    answering = [link for link in links if outcome.left.get(link.node.name, 0) is not None]
    _results(ctx, run, answering, record, result, short=outcome.end.kind in ("budget", "deadline"))


def finish_again(ctx: Context, run: RunFolder, links: Sequence[Link], record: Run) -> None:
    """Do what a controller that died at the end of a run had not come to: its manifest, and its outputs."""
    known = files.read_object(run.manifest) if run.manifest.exists() else {}
    if not known.get("outputs"):
        result = results.read_result(ctx, links, record) if links else {}
        _results(ctx, run, links, record, {"checkpoint": known.get("checkpoint"), **result})


def _results(
    ctx: Context, run: RunFolder, links: Sequence[Link], record: Run, result: dict[str, Any], *, short: bool = False
) -> None:
    """Write the manifest, bring the outputs, and name them in it."""
    config = resolved(recorded_train(record.config, record.run_id))
    logs = str(run.logs.relative_to(ctx.workspace.root))
    manifest = build_manifest(record.to_json(), result, config, logs)
    files.write_json(run.manifest, redact(manifest.model_dump(mode="json")))
    if record.last.state == "failed":
        kept.ask(ctx, links, record)
    if outputs := come(ctx, run, links, record, short=short):
        told = manifest.model_copy(update={"outputs": outputs})
        files.write_json(run.manifest, redact(told.model_dump(mode="json")))
    if manifest.stage != "train" and manifest.status == "completed":
        _register(ctx, run, manifest.cost_usd)


def _register(ctx: Context, run: RunFolder, usd: float) -> None:
    """Make a version of what a stage made. What goes wrong here is said; nexa pull and another look mend it."""
    from nexa_dist.stages.launch import registered  # no training needs it

    try:
        version = registered(ctx.workspace.root, run.path / "outputs", usd)
        ctx.say(f"registered: {version.label}" if version else f"{run.run_id} left no whole output of a stage here")
    except (NexaError, OSError) as error:
        ctx.say(f"warning: the output of {run.run_id} is not registered: {error}")


def _saved(link: Link, record: Run, step: int) -> dict[str, Any] | None:
    """path, step and sha256 of a checkpoint on rank 0's node; None when it cannot be read."""
    path = f"{record.run_dir(link.node.name)}/checkpoints/step_{step:08d}"
    try:
        got = link.ssh.run(link.node, ("cat", f"{path}/manifest.json"))
        if got.code:
            return None
        told = wire.said(link.node.name, "a checkpoint's manifest", got.out, record_of({"sha256": wire.SHA256}))
        return {"path": path, "step": step, "sha256": told["sha256"]}
    except NexaError:
        return None
