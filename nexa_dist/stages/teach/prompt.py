"""Prompts from a template and a row. A template is Jinja in its sandbox: it reads the columns of the row alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nexa_dist.errors import NexaError, UsageError

MOST_CHARACTERS = 1 << 20


class Prompts:
    """A system text and a user text, of which each row makes the messages of one question."""

    def __init__(self, prompt: str, system: str | None) -> None:
        """Raises UsageError for what is no template."""
        made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
        self._parts = {}
        for role, text in (("system", system), ("user", prompt)):
            try:
                self._parts[role] = made.from_string(text) if text is not None else None
            except jinja2.TemplateSyntaxError as error:
                key = "prompt" if role == "user" else role
                raise UsageError(f"{key}, line {error.lineno}: no template: {error.message}") from None

    def of(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages of a row. Raises NexaError for a row that the template cannot take."""
        messages = []
        for role, template in self._parts.items():
            if template is None:
                continue
            try:
                text = template.render(row)
            except Exception as error:  # a template may fail in any way that Python can
                raise NexaError(f"{'prompt' if role == 'user' else role}: {error}"[:300]) from None
            if not text.strip() or len(text) > MOST_CHARACTERS:
                raise NexaError(f"{role} text of {len(text)} characters")
            messages.append({"role": role, "content": text})
        return messages


def prompt_sha256(prompt: str, system: str | None, json_schema: Mapping[str, Any] | None) -> str:
    """Name of all that is asked beside the row: SHA-256 of both templates and of the schema of the reply."""
    told = {"prompt": prompt, "system": system, "json_schema": json_schema}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
