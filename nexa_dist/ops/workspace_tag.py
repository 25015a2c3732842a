"""The name of this workspace, on what it makes and on what others may ask it of."""

from __future__ import annotations

import os
import socket
import uuid

from nexa_dist.ops.context import Context
from nexa_dist.plan.aws.scope import workspace_tag
from nexa_dist.run import files, trust


def our_tag(ctx: Context) -> str:
    """The name of this workspace, made at its first use and kept; in a dry run one that nothing has."""
    path = ctx.workspace.root / ".nexa" / "workspace"
    if not path.exists():
        user = os.environ.get("USER") or str(os.getuid())
        name = workspace_tag(user, socket.gethostname(), uuid.uuid4().hex[:8])
        if ctx.dry:
            return name
        trust.claim(ctx.workspace.root)
        files.write_text(path, name + "\n")
    return path.read_text(encoding="ascii").strip()
