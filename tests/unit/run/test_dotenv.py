"""`.env`: what is taken, what is refused, and that no value is ever said."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.run.dotenv import load, parse

TEXT = """\
# ours
WANDB_API_KEY=abc # of the lab
export HF_TOKEN = 'hf_#1 "x"'
AWS_PROFILE="train"
AWS_SESSION_TOKEN=
AWS_ENDPOINT_URL=http://evil
PATH=/evil
WANDB_API_KY=oops
HF_TOKENS=oops
"""


def test_only_known_names_are_taken() -> None:
    values, said = parse(TEXT, ".env")
    assert values == {"WANDB_API_KEY": "abc", "HF_TOKEN": 'hf_#1 "x"', "AWS_PROFILE": "train"}
    assert said == [], "the right names are there too"
    assert parse("WANDB_API_KY=oops", ".env")[1] == [
        "warning: .env:1: WANDB_API_KY is not used; did you mean WANDB_API_KEY?"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [("WANDB_API_KEY", "expected NAME=value"), ("HF_TOKEN='secret", "the quote of HF_TOKEN is not closed"),
     ("1X=secret", "expected NAME=value"), ("HF_TOKEN=\"secret\" more", "is not closed")],
)  # fmt: skip
def test_a_bad_line_is_named_without_its_value(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"\.env:2: .*{said}") as caught:
        parse(f"\n{line}", ".env")
    assert "secret" not in str(caught.value)


def test_the_environment_goes_before_and_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == []
    path = tmp_path / ".env"
    path.write_text("AWS_REGION=us-east-1\n")
    path.chmod(0o644)
    environ = {"HF_TOKEN": "mine"}
    load(tmp_path, environ)
    assert environ == {"HF_TOKEN": "mine", "AWS_REGION": "us-east-1"}
    path.write_text("HF_TOKEN=other\nWANDB_API_KEY=k\n")
    with pytest.raises(UsageError, match=r"others may read it \(mode 0644\)"):
        load(tmp_path, environ)
    path.chmod(0o600)
    load(tmp_path, environ)
    assert (environ["HF_TOKEN"], environ["WANDB_API_KEY"]) == ("mine", "k")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(tmp_path, environ)
