"""Secrets, by the name that they stand under and by their own shape. Nothing that nexa writes or prints has one.

It errs towards hiding, but what people read every day (`--token-budget 5`, `pad_token`, a commit) stays readable. The
names and shapes are a table; why it is not a library's is in docs/DECISIONS.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of the shortest value that is looked for as it is."""

_ALWAYS = re.compile("passw|passphrase|passcode|pwd|secret|credential|creds|authorization|bearer|cookie|jwt")
"""Words that make any name one of a secret."""
_PAIRS = re.compile("(?:api|auth|access|secret|private|priv|hf|bot|refresh|session)(?:key|token)s?|passphrase|passcode")
"""Two words of a name that stand together, whatever else is in it."""
_SOMETIMES = {
    "token": "budget count limit max min num n id ids type types pad eos bos unk mask sep cls special added image "
    "video audio start end stop per level dim embedding embed dropout len length size loss accuracy batch batching "
    "rate class classification ratio first last next prev drop new tool begin think index idx pos position merge error "
    "unexpected",
    "key": "host public pub sort primary foreign group label image text column dict value values query num kv cache "
    "pair partition index map metric monitor field dataset target input output feature prompt response answer id dim "
    "size len length padding mask bias proj projection head heads layer state states fingerprint best lookup shard "
    "random same idempotency error missing unexpected unknown duplicate invalid batch score weight hot",
    "pass": "forward backward single multi two one first second num n k at through low high band all rate per count by",
    "auth": "type method mode url uri sock scheme provider enabled use domain error failed",
    "pat": "",
    "sig": "",
    "signature": "",
}
"""Words that are a secret's name by themselves or beside any other but these."""
_NOT_ITS_VALUE = re.compile(r"(?:file|path|dir|name|env|var|url|version)s?")
"""Last words of a name that tells where the secret is, and not what it is."""
_GLUED = {"compass", "bypass", "surpass", "trespass", "monkey", "turkey", "donkey", "hockey", "jockey", "whiskey"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:hf_|api_org_)(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,}|[a-z]{16,})"  # Hugging Face
    r"|(?:local-)?[0-9a-f]{40}(?![0-9A-Za-z])|wandb_v1_\w{20,}"  # W&B: where no commit is expected, see _COMMIT
    r"|nvapi-[\w-]{20,}|gsk_\w{20,}|r8_\w{20,}|xai-\w{20,}|pcsk_\w{20,}|lsv2_(?:pt|sk)_\w{16,}|rpa_[A-Z0-9]{20,}"
    r"|sk-[\w-]{16,}|(?:sk|rk|pk)_(?:live|test)_\w{10,}"  # OpenAI, Anthropic; Stripe
    r"|AIza[\w-]{30,}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,}"  # Google
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|dapi[0-9a-f]{32}|dop_v1_[0-9a-f]{40,}"
    r"|gh[pousr]_\w{16,}|github_pat_\w{16,}|gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|imt|oas)-[\w.-]{16,}"
    r"|(?<=hooks\.slack\.com/)(?:services|workflows|triggers)/[\w/-]{16,}|(?<=/api/)webhooks/\d{6,}/[\w-]{16,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|gls[ac]_\w{20,}|hvs\.[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|tskey-[A-Za-z0-9-]{4,}|xox[abeprs]-[\w-]{8,}|xapp-[\w-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r")|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_HEX40 = re.compile(r"[0-9a-f]{40}")
