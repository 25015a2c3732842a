"""nexa config: a config file as resolved, or every error in it."""

from __future__ import annotations

from argparse import Namespace as Arguments
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_dist.config.load import Reading, kind_of, read_cluster, read_other, read_train, resolved
from nexa_dist.config.pipeline import PipelineConfig, is_pipeline
from nexa_dist.config.yaml.file import display_name, parse_yaml, read_bytes
from nexa_dist.config.yaml.tree import PathKey
from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.stages.load import read_stage, stage_of
from nexa_dist.ui import terminal
from nexa_dist.verbs._training import plan_file

MARGIN = 60
"""Column of the comments, at most."""


def config(args: Arguments) -> int:
    if args.schema:
        from nexa_dist.config import json_schema
        from nexa_dist.stages import table

        terminal.emit(table.json_schema() if args.schema == "stage" else json_schema.json_schema(args.schema))
        return EXIT_OK
    if not args.file:
        raise UsageError("nexa config needs a FILE, or --schema")
    path = Path(args.file)
    reading: Reading[Any]
    what = ""
    if is_pipeline(parse_yaml(read_bytes(path), display_name(path)).data):
        reading, what = read_other(path, PipelineConfig, overrides=args.set), "a pipeline"
    elif (stage := stage_of(path)) != "train":
        reading, what = read_stage(path, args.set), f"of the stage {stage}"
    elif kind_of(path) == "cluster":
        reading, what = read_cluster(path, args.set), "a cluster's"
    else:
        reading = read_train(path, args.set, plan=plan_file(args.plan))
    if what and args.plan:
        raise UsageError("--plan goes over a train file", hint=f"{path} is {what}")
    found = resolved(reading.config)
    if args.json:
        terminal.emit(found)
    else:
        for line in _annotated(found, reading.places):
            terminal.out(line)
        if reading.left_out:
            terminal.out(f"# left out of plan {args.plan}: {', '.join(reading.left_out)}, which {path} has not")
    return EXIT_OK


def _annotated(found: dict[str, Any], places: Mapping[PathKey, str]) -> list[str]:
    """The config as YAML, each line with a comment: file and line, `--set`, or that it is the default."""
    import yaml

    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10**9)
    lines, marks = text.splitlines(), dict[int, str]()

    def visit(node: Any, at: PathKey) -> None:
        children = node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else ()
        for index, child in enumerate(children):
            key, value = child if isinstance(child, tuple) else (child, child)
            path = (*at, key.value if isinstance(child, tuple) else index)
            place = places.get(path, "" if isinstance(path[-1], int) else "default")
            whole = value.start_mark.line > key.start_mark.line or value.start_mark.line == value.end_mark.line
            inside = isinstance(value, yaml.MappingNode) and value.value and place == "default"
            if place and whole and not inside:
                marks[key.start_mark.line] = place
            visit(value, path)

    visit(yaml.compose(text, Loader=yaml.SafeLoader), ())
    width = min(max(map(len, lines)), MARGIN)
    return [f"{line:<{width}}  # {marks[n]}" if n in marks else line for n, line in enumerate(lines)]
