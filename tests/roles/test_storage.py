"""The role storage on real block devices: loop devices that a host sees as NVMe disks of EC2's instance store."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.roles.rig import Host, converges, role

pytestmark = pytest.mark.e2e
MODEL = "Amazon EC2 NVMe Instance Storage        "
TASKS = role("storage", storage_scratch="/opt/nexa/scratch")
MIB = 1 << 20


@contextlib.contextmanager
def loops(folder: Path, count: int, mib: int = 320) -> Iterator[list[str]]:
    made: list[str] = []
    try:
        for number in range(count):
            with open(folder / f"disk{number}", "wb") as file:
                file.truncate(mib * MIB)
            argv = ["losetup", "--find", "--show", str(folder / f"disk{number}")]
            made.append(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
        yield made
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        if made:
            raise
        pytest.skip(f"no loop device can be had here: {error}")
    finally:
        for device in made:
            subprocess.run(["losetup", "--detach", device], check=True)


def show(host: Host, devices: Sequence[str], models: Sequence[str] = ()) -> None:
    """The loop devices as /dev/nvme<n>n1 on the host."""
    files = {"block/loop0/size": "1"}
    for number, device in enumerate(devices):
        major_minor = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip().replace(":", " ")
        host.root(f"mknod /dev/nvme{number}n1 b {major_minor}")
        files[f"block/nvme{number}n1/device/model"] = models[number] if models else MODEL
    host.sysfs(files)


def unmount(host: Host) -> None:
    host.root("umount /opt/nexa/scratch")


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_one_free_disk_becomes_scratch(new_host: Callable[[], Host], tmp_path: Path) -> None:
    with loops(tmp_path, 2) as devices:
        host = new_host()
        show(host, devices, [MODEL, "Amazon Elastic Block Store"])
        first = converges(host, TASKS)
        assert {"Make a file system over the disks", "Mount it"} <= set(first.tasks)
        assert host.said("stat -c '%a %U' /opt/nexa/scratch; touch /opt/nexa/scratch/ours && echo ok").split() == [
            *("700", "ubuntu", "ok"),
        ]
        assert host.said("findmnt -n -o SOURCE /opt/nexa/scratch") == "/dev/nvme0n1"
        assert host.root("blkid -p /dev/nvme1n1 || echo nothing") == "nothing", "a volume of EBS is not touched"
        assert host.said("grep -c nexa_scratch /etc/fstab") == "1"
        # As after a reboot without fstab, or a play that was killed between making and mounting.
        unmount(host)
        assert host.play(TASKS).tasks == ("Mount it",)
        assert host.said("ls /opt/nexa/scratch | grep -v lost") == "ours"
        unmount(host)


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_disks_with_anything_on_them_and_a_full_scratch_are_never_touched(
    new_host: Callable[[], Host], tmp_path: Path
) -> None:
    scripts = (
        "mkfs.ext4 -q /dev/nvme0n1",
        "printf 'label: dos\\n2048,4096\\n' | sfdisk -q --no-reread --no-tell-kernel /dev/nvme1n1",
        "mkswap -q /dev/nvme2n1 >/dev/null",
        "mkfs.ext4 -q /dev/nvme3n1; mkdir /mnt/theirs; mount /dev/nvme3n1 /mnt/theirs; touch /mnt/theirs/file",
    )
    with loops(tmp_path, len(scripts), mib=32) as devices:
        host = new_host()
        show(host, devices)
        host.said("touch /opt/nexa/scratch/run")
        assert host.play(TASKS).changed == 0, "scratch has something in it"
        assert host.root("blkid -p /dev/nvme0n1 || echo nothing") == "nothing"
        host.said("rm /opt/nexa/scratch/run")
        for script in scripts:
            host.root(script)
        disks = ["sha256sum", *(tmp_path / f"disk{number}" for number in range(3))]
        before = subprocess.run(disks, capture_output=True, text=True, check=True).stdout
        assert host.play(TASKS).changed == 0
        assert subprocess.run(disks, capture_output=True, text=True).stdout == before
        host.root("ls /mnt/theirs/file; umount /mnt/theirs")


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_the_mount_of_the_image_is_used_as_it_is(new_host: Callable[[], Host], tmp_path: Path) -> None:
    with loops(tmp_path, 1) as [device]:
        host = new_host()
        show(host, [device])
        host.root("mkfs.ext4 -q /dev/nvme0n1; mkdir -p /opt/dlami/nvme; mount /dev/nvme0n1 /opt/dlami/nvme")
        converges(host, TASKS)
        host.said("touch /opt/nexa/scratch/ours")
        assert host.root("ls /opt/dlami/nvme/nexa_scratch") == "ours"
        host.root("umount /opt/nexa/scratch; umount /opt/dlami/nvme")


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_several_disks_are_striped(new_host: Callable[[], Host], tmp_path: Path) -> None:
    """No RAID in this kernel: mdadm is a stub that makes the array of the first disk alone, and notes its words."""
    with loops(tmp_path, 2) as devices:
        host = new_host()
        show(host, devices)
        host.put(
            "/usr/local/sbin/mdadm",
            b'#!/bin/sh\necho "$@" >/srv/mdadm; mkdir -p /dev/md; mknod $2 b $(stat -c "0x%t 0x%T" /dev/nvme0n1)\n',
        )
        assert "Make a file system over the disks" in host.play(TASKS).tasks
        assert host.said("cat /srv/mdadm") == (
            "--create /dev/md/nexa_scratch --quiet --run --level=0 --name=nexa_scratch --raid-devices=2"
            " /dev/nvme0n1 /dev/nvme1n1"
        )
        unmount(host)
