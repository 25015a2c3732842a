"""GPUs, NVLink, fabric manager and EFA of this node, as the driver, the kernel and their own programs tell them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from typing import Any

LIMIT_S = 8.0
"""Longest wait for a program; nvidia-smi takes seconds where no daemon keeps the driver loaded."""
ALSO = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/amazon/efa/bin")
"""Folders beside PATH, which is short in a session over ssh."""
FIELDS = (
    *("index", "name", "driver_version", "memory.total", "pci.bus_id", "temperature.gpu"),
    "ecc.errors.uncorrected.volatile.total",
)
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The one field has two names: drivers know the first from 535 on, and older ones the second."""
NVIDIA, DISPLAY, BRIDGE = "0x10de", ("0x0300", "0x0302"), "0x0680"
"""Vendor; PCI classes of a GPU; class of an NVSwitch."""
XID = re.compile(r"NVRM: Xid \([^)]*\): (\d+)")


class Asked:
    """An external program that runs while we do something else. It never has more time than until `until`."""

    def __init__(self, *argv: str) -> None:
        self._child: subprocess.Popen[str] | None = None
        path = os.pathsep.join((os.environ.get("PATH", ""), *ALSO))
        found, env = shutil.which(argv[0], path=path), {**os.environ, "PATH": path, "LC_ALL": "C"}
        if found:
            with contextlib.suppress(OSError):
                self._child = subprocess.Popen(
                    [found, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace", start_new_session=True, env=env,
                )  # fmt: skip

    def said(self, until: float) -> tuple[int, str]:
        """Exit code and all output; 127 when there is no such program, 124 when it took too long. `until` is on the
        monotonic clock."""
        if self._child is None:
            return 127, ""
        try:
            out, _ = self._child.communicate(timeout=max(0.05, until - time.monotonic()))
            return self._child.returncode, out
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead GPU cannot be killed
                self._child.communicate(timeout=1)
            return 124, ""


class Devices:
    """Asks at once, tells later. `root` is where /sys lies, `sudo` whether the kernel's log may be read so."""

    def __init__(self, root: str = "/", sudo: bool = False) -> None:
        self._sys = os.path.join(root, "sys")
        self._pci = self._devices()
        self._switches = sum(kind == BRIDGE for kind in self._pci)
        self._smi = {name: Asked(*smi_argv(name)) for name in REASONS}
        self._nvlink = Asked("nvidia-smi", "nvlink", "-s")
        self._fabric = (Asked("nv-fabricmanager", "--version"), Asked("systemctl", "is-active", "nvidia-fabricmanager"))
        dmesg = "dmesg 2>/dev/null || %sjournalctl -k -b -q --no-pager 2>/dev/null" % (
            "sudo -n dmesg 2>/dev/null || " if sudo else ""
        )
        self._log = Asked("sh", "-c", dmesg) if self._pci or self.module() else None
        self._efa = Asked("fi_info", "-p", "efa", "-t", "FI_EP_RDM")

    def module(self) -> str | None:
        """Version of the driver that the kernel has loaded."""
        return read(self._sys, "module/nvidia/version")

    def facts(self, until: float) -> dict[str, Any]:
        """JSON: see the fields below. None stands for what cannot be known here."""
        smi = self._smi[REASONS[0]].said(until)
        other = self._smi[REASONS[1]].said(until)
        code, text = smi if smi[0] == 0 else other
        links = self._nvlink.said(until)
        return {
            "module": self.module(),
            "pci_gpus": sum(kind in DISPLAY for kind in self._pci),
            "smi_code": code,
            "smi_error": "" if code == 0 else (text.strip().splitlines() or ["no answer"])[0][:300],
            "gpus": parse_gpus(text) if code == 0 else [],
            "nvlink": parse_nvlink(links[1]) if links[0] == 0 else {},
            "nvswitches": self._switches,
            "fabric_manager": self._fabric_manager(until) if self._switches else None,
            "xid": self._xid(until),
            "efa": {"devices": self._efa_devices(), "domains": self._efa_domains(until)},
        }

    def _devices(self) -> list[str]:
        """PCI classes (four hex digits) of NVIDIA's devices."""
        found = []
        folder = os.path.join(self._sys, "bus", "pci", "devices")
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if read(folder, name, "vendor") == NVIDIA:
                found.append((read(folder, name, "class") or "")[:6])
        return [kind for kind in found if kind in (*DISPLAY, BRIDGE)]

    def _fabric_manager(self, until: float) -> dict[str, Any]:
        version = re.search(r"\d+\.\d+(?:\.\d+)?", self._fabric[0].said(until)[1])
        return {"version": version.group() if version else None, "state": self._fabric[1].said(until)[1].strip()}

    def _xid(self, until: float) -> list[str] | None:
        """The newest lines of the kernel's log on faults of GPUs; None where it cannot be read."""
        code, text = self._log.said(until) if self._log else (127, "")
        if code or not text:
            return None
        return [line[-300:] for line in text.splitlines() if XID.search(line)][-20:]

    def _efa_devices(self) -> int:
        folder = os.path.join(self._sys, "class", "infiniband")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        drivers = (os.path.realpath(os.path.join(folder, name, "device", "driver")) for name in names)
        return sum(os.path.basename(driver) == "efa" for driver in drivers)

    def _efa_domains(self, until: float) -> int | None:
        """Devices that libfabric can use; None without fi_info."""
        code, text = self._efa.said(until)
        return None if code == 127 else len(set(re.findall(r"^\s*domain: (\S+)", text, re.MULTILINE)))


def smi_argv(reason: str) -> tuple[str, ...]:
    return "nvidia-smi", "--query-gpu=" + ",".join((*FIELDS, reason)), "--format=csv,noheader,nounits"


def read(*path: str) -> str | None:
    try:
        with open(os.path.join(*path)) as file:
            return file.read().strip()
    except OSError:
        return None


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """Parse nvidia-smi's rows, one a GPU. A figure is None where it says N/A, as of ECC on GPUs that have none."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(FIELDS) + 1:
            continue
        index, name, driver, memory, bus, celsius, ecc, reasons = cells
        found.append(
            {
                "index": number(index),
                "name": name,
                "driver": driver,
                "memory_mib": number(memory),
                "bus": bus,
                "celsius": number(celsius),
                "ecc_uncorrected": number(ecc),
                "clock_reasons": number(reasons),
            }
        )
    return found


def number(text: str) -> int | None:
    """Reads a number, also `0x0000000000000040`; None for `[N/A]` and for `[GPU requires reset]`."""
    try:
        return int(text, 0)
    except ValueError:
        return None


def parse_nvlink(text: str) -> dict[str, dict[str, int]]:
    """Links of each GPU by its index: how many are active, how many are not."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in text.splitlines():
        head = re.match(r"GPU (\d+):", line)
        if head:
            current = found.setdefault(head.group(1), {"active": 0, "inactive": 0})
        elif current is not None and re.match(r"\s+Link \d+:", line):
            current["active" if "/s" in line else "inactive"] += 1
    return found
