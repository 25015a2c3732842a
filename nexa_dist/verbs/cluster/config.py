"""nexa config: a config file as resolved, or every error in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_dist.config.load import kind_of, load_cluster, load_train, resolved
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.ui import terminal

Arguments = argparse.Namespace


def config(args: Arguments) -> int:
    if args.schema:
        from nexa_dist.config.json_schema import json_schema

        terminal.emit(json_schema(args.schema))
        return EXIT_OK
    if not args.file:
        raise UsageError("nexa config needs a FILE, or --schema")
    path = Path(args.file)
    load: Callable[..., Any] = load_cluster if kind_of(path) == "cluster" else load_train
    found = resolved(load(path, args.set))
    if args.json:
        terminal.emit(found)
    else:
        import yaml

        terminal.out(yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())
    return EXIT_OK
