"""nexa data list, show, diff, verify: versions of what stages made."""

from __future__ import annotations

from argparse import Namespace as Arguments
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_FAILED, EXIT_OK, UsageError
from nexa_dist.run import files
from nexa_dist.stages.registry import Registry, Version
from nexa_dist.stages.whole import MANIFEST
from nexa_dist.ui import terminal
from nexa_dist.verbs._shared import context

COLUMNS = ("version", "stage", "rows", "mb", "made", "sha256", "parents")
MOST = {"list": 1, "show": 1, "verify": 100, "diff": 2}


def data(args: Arguments) -> int:
    registry = Registry(context(acts=False).workspace.root)
    if len(args.versions) > MOST[args.action] or (args.action == "diff" and len(args.versions) < 2):
        raise UsageError(
            f"nexa data {args.action} takes {MOST[args.action]} versions", hint="nexa data list names them"
        )
    if args.picture and args.action != "diff":
        raise UsageError("--picture belongs to nexa data diff")
    return {"list": _list, "show": _show, "diff": _diff, "verify": _verify}[args.action](registry, args)


def _list(registry: Registry, args: Arguments) -> int:
    versions = registry.versions(*args.versions)
    if args.json:
        terminal.emit([one.to_json() for one in versions])
    else:
        terminal.table([_row(one) for one in versions], COLUMNS)
    return EXIT_OK


def _row(version: Version) -> dict[str, Any]:
    import time

    return {
        "version": version.label,
        "stage": version.stage,
        "rows": version.counts.get("rows", version.counts.get("step", "")),
        "mb": round(float(version.provenance.get("bytes") or 0) / 1e6, 3),
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.created_unix)),
        "sha256": version.sha256[:16],
        "parents": " ".join(version.provenance.get("inputs", {}).values()),
    }


def _show(registry: Registry, args: Arguments) -> int:
    if not args.versions:
        raise UsageError("nexa data show takes a version", hint="nexa data list names them")
    version = registry.find(args.versions[0])
    folder = registry.path(version)
    told = {**version.to_json(), "path": str(folder), "manifest": files.read_object(folder / MANIFEST)}
    if args.json:
        terminal.emit(told)
        return EXIT_OK
    terminal.out(f"{version.label}: {version.stage}, sha256 {version.sha256}")
    terminal.out(f"folder: {folder}")
    for name, of in version.provenance.get("inputs", {}).items():
        terminal.out(f"from {name}: {of} ({version.parents.get(name, '')[:16]})")
    for key in ("counts", "schema"):
        for name, value in getattr(version, key).items():
            terminal.out(f"{key}.{name}: {value}")
    for name, row in told["manifest"]["outputs"]["files"].items():
        terminal.out(f"{row['sha256'][:16]} {row['bytes']:>12} {name}")
    return EXIT_OK


def _verify(registry: Registry, args: Arguments) -> int:
    """All versions, or those that are named."""
    versions = [registry.find(name) for name in args.versions] or registry.versions()
    unique = {one.label: one for one in versions}
    found = {label: list(registry.faults(one)) for label, one in unique.items()}
    if args.json:
        terminal.emit(found)
    for label, faults in found.items():
        for fault in faults:
            terminal.error(f"{label}: {fault}")
        if faults:
            terminal.say(f"hint: {registry.cure(unique[label])}")
    bad = sum(1 for faults in found.values() if faults)
    terminal.say(f"{len(found)} versions read: {f'{bad} are damaged' if bad else 'every byte is as it was registered'}")
    return EXIT_FAILED if bad else EXIT_OK


def _diff(registry: Registry, args: Arguments) -> int:
    from nexa_dist.stages.query import compared  # polars, which few verbs need

    old, new = (registry.find(name) for name in args.versions)
    told = compared(registry, old, new)
    if args.picture:
        from nexa_dist.ui.report.drift import drawn

        files.write_text(Path(args.picture), drawn(told["drift"], old.label, new.label), 0o644)
    if args.json:
        terminal.emit(told)
        return EXIT_OK
    for key in ("config", "counts", "schema"):
        for name, (before, after) in told[key].items():
            terminal.out(f"{key}.{name}: {before} → {after}")
    rows = [{"column": name, **{key: one[key] for key in ("of", "psi", "ks")}} for name, one in told["drift"].items()]
    terminal.table(rows, ("column", "of", "psi", "ks"))
    return EXIT_OK
