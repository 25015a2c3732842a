"""Snapshots in a workspace: kept by their name, found again, and refused when somebody changed one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.ops.cluster import snapshot as snapshots
from nexa_dist.plan.runs.snapshot import digest
from nexa_dist.run import files
from tests.unit import records
from tests.unit.cloud_server import Desk

FACTS = {"system": "s", "kernel": "k", "machine": "m", "driver": "", "python": "3.11", "gpus": [], "packages": {},
         "freeze": {"libsecret-1": "1.0"}}  # fmt: skip


def made(**more: Any) -> dict[str, Any]:
    found = {"version": 1, "cluster": {"name": "c"}, "nodes": {"n0": FACTS}, **more}
    return {**found, "sha256": digest(found), "at_unix": 5.0}


def test_a_snapshot_is_kept_by_its_name_and_the_next_run_refers_to_it(desk: Desk) -> None:
    place = desk.ctx.workspace.cluster("c")
    files.write_json(place.json, records.CLUSTER.to_json())
    one = made()
    path = snapshots.keep(desk.ctx, records.CLUSTER, one)
    assert files.read_object(place.newest_snapshot) == {"sha256": one["sha256"], "at_unix": 5.0}
    for named in (str(path), one["sha256"], one["sha256"][:6]):
        assert snapshots.read(desk.ctx, named) == one
    assert path.stat().st_mode & 0o077 == 0


def test_what_is_no_snapshot_or_was_changed_is_refused(desk: Desk) -> None:
    path = snapshots.keep(desk.ctx, records.CLUSTER, made())
    with pytest.raises(UsageError, match="no snapshot 'nosuch'"):
        snapshots.read(desk.ctx, "nosuch")
    told = json.loads(path.read_text())
    told["nodes"]["n0"]["kernel"] = "another"
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="not as nexa snapshot wrote it"):
        snapshots.read(desk.ctx, str(path))
    another = "{path} is a snapshot of version 2, and this nexa reads 1"
    for text, words in (("{}", "damaged"), ("{", "cannot read"), ("[]", "damaged"), ('{"version": 2}', another)):
        path.write_text(text)
        with pytest.raises(UsageError, match=words.format(path=path)) as refused:  # 1 is the exit code of a difference
            snapshots.read(desk.ctx, str(path))
        assert refused.value.hint
