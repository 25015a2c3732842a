"""What a lab may bring, as train.yaml says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.config.load import load_train
from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import ConfigError


def loaded(folder: Path, text: str) -> object:
    (folder / "t.yaml").write_text(f"script: a.py\n{text}\n")
    return load_train(folder / "t.yaml").environment


def test_an_environment_is_a_name_or_packages_of_ones_own(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == loaded(tmp_path, "environment: light") == "light"
    for name in ("heavy", "infer", "none"):
        assert loaded(tmp_path, f"environment: {name}") == name
    made = loaded(tmp_path, "environment: {packages: ['a[b]>=1 ; python_version<\"4\"', 'c @ git+https://x.org/c']}")
    assert isinstance(made, OwnEnvironment) and len(made.packages) == 2
    assert made.what.startswith("packages a[b]>=1")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("requirements.txt", "a mapping such as {requirements: requirements.txt}"),
        ("uv.lock", "a mapping such as {lock: uv.lock}"),
        ("heavi", "light, heavy, infer, none or a mapping such as {packages: [NAME]}"),
        ("{packages: []}", "exactly one of packages, requirements and lock is needed: found none"),
        ("{requirements: a.txt, lock: uv.lock}", "found requirements and lock"),
        ("{requirements: a.txt, extras: [x]}", "extras belong to lock"),
        ("{packages: ['-e .']}", "environment.packages[0]: expected a package as pip takes it"),
        ("{packages: ['a\\n--index-url x']}", "environment.packages[0]: expected a package"),
        ("{packages: ['--index-url=https://x.org']}", "environment.packages[0]: expected a package"),
        ("{requirements: ../a.txt}", "expected the path of a file in the project"),
        ("{requirements: /etc/passwd}", "expected the path of a file in the project"),
        ("{lock: -x}", "expected the path of a file in the project"),
        ("{requirement: a.txt}", "did you mean requirements?"),
    ],
)
def test_what_is_no_environment_is_refused_in_words(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"environment: {value}")
    assert words in str(caught.value)


def test_the_command_line_gives_a_whole_mapping(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("script: a.py\nenvironment: heavy\n")
    made = load_train(tmp_path / "t.yaml", ["environment={packages: [einops>=0.8, 'a[b]']}", "env={A: x, B: '1'}"])
    assert isinstance(made.environment, OwnEnvironment) and made.environment.packages == ("einops>=0.8", "a[b]")
    assert made.env == {"A": "x", "B": "1"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("environment={packages: [einops]", "not valid YAML"),
        ("environment={package: [einops]}", "did you mean packages?"),
        ("environment={packages: [einops]}, x", "not valid YAML"),
        ("name={a: b}", "expected a single value"),
        ("env={A: x, A: y}", "A"),
    ],
)
def test_what_is_no_such_mapping_is_refused_with_its_option(tmp_path: Path, value: str, words: str) -> None:
    (tmp_path / "t.yaml").write_text("script: a.py\n")
    with pytest.raises(ConfigError) as caught:
        load_train(tmp_path / "t.yaml", [value])
    assert words in str(caught.value) and f"--set {value[:20]}" in str(caught.value)
