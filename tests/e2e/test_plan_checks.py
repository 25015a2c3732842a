"""scripts/plan_checks over the examples, what a saved plan gives away, and what `nexa plan` says of bad input."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.client import Region
from tests.cloud.types import NoHosts
from tests.e2e.conftest import REPO, Lab

pytestmark = pytest.mark.e2e

CHECKS = (str(REPO / "scripts" / "plan_checks"),)
CANARIES = {"HF_TOKEN": "hf_canaryOfPlans", "WANDB_API_KEY": "c0ffee" * 6, "AWS_SESSION_TOKEN": "sessionCanary"}
CLUSTER = {"name": "bad", "provider": "aws", "nodes": 1, "gpus_per_node": 4, "max_hours": 1}
G5 = [{"type": "g5.12xlarge"}]


def checks(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHECKS, *words],
        env={**os.environ, "NEXA_PYTHON": sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


def opened(saved: Path) -> bytes:
    """All that a saved plan holds, Terraform's own archive unpacked."""
    record: dict[str, Any] = json.loads(saved.read_bytes())
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(record.pop("terraform_plan"))))
    return b"\n".join([json.dumps(record).encode(), *(archive.read(name) for name in archive.namelist())])


EIGHT = "configs/dist/8gpu.yaml"


def checked(folder: Path, *files: str) -> tuple[str, dict[str, Any], str, list[Path]]:
    """What the checks of these examples (all of them without one) said, wrote as JSON and as a table, and the plans."""
    (folder / "plans").mkdir()
    base = {EIGHT: {"ok": True, "resources": 26, "usd_per_hour": 1.0, "worst_usd": 9.0}}
    (folder / "base.json").write_text(json.dumps({"clusters": base}))
    out = {name: str(folder / name) for name in ("now.json", "table.md", "base.json", "plans")}
    words = ("--json", out["now.json"], "--markdown", out["table.md"], "--base", out["base.json"])
    done = checks(*(str(REPO / file) for file in files), *words, "--plans", out["plans"], **CANARIES)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "now.json").read_text())
    return done.stdout, found, (folder / "table.md").read_text(), sorted((folder / "plans").iterdir())


def judge(said: str, found: dict[str, Any], table: str, plans: list[Path]) -> None:
    rows = found["clusters"]
    assert found["writes"] == []
    for name, row in rows.items():
        assert row["ok"] and not row["error"] and row["resources"] > 0, name
        assert f"ok    {name}: {row['resources']} resources" in said
    eight = rows[EIGHT]
    assert eight["first"] == "g6e.12xlarge us-east-1b spot"
    assert 0 < eight["usd_per_hour"] * 6 <= eight["worst_usd"]  # max_hours: 6
    assert f"**{eight['usd_per_hour']:.2f}** (was 1.00)" in table
    for path in plans:
        text = opened(path)
        assert b"aws_instance" in text and b"198.51.100.0/24" in text  # it was really read
        for secret in (*CANARIES.values(), "made-up-secret-of-plan-checks", "PRIVATE KEY", "b3BlbnNzaC1rZXktdjE"):
            assert secret.encode() not in text, f"{path.name} holds {secret}"


def test_an_example_can_be_planned_and_its_plan_holds_no_secret(tmp_path: Path) -> None:
    said, found, table, plans = checked(tmp_path, EIGHT)
    assert set(found["clusters"]) == {EIGHT} and [path.stem for path in plans] == ["8gpu"]
    judge(said, found, table, plans)


@pytest.mark.long("every example")
def test_every_example_can_be_planned(tmp_path: Path) -> None:
    said, found, table, plans = checked(tmp_path)
    assert {f"configs/dist/{name}.yaml" for name in ("8gpu", "cheapest", "local")} <= set(found["clusters"])
    assert "configs/dist/own-hosts.yaml" not in found["clusters"]
    assert [path.stem for path in plans] == ["8gpu", "cheapest"]
    assert "cheapest.yaml (new)" in table
    judge(said, found, table, plans)


def test_bad_words_are_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "no.yaml").write_text("nodes: 2\n")
    for words, said in (
        (("--base", str(tmp_path / "torn.json")), "is not what --json writes"),
        ((str(tmp_path / "no.yaml"),), "neither `cluster`"),
    ):
        done = checks(*words)
        assert done.returncode == 1
        assert said in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def api() -> Iterator[Region]:
    from tests.cloud.api import serve  # with moto: seconds, where only some workers need it

    server = serve("127.0.0.1", 0, NoHosts())
    try:
        yield Region(server.url)
    finally:
        server.close()


VARIANT = pytest.mark.long("variant of bad input")
ENV = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "1",
    "NEXA_SSH_FROM": "198.51.100.0/24",
    "NO_PROXY": "127.0.0.1",
}


@pytest.mark.parametrize(
    ("cluster", "env", "code", "said"),
    [
        pytest.param({"offers": [{"type": "g5.99xlarge"}]}, {}, 1, "g5.99xlarge", id="unknown type"),
        pytest.param(
            {"offers": G5, "max_price_usd_per_hour": 0.01}, {}, 1, "no offer is left", id="all too dear", marks=VARIANT
        ),
        pytest.param(
            {"offers": G5},
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            1,
            "127.0.0.1:1",
            id="no endpoint",
            marks=VARIANT,
        ),
        pytest.param(
            {"offers": G5},
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            2,
            "AWS_PROFILE",
            id="no credentials",
        ),
        pytest.param({"offers": G5}, {"NEXA_SSH_FROM": ""}, 2, "NEXA_SSH_FROM", id="no ssh_from", marks=VARIANT),
        pytest.param({"offers": G5}, {"NEXA_SSH_FROM": "0.0.0.0/0"}, 2, "NEXA_SSH_FROM", id="ssh from the world"),
        pytest.param({"offers": G5}, {"AWS_REGION": ""}, 2, "AWS_REGION", id="no region", marks=VARIANT),
    ],
)
def test_bad_input_is_a_plain_error(
    api: Region,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: dict[str, Any],
    env: dict[str, str],
    code: int,
    said: str,
) -> None:
    for name in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(name)  # whatever account the caller has
    lab = Lab(tmp_path, env={"AWS_ENDPOINT_URL": api.url, **ENV, **env})
    lab.write("bad.yaml", json.dumps({**CLUSTER, **cluster}))
    done = lab.nexa("plan", "--cluster", "bad.yaml", "-o", "plan.bin", code=code)
    assert "error: " in done.stderr and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    assert not (tmp_path / "plan.bin").exists()
