"""The user's word, asked at the terminal: for what costs or ends something, and for programs that files name."""

from __future__ import annotations

from argparse import Namespace as Arguments
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_dist.errors import UsageError
from nexa_dist.model import Cluster
from nexa_dist.ops.context import Context
from nexa_dist.run import stack_sources, trust
from nexa_dist.run.runner import Runner
from nexa_dist.run.ssh import consent
from nexa_dist.ui import terminal

if TYPE_CHECKING:
    from nexa_dist.config.cluster import ClusterConfig
    from nexa_dist.config.parts.notify import Notify


def refuse_foreign(runner: Runner, root: Path, above: bool, *, ask: bool) -> None:
    try:
        trust.refuse_foreign(runner, root, above=above)
    except trust.Foreign as error:
        if not (ask and error.cure) or not answered_yes(f"{error}\nis it yours?"):
            raise
        trust.adopt(root)
        trust.refuse_foreign(runner, root, above=above)


def answered_yes(question: str) -> bool:
    """Asks at the terminal; no without one."""
    return terminal.interactive() and terminal.confirm(terminal.plain_lines(question))


def agreed(args: Arguments, question: str, refusal: str) -> None:
    """Asks before an act that costs or ends something, unless -y was given. Raises UsageError, with the `refusal`, when
    the answer is no or nobody is there to give one."""
    if not args.yes and not answered_yes(question):
        raise UsageError(refusal, hint="-y says yes")


def _ask(check: Callable[[], object], dry: bool = False) -> None:
    """The user's word for what `check` refuses without. Raises Unconsented."""
    try:
        check()
    except consent.Unconsented as error:
        if dry or not answered_yes(f"{error}\n{error.question}"):
            raise
        error.allow()


def consented(ctx: Context, cluster: Cluster) -> Cluster:
    """The same cluster, once the user agreed to the programs that its ssh_config names. Raises Unconsented."""
    if cluster.ssh_config:
        _ask(lambda: consent.refuse_unconsented(cluster.ssh_config), ctx.dry)
    return cluster


def consent_to_stack(config: ClusterConfig) -> None:
    """The user's word for what Terraform starts of a stack of their own. Raises UsageError."""
    if config.stack:
        stack = Path(config.stack)
        _ask(lambda: stack_sources.refuse_unconsented(stack, stack_sources.read(stack)))


def whom_to_tell(ctx: Context, cluster: Cluster, named: str | None) -> Sequence[Notify] | None:
    """`notify` of the cluster, with the user's word for the commands in it; None where nothing is known of it. Raises
    UsageError."""
    from nexa_dist.ops.notify import targets

    rows = targets.of_cluster(ctx, cluster.name, named)
    consent_to_commands(ctx, rows or ())
    return rows


def consent_to_commands(ctx: Context, rows: Sequence[Notify]) -> None:
    """The user's word for commands that `notify` names. Raises UsageError."""
    from nexa_dist.ops.notify import targets

    _ask(lambda: targets.refuse_unconsented(ctx.workspace.root, rows), ctx.dry)
