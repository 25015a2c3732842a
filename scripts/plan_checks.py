"""Plans every example cluster with `nexa plan` against the emulated region's API, and judges what it says.

A plan must violate no policy, make things and nothing else, and write nothing to the cloud. No account is touched:
the credentials are made up, and the endpoint is a server on 127.0.0.1 that lives for this run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nexa_dist.config.load import load_cluster  # noqa: E402
from nexa_dist.errors import NexaError  # noqa: E402
from tests.cloud.client import Region  # noqa: E402

START_LIMIT_S = 300.0
END_LIMIT_S = 30.0
PLAN_LIMIT_S = 600.0
"""The first plan on a machine may download the provider."""
READS = re.compile(r"(Describe|Get|List|Head)[A-Z]")
NOT_OURS = re.compile(r"(AWS|NEXA)_.*")
KEPT = ("NEXA_TERRAFORM", "NEXA_TF_MIRROR")
CANARY = "made-up-secret-of-plan-checks"  # no account's; tests look for it where no secret belongs
MARK = "<!-- nexa plan checks -->"

Row = dict[str, Any]


def environment(url: str) -> dict[str, str]:
    """Of a stranger to every cloud: whatever account the caller has, the plans cannot reach it."""
    kept = {key: value for key, value in os.environ.items() if key in KEPT or not NOT_OURS.fullmatch(key)}
    direct = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1")))
    return kept | {
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NEXA_SSH_FROM": "198.51.100.0/24",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "GOGC": os.environ.get("GOGC", "400"),  # the provider's schemas are large: half of the time is collecting
    }


@contextlib.contextmanager
def process(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that ends with this block at the latest: it is told to, and killed when it does not listen."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, text=True, **options) as made:
        try:
            yield made
        finally:
            made.terminate()  # a plan ends its Terraform then
            try:
                made.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                made.kill()


@contextlib.contextmanager
def emulated_api() -> Iterator[str]:
    """URL of the emulated region's API, which ends with this block. Raises SystemExit when it does not start."""
    argv = [sys.executable, "-m", "tests.cloud.api", "--port", "0"]
    with process(argv, cwd=ROOT, stdout=subprocess.PIPE) as server, selectors.DefaultSelector() as waiting:
        assert server.stdout
        waiting.register(server.stdout, selectors.EVENT_READ)
        url = server.stdout.readline().strip() if waiting.select(START_LIMIT_S) else ""
        if not url:
            sys.exit("error: the emulated region's API did not start\nhint: scripts/setup dev")
        yield url


def examples(files: Iterable[Path]) -> list[Path]:
    """Those whose hosts are made. Raises NexaError for a file that is no cluster."""
    return [path for path in files if load_cluster(path).provider != "static"]


def plan(path: Path, env: dict[str, str], plans: Path | None) -> Row:
    """What `nexa plan` says of one cluster in a workspace of its own. The plan is saved in `plans`, as path's stem."""
    argv = [sys.executable, "-m", "nexa_dist", "plan", "--cluster", str(path), "--json"]
    if plans and load_cluster(path).provider == "aws":
        argv += ["-o", str(plans.resolve() / f"{path.stem}.bin")]
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="nexa-plan-") as workspace,
        process(argv, cwd=workspace, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as planning,
    ):
        try:
            out, told = planning.communicate(timeout=PLAN_LIMIT_S)
        except subprocess.TimeoutExpired:
            return _row({}, f"no plan within {PLAN_LIMIT_S:.0f} s", began)
    if planning.returncode:
        said = [line for line in told.splitlines() if line.startswith(("error", "hint"))]
        return _row({}, "; ".join(said) or told[-500:] or f"exit {planning.returncode}", began)
    report = json.loads(out)
    return _row(report, _fault(report), began)


def _fault(report: Row) -> str:
    others = sorted(set(report["changes"]) - {"create"})
    if report["violations"]:
        return "; ".join(f"{v['policy']}: {v['address']}: {v['message']}" for v in report["violations"])
    if others or not report["changes"]:
        return f"a plan for an empty workspace should only create, it would {', '.join(others) or 'do nothing'}"
    return ""


