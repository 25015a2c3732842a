"""Folders that can hold a workspace: their path reaches ssh_config, Ansible and Terraform."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from nexa_dist.config.yaml.scalars import shown
from nexa_dist.errors import UsageError

# ssh_config expands % and quotes with ", Ansible renders {{ }}, Terraform ${ } and %{ }, shells $ and `.
EXPANDED = frozenset('"\\$`%{}')


def bad_characters(text: str) -> str:
    """Characters of `text` that a tool would expand or that cannot be printed: each once, in order."""
    bad = (c for c in text if c in EXPANDED or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp"))
    return "".join(dict.fromkeys(bad))


def safe_path(path: Path) -> None:
    """Raises UsageError when the absolute path has a character that ssh, Ansible or Terraform expand.

    Spaces, apostrophes and letters of any language are fine.
    """
    text = str(path.absolute())
    if bad := bad_characters(text):
        listed = " ".join(shown(char) for char in bad[:10])
        raise UsageError(
            f"the path {shown(text, 200)} contains {listed}",
            hint="use a folder whose path has none of these: ssh, Ansible or Terraform would expand them",
        )
