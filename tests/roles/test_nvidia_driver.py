"""The role nvidia_driver. GPUs and NVIDIA's packages are stubs; apt, holds, preferences and reboots are real."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.roles.rig import FOLDER, HOST, ROOT, Deb, Host, bootstrap_variables, converges, role

pytestmark = pytest.mark.e2e
PINS = yaml.safe_load((ROOT / "configs" / "pins.yaml").read_text())["nexa_pins"]
PINNED, NEWER, OLD = PINS["nvidia_driver"]["version"], "999.10.01", "570.86.15"
GPU = {"vendor": "0x10de", "class": "0x030200", "device": "0x2330"}
SWITCH = {"vendor": "0x10de", "class": "0x068000", "device": "0x22a3"}
# As the real ones: the package names its parts by "this version or newer", which alone draws the newest.
MODPROBE = """#!/bin/sh
[ -e /srv/installed ] || { echo "modprobe: FATAL: Module $1 not found" >&2; exit 1; }
mkdir -p /srv/sys/module/nvidia && cp /srv/installed /srv/sys/module/nvidia/version
"""


def pci(*devices: dict[str, str]) -> dict[str, str]:
    return {
        f"bus/pci/devices/0000:00:{number:02x}.0/{name}": text
        for number, device in enumerate(devices)
        for name, text in device.items()
    }


def smi(version: str) -> str:
    return (HOST / "nvidia-smi").read_text().replace("@VERSION@", version)


def debs(kernel: str) -> list[Deb]:
    made = [Deb(f"linux-headers-{kernel}", "1.0")]
    for version in (PINNED, NEWER):
        revision = f"{version}-1ubuntu1"
        made += [
            Deb("nvidia-open", revision, f"nvidia-driver-open (>= {version})"),
            Deb("nvidia-driver-open", revision, f"libnvidia-compute (>= {version}), nvidia-dkms-open (>= {version})"),
            Deb("libnvidia-compute", revision, files={"/usr/bin/nvidia-smi": smi(version)}),
            Deb("nvidia-dkms-open", revision, postinst=f"#!/bin/sh\necho {version} >/srv/installed\n"),
            Deb(
                "nvidia-fabricmanager", revision, files={"/lib/systemd/system/nvidia-fabricmanager.service": "[Unit]\n"}
            ),
        ]
    return made


def stage(host: Host, *devices: dict[str, str], loaded: str = "") -> dict[str, Any]:
    """The host with these devices, the packages within its reach, and `loaded` in its kernel. Answers variables."""
    module = {"module/nvidia/version": loaded} if loaded else {"module/loop/version": "1"}
    host.sysfs({**pci(*devices), **module})
    host.systemd()
    host.put("/usr/local/sbin/modprobe", MODPROBE.encode())
    host.put("/usr/sbin/shutdown", b"#!/bin/sh\nexec reboot\n")  # the host's own does not know minutes
    host.repository(debs(host.said("uname -r")))
    source = Deb(
        "cuda-keyring", "1.1-1", files={"/etc/apt/sources.list.d/cuda.list": f"deb [trusted=yes] file:{FOLDER} ./\n"}
    )
    keyring = source.build(host.folder).read_bytes()
    host.put("/srv/keyring.deb", keyring, "0644")
    release = host.said(". /etc/os-release && echo $ID-$VERSION_ID")
    own = {"url": "file:///srv/keyring.deb", "sha256": hashlib.sha256(keyring).hexdigest()}
    return {**bootstrap_variables("nvidia_driver"), "nvidia_driver_keyrings": {release: own}}


def installed(host: Host, name: str) -> str:
    return host.said(f"dpkg-query -W -f '${{Version}}' {name} || true")


@pytest.mark.long("variant of a role")
def test_nothing_is_changed_where_there_is_nothing_to_do_or_to_take(new_host: Callable[[], Host]) -> None:
    host = new_host()
    host.sysfs(pci({"vendor": "0x1d0f", "class": "0x020000", "device": "0xec20"}))
    done = host.play(role("nvidia_driver", **bootstrap_variables("nvidia_driver")))
    assert done.changed == 0
    assert done.out.count("ok: [node]") == 3, "facts, arguments, one look"

    variables = stage(host, GPU, loaded="590.48.01")
    done = host.play(role("nvidia_driver", **variables | {"nvidia_driver_keyrings": {}}), code=2)
    assert "is none of" in done.out, "an unknown system"

    tasks = role("nvidia_driver", **variables)
    host.put("/usr/bin/nvidia-smi", smi("590.48.01").encode())
    before = host.root("dpkg-query -W | sha256sum; ls /etc/apt/*")
    assert host.play(tasks).changed == 0, "a working driver of the image stays"
    assert host.root("dpkg-query -W | sha256sum; ls /etc/apt/*") == before


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_a_stock_image_gets_the_pinned_driver_locked_and_held(new_host: Callable[[], Host]) -> None:
    host = new_host()
    tasks = role("nvidia_driver", **stage(host, GPU, GPU))
    boot = host.said("cat /proc/sys/kernel/random/boot_id")
    first = converges(host, tasks)
    assert "Load the driver without a reboot" in first.tasks
    assert host.said("cat /proc/sys/kernel/random/boot_id") == boot, "no reboot was needed"
    assert host.said("nvidia-smi").split() == [PINNED, PINNED]
    parts = {"nvidia-open", "nvidia-driver-open", "libnvidia-compute", "nvidia-dkms-open"}
    assert {installed(host, name) for name in parts} == {f"{PINNED}-1ubuntu1"}, "and not the newest of the repository"
    assert set(host.said("apt-mark showhold").split()) == parts
    host.root("apt-get upgrade -qq -y --allow-change-held-packages >/dev/null")
    assert installed(host, "nvidia-dkms-open") == f"{PINNED}-1ubuntu1", "without the hold the preferences hold it"
    assert installed(host, "nvidia-fabricmanager") == ""


@pytest.mark.long("variant of a role")
def test_another_driver_in_the_kernel_is_rebooted_away(new_host: Callable[[], Host]) -> None:
    host = new_host()
    tasks = role("nvidia_driver", **stage(host, GPU, loaded=OLD))
    host.put("/usr/bin/nvidia-smi", smi(OLD).encode())
    boot = host.said("cat /proc/sys/kernel/random/boot_id")
    first = host.play(tasks)
    assert "Reboot, and wait until the GPUs answer" in first.tasks
    assert host.said("cat /proc/sys/kernel/random/boot_id") != boot
    assert host.said("cat /sys/module/nvidia/version; nvidia-smi").split() == [PINNED, PINNED]
    assert host.play(tasks).changed == 0
    # A reboot that never came, because the first play was killed before it: seen by what is loaded, not by "changed".
    host.root(f"echo {OLD} >/sys/module/nvidia/version")
    assert host.play(tasks, "--check").tasks == ("Reboot, and wait until the GPUs answer",)


@pytest.mark.long("variant of a role")
def test_nvswitches_get_the_fabric_manager_of_the_drivers_patch(new_host: Callable[[], Host]) -> None:
    host = new_host()
    tasks = role("nvidia_driver", **stage(host, GPU, SWITCH, SWITCH))
    first = converges(host, tasks)
    assert "Install the fabric manager's package" in first.tasks
    assert installed(host, "nvidia-fabricmanager") == f"{PINNED}-1ubuntu1"
    assert "nvidia-fabricmanager" in host.said("apt-mark showhold").split()
    assert host.said("systemctl is-active nvidia-fabricmanager; systemctl is-enabled nvidia-fabricmanager").split() == [
        *("active", "enabled"),
    ]
    # Another's upgrade of it alone is the fault that takes all GPUs away.
    host.root(f"apt-get install -qq -y --allow-change-held-packages nvidia-fabricmanager={NEWER}-1ubuntu1 >/dev/null")
    assert "Install the fabric manager's package" in host.play(tasks).tasks
    assert installed(host, "nvidia-fabricmanager") == f"{PINNED}-1ubuntu1"
