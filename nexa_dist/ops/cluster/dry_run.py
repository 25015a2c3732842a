"""Lines of `--dry-run` for provision and teardown: nodes, and Terraform's command lines as they would be called."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.ops.bootstrap import PLAYBOOK
from nexa_dist.ops.cluster.provision import refuse_other_provider, refuse_what_is_expanded
from nexa_dist.ops.cluster.teardown import Doomed
from nexa_dist.ops.context import Context
from nexa_dist.ops.money import budget
from nexa_dist.ops.providers.contract import Wish
from nexa_dist.ops.providers.slurm import provider as slurm
from nexa_dist.run import bundle, stack_sources
from nexa_dist.run.fake import FakeRunner
from nexa_dist.run.runner import Result
from nexa_dist.run.terraform.settings import binary
from nexa_dist.run.terraform.stack import Terraform
from nexa_dist.run.workspace import ClusterFolder
from nexa_dist.secrets import redact
from nexa_dist.traits import TRAITS


def terraform_commands(ctx: Context, folder: ClusterFolder, stack: str, act: Callable[[Terraform], None]) -> list[str]:
    """The programs that `act` would start, recorded by a runner that starts none. What is written for Terraform goes to
    a folder that is thrown away."""
    fake = FakeRunner(otherwise=Result((), 0))
    with tempfile.TemporaryDirectory() as scratch:
        act(Terraform(fake, binary(ctx.workspace.root), Path(scratch), stack))
    return [f"would run: {shlex.join(call.argv).replace(scratch, str(folder.terraform))}" for call in fake.calls]


def provision(ctx: Context, config: ClusterConfig, *, saved: bool = False) -> list[str]:
    """Lines that say what `ops.cluster.provision` would make and start; with `saved` it applies a plan. Raises what
    that would raise before it makes anything."""
    refuse_what_is_expanded(ctx)
    folder, names = ctx.workspace.cluster(config.name), config.node_names
    refuse_other_provider(folder, config)
    verb = "bring in line" if folder.json.exists() else "make"
    settings = redact(config.model_dump(mode="json", exclude_unset=True))
    lines = [f"would {verb} cluster {config.name}: {len(names)} nodes, {sum(config.gpus)} ranks, {config.provider}"]
    hosts = [f", {host.user + '@' if host.user else ''}{host.host}:{host.port}" for host in config.cluster]
    for at, (name, gpus) in enumerate(zip(names, config.gpus, strict=True)):
        lines.append(f"  {name}: {gpus} ranks{hosts[at] if hosts else ''}")
    lines.append(f"would write: {folder.path / 'config.json'}: {json.dumps(settings)}")

    def act(terraform: Terraform) -> None:
        terraform.prepare(bundle.root() / "terraform", settings)
        (terraform.apply_plan if saved or config.stack else terraform.apply)(ctx.detail)

    if config.stack:
        stack_sources.read(Path(config.stack))
        lines.append(f"would plan: the stack {config.stack}, and judge the plan before exactly that is applied")
    if config.traits.scheduled:
        wish = Wish(budget.allowance(ctx, folder, config))
        return [*lines, *slurm.dry_run(ctx, folder, config, wish), f"would check: nexa diag of {', '.join(names)}"]
    if hosts:
        lines.append("would pin: the host key of each host, once the file, known_hosts or you vouch for it")
    else:
        lines += terraform_commands(ctx, folder, config.provider, act)
    lines.append(f"would run: ansible-playbook {bundle.root() / PLAYBOOK} on {', '.join(names)}")
    return [*lines, f"would check: nexa diag of {', '.join(names)}"]


def teardown(ctx: Context, doomed: Doomed, without: list[str], *, delete_bucket: bool) -> list[str]:
    """Lines that say what `ops.cluster.teardown` would end."""
    folder, scope = doomed.folder, doomed.scope
    lines = [f"would destroy {doomed}", *(f"  {node}" for node in doomed.nodes)]
    lines += [f"would give up: {name}" for name in without]
    if not TRAITS[doomed.provider].makes:
        lines.append("would take away what provision added to these hosts, and nothing else")
    elif TRAITS[doomed.provider].scheduled:
        lines.append(f"would run: scancel of the jobs that squeue --name={slurm.name(ctx, folder)} lists")
    else:
        lines += terraform_commands(ctx, folder, doomed.provider, lambda terraform: terraform.destroy(ctx.detail))
    if scope:
        lines.append(f"would end: what is tagged with cluster {scope.name} and owner {scope.owner} in {scope.region}")
    if scope and scope.bucket:
        lines.append(f"would {'delete' if delete_bucket else 'keep'}: bucket {scope.bucket}")
    return [*lines, f"would move: {folder.path} to {ctx.workspace.root / '.nexa' / 'history'}, with a receipt"]
