"""Prints what is installed here as a CycloneDX 1.6 document: packages of the system (dpkg) and of this Python.

Run as the last step of an image's build. Standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from typing import Any
from urllib.parse import quote


def component(kind: str, name: str, version: str, more: str = "") -> dict[str, Any]:
    """A component; its purl is https://github.com/package-url/purl-spec's."""
    purl = f"pkg:{kind}/{quote(name, safe='/')}@{quote(version)}{more}"
    return {"type": "library", "bom-ref": purl, "name": name.rpartition("/")[2], "version": version, "purl": purl}


def of_python() -> list[dict[str, Any]]:
    return [
        component("pypi", re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(), found.version)
        for found in metadata.distributions()
    ]


def of_system() -> list[dict[str, Any]]:
    if not shutil.which("dpkg-query"):
        return []
    form = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"
    said = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout
    distribution = platform.freedesktop_os_release()["ID"]
    rows = [line.split("\t") for line in said.splitlines()]
    return [
        component("deb", f"{distribution}/{name}", version, f"?arch={arch}")
        for status, name, version, arch in rows
        if status == "installed"
    ]


def document() -> dict[str, Any]:
    """The components in order and once, so that the same image gives the same document."""
    found = {row["bom-ref"]: row for row in [*of_python(), *of_system()]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "name": os.environ.get("IMAGE_NAME", "nexacompute"), "bom-ref": "image"}
        },
        "components": [found[key] for key in sorted(found)],
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
