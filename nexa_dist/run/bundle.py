"""Bundle of Terraform stacks, roles, playbooks, configs and locks: the repository, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def root() -> Path:
    """Folder that holds terraform/, ansible/, playbooks/, configs/, docker/ and scripts/run_sync.sh."""
    inside = PACKAGE / "_bundle"
    return inside if inside.is_dir() else PACKAGE.parent
