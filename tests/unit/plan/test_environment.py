"""What an environment of the user's is made from, as the files of the project say it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexa_dist.config.work import OwnEnvironment
from nexa_dist.errors import UsageError
from nexa_dist.plan.environment import PROVEN, Asked, asked, blamed, name_of, ours

ROOT = Path(__file__).parents[3]
FILES = {
    "requirements.txt": "# ours\n-r more/base.txt\n-c limits.txt\n"
    "Lightning[extra] == 2.6.1 ; python_version > '3'  # why\n"
    "-e .\nhydra_core \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\n--extra-index-url https://u:p@x.org/simple\n"
    "git+https://x.org/a.git#egg=A_b\n",
    "more/base.txt": "tomlkit\n--requirement=again.txt\n",
    "more/again.txt": "-r base.txt\nidna>=3\n",
    "limits.txt": "numpy<2\n",
    "sub/uv.lock": "version = 1\n",
    "broken/uv.lock": "version = 1\n",
    "broken/pyproject.toml": "[project",
    "sub/pyproject.toml": '[project]\ndependencies = [\n  "tomlkit",\n]\n'
    'optional-dependencies = {gpu = ["Flash.Attn>2"]}\n',
}


def ask(text: str = "", **more: object) -> Asked:
    files = {**FILES, "r.txt": text}
    return asked(OwnEnvironment.model_validate({"requirements": "r.txt"} | more if text else more), files.__getitem__)


def test_a_requirement_file_brings_all_that_it_includes_and_each_package_knows_its_line() -> None:
    found = ask(requirements="requirements.txt")
    assert [str(line) for line in found.lines] == [
        "more/base.txt:1: tomlkit",
        "more/again.txt:2: idna>=3",
        "requirements.txt:4: Lightning[extra] == 2.6.1 ; python_version > '3'",
        "requirements.txt:6: hydra_core",
        "requirements.txt:10: git+https://x.org/a.git#egg=A_b",
    ]
    assert found.names == ["a-b", "hydra-core", "idna", "lightning", "tomlkit"]
    assert set(found.files) == {"requirements.txt", "more/base.txt", "more/again.txt", "limits.txt"}
    assert found.files["requirements.txt"].splitlines()[4] == ""
    assert found.notes == (
        "requirements.txt:5: -e .: left out: the project itself is sent as it is, and found by its imports",
    )
    assert Asked.from_json(found.to_json()) == found


@pytest.mark.parametrize("line", ["-e ./sub", "./a.whl", "../x", "/opt/a.whl", "file:///a", "-r ../other.txt",
                                  "-r /etc/x", "-r https://x.org/r.txt", "-e git+https://x.org/a.git"])  # fmt: skip
def test_what_is_on_this_machine_alone_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(UsageError, match=r"^r\.txt:2: "):
        ask(f"tomlkit\n{line}\n")


def test_a_project_names_its_packages_and_the_extras_that_are_wanted() -> None:
    found = ask(lock="sub/uv.lock", extras=["gpu"])
    assert [str(line) for line in found.lines] == [
        "sub/pyproject.toml:3: tomlkit",
        "sub/pyproject.toml:5: Flash.Attn>2",
    ]
    assert set(found.files) == {"uv.lock", "pyproject.toml"} and found.own_torch
    with pytest.raises(UsageError, match=r"^broken/pyproject\.toml cannot be read"):
        ask(lock="broken/uv.lock")


@pytest.mark.parametrize(
    ("line", "theirs"),
    [("torch==2.5.1", True), ("torch<2.6,>=2", True), ("torch >= 2, != 2.13.0", True), ("torchvision==0.20.0", True),
     ("torch @ https://x.org/t.whl", True), ("torch===2.13.0", True), ("torch (~=2.5)", True),
     ("torch", False), ("torch>=2.0", False), ("torchmetrics==1", False), ("torch[opt]>2 ; a=='b'", False)],
)  # fmt: skip
def test_our_torch_holds_unless_theirs_is_pinned(line: str, theirs: bool) -> None:
    assert ask(f"tomlkit\n{line}\n").own_torch == theirs


def test_the_name_is_of_all_that_it_is_made_from() -> None:
    keys = {
        ask("a\n").key("auto", "light"),
        ask("b\n").key("auto", "light"),
        ask("a\n", unproven=["a"]).key("auto", "light"),
        ask(packages=["a"]).key("auto", "light"),
        ask("a\n").key("auto", "light2"),
    }
    assert len(keys) == 5 and ask("a\n").key("auto", "light") in keys


def test_the_lines_that_uv_complains_of_are_found() -> None:
    lines = ask("lightning==2.6.1\npackaging==20.0\nlight\nscikit_learn[x]>1\n").lines
    said = "Because lightning==2.6.1 depends on packaging>=23.0,<27.0 and you require scikit-learn[x]>1, we can"
    assert [line.name for line in blamed(said, lines)] == ["lightning", "packaging", "scikit-learn"]


def test_names_are_those_of_packages() -> None:
    assert name_of("A.b_c==1") == "a-b-c" and name_of("x @ https://y.org/z.whl") == "x"
    assert name_of("https://y.org/z.whl") == "" and name_of("git+ssh://y.org/z") == ""


@pytest.mark.parametrize("name", sorted(PROVEN))
def test_a_lock_of_ours_has_every_hash_no_address_and_no_build_of_torch(name: str) -> None:
    lock = (ROOT / "docker" / "lock" / f"{name}.txt").read_text()
    entries = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)[1:]
    bare = [entry.split("\n")[0] for entry in entries if "--hash=sha256:" not in entry or "==" not in entry.split()[0]]
    assert len(entries) > 100 and bare == [] and "://" not in lock and "--index" not in lock
    names = {name_of(entry.split()[0]) for entry in entries}
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "nvidia-cublas", "nvidia-nccl-cu13"}
    file = ROOT / "docker" / f"cuda_{name}.txt"
    made = ours(name, lock, file.read_text() if file.exists() else "")
    assert made.names == sorted(PROVEN[name]) and not made.own_torch and Asked.from_json(made.to_json()) == made
    assert made.key("auto", "torch==1") != made.key("auto", "torch==2")
    assert made.key("auto") != ours(name, lock.replace("==", "==9", 1), "").key("auto")
