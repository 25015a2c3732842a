"""A real browser shows the page of `nexa report`, light and dark."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from nexa_dist.cli import main
from tests import small_workspace

pytestmark = pytest.mark.long("a browser, which is seldom there")
EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


def test_chromium_shows_it_light_and_dark_and_runs_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    monkeypatch.chdir(small_workspace.make(tmp_path))
    run = tmp_path / "runs" / small_workspace.RUN / "run.json"
    record = json.loads(run.read_text())
    run.write_text(json.dumps(record | {"config": {"name": EVIL}, "git_commit": EVIL}))
    assert main(["report", "-o", "page.html"]) == 0
    page = (tmp_path / "page.html").as_uri()
    argv = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser"]
    dom = subprocess.check_output([*argv, "--dump-dom", page], text=True, timeout=60, stderr=subprocess.DEVNULL)
    assert f"<title>{small_workspace.RUN}</title>" in dom and "<script" not in dom and "<svg" in dom
    light = {}
    for mode, scheme in {"dark": 0, "light": 1}.items():
        shot = tmp_path / f"{mode}.png"
        more = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,1200", f"--screenshot={shot}"]
        subprocess.run([*argv, *more, page], timeout=60, check=True, stderr=subprocess.DEVNULL)
        light[mode] = ImageStat.Stat(Image.open(shot).convert("L")).mean[0] / 255
    assert light["dark"] < 0.25 and light["light"] > 0.85
