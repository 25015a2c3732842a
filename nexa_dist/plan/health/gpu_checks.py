"""Checks of a node's GPUs and of what joins them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nexa_dist.plan.health.expected import Expected
from nexa_dist.plan.health.fault import Fault, fail, warn

Facts = Mapping[str, Any]
BROKEN_XIDS = {
    48: "double bit ECC error", 62: "internal micro-controller halt", 64: "row remapping failed", 74: "NVLink error",
    79: "fallen off the bus", 95: "uncontained ECC error", 119: "GSP does not answer", 120: "GSP error",
    140: "unrecovered ECC error",
}  # fmt: skip
"""After NVIDIA's catalog of Xids: those for which it says to reset the GPU or to replace it."""
PROGRAM_XIDS = {13, 31, 43, 45}
"""A program's own faults, as after any run that crashed: they say nothing about the GPU."""
HARD_REASONS = {0x8: "hardware slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}
SOFT_REASONS = {0x20: "software thermal slowdown"}
"""Bits of NVML's clocks event reasons."""
ANEW = "nexa provision puts another machine in its place"
REBOOT = "reboot it, or nexa provision"


def judge(name: str, said: Facts, want: Expected) -> Iterator[Fault]:
    gpus = said["gpus"]
    promised = want.gpus or (want.ranks if gpus or said["pci_gpus"] else 0)
    if said["smi_code"] not in (0, 127) or (said["pci_gpus"] and not gpus):
        yield fail(name, "driver", f"nvidia-smi: {said['smi_error']}", "an answer of the driver", REBOOT)
    elif len(gpus) < promised:
        bus = f"; {said['pci_gpus']} on the bus" if said["pci_gpus"] else ""
        yield fail(name, "gpu missing", f"{len(gpus)} GPUs{bus}", f"{promised} GPUs", ANEW)
    drivers = {gpu["driver"] for gpu in gpus}
    if said["module"] and drivers - {said["module"]}:
        seen = f"driver {', '.join(sorted(drivers))}, kernel module {said['module']}"
        yield fail(name, "driver", seen, "the same version", REBOOT)
    if said["module"] and said["environment"].get("torch") and not said["environment"].get("cuda"):
        seen = f"torch {said['environment']['torch']} cannot use GPUs"
        yield fail(name, "environment", seen, "a build with CUDA", "nexa provision installs one")
    for gpu in gpus:
        yield from _gpu(name, gpu)
    yield from _joined(name, said)
    yield from _xids(name, said)
    yield from _efa(name, said, want)


def _gpu(name: str, gpu: Facts) -> Iterator[Fault]:
    which = f"GPU {gpu['index']}"
    if gpu["ecc_uncorrected"]:
        yield fail(name, "ecc", f"{which}: {gpu['ecc_uncorrected']} uncorrected errors", "none", ANEW)
    reasons = gpu["clock_reasons"] or 0
    hard = [words for bit, words in HARD_REASONS.items() if reasons & bit]
    soft = [words for bit, words in SOFT_REASONS.items() if reasons & bit]
    heat = "" if gpu["celsius"] is None else f" at {gpu['celsius']} °C"
    if hard:
        yield fail(name, "throttled", f"{which}: {', '.join(hard + soft)}{heat}", "full clocks", ANEW)
    elif soft:
        yield warn(name, "throttled", f"{which}: {', '.join(soft)}{heat}", "full clocks", "see to its cooling")


def _joined(name: str, said: Facts) -> Iterator[Fault]:
    """NVLink and the fabric manager."""
    active = {index: links["active"] for index, links in said["nvlink"].items()}
    most = max(active.values(), default=0)
    for index, count in active.items():
        if count < most or (said["nvswitches"] and not count):
            want = f"{most}, as the other GPUs" if most else "all of them"
            yield fail(name, "nvlink", f"GPU {index}: {count} links are active", want, ANEW)
    manager = said["fabric_manager"]
    if manager is None:
        return
    driver = said["module"] or next((gpu["driver"] for gpu in said["gpus"]), None)
    if manager["version"] != driver:
        seen = f"fabric manager {manager['version']}, driver {driver}"
        yield fail(name, "fabric manager", seen, "equal to the patch", "nexa provision installs the right one")
    elif manager["state"] != "active":
        seen = f"its service is {manager['state'] or 'not there'}"
        yield fail(name, "fabric manager", seen, "active, since there are NVSwitches", REBOOT)


def _xids(name: str, said: Facts) -> Iterator[Fault]:
    if said["xid"] is None:
        if said["gpus"] and said["module"]:
            yield warn(name, "xid", "the kernel's log cannot be read", "no Xid in it", "allow dmesg there")
        return
    codes = sorted({int(found) for line in said["xid"] for found in re.findall(r"Xid \([^)]*\): (\d+)", line)})
    for code in codes:
        if code in BROKEN_XIDS:
            yield fail(name, "xid", f"Xid {code}: {BROKEN_XIDS[code]}", "none", ANEW)
        elif code not in PROGRAM_XIDS:
            yield warn(name, "xid", f"Xid {code}", "none", "look it up in NVIDIA's list of Xids")


def _efa(name: str, said: Facts, want: Expected) -> Iterator[Fault]:
    devices, domains = said["efa"]["devices"], said["efa"]["domains"]
    if devices < want.efa:
        yield fail(name, "efa", f"{devices} EFA devices", f"{want.efa} by its type", ANEW)
    elif want.efa and (domains or 0) < want.efa:
        seen = "fi_info is not there" if domains is None else f"libfabric finds {domains} of {devices} EFA devices"
        yield fail(name, "efa", seen, f"{want.efa}", "nexa provision installs EFA's software")
