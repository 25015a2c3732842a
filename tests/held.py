"""Ranks of a backend that wait at a step for a SIGTERM, so that a test can do to them what it must."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

# A rank finds it before the package of the run, since its folder comes first, and takes all of that from there. A
# sitecustomize.py would keep ranks from being forked, and most of the test would be their imports.
PACKAGE = """
import os, sys
places = (os.path.join(folder, "nexa_dist") for folder in sys.path)
__path__ = [place for place in places if os.path.exists(os.path.join(place, "cli.py"))][:1]
exec(open(os.path.join(__path__[0], "__init__.py")).read())
%s
if os.environ.get("WAIT_AT") and os.environ.get("NEXA_ATTEMPT") == "1":
    import signal, time
    from nexa_dist.train import progress
    told, last = progress.report, int(os.environ["WAIT_AT"])
    def report(step, *more, **named):
        told(step, *more, **named)
        while step == last and signal.getsignal(signal.SIGTERM).__self__.at is None:  # control.StopSignal
            time.sleep(0.05)
    progress.report = report
"""


@contextlib.contextmanager
def at_a_step(project: Path, first: str = "") -> Iterator[None]:
    """Meanwhile, in the first attempt of a run with `--set env.WAIT_AT=STEP`, no rank does a step after that one before
    it is asked to stop. `first` is Python that every process of a run begins with."""
    folder = project / "nexa_dist"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE % first)
    try:
        yield
    finally:
        shutil.rmtree(folder)
