"""Whose credentials AWS sees and Terraform gets: by source, without a network; and one line where there are none."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import EXIT_USAGE, NexaError, UsageError
from nexa_dist.run.aws import client as aws_client
from nexa_dist.run.aws import credentials

CONFIG = """
[profile mfa]
role_arn = arn:aws:iam::1:role/trainer
source_profile = keys
mfa_serial = arn:aws:iam::1:mfa/ann
ca_bundle = /etc/own.pem
[profile missing_program]
credential_process = /nonexistent/login
[profile sso]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 1
sso_role_name = Trainer
[profile session]
sso_session = team
sso_account_id = 1
sso_role_name = Trainer
[sso-session team]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
[profile login]
login_session = arn:aws:iam::1:user/ann
[profile loop]
role_arn = arn:aws:iam::1:role/trainer
source_profile = loop2
[profile loop2]
role_arn = arn:aws:iam::1:role/trainer
source_profile = loop
[profile half]
aws_access_key_id = AKIA
"""


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Chooses a profile. Nobody is asked at 169.254.169.254, and there is no terminal."""
    (tmp_path / "config").write_text(CONFIG)
    (tmp_path / "credentials").write_text("[keys]\naws_access_key_id = AKIA\naws_secret_access_key = hidden\n")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)

    def chosen(profile: str) -> None:
        aws_client.session.cache_clear()
        aws_client._client.cache_clear()
        if profile:
            monkeypatch.setenv("AWS_PROFILE", profile)

    chosen("")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return chosen


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    aws_client.session.cache_clear()
    aws_client._client.cache_clear()


