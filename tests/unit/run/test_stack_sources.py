"""A stack is read whole, run only with the user's word for its content, and copied exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.run import stack_sources
from nexa_dist.run.ssh import consent


def test_consent_ends_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text("one")
    with pytest.raises(consent.Unconsented, match="programs that it names"):
        stack_sources.refuse_unconsented(tmp_path, stack_sources.read(tmp_path))
    stack_sources.allow(tmp_path, stack_sources.read(tmp_path))
    stack_sources.refuse_unconsented(tmp_path, stack_sources.read(tmp_path))
    (tmp_path / "run.sh").write_text("two")
    with pytest.raises(consent.Unconsented):
        stack_sources.refuse_unconsented(tmp_path, stack_sources.read(tmp_path))


def test_the_copy_holds_exactly_the_sources(tmp_path: Path) -> None:
    stack, copy = tmp_path / "stack", tmp_path / "copy"
    (stack / "part").mkdir(parents=True)
    (stack / "main.tf").write_text("one")
    (stack / "part" / "go.sh").write_text("go")
    (stack / "part" / "go.sh").chmod(0o755)
    (stack / "terraform.tfstate").write_text("theirs")
    stack_sources.copy(stack_sources.read(stack), stack, copy)
    (copy / "backend_override.tf.json").write_text("{}")
    (copy / "old.tf").write_text("was there before")
    stack_sources.copy(stack_sources.read(stack), stack, copy)
    found = {str(path.relative_to(copy)): path.stat().st_mode & 0o777 for path in copy.rglob("*") if path.is_file()}
    assert found.pop("backend_override.tf.json")
    assert found == {"main.tf": 0o600, "part/go.sh": 0o700}


@pytest.mark.parametrize(
    ("name", "said"), [("secret.auto.tfvars", "values come from `variables`"), ("notes.txt", "has no .tf file")]
)
def test_what_is_no_stack_is_refused(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=said):
        stack_sources.read(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        stack_sources.read(tmp_path / "elsewhere")
