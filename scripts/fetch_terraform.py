"""Downloads the pinned Terraform: fetch_terraform.py SUMS FOLDER

SUMS has lines "<sha256>  terraform_<version>_linux_<arch>.zip". NEXA_TERRAFORM_URL replaces the base address,
NEXA_TERRAFORM_SHA256 the pinned hash. Nothing is left in FOLDER unless the hash is right.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

BASE_URL = "https://releases.hashicorp.com/terraform"
TIMEOUT_S = 60
MAX_BYTES = 200_000_000
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
BY_HAND = "hint: install Terraform 1.4 or newer, or OpenTofu, by hand and run this again"


def pin(sums: str) -> tuple[str, str, str]:
    """Version, file name and SHA-256 for this machine."""
    arch = ARCHITECTURES.get(platform.machine().lower())
    for line in sums.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  (terraform_([0-9.]+)_linux_(\w+)\.zip)", line)
        if match and platform.system() == "Linux" and match[4] == arch:
            return match[3], match[2], os.environ.get("NEXA_TERRAFORM_SHA256") or match[1]
    sys.exit(f"error: no pinned Terraform for {platform.system()} {platform.machine()}\n{BY_HAND}")


def download(url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        sys.exit(f"error: {url} is not an http address")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 (checked above)
            data: bytes = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        sys.exit(f"error: cannot download {url}: {getattr(error, 'reason', error)}\n{BY_HAND}")
    if len(data) > MAX_BYTES:
        sys.exit(f"error: {url} is larger than {MAX_BYTES} bytes")
    return data


def install(archive: bytes, folder: Path) -> Path:
    """Unpacks the one member that is wanted, whole or not at all."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        program = opened.read("terraform")
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".terraform-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(program)
        os.chmod(temporary, 0o700)
        os.replace(temporary, folder / "terraform")
    except BaseException:
        os.unlink(temporary)
        raise
    return folder / "terraform"


def main(sums: str, folder: str) -> int:
    version, name, expected = pin(Path(sums).read_text())
    url = f"{os.environ.get('NEXA_TERRAFORM_URL', BASE_URL).rstrip('/')}/{version}/{name}"
    print(f"downloading {url}", file=sys.stderr)
    archive = download(url)
    found = hashlib.sha256(archive).hexdigest()
    if found != expected.lower():
        sys.exit(f"error: {url} has SHA-256 {found}, not the pinned {expected}; nothing was installed")
    try:
        print(f"installed {install(archive, Path(folder))}", file=sys.stderr)
    except (KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {url} is not a Terraform archive: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
