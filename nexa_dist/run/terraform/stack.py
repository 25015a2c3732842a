"""Terraform (or OpenTofu) for one cluster. python-terraform writes the command lines; the process is ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged
from python_terraform import Terraform as CommandLines

from nexa_dist.errors import NexaError
from nexa_dist.refusal import EXPIRED_CODES, REPEAT, gravest, read
from nexa_dist.run import files
from nexa_dist.run.runner import CommandFailed, Result, Runner
from nexa_dist.run.terraform import locks, settings, state
from nexa_dist.shape import Check, Strange, parsed

UNINSTALLED = ("Required plugins are not installed", "terraform init")
"""Words of Terraform where what an earlier init had installed is gone."""
LOCK_TIMEOUT = "5s"
"""A Terraform of this folder is waited for before; what else holds a state works for longer than anybody waits."""


class TerraformFailed(NexaError):
    """Terraform ended badly; the message holds the errors of its providers, the state what was made until then."""


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
    def _initialised(self) -> Path:
        """What the last init looked at; none after a failure that is not the cloud's: an init may be its cure."""
        return self.folder / "data" / "nexa_init"

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
        # Terraform hashes its providers, 700 MB, before it finds nothing to do.
        if files.read_text(self._initialised) != self._init_key():
            self._init()

    def _init_key(self) -> str:
        return settings.init_key(self.program, self.folder / "src", self._environment())

    def _init(self) -> None:
        self._initialised.unlink(missing_ok=True)
        options = {"input": False, "no_color": IsFlagged, "reconfigure": IsFlagged}
        self._checked("init", self._run("init", timeout_s=900.0, **options))
        files.write_text(self._initialised, self._init_key())

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
        return state.addresses(self._written())

    def ids(self) -> set[str]:
        """The cloud's ids of everything that the state holds."""
        return state.ids(self._written())

    def _written(self) -> dict[str, Any]:
        """The state as it is written: nothing is refreshed. Empty when there is none."""
        if not self._has_state:
            return {}
        with contextlib.suppress(NexaError, TypeError, ValueError):
            # Terraform hashes its providers, 700 MB, before it says what is in this file. What is not plain, it reads.
            if not self.backend and "resources" in (written := state.STATE(files.read_json(self.state))):
                return dict(written)
        return dict(_told("state pull", self._checked("state pull", self._run("state pull")).out or b"{}", state.STATE))

    def busy(self) -> int | None:
        """Pid of a Terraform that an earlier, killed command of this folder left at work; None when none is alive."""
        return locks.busy(self._hold)

    def settle(self, say: Callable[[str], None], *, interrupt: bool) -> None:
        """Wait until a Terraform of a killed command has ended, so that its state is written. Raises NexaError."""
        locks.settle(self._hold, self.chdir, say, interrupt=interrupt)

    def _break_lock(self, lock: locks.Lock) -> None:
        """Remove a lock whose holder is proven dead. Raises Locked when it is not."""
        locks.refuse_living(lock, self._hold, self.chdir, bool(self.backend))
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
            grace_s=locks.INTERRUPT_GRACE_S,
        )
        if not result.code:
            return
        said = "\n".join(errors) or result.tail()
        lock = locks.lock_in(said)
        if lock and mend:
            self._break_lock(lock)
            self._acted(verb, on_progress, *words, timeout_s=timeout_s, mend=False, renewed=renewed, **options)
            return
        late = f"no end within {timeout_s:.0f} s; " if result.code == 124 else ""
        told = gravest(read(said))
        if not told:
            self._initialised.unlink(missing_ok=True)
        if mend and any(word in said for word in UNINSTALLED):
            self._init()
            self._acted(verb, on_progress, *words, timeout_s=timeout_s, mend=False, renewed=renewed, **options)
            return
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
            self._argv(*words, **options), env=self._environment(), timeout_s=timeout_s, grace_s=locks.INTERRUPT_GRACE_S
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
            # The local stack needs no provider; Terraform warns about a missing file on every call.
            made["TF_CLI_CONFIG_FILE"] = os.devnull if self.stack == "local" else str(settings.cli_config(self.folder))
        return made

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
