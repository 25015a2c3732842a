"""Data by name in a run's folder, as the agent's `start` makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_dist.node.start import _link_data


def test_each_attempt_has_the_names_that_it_was_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "files").mkdir(parents=True)
        (tmp_path / name / "files" / "x").write_text(name)
    run, seen = tmp_path / "run", tmp_path / "run/data"
    _link_data(str(run), {"all": [str(tmp_path / "one"), "files"], "x": [str(tmp_path / "one"), "files/x"]})
    assert ((seen / "all/x").read_text(), (seen / "x").read_text()) == ("one", "one")
    (seen / "own").write_text("of a script")
    _link_data(str(run), {"x": [str(tmp_path / "two"), "files/x"]})
    assert sorted(path.name for path in seen.iterdir()) == ["own", "x"] and (seen / "x").read_text() == "two"


def test_data_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _link_data(str(tmp_path), {"x": [str(tmp_path / "none"), "files"]})
    assert "data x is gone from this node" in capsys.readouterr().out
