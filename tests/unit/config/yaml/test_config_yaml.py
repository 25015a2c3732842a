"""Strict YAML: what a word means, where it was written, and what a fault says."""

from __future__ import annotations

import json

import pytest

from nexa_dist.config.yaml.file import parse_yaml
from nexa_dist.errors import ConfigError


def said(text: str) -> list[str]:
    try:
        return [str(problem) for problem in parse_yaml(text.encode(), "f.yaml").problems]
    except ConfigError as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("5e-4", 5e-4), ("1.", 1.0), (".5", 0.5), ("-1.5E+3", -1500.0), ("0", 0), ("-7", -7), ("+7", 7),
        ("true", True), ("FALSE", False), ("~", None), ("", None), ("null", None), ("'5'", "5"), ('"no"', "no"),
        ("y", "y"), ("1.2.3", "1.2.3"), ("a:b", "a:b"), ("10.0.0.1:29500", "10.0.0.1:29500"), ("-x", "-x"),
        ("e5", "e5"), ("1e", "1e"), (".", "."), ("nan", "nan"), ("inf", "inf"), ('"2020-01-01"', "2020-01-01"),
    ],
)  # fmt: skip
def test_an_unquoted_word_has_one_meaning(word: str, value: object) -> None:
    document = parse_yaml(f"a: {word}\n".encode(), "f.yaml")
    assert not document.problems
    assert document.data == {"a": value} and type(document.data["a"]) is type(value)


def test_lines_of_keys_and_items() -> None:
    document = parse_yaml(b"# c\nname: x\ncluster:\n  - host: a\n    gpus:\n      4\n  - {host: b}\n", "f.yaml")
    assert document.data == {"name": "x", "cluster": [{"host": "a", "gpus": 4}, {"host": "b"}]}
    assert document.lines == {
        (): 2,
        ("name",): 2,
        ("cluster",): 3,
        ("cluster", 0): 4,
        ("cluster", 0, "host"): 4,
        ("cluster", 0, "gpus"): 5,
        ("cluster", 1): 7,
        ("cluster", 1, "host"): 7,
    }


def test_aliases_are_copies() -> None:
    data = parse_yaml(b"a: &x {k: [1]}\nb: *x\nc: [*x, *x]\n", "f.yaml").data
    assert data == {"a": {"k": [1]}, "b": {"k": [1]}, "c": [{"k": [1]}, {"k": [1]}]}
    assert data["a"] is not data["b"]


def test_faults_after_which_reading_goes_on_come_together() -> None:
    text = "a: 1\nb: !!str x\na: 2\nno: 3\n5: 4\nc: 1:30\n<<: {d: 1}\ne: 0x1F\n"
    assert said(text) == [
        "f.yaml:2: b: tag 'tag:yaml.org,2002:str' is not allowed (hint: remove it; quote the value if it is text)",
        "f.yaml:3: a: key is given twice: line 1 and line 3 (hint: keep one of them)",
        "f.yaml:4: key 'no' is not a word (hint: quote it)",
        "f.yaml:5: key '5' is not a word (hint: quote it)",
        "f.yaml:6: c: '1:30' is a base-60 number to some YAML readers (hint: quote it: \"1:30\")",
        "f.yaml:7: <<: merge keys are not supported (hint: write the keys out)",
        "f.yaml:8: e: '0x1F' is not a plain decimal number "
        '(hint: write it in decimal, or quote it if it is text: "0x1F")',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1: the file is empty"),
        ("# c\n\n", "f.yaml:1: the file is empty"),
        ("\n- a\n", "f.yaml:2: the top level must be a mapping (key: value)"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2: a second document begins here (`---`) (hint: keep one document in a file)"),
        ("a: 1\nb: *c\n", "f.yaml:2: alias '*c' stands for nothing before it (hint: quote it if it is text)"),
        ("a: " + "[" * 60, "f.yaml:1: nested more than 50 levels deep"),
    ],
)
def test_faults_that_end_the_reading(text: str, message: str) -> None:
    assert said(text) == [message]


def test_syntax_error_has_its_line() -> None:
    assert said("a: 1\nb: c: d\n")[0].startswith("f.yaml:2: not valid YAML: mapping values are not allowed")


def test_nesting_by_aliases_is_bounded_too() -> None:
    text = "a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30
    assert "nested more than 50" in said(text)[0]


def test_json_is_read_with_its_escapes() -> None:
    data = {"a": "\U0001f600 \\ud83d\\ude00 é \u2028 \x7f", "b": [1.5, 5e-05, None, True], "c": {"": ""}}
    assert parse_yaml(json.dumps(data, indent=1).encode(), "train.json").data == data


def test_not_utf8_has_its_line() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:2: not UTF-8: byte 0xe9 \(hint: save the file as UTF-8\)"):
        parse_yaml(b"a: 1\nb: caf\xe9\n", "c.yaml")


def test_every_fault_is_told_behind_a_byte_order_mark_too() -> None:
    read = parse_yaml(b"\xef\xbb\xbfa: 1\na: 2\nb: 0o7\n", "c.yaml")
    assert [problem.line for problem in read.problems] == [2, 3]
