"""Terraform (or OpenTofu) for one cluster. python-terraform writes the command lines; the process is ours."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged
from python_terraform import Terraform as CommandLines

from nexa_dist.errors import NexaError
from nexa_dist.refusal import EXPIRED_CODES, REPEAT, gravest, read
from nexa_dist.run import files
from nexa_dist.run.runner import CommandFailed, Result, Runner
from nexa_dist.shape import Check, Strange, anything, parsed, record, rows, table, text

INTERRUPT_GRACE_S = 120.0
"""Terraform told to stop finishes what it began and writes its state; killing it would leak that."""
LOCK_TIMEOUT = "5s"
"""A Terraform of this folder is waited for before; what else holds a state works for longer than anybody waits."""
MIRROR_HOST = "registry.terraform.io"


def binary(workspace: Path) -> str:
    """NEXA_TERRAFORM, then PATH, then what scripts/quickstart downloaded. Raises NexaError."""
    named = os.environ.get("NEXA_TERRAFORM")
    for candidate in (named, "terraform", "tofu", str(workspace / ".nexa" / "bin" / "terraform")):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    raise NexaError(
        "neither terraform nor tofu is on PATH", hint="scripts/quickstart downloads a pinned one into .nexa/bin"
    )


def mirror() -> str | None:
    """Folder with providers on this machine: NEXA_TF_MIRROR, or one below /opt. Terraform finds its own by itself."""
    named = os.environ.get("NEXA_TF_MIRROR")
    if named:
        return str(Path(named).absolute())
    return next((str(found.parent) for found in sorted(Path("/opt").glob(f"*/{MIRROR_HOST}"))), None)


_VALUE = anything(30, 100_000, 1 << 20)
_MANY = 100_000
STATE = record(
    {},
    {
        "resources": rows(
            record(
                {"mode": text(), "instances": rows(table(text(), _VALUE, _MANY), _MANY)},
                dict.fromkeys(("module", "type", "name"), text()),
            ),
            _MANY,
        ),
        "outputs": table(text(), record({"value": _VALUE}), _MANY),
    },
)
"""Parts that we read of a state."""


class TerraformFailed(NexaError):
    """Terraform ended badly; the message holds the errors of its providers, the state what was made until then."""


class Locked(NexaError):
    """Lock of the remote state that somebody else holds."""


@dataclass(frozen=True)
class Lock:
    """Lock of a remote state and its holder, as Terraform tells it."""

    id: str
    who: str
    since: str


@dataclass(frozen=True)
class Terraform:
    """One stack in a cluster's own folder: a copy of its sources, its state, its data.

    The copy makes the folder whole: it can be destroyed with plain Terraform, and by any later nexa. With `backend`
    (settings of Terraform's S3 backend) the state lies there, and not in the folder.
    """

    runner: Runner
    program: str
    folder: Path
    stack: str
    backend: Mapping[str, str] = field(default_factory=dict)
    keys: Callable[[bool], Mapping[str, str]] = lambda _: {}
    """The cloud's credentials for its environment, new ones if asked."""

    @property
    def state(self) -> Path:
        return self.folder / "terraform.tfstate"

    @property
    def chdir(self) -> Path:
        return self.folder / "src" / "stacks" / self.stack

    @property
    def variables(self) -> Path:
        return self.folder / "nexa.tfvars.json"

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.bin"

    @property
    def _hold(self) -> Path:
        return self.folder / "busy"

    @property
    def _has_state(self) -> bool:
        """Tell whether there may be a state: a file, or a backend that an init has found."""
        return self.state.exists() or (bool(self.backend) and (self.folder / "data" / "terraform.tfstate").exists())

    def prepare(self, sources: Path | None, variables: dict[str, Any]) -> None:
        """Copies the stack (None: it lies there), writes its variables, runs init."""
        if sources:
            ignored = shutil.ignore_patterns(".terraform")
            shutil.copytree(sources, self.folder / "src", dirs_exist_ok=True, ignore=ignored)
        files.close_tree(self.folder / "src")
        # In the copy, so that plain Terraform in that folder finds the state too. The path is relative to it.
        where = {"s3": dict(self.backend)} if self.backend else {"local": {"path": "../../../terraform.tfstate"}}
        files.write_json(self.chdir / "backend_override.tf.json", {"terraform": {"backend": where}})
        self.give(variables)
        self._checked(
            "init", self._run("init", input=False, no_color=IsFlagged, reconfigure=IsFlagged, timeout_s=900.0)
        )

    def give(self, variables: dict[str, Any]) -> None:
        """Writes the variables that the next apply takes."""
        files.write_json(self.variables, variables)

    def plan(self, replace: Sequence[str] = ()) -> dict[str, Any]:
        """Plans into `plan_file`; answers it as Terraform's JSON. Breaks no lock: a plan needs no claim."""
        options: dict[str, Any] = {"out": str(self.plan_file), "var_file": str(self.variables)}
        options |= {"replace": list(replace)} if replace else {}
        self._acted("plan", lambda _: None, timeout_s=600.0, mend=False, **options)
        shown = self._checked("show", self._run("show", str(self.plan_file), json=IsFlagged))
        return dict(_told("show", shown.out, files.SANE))

    def apply(self, on_progress: Callable[[str], None], replace: Sequence[str] = (), timeout_s: float = 3600.0) -> None:
        """Makes what the variables say; `replace` names resource addresses to be made anew."""
        extra: dict[str, Any] = {"replace": list(replace)} if replace else {}
        self._acted(
            "apply", on_progress, timeout_s=timeout_s, auto_approve=IsFlagged, var_file=str(self.variables), **extra
        )

    def apply_plan(self, on_progress: Callable[[str], None], timeout_s: float = 3600.0) -> None:
        """Makes exactly what `plan_file` holds; Terraform refuses it when the state is not the planned one's."""
        self._acted("apply", on_progress, str(self.plan_file), timeout_s=timeout_s)

    def destroy(self, on_progress: Callable[[str], None], timeout_s: float = 1800.0) -> None:
        self._acted("destroy", on_progress, timeout_s=timeout_s, auto_approve=IsFlagged, var_file=str(self.variables))

    def outputs(self) -> dict[str, Any]:
        """Values of all outputs."""
        return {name: entry["value"] for name, entry in self._written().get("outputs", {}).items()}

    def resources(self) -> list[str]:
        """Addresses of managed resources in the state; empty when there is no state."""
        return [
            ".".join(part for part in (row.get("module"), row.get("type"), row.get("name")) if part)
            + (f"[{json.dumps(instance['index_key'])}]" if "index_key" in instance else "")
            for row, instance in self._managed()
        ]

    def ids(self) -> set[str]:
        """The cloud's ids of everything that the state holds."""
        attributes = [instance.get("attributes") or {} for _, instance in self._managed()]
        return {str(found["id"]) for found in attributes if isinstance(found, dict) and found.get("id")}

    def _managed(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Each instance of a managed resource, with its resource."""
        rows = [row for row in self._written().get("resources", []) if row["mode"] == "managed"]
        return [(row, instance) for row in rows for instance in row["instances"]]

    def _written(self) -> dict[str, Any]:
        """The state as it is written: nothing is refreshed. Empty when there is none."""
        if not self._has_state:
            return {}
        with contextlib.suppress(NexaError, TypeError, ValueError):
            # Terraform hashes its providers, 700 MB, before it says what is in this file. What is not plain, it reads.
            if not self.backend and "resources" in (state := STATE(files.read_json(self.state))):
                return dict(state)
        return dict(_told("state pull", self._checked("state pull", self._run("state pull")).out or b"{}", STATE))

    def busy(self) -> int | None:
        """Pid of a Terraform that an earlier, killed command of this folder left at work; None when none is alive."""
        if not self._hold.exists():
            return None
        with open(self._hold, "r+", encoding="ascii") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(held.read() or 0)
            return None

    def settle(self, say: Callable[[str], None], *, interrupt: bool) -> None:
        """Waits until a Terraform of a killed command has ended, so that its state is written. Bounded.

        Raises NexaError when it does not end.
        """
        pid = self.busy()
        if pid is None:
            return
        say(
            f"a Terraform of a killed command is still at work (pid {pid}): "
            + ("stopping it" if interrupt else "waiting")
        )
        for living, folder in _living() if interrupt else ():
            if folder == self.chdir:  # and not a number that was given away again
                with contextlib.suppress(ProcessLookupError):
                    os.kill(living, signal.SIGINT)
        until = time.monotonic() + (INTERRUPT_GRACE_S if interrupt else 900.0)
        while time.monotonic() < until:
            if self.busy() is None:
                return
            time.sleep(0.2)
        raise NexaError(
            f"Terraform (pid {pid}) of an earlier command does not end",
            hint=f"look at it, then: kill {pid}" if pid else f"fuser {self._hold} names it",
        )

    def _remote_lock(self, error: str) -> Lock | None:
        """The lock that `error` (Terraform's words) names, None when it is about something else."""
        found: dict[str, str] = {}
        for line in error.splitlines():
            key, colon, value = line.strip(" │").partition(":")
            if colon and key.strip() in ("ID", "Who", "Created"):
                found[key.strip()] = value.strip()
        return Lock(found["ID"], found["Who"], found.get("Created", "?")) if {"ID", "Who"} <= set(found) else None

    def _break_lock(self, lock: Lock) -> None:
        """Removes a lock whose holder is proven dead: it was taken on this machine by this user, and no Terraform
        lives here that works on this state, from this folder or another. Raises NexaError when that is not so."""
        us = f"{_user()}@{socket.gethostname()}"
        alive = self.busy() is not None or any(_backend(folder) == _backend(self.chdir) for _, folder in _living())
        if lock.who != us or alive or not self.backend:  # the kernel takes away the lock of a local state itself
            raise Locked(
                f"the state is locked by {lock.who} since {lock.since}",
                hint=f"if you know that it is dead: terraform -chdir={self.chdir} force-unlock {lock.id}",
            )
        self._checked("force-unlock", self._run("force-unlock", lock.id, force=IsFlagged))

    def _acted(
        self,
        verb: str,
        on_progress: Callable[[str], None],
        *words: str,
        timeout_s: float,
        mend: bool = True,
        renewed: bool = False,
        **options: Any,
    ) -> None:
        errors: list[str] = []
        env = self._environment()

        def on_line(line: str) -> None:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not isinstance(record, dict):
                return
            acted = record.get("hook", {}).get("action") not in (None, "read")
            if acted and record.get("type") in ("apply_start", "apply_progress", "apply_complete", "apply_errored"):
                on_progress(record["@message"])
            if record.get("type") == "diagnostic" and record["@level"] == "error":
                found = record["diagnostic"]
                errors.append(f"{found['summary']}: {found.get('detail', '')}".strip())

        argv = self._argv(verb, *words, json=IsFlagged, input=False, lock_timeout=LOCK_TIMEOUT, **options)
        result = self.runner.run_logged(
            argv,
            self.folder / f"{verb}.jsonl",
            on_line=on_line,
            hold=self._hold,
            env=env,
            timeout_s=timeout_s,
            grace_s=INTERRUPT_GRACE_S,
        )
        if not result.code:
            return
        said = "\n".join(errors) or result.tail()
        lock = self._remote_lock(said)
        if lock and mend:
            self._break_lock(lock)
            self._acted(verb, on_progress, *words, timeout_s=timeout_s, mend=False, renewed=renewed, **options)
            return
        late = f"no end within {timeout_s:.0f} s; " if result.code == 124 else ""
        told = gravest(read(said))
        # They end after an hour, or while the laptop sleeps. What was planned is planned anew, from what is there now.
        if told and told.code in EXPIRED_CODES and not (renewed or words) and self._renewed(env):
            self._acted(verb, on_progress, timeout_s=timeout_s, mend=mend, renewed=True, **options)
            return
        raise TerraformFailed(f"terraform {verb} failed: {late}{said}", hint=told.cure if told else REPEAT)

    def _renewed(self, env: Mapping[str, str]) -> bool:
        """Tell whether there are other keys than those in `env`; what failed with the old ones is still to be told."""
        try:
            return {**env, **self.keys(True)} != env
        except NexaError:
            return False

    def _argv(self, *words: str, **options: Any) -> list[str]:
        argv = CommandLines(terraform_bin_path=self.program).generate_cmd_string(*words, **options)
        argv.insert(1, f"-chdir={self.chdir}")
        return list(argv)

    def _run(self, *words: str, timeout_s: float = 300.0, **options: Any) -> Result:
        return self.runner.run(
            self._argv(*words, **options), env=self._environment(), timeout_s=timeout_s, grace_s=INTERRUPT_GRACE_S
        )

    def _environment(self) -> dict[str, str]:
        made = {
            **self.keys(False),
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",
            "GOGC": os.environ.get("GOGC", "400"),
            "TF_DATA_DIR": str(self.folder / "data"),
        }
        configured = os.environ.get("TF_CLI_CONFIG_FILE")
        own = Path(configured) if configured else Path.home() / ".terraformrc"
        if not own.is_file():
            made["TF_CLI_CONFIG_FILE"] = str(self._cli_config())
        return made

    def _cli_config(self) -> Path:
        """Write a config of Terraform's command line for a user who has none: providers from a mirror on this machine
        where there is one, else downloaded once."""
        folder, path = mirror(), self.folder / "terraformrc"
        if self.stack == "local":
            return Path(os.devnull)  # needs no provider; Terraform warns about a missing file on every call
        if folder:
            quoted = json.dumps(folder).replace("${", "$${").replace("%{", "%%{")
            text = (
                f"provider_installation {{\n  filesystem_mirror {{\n    path    = {quoted}\n"
                f'    include = ["{MIRROR_HOST}/hashicorp/*"]\n  }}\n'
                f'  direct {{\n    exclude = ["{MIRROR_HOST}/hashicorp/*"]\n  }}\n}}\n'
            )
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexa" / "terraform-plugins"
            cache.mkdir(parents=True, exist_ok=True)
            text = f"plugin_cache_dir = {json.dumps(str(cache))}\nplugin_cache_may_break_dependency_lock_file = true\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)
        return path

    @staticmethod
    def _checked(what: str, result: Result) -> Result:
        if result.code:
            raise CommandFailed(f"terraform {what}", result)
        return result


def _told(what: str, out: bytes, check: Check) -> Any:
    """Read what Terraform printed. Raises NexaError when that is not what it prints."""
    try:
        return parsed(out, check, files.FILE_BYTES)
    except Strange as error:
        raise NexaError(f"terraform {what} makes no sense: {error}") from None


def _user() -> str:
    """Our name as Terraform writes it into a lock, whatever $USER says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER", "")


def _living() -> Iterator[tuple[int, Path]]:
    """Every Terraform on this machine that we may look at: its pid, and the folder of its stack."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            named = [os.fsdecode(word.removeprefix(b"-chdir=")) for word in words if word.startswith(b"-chdir=")]
            if named or Path(os.readlink(process / "exe")).name.startswith(("terraform", "tofu")):
                yield int(process.name), Path(os.readlink(process / "cwd"), *named)


def _backend(chdir: Path) -> Any:
    """Backend of a stack's state; None when no nexa has said it."""
    with contextlib.suppress(NexaError):
        return files.read_json(chdir / "backend_override.tf.json")
    return None