_COMMIT = re.compile(r"(?:revision|commit|sha1?|rev|head|tree|snapshots?)\W{0,3}(?:is now at )?$|[/@]$", re.IGNORECASE)
_COMMIT_NAME = re.compile(r"revision|commit|sha|digest|hash", re.IGNORECASE)
_USERINFO = re.compile(
    r"(?<=://)(?:[^\s/?#@\"']*@)+(?=[^\s@])"
    r"|(?<=://)[^\s:/?#@\"']*:(?!\d{1,5}[/?])[^\s@\"']+@(?=[\w.-]+(?::\d+)?(?:[/?\s]|$))"  # with / ? or # in a password
)
_BARE_USERINFO = re.compile(
    r"(?<![\w./:@-])(?!data:[a-z0-9-]{1,32}@v\d{1,9}/)([\w.-]+):[^\s:@/\"']+@(?=(?!sha256:)(?:tcp\(|[\w.-]+(?::\d+|/)))"
)
"""`user:password@host:port` without a scheme; `data:NAME@v1/FOLDER` is a version of a dataset."""
_SCHEME = re.compile(
    r"\b(bearer)\s+(?!auth|token)[\w+/=.~-]{8,}|\b(basic)\s+(?=[a-zA-Z+/]*[0-9=])[\w+/=]{8,}", re.IGNORECASE
)
_PAIR = re.compile(r"(?<![\w.-])-{0,2}([A-Za-z_][\w.-]*+)(?:[\\\"']{0,4}[ \t]{0,4}(=>|[:=])|(?=[ \t]))[ \t]{0,8}")
_HINT = re.compile(_ALWAYS.pattern + "|token|key|pass|auth|pat|sig|code", re.IGNORECASE)
"""Text without any of these has no name to look at."""
_QUOTE = re.compile(r"\\*[\"']")
_VALUE_END = re.compile(r"[\s&\"'<>]|[;,)}\]](?=\s|$|[\w.-]+[\"']?\s*[:=])|\\[\"'nrt]")
_IN_QUERIES = {"sig", "signature", "code"}
"""Elsewhere than in the query of an address, or as an option, these are ordinary words."""
_HEADERS = re.compile(r"authorization$|cookie$", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{?\w+\}?|\*+|null|none|true|false|yes|no|<\w+>|\[\]|\{\}", re.IGNORECASE)
"""Values that give nothing away: a variable, what is hidden already, a switch."""


_known: set[str] = set()


def remember(values: Iterable[str]) -> None:
    """Values that are hidden from here on wherever they stand; what is short stands in other words too."""
    _known.update(value for value in values if len(value) >= SHORTEST)


@lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Tell whether what stands under this key, option or variable is a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or (len(words) > 1 and _NOT_ITS_VALUE.fullmatch(words[-1])):
        return False
    if any(map(_ALWAYS.search, words)) or any(
        _PAIRS.fullmatch(a + b) for a, b in zip(["", *words], words, strict=False)
    ):
        return True
    return any(_is_one(word, {*words[:at], *words[at + 1 :]}) for at, word in enumerate(words))


def _is_one(word: str, others: set[str]) -> bool:
    for known, harmless in _SOMETIMES.items():
        glued = known in ("token", "key", "pass") and word.endswith(known) and word not in _GLUED
        if word == known or glued:
            prefix = {word.removesuffix(known)} - {""}
            return not (others | prefix) & set(harmless.split())
    return False


def redact(value: Any, name: str = "") -> Any:
    """A copy of plain data without its secrets; `name` is the key that the value stands under."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name) and not (isinstance(value, str) and _is_reference(value)):
        return HIDDEN
    if isinstance(value, dict):
        told = value.get("name", value.get("key"))  # {"name": "HF_TOKEN", "value": …}, as containers have them
        beside = told if isinstance(told, str) and "value" in value else ""
        return {key: redact(item, beside if beside and key == "value" else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _redact_words([redact(item, name) for item in value])
    if not isinstance(value, str):
        return value
    return redact_text(value, name)


def redact_text(text: str, name: str = "") -> str:
    """The same for text of any kind: a message, a line of a log, a word of a command line, JSON in a word."""
    for value in tuple(_known):
        text = text.replace(value, HIDDEN)
    if text[:1] in ("{", "[") and (told := _json(text)) is not None:
        hidden = redact(told)
        text = text if hidden == told else json.dumps(hidden, ensure_ascii=False)
    text = _without_tokens(text, name)
    if "@" in text:
        text = _USERINFO.sub(f"{HIDDEN}@", text)
        text = _BARE_USERINFO.sub(rf"\1:{HIDDEN}@", text)
    text = _without_pairs(text) if _HINT.search(text) else text
    return _SCHEME.sub(lambda found: f"{found[1] or found[2]} {HIDDEN}", text)


def _is_reference(value: str) -> bool:
    return not value or _REFERENCE.fullmatch(value) is not None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _without_tokens(text: str, name: str) -> str:
    def hidden(found: re.Match[str]) -> str:
        before = text[max(0, found.start() - 32) : found.start()]
        commit = _HEX40.fullmatch(found[0]) and (_COMMIT_NAME.search(name) or _COMMIT.search(before))
        return found[0] if commit else HIDDEN

    return _TOKENS.sub(hidden, text)


def _without_pairs(text: str) -> str:
    """`password=X`, `token:X`, `--pat X`, `"api_key": "X"`, `Authorization: Bearer X`."""
    out, done = [], 0
    for found in _PAIR.finditer(text):
        if found.start() < done or not _tells(text, found):
            continue
        begin, end = _value(text, found)
        if begin < end and not _is_reference(text[begin:end]):
            out += [text[done:begin], HIDDEN]
            done = end
    return "".join([*out, text[done:]])


def _tells(text: str, found: re.Match[str]) -> bool:
    """Tell whether what follows this name is a secret's value, and not the next word of a sentence."""
    name, sign = found[1], found[2]
    option, in_query = found[0].startswith("-"), text[found.start() - 1 : found.start()] in ("?", "&")
    if name in _IN_QUERIES and not option:
        return in_query
    if not is_secret_name(name):
        return False
    if not sign:
        return option
    spaced = found[0][-1:].isspace() and sign == ":"
    return not spaced or option or len(_WORD.findall(name)) > 1 or _ALWAYS.search(name.lower()) is not None or (
        text[found.start() - 1 : found.start()] in ('"', "'") or not text[: found.start()].strip(" {,-\n")
    )  # fmt: skip


def _value(text: str, found: re.Match[str]) -> tuple[int, int]:
    """Span of the value after a name."""
    begin = found.end()
    if quote := _QUOTE.match(text, begin):
        begin = quote.end()
        end = text.find(quote[0], begin)
        while end > 0 and text[end - 1] == "\\" and quote[0] in "\"'":
            end = text.find(quote[0], end + 1)
        return begin, len(text) if end < 0 else end
    if _HEADERS.search(found[1]):
        line = re.compile(r"[\"'\n]").search(text, begin)
        return begin, line.start() if line else len(text)
    if not found[2] and text[begin : begin + 1] == "-":
        return begin, begin  # the next option
    ended = _VALUE_END.search(text, begin)
    return begin, ended.start() if ended else len(text)


_OPTION = re.compile(r"(?P<name>--?[A-Za-z][\w.-]*|[A-Za-z][\w.-]*(?=[:=]))(?P<sign>[:=])?(?P<value>.+)?", re.DOTALL)
_USER = {"-u", "--user", "--proxy-user"}


def _redact_words(words: list[Any]) -> list[Any]:
    """Hides what follows `--api-key`, `--token=`, `Bearer` and `-u` in a command line, up to the end of the word."""
    out = list(words)
    for index, word in enumerate(words):
        if not isinstance(word, str):
            continue
        after = str(words[index + 1]) if index + 1 < len(words) else ""
        option = _OPTION.fullmatch(word)
        if option and is_secret_name(option["name"]) and option["name"] not in _IN_QUERIES:
            if option["sign"] and option["value"] and not _is_reference(option["value"].strip()):
                out[index] = f"{option['name']}{option['sign']}{HIDDEN}"
            elif not option["value"] and after and not after.startswith("-") and not _is_reference(after):
                out[index + 1] = HIDDEN
        elif word.lower() in ("bearer", "basic") and after and _SCHEME.match(f"{word} {after}"):
            out[index + 1] = HIDDEN
        elif word in _USER and re.fullmatch(r"[^:\s]*[^:\s\d][^:\s]*:.+", after):
            out[index + 1] = f"{after.partition(':')[0]}:{HIDDEN}"
    return out
