"""Terraform (or OpenTofu) for one cluster. python-terraform writes the command lines; the process is ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged
from python_terraform import Terraform as CommandLines

from nexa_dist.errors import NexaError
from nexa_dist.run import files
from nexa_dist.run.runner import CommandFailed, Result, Runner

INTERRUPT_GRACE_S = 120.0
"""Terraform told to stop finishes what it began and writes its state; killing it would leak that."""


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


@dataclass(frozen=True)
class Terraform:
    """One stack in a cluster's own folder: a copy of its sources, its state, its data.

    The copy makes the folder whole: it can be destroyed with plain Terraform, and by any later nexa.
    """

    runner: Runner
    program: str
    folder: Path
    stack: str

    @property
    def state(self) -> Path:
        return self.folder / "terraform.tfstate"

    @property
    def chdir(self) -> Path:
        return self.folder / "src" / "stacks" / self.stack

    @property
    def variables(self) -> Path:
        return self.folder / "nexa.tfvars.json"

    def prepare(self, sources: Path, variables: dict[str, Any]) -> None:
        """Copies the stack, writes its variables, runs init."""
        shutil.copytree(sources, self.folder / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".terraform"))
        files.write_json(self.variables, variables)
        self._checked("init", self._run("init", input=False, no_color=IsFlagged))

    def apply(self, on_progress: Callable[[str], None], replace: list[str] | None = None) -> None:
        """Makes what the variables say; `replace` names resource addresses to be made anew."""
        extra = {"replace": replace} if replace else {}
        self._acted("apply", on_progress, **extra)

    def destroy(self, on_progress: Callable[[str], None]) -> None:
        self._acted("destroy", on_progress)

    def outputs(self) -> dict[str, Any]:
        """Values of all outputs."""
        result = self._checked("output", self._run("output", json=IsFlagged, state=str(self.state)))
        return {name: entry["value"] for name, entry in json.loads(result.out).items()}

    def resources(self) -> list[str]:
        """Addresses in the state; empty when there is no state."""
        if not self.state.exists():
            return []
        result = self._checked("state list", self._run("state list", state=str(self.state)))
        return result.out.decode().split()

    def _acted(self, verb: str, on_progress: Callable[[str], None], **extra: Any) -> None:
        errors: list[str] = []

        def on_line(line: str) -> None:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if record.get("type") in ("apply_start", "apply_complete", "apply_errored"):
                on_progress(record["@message"])
            if record.get("type") == "diagnostic" and record["@level"] == "error":
                found = record["diagnostic"]
                errors.append(f"{found['summary']}: {found.get('detail', '')}".strip())

        result = self._run(
            verb,
            on_line=on_line,
            json=IsFlagged,
            auto_approve=IsFlagged,
            input=False,
            state=str(self.state),
            backup="-",
            lock_timeout="60s",
            var_file=str(self.variables),
            **extra,
        )
        if result.code:
            raise NexaError(
                f"terraform {verb} failed: " + ("\n".join(errors) or result.tail()),
                hint="run the same command again: it goes on from what Terraform's state says exists",
            )

    def _run(self, *words: str, on_line: Callable[[str], None] | None = None, **options: Any) -> Result:
        lines = CommandLines(terraform_bin_path=self.program)
        argv = lines.generate_cmd_string(*words, **options)
        argv.insert(1, f"-chdir={self.chdir}")
        return self.runner.run(
            argv, env=self._environment(), timeout_s=3600, on_line=on_line, grace_s=INTERRUPT_GRACE_S
        )

    def _environment(self) -> dict[str, str]:
        made = {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_DATA_DIR": str(self.folder / "data")}
        configured = os.environ.get("TF_CLI_CONFIG_FILE")
        if configured and not Path(configured).exists():
            made["TF_CLI_CONFIG_FILE"] = os.devnull  # Terraform warns about a missing one on every call
        return made

    @staticmethod
    def _checked(what: str, result: Result) -> Result:
        if result.code:
            raise CommandFailed(f"terraform {what}", result)
        return result
