"""Hostile input: every case is refused as a user's mistake, at once, with nothing run and nothing unprintable said."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_dist.config.load import load_cluster, load_train
from nexa_dist.config.paths import safe_path
from nexa_dist.config.yaml.file import MAX_BYTES, parse_yaml
from nexa_dist.errors import ConfigError, UsageError

TABLE: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).parents[2] / "cases" / "hostile_config.yaml").read_text(encoding="utf-8")
)
LOCAL: dict[str, Any] = {"name": "x", "provider": "local", "nodes": 2, "gpus_per_node": 2}
OWN: dict[str, Any] = {"name": "x", "cluster": [{"host": "10.0.0.1", "gpus": 1}]}

PLACE = {
    "names": "name",
    "hosts": "cluster[0].host",
    "users": "cluster[0].user",
    "node_paths": "scratch",
    "programs": "python",
    "endpoints": "rdzv",
}


def cases(*kinds: str) -> list[Any]:
    return [pytest.param(kind, text, id=f"{kind}-{i}") for kind in kinds for i, text in enumerate(TABLE[kind])]


@functools.cache
def plain_s() -> float:
    """CPU seconds that PyYAML takes for a plain file of the largest size, on this machine as it is now."""
    start = time.process_time()
    for _ in yaml.parse("".join(f"k{i}: 1\n" for i in range(MAX_BYTES // 12))):
        pass
    return time.process_time() - start


def refused(path: Path, overrides: tuple[str, ...] = (), load: Any = load_cluster) -> str:
    """Loads, expects ConfigError in not much more time than a plain file takes, and returns its text."""
    before = set(os.listdir(path.parent))
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert time.process_time() - start < 2 * plain_s()
    text = str(caught.value)
    assert caught.value.problems and caught.value.code == 2
    assert len(text) < 20_000 and text.replace("\n", "").isprintable()
    assert set(os.listdir(path.parent)) == before
    return text


def write(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "c.yaml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def with_value(kind: str, text: str) -> dict[str, Any]:
    if kind == "names":
        return {**LOCAL, "name": text}
    if kind in ("hosts", "users"):
        return {**OWN, "cluster": [{"host": "10.0.0.1", "gpus": 1, kind[:-1]: text}]}
    return {**OWN, {"node_paths": "scratch", "programs": "python", "endpoints": "rdzv"}[kind]: text}


@pytest.mark.parametrize(("kind", "text"), cases("names", "hosts", "users", "node_paths", "programs", "endpoints"))
def test_a_hostile_value_is_refused_at_its_place(tmp_path: Path, kind: str, text: str) -> None:
    path = write(tmp_path, json.dumps(with_value(kind, text)))
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    assert {problem.path for problem in caught.value.problems} == {PLACE[kind]}
    refused(path)


def test_the_rest_of_the_file_is_valid(tmp_path: Path) -> None:
    for kind, text in {
        "names": "8-gpu", "hosts": "::1", "users": "_u-1", "node_paths": "~/a b/ü", "programs": "/opt/py 3/bin/python",
        "endpoints": "[::1]:29500",
    }.items():  # fmt: skip
        load_cluster(write(tmp_path, json.dumps(with_value(kind, text))))


@pytest.mark.parametrize(("kind", "text"), cases("yaml"))
def test_a_hostile_file_is_refused_whole_or_as_an_end(tmp_path: Path, kind: str, text: str) -> None:
    refused(write(tmp_path, text))
    refused(write(tmp_path, text), load=load_train)
    # And as the end of a valid file, where the only fault is the hostile part.
    if ":" in text and kind == "yaml" and not text.startswith(("%", "!", "-")):
        rest = "".join(f"{key}: {value}\n" for key, value in LOCAL.items() if f"{key}:" not in text)
        refused(write(tmp_path, rest + text))


@pytest.mark.parametrize(("kind", "text"), cases("values"))
def test_a_hostile_key_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    assert kind == "values"
    rest = "".join(f"{key}: {value}\n" for key, value in LOCAL.items() if not text.startswith(f"{key}:"))
    refused(write(tmp_path, rest + text))


@pytest.mark.parametrize(("kind", "text"), cases("set"))
def test_a_hostile_override_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    assert kind == "set"
    path = write(tmp_path, json.dumps(LOCAL))
    load_cluster(path)
    assert "--set" in refused(path, (text,))


def test_there_are_enough_cases() -> None:
    assert sum(map(len, TABLE.values())) >= 200


BOMB = 'a: &a ["x", "x", "x", "x", "x", "x", "x", "x", "x"]\n' + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BIG = MAX_BYTES - 100


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfen\x00a\x00",
        b"name: caf\xe9",
        b"name: \xed\xa0\x80",
        b"name: x\x00",
        b"name: \x1b[31m",
        b"[" * BIG,
        b"name: " + b"[" * BIG,
        b"name: " + b"{a: " * (BIG // 4),
        b"name: " + b"[1," * (BIG // 3),
        b"- " * (BIG // 2),
        b"? " * (BIG // 2),
        b"a:\n" + b"".join(b" " * i + b"a:\n" for i in range(1, 400)),
        b"a:" * (BIG // 2),
        b"name: " + b"9" * BIG,
        b"name: 1." + b"9" * BIG,
        b"name: " + b"x" * BIG,
        b"name: '" + b"x" * BIG,
        b"x" * BIG + b": 1",
        b"&" * BIG,
        b"!" * BIG,
        b"name: *" + b"x" * BIG,
        b"%" * BIG,
        b"\n" * BIG,
        b"#" * BIG,
        b"name: |\n" + b" \n" * (BIG // 2),
        b"{" + b"a," * (BIG // 2),
        b"".join(b"k%d: 1\n" % i for i in range(BIG // 12)),
        b"".join(b"k%d: 1\n" % i for i in range(4900)),
        b"".join(b"k%d: !x 1\n" % i for i in range(4900)),
        b"name: {" + b"a: no, " * 4900 + b"}",
        b"cluster: [" + b"{host: a, gpus: 1}, " * 1600 + b"]",
        b"same: 1\n" * (BIG // 8),
        b"name: [" + b"!x y," * (BIG // 6),
        BOMB.encode(),
        b"name: &a " + b"x" * (BIG // 2) + b"\nx: [" + b"*a," * 9000 + b"]",
        b"x" * (MAX_BYTES + 1),
    ],
    ids=range(36),
)
def test_hostile_bytes_are_refused_at_little_cost(tmp_path: Path, raw: bytes) -> None:
    refused(write(tmp_path, raw))


def test_huge_and_odd_files(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.yaml"
    with sparse.open("wb") as stream:
        stream.truncate(100 * 1024 * 1024)
    assert "104857600 bytes" in refused(sparse)
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "loop", "zero", "missing", "a\0b", "a\nb", "x" * 5000):
        refused(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    "stem", ["a b", "-oProxyCommand=x", "$(touch pwned)", "{{ x }}", "A", "é", "a\nb", "x" * 40], ids=range(8)
)
def test_file_name_as_cluster_name(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text("cluster: [{host: 10.0.0.1, gpus: 1}]\n")
    assert "cannot stand for it" in refused(path)


def test_long_and_many_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(LOCAL))
    refused(path, ("name=" + "x" * 100_000,))
    refused(path, ("a." * 100_000 + "x=1",))
    refused(path, ("nodes=2",) * 100_000)
    refused(path, ("name=\udcff",))


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "a$b", "a`b", "a%b", "a{b", "a}b", "a\nb", "a\x7fb", "a\x85b", "a\udcffb"]
)
def test_a_path_that_a_tool_would_expand_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        safe_path(Path("/home/me") / name / "work")
    assert str(caught.value).isprintable() and caught.value.hint


@pytest.mark.parametrize("name", ["a b", "it's", "señor", "日本", "a&b", "a;b", "(1)", "-x", "a=b", "#1"])
def test_a_path_that_no_tool_expands_may_hold_a_workspace(name: str) -> None:
    safe_path(Path("/home/me") / name)


def accepts_or_refuses(path: Path, overrides: tuple[str, ...] = ()) -> None:
    for load in (load_cluster, load_train):
        try:
            load(path, overrides)
        except ConfigError as error:
            assert str(error).replace("\n", "").isprintable()


FUZZ = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
WORDS = st.sampled_from(
    [
        *"abc:-?[]{},&*!|>'\"%@`#~=\n \t\\",
        ": ",
        "- ",
        "\n  ",
        "name",
        "cluster",
        "nodes",
        "true",
        "no",
        "1",
        "<<",
        "---\n",
    ]
)


@FUZZ
@given(raw=st.binary(max_size=200) | st.lists(WORDS, max_size=40).map("".join).map(str.encode))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    try:
        parse_yaml(raw, "f.yaml")
    except ConfigError as error:
        assert error.problems


PLAIN = st.sampled_from([None, True, 0, -1, 2**63, 1e400, 0.5, "", "x", "a b", "\0", "\u202e"]) | st.text(max_size=5)
JUNK = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=3)
KEYS = st.sampled_from(
    ["name", "provider", "cluster", "nodes", "offers", "env", "args", "model", "script", "host", "gpus"]
)


@FUZZ
@given(data=st.dictionaries(KEYS | st.text(max_size=4), JUNK | st.lists(st.dictionaries(KEYS, JUNK)), max_size=5))
def test_any_data_is_accepted_or_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    accepts_or_refuses(write(tmp_path, json.dumps(data, ensure_ascii=False)))


@FUZZ
@given(text=st.text(max_size=30) | st.lists(WORDS | st.sampled_from(["=", ".", "[0]"]), max_size=12).map("".join))
def test_any_override_is_accepted_or_refused(tmp_path: Path, text: str) -> None:
    accepts_or_refuses(write(tmp_path, json.dumps(OWN)), (text, f"cluster.0.{text}", f"name={text}"))