@pytest.mark.parametrize(
    ("profile", "said", "hint", "usage"),
    [
        ("mfa", "one-time code (MFA), and there is no terminal", "aws sts get-caller-identity", True),
        ("nobody", "nobody", "AWS_PROFILE", True),
        ("", "Unable to locate credentials", "AWS_PROFILE", True),
        ("half", "Partial credentials", "missing half", True),
        ("loop", "Infinite loop", "source_profile", True),
        ("sso", "SSO", "aws sso login", False),
        ("session", "SSO", "aws sso login", False),
        ("login", "", "aws login", False),
        ("missing_program", "No such file", "AWS_PROFILE", False),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    use: Callable[[str], None], profile: str, said: str, hint: str, usage: bool
) -> None:
    use(profile)
    with pytest.raises(NexaError) as caught:
        aws_client.keys() or aws_client.identity("us-east-1")
    line = f"{caught.value}"
    assert said in line and "\n" not in line and hint in caught.value.hint
    assert isinstance(caught.value, UsageError) == usage and (caught.value.code == EXIT_USAGE) == usage
    assert "network" not in caught.value.hint


def test_terraform_gets_the_keys_and_finds_nothing_else(
    use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use("")
    assert aws_client.keys() == {}  # it looks for itself then, and says that there are none
    use("keys")
    made = aws_client.keys()
    assert (made["AWS_ACCESS_KEY_ID"], made["AWS_SECRET_ACCESS_KEY"], made["AWS_SESSION_TOKEN"]) == (
        "AKIA",
        "hidden",
        "",
    )
    assert made["AWS_PROFILE"] == "" and made["AWS_CONFIG_FILE"] == os.devnull
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    use("")
    assert (aws_client.keys()["AWS_ACCESS_KEY_ID"], aws_client.keys()["AWS_SESSION_TOKEN"]) == ("OTHER", "token")


class Sts:
    """AssumeRole: each session has a number and lives for `minutes`."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.codes = minutes, list[str]()

    def assume_role(self, **asked: Any) -> dict[str, Any]:
        self.codes.append(asked.get("TokenCode", ""))
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=self.minutes)
        made = {
            "AccessKeyId": f"ASIA{len(self.codes)}",
            "SecretAccessKey": "s",
            "SessionToken": "t",
            "Expiration": ends,
        }
        return {"Credentials": made, "AssumedRoleUser": {"Arn": "arn:aws:sts::1:assumed-role/trainer/x"}}


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Sts:
    made, plain = Sts(60), credentials.session

    def session() -> Any:
        found = plain()
        found.get_component("credential_provider").get_provider("assume-role")._client_creator = lambda *_, **__: made
        return found

    monkeypatch.setattr(credentials, "session", session)
    return made


def terminal(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[str]:
    """Somebody who types `codes`; answers what was asked."""
    asked: list[str] = []
    left = list(codes)

    def typed(prompt: str) -> str:
        asked.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(credentials.getpass, "getpass", typed)
    return asked


def test_a_one_time_code_is_asked_for_once(
    use: Callable[[str], None], sts: Sts, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("mfa")
    asked = terminal(monkeypatch, "123456")
    made = aws_client.keys()
    assert (made["AWS_ACCESS_KEY_ID"], made["AWS_SESSION_TOKEN"], made["AWS_CA_BUNDLE"]) == (
        "ASIA1",
        "t",
        "/etc/own.pem",
    )
    assert (
        aws_client.keys() == made
        and aws_client.client("sts", "us-east-1")._request_signer._credentials.access_key == "ASIA1"
    )
    assert sts.codes == ["123456"] and len(asked) == 1


def test_no_answer_is_said(use: Callable[[str], None], sts: Sts, monkeypatch: pytest.MonkeyPatch) -> None:
    use("mfa")
    terminal(monkeypatch)
    with pytest.raises(UsageError, match="none was given"):
        aws_client.keys() or aws_client.identity("us-east-1")


def test_the_session_of_the_aws_command_is_used_and_none_is_written(
    use: Callable[[str], None], sts: Sts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("mfa")
    terminal(monkeypatch, "123456")
    aws_client.keys()
    assert not (tmp_path / ".aws").exists()
    role = aws_client.session()._session.get_component("credential_provider").get_provider("assume-role")
    ((key, held),) = role.cache.items()
    folder = tmp_path / ".aws" / "cli" / "cache"
    folder.mkdir(parents=True)
    (folder / f"{key}.json").write_text("{torn")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    use("mfa")
    with pytest.raises(UsageError, match="no terminal"):
        aws_client.keys()
    held["Credentials"]["AccessKeyId"] = "ASIACLI"
    (folder / f"{key}.json").write_text(json.dumps(held, default=str))
    use("mfa")
    assert aws_client.keys()["AWS_ACCESS_KEY_ID"] == "ASIACLI" and len(sts.codes) == 1


@pytest.mark.parametrize(("minutes", "renewed"), [(60, False), (18, True)])
def test_who_starts_gets_keys_that_last(
    use: Callable[[str], None], sts: Sts, monkeypatch: pytest.MonkeyPatch, minutes: float, renewed: bool
) -> None:
    use("mfa")
    terminal(monkeypatch, *"123")
    sts.minutes = minutes
    first, newest = ("ASIA2", "ASIA3") if renewed else ("ASIA1", "ASIA2")
    assert aws_client.keys()["AWS_ACCESS_KEY_ID"] == first
    sts.minutes = 60
    assert aws_client.keys(True)["AWS_ACCESS_KEY_ID"] == newest == aws_client.keys()["AWS_ACCESS_KEY_ID"]
    assert (
        aws_client.client("sts", "us-east-1")._request_signer._credentials.access_key == newest
    )  # nobody is asked twice


def test_what_is_left_of_them_is_used_when_nobody_is_there_for_newer_ones(
    use: Callable[[str], None], sts: Sts, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("mfa")
    terminal(monkeypatch, "1")
    sts.minutes = 18
    assert aws_client.keys()["AWS_ACCESS_KEY_ID"] == "ASIA1" == aws_client.keys()["AWS_ACCESS_KEY_ID"]
    with pytest.raises(UsageError, match="none was given"):
        aws_client.keys(True)
