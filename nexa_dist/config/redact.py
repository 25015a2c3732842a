"""Configs as they may be printed: no secrets."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

# `tokenizer`, `max_tokens` and `host_key` (a fingerprint) are no secrets.
_SECRET_NAME = re.compile(r"(?<!host_)key|token(?!iz|s\b|s_)|secret|passw|passphrase|credential", re.IGNORECASE)
# A 40-hex word is a W&B key, except where a git commit is expected.
_COMMIT_NAME = re.compile(r"revision|commit|sha", re.IGNORECASE)
_HEX40 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
_TOKEN = re.compile(
    r"hf_[A-Za-z0-9]{8,}|tskey-[A-Za-z0-9-]{4,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_[A-Za-z0-9_]{16,}|sk-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{8,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*|(?<=://)[^/@\s]+(?=@)"
)
_OPTION = re.compile(r"(?P<name>--?[A-Za-z][\w.-]*)(?P<value>=.*)?", re.DOTALL)


def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def redact(value: Any, name: str = "") -> Any:
    """A copy of plain data without its secrets; `name` is the key that the value stands under."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return HIDDEN
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _redact_words([redact(item, name) for item in value])
    if not isinstance(value, str):
        return value
    value = _TOKEN.sub(HIDDEN, value)
    return value if _COMMIT_NAME.search(name) else _HEX40.sub(HIDDEN, value)


def _redact_words(words: list[Any]) -> list[Any]:
    """Hides what follows `--api-key` and `--token=` in a command line."""
    out = list(words)
    for index, word in enumerate(words):
        option = _OPTION.fullmatch(word) if isinstance(word, str) else None
        if option is None or not is_secret_name(option["name"]):
            continue
        if option["value"]:
            out[index] = f"{option['name']}={HIDDEN}"
        elif index + 1 < len(out) and not str(out[index + 1]).startswith("-"):
            out[index + 1] = HIDDEN
    return out
