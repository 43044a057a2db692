"""Who may change something by the admin endpoint (rule S1)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

Headers = Iterable[tuple[bytes, bytes]]
"""Fields of a request as ASGI has them, names in lower case."""


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        status: of the answer.
        text: what is wrong, and what to do.
        fields: of the answer.
    """

    status: int
    text: str
    fields: tuple[tuple[bytes, bytes], ...] = ()


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another site has a browser send this request. A browser adds Origin to every POST, a program to none
    (https://fetch.spec.whatwg.org/#origin-header); newer ones say in Sec-Fetch-Site too how the two sites stand to each other.
    """
    headers = tuple(headers)
    if any(value.lower() not in (b"same-origin", b"none") for value in _values(headers, b"sec-fetch-site")):
        return True
    hosts = {value.strip().lower() for value in _values(headers, b"host")}
    for origin in _values(headers, b"origin"):
        try:
            parts = urlsplit(origin.strip().lower())
        except ValueError:  # brackets without an address
            return True
        # A front end may have taken TLS off.
        if parts.scheme not in (b"http", b"https") or hosts != {parts.netloc}:
            return True
    return False


class Authority:
    """Tells for each request whether it may change something."""

    def __init__(self, token: bytes | None, *, local: bool) -> None:
        """Args:
        token: what it has to bring; None where there is none.
        local: whether only this machine can reach the endpoint. Then no token is needed, unless there is one.
        """
        self._token = token
        self._local = local

    def refusal(self, headers: Headers) -> Refusal | None:
        """Why a request with these fields may change nothing; None where it may."""
        headers = tuple(headers)
        if is_foreign(headers):
            return Refusal(403, "this comes from a page of another site; send it from a program, without Origin")
        if self._token is None:
            if self._local:
                return None
            return Refusal(
                403,
                "other machines can reach this endpoint, so it changes nothing without a token; set one with --admin-token-file or "
                "LLMPIPE_ADMIN_TOKEN, or bind --admin to 127.0.0.1",
            )
        given = _values(headers, b"authorization")
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token):
            return None
        # RFC 6750, section 3.
        what = "the token is wrong" if given else "a token is needed"
        return Refusal(401, f"{what}; send Authorization: Bearer TOKEN", ((b"www-authenticate", b"Bearer"),))
