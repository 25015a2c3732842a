"""What GitHub runs for a release: pinned, with few rights, and nothing has a name before it was scanned and signed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_dist import __version__
from tests.unit.test_images import VARIANTS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXT = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
PUBLISH: dict[str, Any] = yaml.safe_load(TEXT)
NOTES = ROOT / "scripts" / "release_notes"


def step_with(job: str, words: str) -> int:
    """Number of the only step of a job in which these words stand."""
    steps = PUBLISH["jobs"][job]["steps"]
    (found,) = [n for n, step in enumerate(steps) if words in str(step.get("uses", "")) + str(step.get("run", ""))]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_one_action_by_one(path: Path) -> None:
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used and all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", name) for name in used), used
    everywhere = set(re.findall(r"uses: (\S+)", "".join(file.read_text() for file in WORKFLOWS)))
    assert len({name.partition("@")[0] for name in everywhere}) == len(everywhere)


def test_the_tag_of_every_pin_stands_above_it() -> None:
    lines = TEXT.splitlines()
    pins = [number for number, line in enumerate(lines) if "uses: " in line]
    assert pins and all(re.match(r" +# v\d+\.\d+\.\d+", lines[number - 1]) for number in pins)


def test_a_job_has_the_rights_that_it_uses_and_no_secret() -> None:
    assert PUBLISH["permissions"] == {}
    assert {name: job["permissions"] for name, job in PUBLISH["jobs"].items()} == {
        "images": {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
        "wheel": {"contents": "read", "id-token": "write", "attestations": "write"},
        "release": {"contents": "write", "actions": "read"},
    }
    assert "secrets." not in TEXT
    for job in PUBLISH["jobs"].values():
        assert not [step for step in job["steps"] if "${{" in step.get("run", "")], "values go by the environment"


def test_nothing_has_a_name_before_it_was_scanned_and_signed() -> None:
    """A build that does not pass is a digest that nobody was told."""
    assert PUBLISH["jobs"]["images"]["strategy"]["matrix"]["variant"] == list(VARIANTS)
    order = ("build-push-action", "scan-action", "cosign sign", "attest-build-provenance", "imagetools create")
    places = [step_with("images", words) for words in order]
    assert places == sorted(places)
    steps = PUBLISH["jobs"]["images"]["steps"]
    build, scan = steps[places[0]]["with"], steps[places[1]]["with"]
    assert "push-by-digest=true" in build["outputs"] and "tags" not in build
    assert build["provenance"] == "mode=max" and build["sbom"] is True
    assert scan["fail-build"] is True and scan["severity-cutoff"] == "critical"
    assert scan["image"].endswith("@${{ steps.build.outputs.digest }}")
    names = steps[step_with("images", "tags=")]["run"]
    assert "tags=$image:$VARIANT $image:$VARIANT-latest $image:$VARIANT-$(date -u +%Y%m%d)" in names


def test_a_release_is_of_a_tag_and_has_the_wheel() -> None:
    assert PUBLISH[True]["push"]["tags"] == ["v*"] and PUBLISH[True]["push"]["branches"] == ["main"]
    assert PUBLISH["jobs"]["release"]["if"] == "github.ref_type == 'tag'"
    assert set(PUBLISH["jobs"]["release"]["needs"]) == {"images", "wheel"}
    assert "--require-hashes --build-constraints docker/lock/dev.txt" in TEXT
    assert step_with("wheel", 'uv/bin/uv" build') < step_with("wheel", "attest-build-provenance")


def notes(changelog: str, version: str) -> str:
    loader = importlib.machinery.SourceFileLoader("release_notes", str(NOTES))
    spec = importlib.util.spec_from_loader("release_notes", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return str(module.notes(changelog, version))


def test_the_notes_of_a_release_are_the_changelogs_of_that_version_alone() -> None:
    text = "# Changelog\n\n## Unreleased\n\n- new\n\n## 1.2.0 - 2026-11-29\n\n### Added\n\n- a\n\n## [1.1.0]\n\n- b\n"
    assert notes(text, "1.2.0") == "### Added\n\n- a"
    assert notes(text, "1.1.0") == "- b"
    assert notes(text, "1x2.0") == notes(text, "1.2") == ""


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "one version is needed"),
        (["v9.9.9"], 1, "not the version of nexa_dist: 9.9.9"),
        ([f"v{__version__}"], None, "says nothing of"),
    ],
)
def test_what_is_no_release_is_refused(words: list[str], code: int | None, says: str) -> None:
    done = subprocess.run([sys.executable, NOTES, *words], capture_output=True, text=True, timeout=60)
    if code is None and done.returncode == 0:
        assert done.stdout.strip(), "this version has been released"
    else:
        assert done.returncode == (code or 1) and says in done.stderr and not done.stdout
