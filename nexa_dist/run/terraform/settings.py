"""Program of Terraform, and the settings of its command line: where the providers come from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.run import files

MIRROR_HOST = "registry.terraform.io"


def binary(workspace: Path) -> str:
    """NEXA_TERRAFORM, then PATH, then what scripts/quickstart downloaded. Raises NexaError."""
    named = os.environ.get("NEXA_TERRAFORM")
    for candidate in (named, "terraform", "tofu", str(workspace / ".nexa" / "bin" / "terraform")):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    raise NexaError(
        "neither terraform nor tofu is on PATH", hint="scripts/quickstart downloads a pinned one into .nexa/bin"
    )


def mirror() -> str | None:
    """Folder with providers on this machine: NEXA_TF_MIRROR, or one below /opt. Terraform finds its own by itself."""
    named = os.environ.get("NEXA_TF_MIRROR")
    if named:
        return str(Path(named).absolute())
    return next((str(found.parent) for found in sorted(Path("/opt").glob(f"*/{MIRROR_HOST}"))), None)


def cli_config(folder: Path) -> Path:
    """Write a config of Terraform's command line for a user who has none: providers from a mirror on this machine
    where there is one, else downloaded once."""
    here, path = mirror(), folder / "terraformrc"
    if here:
        quoted = json.dumps(here).replace("${", "$${").replace("%{", "%%{")
        text = (
            f"provider_installation {{\n  filesystem_mirror {{\n    path    = {quoted}\n"
            f'    include = ["{MIRROR_HOST}/hashicorp/*"]\n  }}\n'
            f'  direct {{\n    exclude = ["{MIRROR_HOST}/hashicorp/*"]\n  }}\n}}\n'
        )
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexa" / "terraform-plugins"
        cache.mkdir(parents=True, exist_ok=True)
        text = f"plugin_cache_dir = {json.dumps(str(cache))}\nplugin_cache_may_break_dependency_lock_file = true\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


def init_key(program: str, sources: Path, env: Mapping[str, str]) -> str:
    """SHA-256 of all that `terraform init` looks at: the program, where providers come from, the sources and their
    backend. Not of its lock file, which it writes."""
    told = os.stat(program)
    running = os.environ.get("TF_REATTACH_PROVIDERS")  # it installs none of those
    digest = hashlib.sha256(json.dumps([program, told.st_size, told.st_mtime_ns, running]).encode())
    config = Path(env.get("TF_CLI_CONFIG_FILE") or os.environ.get("TF_CLI_CONFIG_FILE") or Path.home() / ".terraformrc")
    for path in (config, *sorted(sources.rglob("*"))):
        if path.is_file() and path.name != ".terraform.lock.hcl" and path.suffix != ".pyc":
            digest.update(json.dumps([str(path), hashlib.sha256(path.read_bytes()).hexdigest()]).encode())
    return digest.hexdigest()
