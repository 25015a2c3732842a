"""A folder in place of a machine that keeps its own deadline."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

TERRAFORM = Path(__file__).resolve().parents[3] / "terraform"
NODES = TERRAFORM / "modules" / "aws_nodes"
DEADLINE_SH = TERRAFORM / "shared" / "deadline.sh"


class Machine:
    """A folder in place of a machine: its files, a `poweroff` that only notes, and a clock that can be set."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "nexa"
        self.log = folder / "poweroff.log"
        self.clock, self.uptime = folder / "clock", folder / "uptime"
        self.began_unix: int | None = None
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program("poweroff", f'echo "off $*" >>"{self.log}"')
        self.program("systemd-run", "exit 1")  # never the service manager of the machine that tests
        self.program("systemctl", "exit 1")
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "NEXA_DEADLINE_DIR": str(self.state),
            "NEXA_DEADLINE_TICK_S": "1",
        }
        assert shutil.which("poweroff", path=self.env["PATH"]) == str(self.bin / "poweroff")

    def program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def set_clock(self, unix: int) -> None:
        """Time stands still at `unix` from now on; the machine was on for as long as the clock says."""
        self.began_unix = unix if self.began_unix is None else self.began_unix
        uptime = f"{1000 + max(0, unix - self.began_unix)}.25 0.00\n"
        for path, text in ((self.uptime, uptime), (self.clock, str(unix))):
            fresh = path.with_suffix(".next")  # whole at any moment: who cannot read the time goes off
            fresh.write_text(text)
            fresh.replace(path)
        if not (self.bin / "date").exists():  # written once: a running program cannot be written over
            self.program("date", f'cat "{self.clock}"')

    def boot(self, expires_unix: int, max_s: int, instance_id: str = "i-1", lease_s: int = 0, idle_s: int = 0) -> None:
        """What cloud-init runs first at a boot: the bootcmd of the template, rendered."""
        template = (NODES / "user_data.yaml.tftpl").read_text()
        [command] = re.findall(r"bootcmd:\n  - \|\n((?:    .*\n|\n)+)", template)
        script = re.sub(r"^    ", "", command, flags=re.MULTILINE)
        deadline = DEADLINE_SH.read_text().strip()
        script = script.replace("${indent(4, trimspace(deadline_sh))}", deadline)
        script = script.replace("${expires_unix}", str(expires_unix)).replace("${max_s}", str(max_s))
        script = script.replace("${lease_s}", str(lease_s)).replace("${idle_s}", str(idle_s))
        script = script.replace("$${", "${").replace("/var/lib/nexa", str(self.state))
        assert "/run/systemd/system" in script
        script = script.replace("/run/systemd/system", str(self.bin / "no-systemd"))
        if self.began_unix is not None:
            script = script.replace("/proc/uptime", str(self.uptime))
        env = {**self.env, "INSTANCE_ID": instance_id}
        done = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

    def due_unix(self) -> int:
        return int((self.state / "due_unix").read_text())

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        """The script itself, as root would call it."""
        argv = [str(self.state / "deadline"), *map(str, words)]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=90)

    def replace_due(self, due_unix: object) -> None:
        (self.state / "mine").write_text(f"{due_unix}\n")
        (self.state / "mine").rename(self.state / "due_unix")

    def went_off(self, within_s: float = 90) -> bool:
        give_up = time.monotonic() + within_s
        while not self.gone() and time.monotonic() < give_up:
            time.sleep(0.02)
        return self.gone()

    def gone(self) -> bool:
        """The program has written its line: the shell makes the file a moment before."""
        return self.log.exists() and self.log.read_text() != ""

    def processes(self) -> dict[int, list[str]]:
        """Command lines, by pid, of what the boots left running: this folder is in their environment."""
        mine = f"NEXA_DEADLINE_DIR={self.state}".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[:-1]
        return found

    def off(self) -> None:
        """Until nothing is left: one may just have started another, which would go on into the next boot."""
        give_up = time.monotonic() + 90
        while pids := self.processes():
            assert time.monotonic() < give_up, pids
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


FAKES = r"""
note() { echo "$*" >&4; exit 0; }
mv() { read -r line <"$2" && echo "$line" >"$3"; }
poweroff() { note "off $up_now $clock"; }
run_would_stop() {
    { read -r stop _ <"$dir/runs_until"; } 2>/dev/null && [ "$up_now" -ge "$stop" ]
}
sleep() {
    until=$((up_now + $1))
    while [ "$at_up" -le "$until" ]; do
        clock=$((clock + at_up - up_now)) up_now=$at_up
        case $kind in
            lease) if [ -z "$value" ]; then run_would_stop && note "stop $up_now"; fi
                lease_touched=$((clock + ${value:-0})) ;;
            busy) busy_touched=$((clock + ${value:-0})) ;;
            clock) clock=$((clock + value)) ;;
            due) echo "$value" >"$dir/due_unix" ;;
            end) note "on $up_now $clock" ;;
        esac
        read -r at_up kind value <&3
    done
    clock=$((clock + until - up_now)) up_now=$until
    echo "$up_now.50 0.00" >"$uptime"
}
read -r at_up kind value <&3
"""
UNFORKED = {"$(date +%s)": "$clock", '$(stat -c %Y "$dir/$1" 2>/dev/null)': "$((${1}_touched))"}
"""A shell of its own for each look at the clock would be most of what a simulated day takes."""


class Simulation:
    """The real script's watch, whose clock and files' times are variables of the shell, and whose sleep and other
    programs are functions of it: days take seconds.

    It is switched on at uptime 100 when the clock says 1_800_000_000.
    """

    def __init__(self, folder: Path, *, due_in_s: int, max_s: int = 10**8, lease_s: int = 0, idle_s: int = 0) -> None:
        self.folder, self.up, self.clock = folder, 100, 1_800_000_000
        self.touched = {"lease": self.clock, "busy": self.clock}
        for name in self.touched:
            (folder / name).touch()
        (folder / "due_unix").write_text(f"{self.clock + due_in_s}\n")
        (folder / "limits").write_text(f"{max_s} {lease_s} {idle_s} {self.clock}\n")
        script = DEADLINE_SH.read_text().replace("/proc/uptime", str(folder / "uptime"))
        for real, fake in UNFORKED.items():
            assert real in script
            script = script.replace(real, fake)
        (folder / "deadline").write_text(script)
        (folder / "fakes").write_text(FAKES)

    def watch(self, events: list[tuple[int, str, str]]) -> tuple[str, int]:
        """Goes on until `events` (at_up, kind, value) end, or until it goes off: ("on" or "off", uptime), or ("stop",
        uptime) when a run would have been ended though the lease was then renewed."""
        assert events == sorted(events, key=lambda event: event[0])
        (self.folder / "uptime").write_text(f"{self.up}.50 0.00\n")
        lines = "".join(f"{at} {kind} {value}\n" for at, kind, value in [*events, (events[-1][0] + 1, "end", "")])
        (self.folder / "events").write_text(lines)
        start = f"clock={self.clock} up_now={self.up} uptime='{self.folder}/uptime' "
        start += " ".join(f"{name}_touched={unix}" for name, unix in self.touched.items())
        script = f"{start}; exec 3<events 4>said; . ./fakes; set -- watch; . ./deadline"
        env = {"PATH": "/nowhere", "NEXA_DEADLINE_DIR": str(self.folder)}
        done = subprocess.run(["/bin/sh", "-c", script], env=env, cwd=self.folder, timeout=120, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
        how, up, *_ = (self.folder / "said").read_text().split()
        return how, int(up)
