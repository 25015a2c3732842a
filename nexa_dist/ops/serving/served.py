"""nexa serve: a run's model as a run of its own, and its server's state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nexa_dist.config.train import TrainConfig, name_of
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.active_runs import recorded
from nexa_dist.ops.context import Context
from nexa_dist.ops.serving.aliases import Aliases
from nexa_dist.ops.work import pull, pulled
from nexa_dist.run.record import Run
from nexa_dist.run.ssh.connections import Link, reach, session
from nexa_dist.run.workspace import RunFolder
from nexa_dist.shape import Strange, flag, lenient, number, one_of, parsed, record, text, whole
from nexa_dist.train import checkpoint
from nexa_dist.wire import Faulty

LOOPBACK = "127.0.0.1"
STAGE, HOLD = "serve", "nexa_dist.stages.serve.hold"
STATE_FILE = "serve.json"
"""Written by HOLD in the folder of the run; a test holds that the names are the same."""
FIGURES = ("requests", "prompt_tokens", "completion_tokens", "tokens_per_s")
STATE = record(
    {"state": one_of("loading", "ready", "failed", "stopped"), "at": number()},
    {
        "engine": one_of("vllm", "transformers"), "why": text(500), "cause": text(2000),
        "host": text(64, "[0-9A-Za-z.:-]+"), "port": whole(1, 65535), "has_key": flag,
        "model": text(1024), "api": one_of("chat", "completions"), "attempt": whole(1, 1 << 20),
        "smoke": record({"text": text(4096), "seconds": number(0.0)}),
        "requests": whole(), "prompt_tokens": whole(), "completion_tokens": whole(),
        "tokens_per_s": lenient(number(0.0)),
    },
)  # fmt: skip
"""What a node's serve.json may say."""
READY = ("host", "port", "model", "api", "smoke")
"""What it must say of a server that is ready."""


@dataclass(frozen=True)
class Wish:
    """What is to be served, and how."""

    what: str
    """A run, an alias, or a folder of a model."""
    step: int | None = None
    node: str = ""
    engine: str = "auto"
    host: str = LOOPBACK
    key_env: str = ""
    max_model_len: int | None = None
    startup_s: float = 900.0
    max_hours: float | None = None
    budget_usd: float | None = None


@dataclass(frozen=True)
class Model:
    """A model that can be served: its folder here, and where it is from."""

    folder: Path
    label: str
    run: str = ""
    step: int | None = None
    sha256: str = ""
    """Of the checkpoint, by its manifest."""


def find_model(ctx: Context, wish: Wish) -> Model:
    """The model of a run (its newest checkpoint, brought here, unless a step is named), of an alias, or in a folder.
    Raises NexaError for what has none in the form of transformers."""
    aliased = Aliases(ctx.workspace.root).get(wish.what)
    if aliased is None and Path(wish.what).is_dir():
        folder = Path(wish.what).absolute()
        return Model(_of_transformers(folder, wish.what), name_of(folder.name))
    run = ctx.workspace.run(aliased.run if aliased else wish.what)
    step = aliased.step if aliased else wish.step
    folder, found = _checkpoint(ctx, run, step)
    digest = checkpoint.digest(folder) if folder.exists() else ""
    if aliased and digest and aliased.sha256 not in ("", digest):
        raise NexaError(
            f"{wish.what} is step {step} of {run.run_id} as {aliased.sha256[:16]}, and {folder} is {digest[:16]}",
            hint=f"an attempt saved that step anew; nexa promote {run.run_id} --to {wish.what} judges what is there",
        )
    label = name_of(run.run_id.split("_", 3)[-1])
    return Model(_of_transformers(folder, run.run_id), label, run.run_id, found, digest)


def _checkpoint(ctx: Context, run: RunFolder, step: int | None) -> tuple[Path, int]:
    """A checkpoint of a run on this machine, and its step. In a dry run it may not be here yet."""
    answer = pull.pull(ctx, run, pull.Wish(run.path, step))
    if answer.checkpoint:
        return Path(answer.checkpoint["path"]), int(answer.checkpoint["step"])
    if ctx.dry and answer.found:
        one = answer.found[0]
        ctx.say(f"would bring: the checkpoint of step {one.step} from {one.where}")
        return pulled.step_in(run.path, one.step), one.step
    here = {int(path.name[5:]): path for path in (run.path / "checkpoints").glob("step_*") if path.name[5:].isdecimal()}
    wanted = step if step is not None else max(here, default=-1)
    if wanted not in here:
        why = answer.why or "; ".join(answer.silent.values()) or "it has saved none"
        raise NexaError(f"{run.run_id}: no checkpoint can be had: {why}", hint="nexa pull lists what there is")
    return here[wanted], wanted


