"""scripts/region: an AWS of namespaces on this machine, by hand."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from typing import Any, NoReturn

from tests.cloud import traces
from tests.cloud.region import NOT_INSIDE, RegionError, Running, Unable, down, find, names, up

EXAMPLES = """\
  scripts/region up
  scripts/region exec nexa provision --cluster tests/cloud/cluster.yaml
  scripts/region status
  scripts/region down"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def running(name: str) -> Running:
    found = find(name)
    if found is None:
        raise RegionError(f"region {name} is not up (hint: scripts/region up --name {name})")
    return found


def become(argv: list[str], env: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        raise RegionError(f"{argv[0]}: {error.strerror}") from error


def do_up(asked: argparse.Namespace) -> int:
    found, daemon = up(asked.name, say)
    say(f"region {asked.name} is up{'' if daemon else ' already'} (pid {found.pid})")
    say("hint: scripts/region exec COMMAND runs in it")
    return 0


def do_down(asked: argparse.Namespace) -> int:
    was = asked.name in names()
    remains = down(asked.name)
    for line in remains:
        say(f"left: {line}")
    if not remains:
        ended = f"region {asked.name} is down: no process, namespace, mount or folder of it is left"
        say(ended if was else f"region {asked.name} is not up")
    return 1 if remains else 0


def facts(found: Running) -> dict[str, Any]:
    """The region in numbers: `instances` of the API with what their machines weigh."""
    state = found.client.state()
    rows = []
    for row in state["instances"]:
        machine = state["machines"].get(row["id"], {})
        processes, memory_mb = traces.weigh(machine["pid"]) if machine.get("pid") else (0, 0.0)
        more = {"up_s": machine.get("up_s"), "pid": machine.get("pid"), "processes": processes, "memory_mb": memory_mb}
        rows.append({**row, **more})
    return {
        "name": found.name,
        "pid": found.pid,
        "api": found.env["AWS_ENDPOINT_URL"],
        "api_here": f"http://127.0.0.1:{found.port}",
        "folder": str(found.folder),
        "network_namespace": traces.namespace(found.pid),
        "memory_mb": round(traces.pss_kib(found.pid) / 1024, 1),
        "instances": rows,
        "calls": state["calls"],
        "faults": state["faults"],
    }


def do_status(asked: argparse.Namespace) -> int:
    wanted = [asked.name] if asked.name_given else names()
    states = {name: find(name) for name in wanted}
    found = [facts(here) for here in states.values() if here]
    if asked.json:
        print(json.dumps(found, indent=1))
        return 0
    for region in found:
        print(f"{region['name']}: pid {region['pid']}, {region['memory_mb']} MB, {region['api']}, {region['folder']}")
        for row in region["instances"]:
            up_s = f"ssh after {row['up_s']:.1f} s" if row["up_s"] else "no ssh yet"
            who = f"{row['id']} {row['tags'].get('nexa:node', ''):4} {row['type']:14}"
            how = f"{row['state']:13} host {row['host'] or '-':8}"
            addresses = f"{row['public_ip'] or '-':15} {row['private_ip']:15}"
            print(f"  {who} {how} {addresses} {up_s}, {row['processes']} processes, {row['memory_mb']} MB")
    for name in (name for name, here in states.items() if not here and name in names()):
        say(f"{name}: dead, or just coming up (hint: scripts/region down --name {name} removes what a dead one left)")
    if not found:
        say("no region is up")
    return 0


def do_env(asked: argparse.Namespace) -> int:
    found = running(asked.name)
    for key in sorted(key for key in os.environ if NOT_INSIDE.fullmatch(key) and key not in found.env):
        print(f"unset {key}")
    for key, value in found.env.items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def do_exec(asked: argparse.Namespace) -> int:
    words = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not words:
        raise RegionError("exec needs a command")
    found = running(asked.name)
    become([*found.prefix, *words], found.environ())


def machine_pid(found: Running, instance: str) -> int:
    """Of an instance, by its id or by the name of its node."""
    state = found.client.state()
    rows = [row for row in state["instances"] if instance in (row["id"], row["tags"].get("nexa:node"))]
    pids = [pid for row in rows if (pid := state["machines"].get(row["id"], {}).get("pid"))]
    if len(pids) != 1:
        raise RegionError(f"{len(pids)} machines of {found.name} that are on are called {instance}")
    return int(pids[0])


def do_shell(asked: argparse.Namespace) -> int:
    pid = machine_pid(running(asked.name), asked.instance)
    words = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": os.environ.get("TERM", "dumb")}
    spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
    become(["nsenter", "--target", str(pid), *spaces, "--", *(words or ["bash", "-l"])], env)


def do_console(asked: argparse.Namespace) -> int:
    sys.stdout.write(running(asked.name).console(asked.instance))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/region",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--name", help="one of several regions (default: default)")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[shared])

    verb("up", "bring the region up; bakes the machines' image first where it is missing")
    verb("down", "end it and everything in it")
    verb("status", "show instances, machines and what they cost").add_argument("--json", action="store_true")
    verb("env", "print the shell's exports for commands in the region")
    verb("exec", "run a command in the region").add_argument("command", nargs=argparse.REMAINDER)
    shell = verb("shell", "root's shell, or a command, on a machine")
    shell.add_argument("instance", help="its id or its node's name")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    verb("console", "what a machine said while it booted").add_argument("instance")
    return made


def main() -> int:
    asked = parser().parse_args()
    asked.name_given, asked.name = asked.name is not None, asked.name or "default"
    try:
        found: int = globals()[f"do_{asked.verb}"](asked)
    except (RuntimeError, OSError) as error:  # RegionError, and what the API's client raises
        say(f"error: {error}")
        return 2 if isinstance(error, Unable) else 1
    return found


if __name__ == "__main__":
    sys.exit(main())
