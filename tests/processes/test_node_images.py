"""What a node says of its container engine and of an image: by a stand-in for docker, and by the program itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node.machine import container
from nexa_dist.ops.work.image import FOUND
from nexa_dist.remote import images
from tests import engines

SHA = "sha256:" + "7" * 64


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = engines.stand_in(tmp_path / "engine")
    monkeypatch.setattr(images, "ALSO", ())
    monkeypatch.setenv("PATH", str(made.parent))
    return made


def told(program: Path, **more: Any) -> dict[str, Any]:
    said: list[Any] = []
    answer = images.main({"engine": "auto", "image": "lab:1", "pull": True, **more}, lambda say: said.append(say))
    return dict(FOUND(json.loads(json.dumps(answer)))) | {"said": said}


def test_an_image_that_is_there_is_not_pulled(program: Path) -> None:
    (program.parent / "state" / "images").write_text(json.dumps({"lab:1": SHA}))
    found = told(program)
    assert (found["engine"], found["program"], found["version"]) == ("docker", str(program), "29.8.0")
    assert (found["image"], found["user"]) == (SHA, os.getuid())
    assert found["memory_bytes"] > 1 << 28
    assert '"pull"' not in (program.parent / "state" / "calls").read_text()


def test_an_image_that_lacks_is_pulled_with_words_meanwhile(program: Path) -> None:
    (program.parent / "state" / "offers").write_text(json.dumps({"lab:1": SHA}))
    assert told(program, pull=False)["image"] == "", "a dry run brings nothing"
    found = told(program)
    assert found["image"] == SHA and found["said"] == [{"line": "Pulling"}]


def test_what_cannot_be_had_is_said_in_the_engines_words(program: Path) -> None:
    with pytest.raises(RuntimeError, match=r"image lab:1 cannot be had: .*manifest for lab:1 not found"):
        told(program)


def test_an_engine_that_is_absent_or_down_is_named_with_all_that_was_tried(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program.parent / "state" / "down").touch()
    with pytest.raises(RuntimeError, match=r"docker does not answer: Cannot connect.*podman is not installed"):
        told(program)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RuntimeError, match="docker is not installed; podman is not installed"):
        told(program)
    with pytest.raises(RuntimeError, match="/opt/podman is not installed"):
        told(program, engine="/opt/podman")


def test_podman_by_dockers_name_is_podman(program: Path) -> None:
    """The package podman-docker: its options are podman's."""
    text = program.read_text().replace("Docker version 29.8.0, build stand-in", "podman version 5.4.2")
    program.write_text(text)
    (program.parent / "state" / "images").write_text(json.dumps({"lab:1": SHA}))
    assert told(program)["engine"] == "podman"


def test_words_of_an_engine_that_are_no_utf8_are_words_all_the_same(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_text("#!/bin/sh\nprintf 'no \\377 such' >&2; exit 1\n")
    odd.chmod(0o755)
    assert images.ask(str(odd)) == (1, "no \ufffd such")
    assert container._ask([str(odd)]) == (1, "no \ufffd such")
