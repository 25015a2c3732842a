"""Targets: addresses are secrets, commands need consent, and what a file says wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexa_dist import secrets
from nexa_dist.config.load import load_cluster, resolved
from nexa_dist.config.parts.notify import Notify
from nexa_dist.errors import ConfigError, NexaError, UsageError
from nexa_dist.ops.notify import targets
from nexa_dist.run.ssh import consent
from nexa_dist.run.workspace import RunFolder
from nexa_dist.secrets import redact_text
from tests.unit.cloud_server import Desk

HEAD = "name: c\nprovider: local\nnodes: 1\ngpus_per_node: 1\nnotify:\n"
HOOK = "https://hooks.example.com/services/T00/B00/verysecret"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(secrets, "_known", set())  # what is remembered here is no secret of other tests


def rows(desk: Desk, text: str) -> tuple[Notify, ...]:
    (desk.root / "c.yaml").write_text(HEAD + text)
    return load_cluster(desk.root / "c.yaml").notify


@pytest.mark.parametrize(
    "row, words",
    [
        ("{url: 'http://example.com/hook/abcdefghi'}", "notify[0].url: expected https"),
        ("{url: 'https://u:p@example.com/hook/abcdefghi'}", "without a user name"),
        ("{url: 'ftp://example.com/abcdefghi'}", "expected https://HOST"),
        ("{url_env: A, command: [a]}", "exactly one of url, url_env, command is needed, found url_env and command"),
        ("{events: [run_ended]}", "found none of them"),
        ("{url_env: A, events: [run_end]}", "did you mean run_ended?"),
        ("{command: [a], from_nodes: true}", "notify[0].from_nodes: means nothing for a command"),
        ("{command: []}", "notify[0].command"),
        ("{webhook: 'https://example.com/abcdefghi'}", "notify[0].webhook: unknown key"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_place(desk: Desk, row: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        rows(desk, f"  - {row}\n")
    assert words in str(error.value) and "c.yaml:6" in str(error.value)
    assert "abcdefghi" not in str(error.value) or "webhook" in row


def test_an_address_is_hidden_wherever_it_stands(desk: Desk) -> None:
    rows(desk, f"  - {{url: '{HOOK}', format: slack}}\n")
    shown = json.dumps(resolved(load_cluster(desk.root / "c.yaml")))
    assert "verysecret" not in shown and "hooks.example.com" in shown
    assert "verysecret" not in redact_text(f"POST {HOOK} failed") + redact_text("/services/T00/B00/verysecret")


def test_a_run_keeps_whom_it_tells_closed_to_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_OF_MINE", HOOK + "2")
    run = RunFolder(desk.root / "runs" / "train_x")
    targets.keep(desk.ctx, run, rows(desk, f"  - {{url_env: HOOK_OF_MINE, from_nodes: true}}\n  - {{url: '{HOOK}'}}\n"))
    assert targets.file_of(run).stat().st_mode & 0o777 == 0o600
    assert HOOK + "2" not in targets.file_of(run).read_text()
    by_variable, in_file = targets.of_run(desk.ctx, run)
    assert (by_variable.url, in_file.url) == (HOOK + "2", HOOK)
    assert (by_variable.name, in_file.name) == ("$HOOK_OF_MINE", "webhook at hooks.example.com")
    assert "verysecret" not in repr([by_variable]) + str(by_variable.id)
    assert [row["url"] for row in targets.for_nodes(desk.ctx, run)] == [HOOK + "2"]  # only with leave


def test_a_variable_that_is_not_set_is_refused_before_a_run_and_said_after(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(desk.root / "runs" / "train_x")
    told = rows(desk, "  - {url_env: HOOK_OF_MINE}\n")
    with pytest.raises(UsageError, match="HOOK_OF_MINE is neither in the environment nor in"):
        targets.keep(desk.ctx, run, told)
    env = desk.root / ".env"
    env.write_text(f"HOOK_OF_MINE={HOOK}\n")
    env.chmod(0o600)
    targets.keep(desk.ctx, run, told)
    env.unlink()
    [target] = targets.of_run(desk.ctx, run)
    assert "neither" in target.missing and not target.send(desk.ctx.runner, {}).sent
    monkeypatch.setenv("HOOK_OF_MINE", "http://example.com/verysecret")
    [target] = targets.of_run(desk.ctx, run)
    assert "expected https" in target.missing and "verysecret" not in target.missing


@pytest.mark.parametrize("text", ["{", "[5]", "5", '[{"url": "http://example.com/abcdefghi"}]', '[{"unknown": 1}]'])
def test_a_damaged_list_tells_nobody_and_keeps_nobody_from_a_run(desk: Desk, text: str) -> None:
    run = RunFolder(desk.root / "runs" / "train_x")
    targets.file_of(run).parent.mkdir(parents=True)
    targets.file_of(run).write_text(text)
    assert targets.of_run(desk.ctx, run) == [] and targets.for_nodes(desk.ctx, run) == []
    assert desk.said[0].startswith("warning: nobody is told of train_x") and "abcdefghi" not in str(desk.said)


def test_a_damaged_cluster_is_named(desk: Desk) -> None:
    path = desk.ctx.workspace.cluster("c").path / "config.json"
    path.parent.mkdir(parents=True)
    for told in (5, [5], [{"url": "http://example.com/abcdefghi"}]):
        path.write_text(json.dumps({"notify": told}))
        with pytest.raises(NexaError, match="damaged: notify"):
            targets.of_cluster(desk.ctx, "c")
    path.unlink()
    assert targets.of_cluster(desk.ctx, "c") is None


def test_a_command_is_started_only_when_its_words_were_agreed_to(desk: Desk, tmp_path: Path) -> None:
    made = tmp_path / "made"
    told = rows(desk, f"  - {{command: [touch, '{made}']}}\n")
    run = RunFolder(desk.root / "runs" / "train_x")
    with pytest.raises(consent.Unconsented, match="touch"):
        targets.keep(desk.ctx, run, told)
    [target] = targets.resolved(desk.ctx, [told[0].model_dump(exclude_none=True)])
    assert not target.send(desk.ctx.runner, {"id": "x"}).sent and not made.exists()
    targets.allow(desk.root, told)
    targets.keep(desk.ctx, run, told)
    [target] = targets.of_run(desk.ctx, run)
    assert target.send(desk.ctx.runner, {"id": "x"}).sent and made.exists()
    with pytest.raises(consent.Unconsented):
        targets.refuse_unconsented(desk.root, rows(desk, f"  - {{command: [touch, '{made}', more]}}\n"))
