"""What the agent's `diag` says of a node with GPUs. There is none here: the programs of the driver, of the fabric
manager and of libfabric are stubs on PATH that print what the real ones print, and /sys and /proc are a folder. All
that lies between them and the answer is the real thing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.node.machine.devices import REASONS, Asked, parse_gpus, parse_nvlink
from nexa_dist.node.machine.diag import diag, disk, write_speed
from tests.processes.node.rig import Rig

SMI = """\
case "$*" in
*nvlink*) cat <<'T'
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
\t Link 0: 25 GB/s
\t Link 1: 25 GB/s
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)
\t Link 0: 25 GB/s
\t Link 1: <inactive>
T
;;
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2 ;;
*) cat <<'T'
0, NVIDIA A100-SXM4-40GB, 525.85.12, 40960, 00000000:10:1C.0, 33, 0, 0x0000000000000001
1, NVIDIA A100-SXM4-40GB, 525.85.12, 40960, 00000000:10:1D.0, 34, [N/A], 0x0000000000000040
T
;;
esac
"""
XID = "[12.5] NVRM: Xid (PCI:0000:10:1d): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


class Machine:
    """Stub programs in a folder that is all of PATH but the shell's own, and a /sys."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin, self.scratch = folder / "root", folder / "bin", folder / "scratch"
        self.bin.mkdir()
        (self.root / "dev" / "shm").mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setattr("nexa_dist.node.machine.diag.LIMIT_S", 90.0)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def file(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def pci(self, address: str, kind: str, vendor: str = "0x10de") -> None:
        self.file(f"sys/bus/pci/devices/{address}/vendor", vendor)
        self.file(f"sys/bus/pci/devices/{address}/class", kind)

    def diag(self, **more: Any) -> dict[str, Any]:
        return diag({"python": sys.executable, "scratch": str(self.scratch), **more}, str(self.root))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def a100(machine: Machine) -> Machine:
    machine.program("nvidia-smi", SMI)
    machine.program("nv-fabricmanager", "echo 'Fabric Manager version is : 525.85.12'")
    machine.program("systemctl", "echo active")
    machine.program("dmesg", f'echo "[0.1] Linux"; echo "{XID}"')
    machine.program("fi_info", "printf 'provider: efa\\n    domain: rdmap16s27-rdm\\n    domain: rdmap32s27-rdm\\n'")
    machine.file("sys/module/nvidia/version", "525.85.12")
    for slot in "cd":
        machine.pci(f"0000:10:1{slot}.0", "0x030200")
    machine.pci("0000:c4:00.0", "0x068000")
    machine.pci("0000:00:03.0", "0x020000", vendor="0x1d0f")
    driver = machine.root / "sys/bus/pci/drivers/efa"
    driver.mkdir(parents=True)
    for index in range(2):
        device = machine.root / f"sys/class/infiniband/rdmap{index}/device"
        device.mkdir(parents=True)
        (device / "driver").symlink_to(driver)
    return machine


def test_a_node_with_gpus(a100: Machine) -> None:
    said = a100.diag()
    assert [(gpu["name"], gpu["driver"], gpu["ecc_uncorrected"], gpu["clock_reasons"]) for gpu in said["gpus"]] == [
        ("NVIDIA A100-SXM4-40GB", "525.85.12", 0, 1),
        ("NVIDIA A100-SXM4-40GB", "525.85.12", None, 0x40),
    ]
    assert (said["smi_code"], said["module"], said["pci_gpus"], said["nvswitches"]) == (0, "525.85.12", 2, 1)
    assert said["nvlink"] == {"0": {"active": 2, "inactive": 0}, "1": {"active": 1, "inactive": 1}}
    assert said["fabric_manager"] == {"version": "525.85.12", "state": "active"}
    assert said["xid"] == [XID]
    assert said["efa"] == {"devices": 2, "domains": 2}


def test_a_driver_that_does_not_answer_is_quoted(a100: Machine) -> None:
    a100.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    said = a100.diag()
    assert (said["smi_code"], said["gpus"], said["nvlink"]) == (18, [], {})
    assert said["smi_error"] == "Failed to initialize NVML: Driver/library version mismatch"


def test_a_log_that_may_not_be_read_is_unknown(a100: Machine) -> None:
    a100.program("dmesg", "exit 1")
    a100.program("journalctl", "exit 1")
    assert a100.diag()["xid"] is None


def test_a_node_without_gpus(machine: Machine) -> None:
    machine.file("proc/meminfo", "MemTotal:       1024 kB\nMemFree: 1 kB\nMemAvailable:    512 kB")
    machine.file("proc/stat", "cpu 1 2\nbtime 1700000000")
    machine.file("sys/class/net/lo/mtu", "65536")
    said = machine.diag(peers=["127.0.0.9"], listen="127.0.0.1", port=0)
    assert (said["gpus"], said["module"], said["xid"], said["fabric_manager"]) == ([], None, None, None)
    assert said["efa"] == {"devices": 0, "domains": None}
    assert said["memory"] == {"total": 1 << 20, "available": 1 << 19}
    assert said["boot_unix"] == 1700000000
    assert said["peers"]["127.0.0.9"] == {"address": "127.0.0.1", "interface": "lo", "peer": "127.0.0.9", "mtu": 65536}
    assert said["port"] and said["test_port"] and not said["port_error"]
    assert said["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert said["received_unix"] <= said["answered_unix"]
    assert said["seconds"] < 90


def test_torch_is_told_without_its_import(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "version.py").write_text(
        "from typing import Optional\n__version__ = '9.8+cu77'\ncuda: Optional[str] = '7.7'\n"
    )
    found = tmp_path / "lib" / "nvidia_nccl_cu13-2.28.9.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-nccl-cu13\nVersion: 2.28.9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    environment = machine.diag()["environment"]
    assert (environment["torch"], environment["cuda"], environment["nccl"]) == ("9.8+cu77", "7.7", "2.28.9")


def test_an_interpreter_that_does_not_run_is_said(machine: Machine, tmp_path: Path) -> None:
    assert "No such file" in machine.diag(python=str(tmp_path / "none"))["environment"]["error"]


def test_a_program_that_hangs_is_left_behind(machine: Machine) -> None:
    machine.program("nvidia-smi", "sleep 600 & sleep 600")
    asked = Asked("nvidia-smi")
    began = time.monotonic()
    assert asked.said(began + 0.2) == (124, "")
    assert time.monotonic() - began < 300
    assert Asked("no-such-program").said(began) == (127, "")


def test_a_disk_is_written_and_nothing_stays(tmp_path: Path) -> None:
    said = write_speed(str(tmp_path), deep=False)
    assert said["mib"] >= 1 and said["seconds"] > 0
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    assert "Not a directory" in disk(str(tmp_path / "file" / "scratch"), deep=False)["error"]


def test_what_is_not_a_figure_is_none() -> None:
    row = "0, X, 1.2, [GPU requires reset], b, [N/A], [N/A], [Not Supported]"
    found = parse_gpus(f"warning: something\n{row}\n")
    assert [(gpu["memory_mib"], gpu["celsius"], gpu["clock_reasons"]) for gpu in found] == [(None, None, None)]
    assert parse_nvlink("") == {} and len(REASONS) == 2


def test_the_agents_file_answers(rig: Rig) -> None:
    said = rig.call("diag", message={"python": sys.executable, "scratch": str(rig.folder.parent), "peers": []})
    assert said["environment"]["torch"] and said["disk"]["mib"] >= 1
    assert not rig.folder.exists()
