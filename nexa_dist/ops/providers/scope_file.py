"""Scope file of an aws cluster, as its provision wrote it. Apart from aws/scope.py: a verb that shows a bill reads it
too, and does not wait until all that makes clusters is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nexa_dist.run.workspace import ClusterFolder, loaded

if TYPE_CHECKING:
    from nexa_dist.plan.aws.scope import AwsScope


def scope_file(folder: ClusterFolder) -> Path:
    return folder.path / "site.json"


def known_scope(folder: ClusterFolder) -> AwsScope | None:
    """Scope that an earlier provision wrote down; None when there was none. Raises NexaError when it is torn."""
    path = scope_file(folder)
    if not path.exists():
        return None
    from nexa_dist.plan.aws.scope import AwsScope

    hint = "nexa teardown --cluster FILE, with the cluster's file, finds everything by its tags"
    return loaded(path, AwsScope, hint)
