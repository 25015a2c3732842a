"""The errors that people post, and what nexa why calls them: tests/cases/why/posted.txt. This is also what checks a new
row; docs/CONTRIBUTING.md says how one is added."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import pytest

from nexa_dist.plan.failures.known.signature import Exit, Phrase, says
from nexa_dist.plan.failures.log_reading import read
from nexa_dist.plan.failures.table import TABLE

TEXTS = Path(__file__).parents[3] / "cases" / "why" / "posted.txt"
OWN = 'Traceback (most recent call last):\n  File "/mnt/scratch/r/work/train.py", line 45, in main\n    go()'
LIBRARY = '  File "/opt/venv/lib/python3.11/site-packages/{}", line 88, in go\n    run()'
GENERAL = {"python_exception", "unknown", "aborted", "peer_lost", "peer_late"}
"""Names without a cause."""


class Posted(NamedTuple):
    title: str
    name: str
    never: bool
    """It must not have that name."""
    end: Exit
    text: str


def posted() -> Iterator[Posted]:
    """Each text of the file, `@file` made into the frames of a traceback."""
    for part in re.split(r"(?m)^=== ", TEXTS.read_text())[1:]:
        head, _, body = part.partition("\n")
        match = re.fullmatch(r"(?P<title>.+): (?P<never>not )?(?P<name>[a-z0-9_]+)(?: (?P<code>-?[0-9]+))?", head)
        assert match, head
        code = int(match["code"] or 1)
        lines = ["step 7 loss 2.1"]
        for line in body.rstrip("\n").split("\n"):
            file = line.removeprefix("@")
            lines += [line] if file == line else [OWN, *([LIBRARY.format(file)] if file else [])]
        end = Exit(10.0, max(code, 0), max(-code, 0), 7)
        yield Posted(match["title"], match["name"], bool(match["never"]), end, "\n".join([*lines, ""]))


POSTED = list(posted())
PHRASES = [p for s in TABLE for p in (*s.logs, *s.near, *s.unless) if isinstance(p, Phrase)]


@pytest.mark.parametrize("case", POSTED, ids=lambda case: case.title)
def test_what_people_post_is_named(case: Posted) -> None:
    found = read(case.text.encode(), case.end)
    assert found is not None
    assert (found.signature.name == case.name) != case.never, found
    assert case.never or case.name not in GENERAL
    assert found.fix and "{detail}" not in found.words


def test_titles_are_told_apart_and_names_are_those_of_the_table() -> None:
    assert len({case.title for case in POSTED}) == len(POSTED)
    assert {case.name for case in POSTED} <= {signature.name for signature in TABLE}


def test_every_row_of_phrases_has_an_example() -> None:
    rows = {s.name for s in TABLE if s.logs and all(isinstance(pattern, Phrase) for pattern in s.logs)}
    assert rows <= {case.name for case in POSTED if not case.never}


def test_a_phrase_is_long_enough_to_mean_something() -> None:
    for phrase in PHRASES:
        assert sum(map(len, phrase.pieces)) >= 8 or phrase in says("NCCL", "nccl"), phrase
        assert not any(b"\n" in piece for piece in phrase.pieces), phrase


class Counted(bytes):
    """Bytes that count how many of them were looked at."""

    seen = 0

    def find(
        self, what: bytes | SupportsIndex, start: SupportsIndex | None = 0, end: SupportsIndex | None = None
    ) -> int:  # type: ignore[override]
        at = super().find(what, start, end)
        stop = at if at >= 0 else len(self) if end is None else int(end)
        self.seen += max(0, stop - int(start or 0))
        return at


def test_a_phrase_is_linear_in_any_text() -> None:
    for phrase in PHRASES:
        for joint in (b"", b"\n", b" x\n", b"\n x"):
            for pieces in (phrase.pieces[:1], phrase.pieces[:-1], phrase.pieces):
                text = Counted(joint.join([*pieces] * (2000 // (1 + len(b"".join(pieces)))) + [b"tail"]))
                phrase.search(text)
                assert text.seen <= (len(phrase.pieces) + 2) * (len(text) + 1)


@pytest.mark.parametrize(
    ("text", "line", "detail"),
    [
        ("a … c", b"x a b c d", b""),
        ("a {detail} c … e", b"a b c d e", b"b"),
        ("a … c {detail}", b"a b c d e", b"d e"),
        ("^a {detail}", b"z\na b\nc", b"b"),
    ],
)
def test_a_phrase_is_found_in_one_line(text: str, line: bytes, detail: bytes) -> None:
    (phrase,) = says(text)
    found = phrase.search(line)
    assert found is not None and found.detail == detail


@pytest.mark.parametrize(
    ("text", "line"), [("a … c", b"a b\nc"), ("a … c", b"c b a"), ("^a", b"b a"), ("aa … aa", b"aaa")]
)
def test_a_phrase_is_found_in_no_other_line(text: str, line: bytes) -> None:
    assert says(text)[0].search(line) is None


@pytest.mark.parametrize("text", ["", "…a", "{detail} a", "a …{detail}", "a {detail} b {detail}"])
def test_a_phrase_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="begins with words"):
        says(text)
