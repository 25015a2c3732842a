"""The role efa with a stub of Amazon's installer, which is fetched, checked, unpacked and run as the real one is."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.roles.rig import Host, bootstrap_variables, converges, role

pytestmark = pytest.mark.e2e
VARIABLES = bootstrap_variables("efa")
PINNED = "1.50.0"
EFA = {"vendor": "0x1d0f", "class": "0x020000", "device": "0xefa2"}
ENA = {"vendor": "0x1d0f", "class": "0x020000", "device": "0xec20"}
FI_INFO = """#!/bin/sh
[ "$*" = "-p efa -t FI_EP_RDM" ] || exit 2
n=0
while [ $n -lt @COUNT@ ]; do
    printf 'provider: efa\\n    fabric: efa\\n    domain: rdmap%ss0-rdm\\n' $n
    n=$((n + 1))
done
"""
INSTALLER = """#!/bin/sh
set -eu
echo "$@" >/srv/efa_asked
[ -f efa_files/fi_info ]
mkdir -p /opt/amazon/efa/bin
cp efa_files/fi_info /opt/amazon/efa/bin/
printf '# EFA installer version: @VERSION@\\n# Debug packages installed: no\\n' >/opt/amazon/efa_installed_packages
"""


def archive(version: str, answering: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in (
            ("efa_installer.sh", INSTALLER.replace("@VERSION@", version)),
            ("efa_files/fi_info", FI_INFO.replace("@COUNT@", str(answering))),
        ):
            info = tarfile.TarInfo(f"aws-efa-installer/{name}")
            info.size, info.mode = len(text), 0o755
            tar.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


def stage(host: Host, devices: int, answering: int) -> dict[str, Any]:
    files = {"bus/pci/devices/0000:00:00.0/" + name: text for name, text in ENA.items()}
    for number in range(devices):
        files |= {f"bus/pci/devices/0000:01:{number:02x}.0/{name}": text for name, text in EFA.items()}
    host.sysfs(files)
    data = archive(PINNED, answering)
    host.put("/srv/efa.tar.gz", data, "0644")
    own = {"efa_version": PINNED, "efa_url": "file:///srv/efa.tar.gz", "efa_sha256": hashlib.sha256(data).hexdigest()}
    return VARIABLES | own


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_it_is_installed_once_and_every_device_answers(new_host: Callable[[], Host]) -> None:
    host = new_host()
    tasks = role("efa", **stage(host, devices=2, answering=2))
    first = converges(host, tasks)
    assert "Run it" in first.tasks
    assert host.said("cat /srv/efa_asked") == "-y"
    assert host.root("ls -d /var/cache/nexa-efa 2>&1 || true").endswith("No such file or directory")
    # The image's own, newer one stays; an older one does not.
    host.root("sed -i s/1.50.0/1.51.0/ /opt/amazon/efa_installed_packages")
    assert host.play(tasks).changed == 0
    host.root("sed -i s/1.51.0/1.38.1/ /opt/amazon/efa_installed_packages")
    assert "Run it" in host.play(tasks).tasks


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_it_only_looks_without_a_device_and_tells_what_is_wrong(new_host: Callable[[], Host]) -> None:
    host = new_host()
    stage(host, devices=0, answering=0)
    done = host.play(role("efa", **VARIABLES))
    assert done.changed == 0 and done.out.count("ok: [node]") == 3, "facts, arguments, one look"

    another = stage(host, devices=1, answering=1) | {"efa_sha256": "0" * 64}
    done = host.play(role("efa", **another), code=2)
    assert "checksum" in done.out.lower()
    assert host.root("ls /srv/efa_asked 2>&1 || true").endswith("No such file or directory"), "it was not run"

    done = host.play(role("efa", **stage(host, devices=4, answering=3)), code=2)
    assert "4 EFA devices are on the PCI bus and 3 answer" in done.out
