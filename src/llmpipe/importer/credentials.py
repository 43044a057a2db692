"""Keys and passwords, which no line that is printed may have in it.

Another proxy's file is full of them. No value of a setting that is not carried over is printed at all; what stands here is for
the little that is: commands, names, and what a library says of a fault.
"""

import re
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_WORDS = frozenset(
    {"apikey", "auth", "authorization", "bearer", "cookie", "credential", "credentials", "creds", "hft", "key", "keys"}
    | {"pass", "passphrase", "passwd", "password", "passwords", "pwd", "secret", "secrets", "token", "apikeys"}
)
"""A name with one of these words is one of a secret. `tokens` and `tokenizer` are not: they are in every command of a server."""

_QUOTED = r"""(?:"[^"]*"?|'[^']*'?|[^\s"']\S*)"""
_OPTION = re.compile(rf"(?<!\S)(-{{1,2}}([A-Za-z][\w.-]*)(?:\s+|=))({_QUOTED})")
_VARIABLE = re.compile(rf"(?<![\w$])([A-Za-z_]\w*)=({_QUOTED})")
_FIELD = re.compile(r"(?i)\b((?:proxy-)?authorization|x-api-key|api-key|cookie)\s*:\s*[^\"'\n]+")
_USER = re.compile(r"(://)[^\s/@]*(?:@[^\s/@]*)*@")
_SHAPE = re.compile(r"(?i)\b(?:bearer|basic)\s+\S+|\b(?:sk|pk|rk|hf|gsk|ghp|gho|xai|xox[a-z])[-_][\w-]{8,}")
_MEMBER = re.compile(r"""(["'])([\w.-]+)\1\s*:\s*(?:"[^"]*"?|'[^']*'?|[^\s,}]+)""")
_PARAMETER = re.compile(r"([?&;][\w.-]+=)[^\s&;\"']+")

LEAST = 6
"""Letters of a secret that is looked for wherever it stands; a shorter one (`none`, `EMPTY`) would hide half of each comment."""


def is_secret(name: str) -> bool:
    """Whether a setting, option or variable with this name holds a secret."""
    return any(word.lower() in _WORDS for word in _WORD.findall(name))


def mask(text: str, known: Iterable[str] = ()) -> str:
    """The text with `***` for what may be a secret in it: by the name before it, by its shape, or because it is known."""
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _USER.sub(r"\1***@", text)
    text = _FIELD.sub(r"\1: ***", text)
    text = _OPTION.sub(lambda found: f"{found[1]}***" if is_secret(found[2]) else found[0], text)
    text = _VARIABLE.sub(_mask_variable, text)
    text = _MEMBER.sub(lambda found: f'"{found[2]}": ***' if is_secret(found[2]) else found[0], text)
    text = _PARAMETER.sub(r"\1***", text)
    return _SHAPE.sub("***", text)


def _mask_variable(found: re.Match[str]) -> str:
    value = "***" if is_secret(found[1]) else _VARIABLE.sub(_mask_variable, found[2])  # --env=NAME=VALUE
    return f"{found[1]}={value}"


def find(value: Any, inside: bool = False) -> set[str]:
    """The texts of a document that stand below the name of a secret."""
    if isinstance(value, dict):
        return {secret for key, more in value.items() for secret in find(more, inside or is_secret(str(key)))}
    if isinstance(value, list):
        return {secret for more in value for secret in find(more, inside)}
    return {str(value)} if inside and not isinstance(value, bool) and len(str(value)) >= LEAST else set()
