"""One process of Terraform's AWS provider for many commands, as its documentation has it for debuggers.

By itself Terraform starts four a command, after it has hashed its 700 MB: init, plan and show of a cluster take 7.6
CPU s, and 3.1 with a provider that runs already. That has the settings of whoever came last, here the number of
retries, and outlives a Terraform that is killed: not for tests of either.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

from nexa_dist.run.terraform import settings

LIMIT_S = 60.0


def program() -> Path | None:
    """The newest one that lies on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexa" / "terraform-plugins"
    places = [Path(place) / settings.MIRROR_HOST for place in (settings.mirror(), cache) if place]
    found = [path for place in places for path in place.glob("hashicorp/aws/*/*/terraform-provider-aws_v*")]
    return max(found, default=None)


@contextlib.contextmanager
def running(prefix: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Meanwhile every Terraform that is started takes this process; its own where none was downloaded yet."""
    binary = program()
    if binary is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "said"), "w") as said:
        env = {**environ, "GOGC": "400"}
        env.pop("AWS_CA_BUNDLE", None)  # it can take that once, and a region has no certificate
        process = subprocess.Popen([*prefix, binary, "-debug"], env=env, stdout=said, stderr=subprocess.DEVNULL)
        try:
            until, told = time.monotonic() + LIMIT_S, None
            while told is None:
                assert process.poll() is None and time.monotonic() < until, "the provider does not say where it listens"
                time.sleep(0.05)
                told = re.search(r"TF_REATTACH_PROVIDERS='(.*)'", Path(said.name).read_text())
            with mock.patch.dict(os.environ, TF_REATTACH_PROVIDERS=told[1]):
                yield
        finally:
            process.terminate()
            process.wait(LIMIT_S)
