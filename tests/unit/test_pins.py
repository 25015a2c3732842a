"""Versions of what a node gets stand in configs/pins.yaml, each once, and every one of them is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
PLAYBOOKS = "".join(path.read_text() for path in sorted((ROOT / "playbooks").glob("*.yml")))
PINS = yaml.safe_load((ROOT / "configs" / "pins.yaml").read_text())["nexa_pins"]
UV = ANSIBLE / "roles" / "uv_env" / "files" / "uv.txt"
VERSION = re.compile(r"(?<![\w.])v?\d+\.\d+\.\d+(?:[-.+~]\w+)*(?![\w.])")
ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(\.\d{1,3}){3}(/\d+)?(?![\w.])")
ELSEWHERE = {"uv", "images"}
"""Pins that go to no role: a tool with a lock of its own, held against its pin below; images (test_images.py)."""


def leaves(pins: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(pins, dict):
        for key, value in pins.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, pins


def test_every_value_is_text() -> None:
    assert [path for path, value in leaves(PINS) if not isinstance(value, str)] == [], "595.10 would become 595.1"


def test_every_pin_is_given_to_one_role_by_the_playbooks() -> None:
    used = re.findall(r"nexa_pins\.([\w.]+)", PLAYBOOKS)
    assert len(used) == len(set(used)), "one role takes each"
    for path, _ in leaves(PINS):
        if path[0] in ELSEWHERE:
            continue
        names = {".".join(path[: depth + 1]) for depth in range(len(path))}
        assert names & set(used), f"{'.'.join(path)} is used by no role"
    for name in used:
        found: Any = PINS
        for key in name.split("."):
            assert key in found, f"{name} is not in configs/pins.yaml"
            found = found[key]


def test_no_other_file_has_a_version() -> None:
    found = []
    for path in [*ANSIBLE.rglob("*"), *(ROOT / "playbooks").rglob("*")]:
        if not path.is_file() or path == UV or path.suffix not in (".yml", ".yaml", ".j2", ".sh", ".py", ".cfg"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if VERSION.search(ADDRESS.sub("", line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_checksums_are_sha256_and_stand_beside_what_they_check() -> None:
    sums = {path: value for path, value in leaves(PINS) if path[-1].endswith("sha256")}
    assert len(sums) >= 5
    assert [path for path, value in sums.items() if not re.fullmatch(r"[0-9a-f]{64}", value)] == []
    assert len(set(sums.values())) == len(sums)
    checked = {path[:-1] for path in sums}
    assert {path[:-1] for path, _ in leaves(PINS) if path[-1] in ("url", "key", "repository")} == checked


def test_addresses_are_encrypted_and_name_the_version() -> None:
    assert [v for _, v in leaves(PINS) if ":/" in v and not v.startswith("https://")] == []
    assert f"-{PINS['efa']['version']}.tar.gz" in PINS["efa"]["url"]


def test_the_pinned_driver_is_new_enough_for_what_is_accepted() -> None:
    def number(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    assert number(PINS["nvidia_driver"]["version"]) > number(PINS["nvidia_driver"]["minimum"])


def test_uv_is_the_one_that_is_locked() -> None:
    assert re.match(r"uv==(\S+) ", UV.read_text()).group(1) == PINS["uv"]["version"]  # type: ignore[union-attr]
    locked = (ROOT / "docker" / "lock" / "controller.txt").read_text()
    assert f"\nuv=={PINS['uv']['version']} " in locked