def _of_transformers(folder: Path, what: str) -> Path:
    """The folder with config.json: of a checkpoint itself, or `model/` in one of shards."""
    found = next((one for one in (folder, folder / "model") if (one / "config.json").is_file()), None)
    if found is None and folder.exists():
        cure = "merge it into its model" if (folder / "adapter_config.json").exists() else "config.json is missing"
        raise UsageError(f"{what} has no model of transformers in {folder}", hint=cure)
    return found or folder


def as_run(wish: Wish, model: Model, cluster: Cluster) -> TrainConfig:
    """The run that serves it: one process on one node, which starts the server as its child. Raises UsageError for a
    wish that no run can have."""
    node = next((one for one in cluster.nodes if wish.node in ("", one.name)), cluster.nodes[0])
    has_gpus = bool(node.gpus) and not cluster.traits.one_machine  # whose nodes have none, whatever their file says
    words = ["--model", "${NEXA_DATA}/model", "--name", model.label, "--engine", wish.engine, "--host", wish.host]
    words += ["--startup-s", f"{wish.startup_s:g}"]
    words += ["--key-env", wish.key_env] if wish.key_env else []
    words += ["--max-model-len", str(wish.max_model_len)] if wish.max_model_len else []
    told = {
        "name": model.label,
        "stage": STAGE,
        "module": HOLD,
        "args": tuple(words),
        "expand": True,
        "data": {"model": str(model.folder)},
        # vLLM where there is a GPU for it; what light has is enough for transformers serve.
        "environment": "infer" if has_gpus and wish.engine != "transformers" else "light",
        "nodes": (node.name,),
        "nproc_per_node": 1,
        "secrets": (wish.key_env,) if wish.key_env else (),
        "hang_timeout_s": None,  # one that nobody asks does nothing
        "max_hours": wish.max_hours,
        "budget_usd": wish.budget_usd,
        "install": False,
        "wandb": "off",
        "tags": (f"model:{model.run}", f"step:{model.step}") if model.run else (),
    }
    try:
        return TrainConfig.model_validate(told)
    except ValidationError as error:
        one = error.errors()[0]
        raise UsageError(f"{one['loc'][0] if one['loc'] else 'nexa serve'}: {one['msg']}") from None


def state_of(link: Link, run_dir: str) -> dict[str, Any] | None:
    """What the server says of itself; None before it has said anything. Raises Faulty for what makes no sense."""
    answer = link.ssh.run(link.node, ("cat", f"{run_dir}/{STATE_FILE}"), timeout_s=30.0)
    if answer.code:
        return None
    try:
        found: dict[str, Any] = parsed(answer.out, STATE, 1 << 16)
    except Strange as error:
        raise Faulty(link.node.name, STATE_FILE, str(error)) from None
    if found["state"] == "ready" and (missing := [name for name in READY if name not in found]):
        raise Faulty(link.node.name, STATE_FILE, f"it is ready without {', '.join(missing)}")
    return found


def served(ctx: Context) -> list[RunFolder]:
    """Runs of this workspace that serve a model and go on."""
    known = [(run, record) for run, record in recorded(ctx, quiet=True) if record.going_on]
    return [run for run, of in known if (of.config.get("stage"), of.config.get("module")) == (STAGE, HOLD)]


def what_is_served(run: Run) -> tuple[str, int | None]:
    """The run whose model it serves, and the step; empty for a folder."""
    told = dict(tag.split(":", 1) for tag in run.config.get("tags", ()) if ":" in tag)
    return told.get("model", ""), int(told["step"]) if told.get("step", "").isdecimal() else None


def the_served(ctx: Context, named: str) -> RunFolder:
    """The served run of that name, or the only one. Raises UsageError."""
    known = served(ctx)
    found = [run for run in known if named in run.run_id]
    if len(found) != 1:
        names = ", ".join(run.run_id for run in found or known) or "none"
        raise UsageError(
            f"{'which' if found else 'no'} served run{f' matches {named!r}' if named else ''}: {names}",
            hint="nexa serve status lists them",
        )
    return found[0]


@contextlib.contextmanager
def linked(ctx: Context, run: Run) -> Iterator[Link]:
    """A link to the node that serves. Raises NexaError where it does not answer."""
    with session(ctx.runner, run.cluster) as ssh:
        links, silent = reach(ssh, [node for node in run.cluster.nodes if node.name in run.last.ranks])
        if not links:
            raise NexaError("; ".join(silent.values()) or "its node is gone")
        yield links[0]
