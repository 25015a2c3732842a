"""The user's own Terraform stack on this machine: read, consented to, copied into the cluster's folder.

Terraform starts the programs that a stack names (local-exec, external, providers), so its content needs the user's
consent as an ssh_config with programs does. What is applied is the copy: teardown needs nothing but it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nexa_dist.errors import UsageError
from nexa_dist.run import files
from nexa_dist.run.ssh import consent

LARGEST, MOST = 16 << 20, 2000
"""Bytes and files of a stack: more is a folder that was named by mistake."""
SKIPPED = frozenset({".terraform", ".git", "__pycache__"})
STATE = (".tfstate", ".tfstate.backup")
OURS = frozenset({"backend_override.tf.json", ".terraform.lock.hcl"})
"""Files that the copy has beside the sources."""


def read(stack: Path) -> dict[str, bytes]:
    """Every file of the stack by its relative path. Raises UsageError when it is none."""
    if not stack.is_dir():
        raise UsageError(f"stack: {stack} is no folder", hint="a relative path begins at the cluster's file")
    found: dict[str, bytes] = {}
    for folder, below, names in os.walk(stack, followlinks=False):
        below[:] = sorted(name for name in below if name not in SKIPPED)
        for path in (Path(folder, name) for name in sorted(names) if not name.endswith(STATE)):
            if path.name.endswith((".tfvars", ".tfvars.json")):
                raise UsageError(
                    f"{path}: values come from `variables` of the cluster's file alone",
                    hint="move them there, and secrets into TF_VAR_NAME of your environment",
                )
            try:
                found[str(path.relative_to(stack))] = path.read_bytes()
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from None
            if len(found) > MOST or sum(map(len, found.values())) > LARGEST:
                raise UsageError(
                    f"stack: {stack} holds more than {MOST} files or {LARGEST >> 20} MiB",
                    hint="name the folder that has the .tf files and nothing else",
                )
    if not any(name.endswith((".tf", ".tf.json")) and "/" not in name for name in found):
        raise UsageError(f"stack: {stack} has no .tf file", hint="name the folder in which `terraform init` runs")
    return found


def top(sources: Mapping[str, bytes]) -> dict[str, str]:
    """The root module's own files, as text."""
    names = [name for name in sources if "/" not in name and name.endswith((".tf", ".tf.json"))]
    return {name: sources[name].decode(errors="replace") for name in names}


def refuse_unconsented(stack: Path, sources: Mapping[str, bytes]) -> None:
    """Raises Unconsented when the user was never asked about this content."""
    if not consent.note(str(stack), _digest(sources)).exists():
        raise consent.Unconsented(
            f"Terraform would run the stack {stack}, and the programs that it names, on this machine",
            hint=f"read it; nexa trust {shlex.quote(str(stack))} allows it until a file of it changes",
            allow=partial(allow, stack, sources),
        )


def allow(stack: Path, sources: Mapping[str, bytes]) -> None:
    """Keeps the user's word for the stack as it is now."""
    consent.keep(str(stack), _digest(sources))


def _digest(sources: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(sources.items()):
        digest.update(b"%d\0%s%d\0%s" % (len(os.fsencode(name)), os.fsencode(name), len(data), data))
    return digest.hexdigest()


def copy(sources: Mapping[str, bytes], stack: Path, to: Path) -> None:
    """Makes `to` hold exactly these files. One that is cut off half way is done again by the next."""
    for name, data in sources.items():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists() or path.read_bytes() != data:
            files.write_bytes(path, data, 0o700 if os.access(stack / name, os.X_OK) else 0o600)
    for path in sorted(to.rglob("*")):
        if not path.is_dir() and str(path.relative_to(to)) not in {*sources, *OURS}:
            path.unlink()