def _row(report: Row, error: str, began: float) -> Row:
    first = next(iter(report.get("offers", ())), None)
    return {
        "ok": not error,
        "error": error,
        "resources": len(report.get("changes", {}).get("create", ())),
        "usd_per_hour": report.get("usd_per_hour", 0.0),
        "worst_usd": report.get("worst_usd", 0.0),
        "first": f"{first['type']} {first['zone']} {first['market']}" if first else "",
        "seconds": round(time.monotonic() - began, 1),
    }


def line(name: str, row: Row) -> str:
    if not row["ok"]:
        return f"FAIL  {name}: {row['error']}"
    first = f"{row['first']}; " if row["first"] else ""
    price = f"{row['usd_per_hour']:.2f} USD/h, at most {row['worst_usd']:.2f} USD"
    return f"ok    {name}: {row['resources']} resources, {price} ({first}{row['seconds']} s)"


def markdown(rows: dict[str, Row], base: dict[str, Row] | None) -> str:
    """A table for a pull request. With `base`, each figure of that branch stands beside one that differs."""

    def cell(name: str, key: str) -> str:
        def text(row: Row) -> str:
            return f"{row[key]:.2f}" if key.endswith(("usd", "hour")) else str(row[key])

        now = text(rows[name])
        was = text(base[name]) if base and base.get(name, {}).get("ok") else now
        return now if was == now else f"**{now}** (was {was})"

    lines = [MARK, "### What the example clusters would make", ""]
    lines += ["| cluster | resources | USD/h | at most, USD | first offer | plan |", "|---|--:|--:|--:|---|---|"]
    for name, row in rows.items():
        figures = " | ".join(cell(name, key) if row["ok"] else "" for key in ("resources", "usd_per_hour", "worst_usd"))
        new = " (new)" if base is not None and name not in base else ""
        verdict = "holds every policy" if row["ok"] else f"**fails**: {_plain(row['error'])}"
        lines.append(f"| {_plain(name)}{new} | {figures} | {row['first']} | {verdict} |")
    lines += [f"| {_plain(name)} | | | | | removed |" for name in sorted(base or ()) if not (ROOT / name).exists()]
    lines += ["", "Planned against the emulated region: its spot prices are made up, and compare branches, not bills."]
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Text that stays in its cell and means nothing to Markdown."""
    return re.sub(r"[|`<>\[\]*@\s]+", " ", text)[:400].strip()


def read_base(path: Path) -> dict[str, Row]:
    """The rows of an earlier run. Raises SystemExit when it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["clusters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path} is not what --json writes: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/plan_checks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="cluster files; configs/dist/*.yaml if left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table for a pull request")
    parser.add_argument("--base", type=Path, metavar="FILE", help="what --json wrote on the base branch")
    parser.add_argument("--plans", type=Path, metavar="FOLDER", help="save the plans of AWS clusters there")
    asked = parser.parse_args()
    base = read_base(asked.base) if asked.base else None
    try:
        chosen = examples(asked.files or sorted((ROOT / "configs" / "dist").glob("*.yaml")))
    except NexaError as error:
        sys.exit(f"error: {error}")
    rows: dict[str, Row] = {}
    with emulated_api() as url:
        for path in chosen:  # one after the other: two first plans may not fill one plugin cache at a time
            there = path.resolve()
            name = str(there.relative_to(ROOT) if there.is_relative_to(ROOT) else path)
            rows[name] = plan(there, environment(url), asked.plans)
            print(line(name, rows[name]), flush=True)
        writes = sorted(call for call in Region(url).state()["calls"] if not READS.match(call))
    if writes:
        print(f"FAIL  planning wrote to the cloud: {', '.join(writes)}")
    if asked.json:
        asked.json.write_text(json.dumps({"clusters": rows, "writes": writes}, indent=2) + "\n", encoding="utf-8")
    if asked.markdown:
        asked.markdown.write_text(markdown(rows, base), encoding="utf-8")
    return 0 if not writes and rows and all(row["ok"] for row in rows.values()) else 1


def _end(signum: int, _: object) -> NoReturn:
    sys.exit(128 + signum)  # by way of every `finally`: nothing is left running


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    sys.exit(main())
