"""The machines of the emulated region: namespaces, a copy-on-write root, cloud-init and sshd for each instance.

One thread starts and ends all of them: the kernel kills a machine when the thread that started it ends, so a region
that dies takes its machines along. A machine costs four small processes; its metadata service is a thread of the
region's own process, on a socket in the machine's namespace.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nexa_dist.plan.aws.prices import book
from tests.cloud import net
from tests.cloud.image import GUEST, NAMESPACES, hold
from tests.cloud.imds import Imds
from tests.cloud.types import Facts, HostSpec, HostState

POLL_S = 0.05
END_LIMIT_S = 300.0
POWERED_OFF, REBOOT = (0, -2), (3, -1)
"""How pid 1 ends: by its own choice, or by the system call (which the kernel reports as a signal)."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


DRIVER = "580.95.05"


def host_name(private_ip: str) -> str:
    return f"ip-{private_ip.replace('.', '-')}"


@dataclass
class Machine:
    """One instance's machine. Everything but `notice_at_unix` belongs to the supervising thread."""

    spec: HostSpec
    folder: Path
    namespace: int
    began: float = field(default_factory=time.monotonic)
    up_s: float | None = None
    """Seconds from the order to boot until sshd listened."""
    process: subprocess.Popen[bytes] | None = None
    imds: Imds | None = None

    def pid(self) -> int | None:
        """Pid 1 of the machine, as this machine numbers it."""
        if self.process is None:
            return None
        try:
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """No process of the machine goes on meanwhile: files that come and go cannot be copied."""
        signals = ["nsenter", f"--target={self.pid()}", "--pid", "--", "sh", "-c"]
        subprocess.run([*signals, "kill -STOP -1"], check=True)
        try:
            yield
        finally:
            subprocess.run([*signals, "kill -CONT -1"])


