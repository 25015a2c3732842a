"""nexa ssh: a shell, or a command, on a node."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace as Arguments

from nexa_dist.ops.cluster import provision as provisioning
from nexa_dist.run.ssh.connections import Ssh
from nexa_dist.verbs._shared import context, find_cluster


def ssh(args: Arguments) -> int:
    ctx = context(cluster=args.cluster)
    cluster = find_cluster(ctx, args.cluster)
    node = provisioning.node_of(cluster, args.node)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    argv = Ssh(ctx.runner, cluster, "/nonexistent").argv(
        node,
        "-oControlMaster=no",
        "-oControlPath=none",
        "-oBatchMode=no",
        *(["-t"] if not command and sys.stdin.isatty() else []),
    )
    # One word goes to the node's shell as it is, as with ssh: 'ls | wc -l'.
    said = command if len(command) == 1 else [shlex.join(command)] if command else []
    os.execvp(argv[0], [*argv, *said])
