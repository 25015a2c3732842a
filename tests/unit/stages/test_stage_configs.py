"""The stage files that come with nexa are valid, and the controller reads them without what the nodes need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nexa_dist.stages.load import load_stage

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "stages").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_stage_file_of_ours_is_valid(path: Path) -> None:
    assert load_stage(path).inputs


def test_reading_them_needs_nothing_of_the_nodes() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom nexa_dist.stages.load import load_stage\n"
        f"[load_stage(Path(name)) for name in {[str(path) for path in CONFIGS]}]\n"
        "from nexa_dist.verbs.work import promote, serve\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpx", "pyarrow", "jinja2", "torch", "transformers", "polars"} & set(done.stdout.split())