class Machines:
    """`Hosts` of the API. `folder` takes the machines' disks and consoles, `layer` is the baked image.

    Make it, and close it, in the region's network namespace.
    """

    def __init__(self, folder: Path, layer: Path) -> None:
        self.on_off: Callable[[str, str], None] = lambda instance_id, reason: None
        self._folder, self._layer, self._held = folder, layer, hold(layer)
        self._machines: dict[str, Machine] = {}
        self._states: dict[str, HostState] = {}
        self._notices: dict[str, float] = {}
        self._links = net.Links()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        (folder / "consoles").mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._supervise, name="machines", daemon=True)
        self._thread.start()

    def boot(self, spec: HostSpec) -> None:
        self._states[spec.instance_id] = "booting" if spec.boots else "failed"
        self._notices.pop(spec.instance_id, None)
        if spec.boots:
            self._orders.put(lambda: self._start(spec))

    def power_off(self, instance_id: str) -> None:
        if self._states.get(instance_id) == "failed":
            self._states[instance_id] = "off"
        self._orders.put(lambda: self._end(instance_id))

    def partition(self, instance_id: str, cut: bool) -> None:
        self._orders.put(lambda: self._links.cut(instance_id, cut))

    def capture(self, instance_id: str, image: str) -> None:
        machine, kept = self._machines[instance_id], self._folder / "images" / image
        kept.mkdir(parents=True)
        with machine.still():
            for part in ("upper", "root/home"):
                _copy(machine.folder / part, kept / part)

    def notice(self, instance_id: str, at_unix: float | None) -> None:
        if at_unix is None:
            self._notices.pop(instance_id, None)
        else:
            self._notices[instance_id] = at_unix

    def states(self) -> dict[str, HostState]:
        return dict(self._states)

    def facts(self) -> dict[str, Facts]:
        return {name: {"pid": m.pid(), "up_s": m.up_s} for name, m in list(self._machines.items())}

    def console(self, instance_id: str) -> Path:
        return self._folder / "consoles" / f"{instance_id}.log"

    def close(self) -> None:
        """Ends every machine, and waits for it. `on_off` is not called."""
        self._orders.put(None)
        self._thread.join(timeout=END_LIMIT_S)
        os.close(self._held)

    # what follows runs in the supervising thread

    def _supervise(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                order = self._orders.get(timeout=POLL_S)
                if order is None:
                    break
                self._guarded(order)
            for machine in list(self._machines.values()):
                self._guarded(partial(self._look, machine))
        for instance_id in list(self._machines):
            self._guarded(partial(self._end, instance_id))

    def _guarded(self, order: Callable[[], None]) -> None:
        """One machine's trouble must not end this thread: all machines would die with it."""
        try:
            order()
        except Exception:
            traceback.print_exc(file=sys.stderr)

    def _start(self, spec: HostSpec) -> None:
        name = spec.instance_id
        self._end(name)
        self._states[name] = "booting"  # an order before this one may have ended it
        machine = Machine(spec, self._folder / "hosts" / name, net.machine_namespace())
        self._machines[name] = machine
        try:
            _furnish(machine, self._folder / "images" / (spec.image or "none"))
            self._links.plug(name, machine.namespace, spec.vpc_id, spec.subnet_cidr, spec.private_ip, spec.public_ip)
            with net.inside(machine.namespace):
                door = net.listen(net.METADATA, 80)
            machine.imds = Imds(door, spec, net.mac(spec.private_ip), lambda: self._notices.get(name))
            self._power_on(machine)
        except (net.NetError, OSError, subprocess.SubprocessError) as error:
            with open(self.console(name), "a") as console:
                console.write(f"region: the machine could not be started: {error}\n")
            self._end(name)
            self._states[name] = "failed"

    def _power_on(self, machine: Machine) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "sh", str(GUEST / "enter.sh")]
        argv += [str(machine.folder), str(self._layer), host_name(machine.spec.private_ip), "/sbin/init"]
        with open(self.console(machine.spec.instance_id), "ab") as console, net.inside(machine.namespace):
            machine.process = subprocess.Popen(
                argv,
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _look(self, machine: Machine) -> None:
        """Notices that a machine came up, or ended by itself."""
        assert machine.process is not None
        name, code, run = machine.spec.instance_id, machine.process.poll(), machine.folder / "root" / "run"
        if code is None:
            if self._states[name] == "booting" and (run / "sshd.pid").exists():
                machine.up_s = machine.up_s or time.monotonic() - machine.began
                self._states[name] = "up"
        elif not (run / "entered").exists():
            self._end(name)  # the rig's fault; the console says which
            self._states[name] = "failed"
        elif code in REBOOT:
            shutil.rmtree(run)
            self._states[name] = "booting"
            self._power_on(machine)
        else:
            self._end(name)
            self.on_off(name, "powered off" if code in POWERED_OFF else "crashed: its pid 1 was killed")

    def _end(self, instance_id: str) -> None:
        machine = self._machines.pop(instance_id, None)
        if machine is None:
            return
        if machine.process is not None and machine.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it is just ending by itself
                if pid := machine.pid():
                    os.kill(pid, signal.SIGKILL)  # itself: its parent reports when every process in there is gone
                else:
                    os.killpg(machine.process.pid, signal.SIGKILL)  # with a pid 1 that is just being made
            machine.process.wait(timeout=END_LIMIT_S)
        if machine.imds is not None:
            machine.imds.close()
        self._links.unplug(instance_id, machine.spec.public_ip)
        os.close(machine.namespace)
        shutil.rmtree(machine.folder, ignore_errors=True)
        self._states[instance_id] = "off"


def _copy(source: Path, target: Path) -> None:
    """With owners, attributes and what an overlay notes of deleted files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--", str(source), str(target)], check=True)


def _furnish(machine: Machine, image: Path) -> None:
    """The files that a machine finds at its first boot: those of its image, and what names it."""
    if image.is_dir():
        for part in ("upper", "root/home"):
            _copy(image / part, machine.folder / part)
    etc = machine.folder / "upper" / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    name, address = host_name(machine.spec.private_ip), machine.spec.private_ip
    (etc / "hostname").write_text(f"{name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}.ec2.internal {name}\n")
    if known := book().types.get(machine.spec.type):
        smi = machine.folder / "upper" / "usr" / "bin" / "nvidia-smi"
        smi.parent.mkdir(parents=True, exist_ok=True)
        smi.write_text(nvidia_smi(known.gpu, known.gpus))
        smi.chmod(0o755)


def nvidia_smi(gpu: str, count: int) -> str:
    """A stand-in for the driver's program: it lists GPUs that are not there, to nexa's own two questions. To others
    (uv asks for the driver's version, to choose a build of torch) there is no driver."""
    name = [f"NVIDIA {gpu}"] * count
    rows = [f"{i}, NVIDIA {gpu}, {DRIVER}, 23028, 00000000:00:{i:02X}.0, 30, 0, 0x1" for i in range(count)]
    lines = ["#!/bin/sh", 'case "$*" in', "*--query-gpu=name\\ *) cat <<'T'", *name, "T", ";;"]
    lines += ["*--query-gpu=index,*) cat <<'T'", *rows, "T", ";;", "*) echo 'No devices were found'; exit 6 ;;", "esac"]
    return "\n".join(lines) + "\n"
