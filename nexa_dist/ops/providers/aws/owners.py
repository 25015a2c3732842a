"""Owners whose resources a sweep looks for: every owner by whose name something may have been made from here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nexa_dist.config.fields import check_owner
from nexa_dist.config.yaml.file import parse_yaml, read_bytes
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.context import Context
from nexa_dist.ops.providers.aws.end import claims
from nexa_dist.ops.providers.aws.scope import owner_wanted
from nexa_dist.ops.providers.scope_file import known_scope
from nexa_dist.run.aws.client import Identity

FILES = ("*.yaml", "*.yml", "configs/**/*.yaml", "configs/**/*.yml")
MOST_FILES = 500


@dataclass(frozen=True)
class Whose:
    """Owners, the first of them who we are now; and what is not looked for, with the way to do so."""

    owners: tuple[str, ...]
    unlooked: tuple[str, ...] = ()
    live: frozenset[str] = frozenset()
    """Clusters that this workspace knows, of this account or of one that nobody can tell."""
    elsewhere: frozenset[str] = frozenset()
    """Clusters that it knows, of other accounts: what has their names here is not what was recorded."""


def whose(ctx: Context, who: Identity, only: Sequence[str] = (), named: Sequence[str] = ()) -> Whose:
    """The owners `named`; else NEXA_OWNER's, the identity's, those of cluster files below the workspace and those of
    its records. Raises UsageError for a name that is no owner's."""
    unlooked: list[str] = []
    live, elsewhere, recorded = _recorded(ctx, who, unlooked)
    known = {**_ourselves(who, bool(named)), **recorded, **_of_files(ctx.workspace.root, unlooked)}
    wanted = tuple(dict.fromkeys(map(_checked, named))) or tuple(known)
    unlooked += [f"owner {owner}{of} (--owner {owner!r})" for owner, of in known.items() if owner not in wanted]
    if who.team and who.team not in wanted:
        unlooked.append(
            f"owner {who.team}: what an older nexa made for everybody with this role (--owner {who.team!r})"
        )
    if only:
        unlooked.append(f"regions other than {', '.join(only)}")
    unlooked += [
        f"bucket {path.name}, kept until you delete it" for path in _folders(ctx.workspace.root / ".nexa" / "buckets")
    ]
    return Whose(wanted, tuple(unlooked), frozenset(live), frozenset(elsewhere))


def _checked(owner: str) -> str:
    try:
        return check_owner(owner)
    except ValueError as error:
        raise UsageError(f"--owner {owner!r}: {error}") from None


def _ourselves(who: Identity, named: bool) -> dict[str, str]:
    """NEXA_OWNER, and who we are without it; nothing can carry a name that is no owner's."""
    found = {} if named else {owner_wanted(None, who): ""}
    with contextlib.suppress(ValueError):
        found.setdefault(check_owner(who.who), "")
    return found


def _folders(above: Path) -> list[Path]:
    return sorted(path for path in above.iterdir() if path.is_dir()) if above.is_dir() else []


def _recorded(ctx: Context, who: Identity, unlooked: list[str]) -> tuple[set[str], set[str], dict[str, str]]:
    """Clusters that live here and in other accounts, and the owners of those here with the cluster of each."""
    live: set[str] = set()
    elsewhere: set[str] = set()
    owners: dict[str, str] = {}

    def take(cluster: str, account: str, owner: str) -> None:
        (live if account == who.account else elsewhere).add(cluster)
        if account == who.account:
            owners.setdefault(owner, f" of cluster {cluster}")
        else:
            unlooked.append(
                f"cluster {cluster} of owner {owner}: it is in account {account}, these credentials are of "
                f"{who.account} (AWS_PROFILE)"
            )

    for folder in ctx.workspace.clusters():
        try:
            scope = known_scope(folder)
        except NexaError:  # damaged: whose it is cannot be told, so nothing of it is an orphan
            live.add(folder.name)
            unlooked.append(f"cluster {folder.name}, unless its owner is one of these: its site.json is damaged")
            scope = None
        if scope:
            take(scope.cluster, scope.account, scope.owner)
    for path in [
        *(folder.path for folder in ctx.workspace.clusters()),
        *_folders(ctx.workspace.root / ".nexa/history"),
    ]:
        for claim in claims(path):
            if claim["account"] == who.account:
                owners.setdefault(claim["owner"], f" of cluster {path.name}")
    return live, elsewhere, owners


def _of_files(root: Path, unlooked: list[str]) -> dict[str, str]:
    """Owners that cluster files name, with the file of each."""
    found: dict[str, str] = {}
    files = (path for pattern in FILES for path in sorted(root.glob(pattern)) if path.is_file())
    for count, path in enumerate(files):
        if count == MOST_FILES:
            unlooked.append(f"owners of files after the first {MOST_FILES} below {root}")
            break
        name = str(path.relative_to(root))
        try:
            raw = read_bytes(path)
            data = parse_yaml(raw, name).data if b"owner" in raw and b"aws" in raw else {}
            if data.get("provider") == "aws" and isinstance(owner := data.get("owner"), str):
                found.setdefault(check_owner(owner), f" of {name}")
        except (NexaError, ValueError):
            unlooked.append(f"the owner that {name} names: it is no valid file")
    return found
