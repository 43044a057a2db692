"""What an operator can say: units, addresses, backends, and the settings of the process and of a pool.

Only text is read here; nothing is opened, resolved or started. Each setting is described once, in `ProcessSettings` or
`PoolSettings`; its flag, its variable, its help, its checks and its row in docs/configuration.md come of that (`settings`).
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from msgspec import Meta, Struct, field

from llmpipe._pipe import (
    MAX_FAILOVER_BODY,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LISTENERS,
    MAX_MEMBERS,
    MAX_NETWORKS,
    MAX_SECONDS,
    MAX_WEIGHT,
    MAX_WORKERS,
)
from llmpipe.cpus import usable_cpus
from llmpipe.errors import UsageError
from llmpipe.log import mask_secrets

MOST_NAME = 255
"""Letters of a backend's name, what stands behind the @ of one of its servers not counted."""

MOST_PREFIX = 255
"""Letters of the path in a backend's URL."""

MOST_IN_FLIGHT = 1_000_000
"""What bounds exchanges at a time, far above any number that is of use."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)(B|KB|MB|GB)?", re.IGNORECASE)
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_COUNT = re.compile(r"-?[0-9]{1,30}")
_SHARE = re.compile(r"[0-9]{1,30}(\.[0-9]{1,6})?")
_AUTHORITY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9.])?")


def parse_duration(text: str) -> float:
    """Seconds in `text`: a number, with ms, s, m or h behind it, or seconds without.

    Raises:
        UsageError: it is no such thing.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"{text!r} is not a duration; write seconds, or a number with ms, s, m or h, such as 300 or 5m"
        )
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > MAX_SECONDS:
        raise UsageError(f"{text!r} is too long a duration; the most is {MAX_SECONDS} seconds")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration as `parse_duration` reads it: in seconds up to ten minutes, else in minutes or hours where they are whole."""
    for unit in ("h", "m"):
        if seconds > 600 and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    if seconds % 1:
        return f"{seconds * 1000:g}ms"
    return f"{seconds:.0f}s" if seconds else "0"


def parse_size(text: str) -> int:
    """Bytes in `text`: a number, with KB, MB or GB (1024-based) behind it, or bytes without.

    Raises:
        UsageError: it is no such thing.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size; write bytes, or a number with KB, MB or GB, such as 64MB")
    return int(match[1]) * _BYTES[(match[2] or "B").upper()]


def format_size(size: int) -> str:
    """A size as `parse_size` reads it, in the largest unit in which it is whole."""
    unit = next(unit for unit in ("GB", "MB", "KB", "B") if size % _BYTES[unit] == 0)
    return f"{size // _BYTES[unit]}{unit}" if size else "0"


def parse_count(text: str) -> int:
    """The whole number in `text`.

    Raises:
        UsageError: it is no such thing.
    """
    if not _COUNT.fullmatch(text.strip()):
        raise UsageError(f"{text!r} is not a whole number")
    return int(text)


def parse_share(text: str) -> float:
    """The part of a whole in `text`: a number from 0 to 1.

    Raises:
        UsageError: it is no number.
    """
    if not _SHARE.fullmatch(text.strip()):
        raise UsageError(f"{text!r} is not a part of a whole; write a number from 0 to 1, such as 0.05")
    return float(text)


def format_share(share: float) -> str:
    """A part as `parse_share` reads it."""
    return f"{share:.6f}".rstrip("0").rstrip(".")


def parse_path(text: str) -> str:
    """The path of a request, or nothing.

    Raises:
        UsageError: it is no path.
    """
    if text and not re.fullmatch(r"/[!-~]*", text):
        raise UsageError(f"{text!r} is not a path; write one that begins with /, such as /health")
    return text


def parse_field(text: str) -> str:
    """The name of a field of a head, or nothing.

    Raises:
        UsageError: it is no name of a field.
    """
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{0,60}", text):
        raise UsageError(f"{text!r} is no name of a field; write one such as X-Tenant")
    return text


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Address = tuple[str, int]
"""A host, or its numeric address, and a port."""


def parse_address(text: str) -> Address:
    """(host, port) of `HOST:PORT`, `[v6]:PORT` or `:PORT` (every IPv4 address).

    Raises:
        UsageError: it is no such thing.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text!r} is not an address; put brackets around an IPv6 address: [::1]:8080")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address; write HOST:PORT, such as 127.0.0.1:8080")
    return host or "0.0.0.0", int(port)  # noqa: S104 - that is what an empty host asks for


def parse_address_or_off(text: str) -> Address | None:
    """The same, or None for `off`."""
    return None if text == "off" else parse_address(text)


def format_address_or_off(address: Address | None) -> str:
    return "off" if address is None else format_address(*address)


def check_listen(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The addresses to listen at, of which none may be named twice, but for free ports.

    Raises:
        UsageError: one is, or there are more than one proxy can have.
    """
    addresses = tuple(addresses)
    for address in addresses:
        if address[1] and addresses.count(address) > 1:
            raise UsageError(f"--listen {format_address(*address)} is named twice")
    if len(addresses) > MAX_LISTENERS:
        raise UsageError(
            f"{len(addresses)} addresses to listen at are more than the {MAX_LISTENERS} that one proxy can have"
        )
    return addresses


@dataclass(frozen=True)
class AbortCall:
    """What is posted, and where, when a client has left a backend that does not notice a closed connection (rule N2)."""

    url: str
    """As the file has it."""
    host: str
    """A name or a numeric address; empty for the backend itself."""
    port: int
    target: str
    """A path, with a query or without."""
    field: str
    """Key of the request id in the JSON that is posted."""

    @property
    def authority(self) -> str:
        """For the Host field, where it is not the backend itself."""
        return format_address(self.host, self.port)


@dataclass(frozen=True)
class Backend:
    """An inference server, as `--backend` or the file names it."""

    name: str
    """What logs and metrics call it, and by which it is known over reloads; where nothing is said, its URL."""
    url: str
    """Without its options."""
    host: str
    """A name or a numeric address; empty for a Unix socket."""
    port: int
    path: str
    """Of a Unix socket; empty for TCP."""
    finish_on_abort: bool
    """Whether it may finish its answer when the client has left."""
    host_field: str
    """What it gets in the Host field; empty for what the client sent."""
    prefix: str = ""
    """What stands before the client's path; empty, or a path without a / at its end."""
    max_in_flight: int = 0
    """Exchanges that it works on at a time at most, of all pools; 0 is no limit."""
    addresses: str = "all"
    """What several addresses of its name are: "all" for a server each, "first" for one server, of which the first that answers counts."""
    abort_call: AbortCall | None = None
    """Where it is told of clients that left; None for nowhere."""
    weight: int = attribute(default=1, compare=False)
    """How much it takes beside the others of its pool; the same backend may have another weight in another pool."""
    tier: int = attribute(default=0, compare=False)
    """It is asked only while no backend of a lower tier is usable."""

    @property
    def authority(self) -> str:
        """For the Host field of a request that came without one."""
        return format_address(self.host, self.port) if self.host else "localhost"

    @property
    def host_text(self) -> str:
        """The Host field of what the proxy asks it itself."""
        return self.host_field or self.authority


def _shown(text: str) -> str:
    """A backend's text as an error line may repeat it. A user's password may hold any letter, so it goes up to the last @."""
    before, at, behind = text.rpartition("@")
    if at and not text.startswith("unix:"):
        scheme, separator, _ = before.partition("://")
        text = f"{scheme}://***@{behind}" if separator else f"***@{behind}"
    return repr(mask_secrets(text))


def parse_backend(text: str) -> Backend:
    """The backend of `http://host:port`, `http://[v6]:port` or `unix:/path`, with options such as `?on-abort=` or without.

    Raises:
        UsageError: it is no such thing; the text says how to write it.
    """
    shown = _shown(text)
    _check_text(shown, text)  # all of it: a password may have a ? in it
    base, _, query = text.partition("?")
    return make_backend(shown, base, parse_qsl(query, keep_blank_values=True))


def _check_text(shown: str, text: str) -> None:
    if not text.isprintable() or " " in text:
        raise UsageError(f"backend {shown} has white space or a control character in it")
    if "@" in text and not text.startswith("unix:"):
        raise UsageError(
            f"backend {shown} has a user name; clients send credentials of their own, so write http://HOST:PORT"
        )


def make_backend(shown: str, base: str, pairs: Iterable[tuple[str, str]]) -> Backend:
    """The backend of a URL without options, and of those.

    Raises:
        UsageError: it is none; `shown` stands for it in the text.
    """
    _check_text(shown, base)
    options = _parse_backend_options(shown, pairs)
    rest: dict[str, Any] = {
        "max_in_flight": int(options.get("max-in-flight", 0)),
        "weight": int(options.get("weight", 1)),
        "tier": int(options.get("tier", 0)),
        "addresses": options.get("addresses", "all"),
    }
    finish = options.get("on-abort") == "finish"
    if base.startswith("unix:"):
        path = base[5:]
        if not path.startswith("/"):
            raise UsageError(f"backend {shown}: a Unix socket needs an absolute path, such as unix:/run/vllm.sock")
        return Backend(options.get("name", base), base, "", 0, path, finish, _host_field(options, "localhost"), **rest)
    _check_scheme(shown, base)
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"backend {shown} is not a URL: {error}") from None
    if parts.fragment:
        raise UsageError(f"backend {shown} has a fragment; write http://HOST:PORT or http://HOST:PORT/PATH")
    rest["prefix"] = _prefix(shown, parts.path)
    if not host or (":" not in host and not _HOST.fullmatch(host)):
        raise UsageError(f"backend {shown} has no valid host; write http://HOST:PORT")
    if port == 0:
        raise UsageError(f"backend {shown}: port 0 cannot be connected")
    port = 80 if port is None else port
    authority = format_address(host, port)
    url = f"http://{authority}{rest['prefix']}"
    if len(url) > MOST_NAME and "name" not in options:
        raise UsageError(
            f"backend {shown} has a URL of more than {MOST_NAME} letters, which is too long for a name: give it another one"
        )
    return Backend(options.get("name", url), url, host, port, "", finish, _host_field(options, authority), **rest)


def _prefix(shown: str, path: str) -> str:
    """What stands before the client's path."""
    path = path.rstrip("/")
    if len(path) > MOST_PREFIX:
        raise UsageError(f"backend {shown} has a path of more than {MOST_PREFIX} letters")
    if not path.isascii():
        raise UsageError(f"backend {shown} has a path with letters that no request may have; write them as %XX")
    if path.endswith("/v1"):  # as clients' base URLs do: each request would be one for /v1/v1/...
        raise UsageError(
            f"backend {shown} has a path that ends with /v1; it is put before the client's, which begins with /v1: leave it out"
        )
    return path


ABORT_FIELD = "rid"
"""What SGLang calls the id of a request."""

_TARGET = re.compile(r"/[!-\"$-~]*")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_abort_call(text: str, field: str = ABORT_FIELD) -> AbortCall:
    """The call of `http://HOST:PORT/PATH`, or of `/PATH` at the backend itself.

    Raises:
        UsageError: it is neither, or the field is no key; no word of a URL with credentials is repeated.
    """
    if not _KEY.fullmatch(field):
        raise UsageError("field: write a key of the JSON that is posted, such as rid")
    if _TARGET.fullmatch(text) and not text.startswith("//"):
        return AbortCall(text, "", 0, text, field)
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise UsageError("call: it has a user name; no credentials are sent")
    if scheme.lower() != "http" or not _TARGET.fullmatch(slash + path):
        raise UsageError(f"call: {_shown(text)} is neither http://HOST:PORT/PATH nor /PATH")
    try:
        parts = urlsplit(f"http://{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not _AUTHORITY.fullmatch(authority) or (":" not in host and not _HOST.fullmatch(host)) or port == 0:
        raise UsageError(f"call: {_shown(text)} has no valid host; write http://HOST:PORT/PATH")
    return AbortCall(text, host, 80 if port is None else port, slash + path, field)


def _check_scheme(shown: str, base: str) -> None:
    scheme, separator, _ = base.partition("://")
    if not separator:
        raise UsageError(f"backend {shown} has no scheme; write http://HOST:PORT or unix:/PATH")
    if scheme.lower() == "https":
        raise UsageError(
            f"backend {shown}: TLS to backends is not supported; use http://, or put a TLS client such as stunnel before it"
        )
    if scheme.lower() != "http":
        raise UsageError(f"backend {shown}: the scheme {scheme!r} is unknown; write http://HOST:PORT or unix:/PATH")


BACKEND_OPTIONS = ("name", "host", "on-abort", "max-in-flight", "weight", "tier", "addresses")

BACKEND_NUMBERS = {"max-in-flight": (0, MOST_IN_FLIGHT), "weight": (1, MAX_WEIGHT), "tier": (0, MAX_WEIGHT)}
"""Options that are whole numbers: the least and the most of each."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,255}")


def _parse_backend_options(shown: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in BACKEND_OPTIONS:
            raise UsageError(f"backend {shown}: the option {name!r} is unknown; there are {', '.join(BACKEND_OPTIONS)}")
        if name in options:
            raise UsageError(f"backend {shown}: the option {name} is there twice")
        if name == "on-abort" and value not in ("close", "finish"):
            raise UsageError(f"backend {shown}: on-abort is close or finish, not {value!r}")
        if name == "addresses" and value not in ("all", "first"):
            raise UsageError(f"backend {shown}: addresses is all or first, not {value!r}")
        if name == "host" and value not in ("client", "backend") and not _AUTHORITY.fullmatch(value):
            raise UsageError(
                f"backend {shown}: host is client, backend, or a name with or without a port, not {value!r}"
            )
        if name == "name" and not _NAME.fullmatch(value):
            raise UsageError(
                f"backend {shown}: name is a letter or digit and up to 255 of letters, digits and . _ : / @ -, not {value!r}"
            )
        least, most = BACKEND_NUMBERS.get(name, (0, 0))
        if name in BACKEND_NUMBERS and not least <= parse_count(value) <= most:
            raise UsageError(f"backend {shown}: {name} is from {least} to {most}, not {value}")
        options[name] = value
    return options


def _host_field(options: dict[str, str], authority: str) -> str:
    host = options.get("host", "client")
    return {"client": "", "backend": authority}.get(host, host)


def parse_backends(texts: Sequence[str], limit: int = MAX_MEMBERS) -> tuple[Backend, ...]:
    """Every backend, once.

    Raises:
        UsageError: one is wrong or named twice, or there are more than `limit`.
    """
    backends = tuple(parse_backend(text) for text in texts)
    check_backends(backends)
    if len(backends) > limit:
        raise UsageError(f"{len(backends)} backends are more than the {limit} that one pool can have")
    return backends


def check_backends(backends: Sequence[Backend]) -> None:
    """Looks whether backends can be in one pool.

    Raises:
        UsageError: two are the same server, or have the same name.
    """
    for what in ([backend.url for backend in backends], [backend.name for backend in backends]):
        for text in what:
            if what.count(text) > 1:
                raise UsageError(f"backend {text} is named twice")


@dataclass(frozen=True)
class Secret:
    """Where a secret is: in a variable of the environment or in a file. `secret.read` reads it."""

    env: str = ""
    file: str = ""


def parse_secret_file(text: str) -> Secret:
    """The secret in a file with this path.

    Raises:
        UsageError: it is empty.
    """
    if not text:
        raise UsageError("the path of the file is empty; name one that has the secret, or leave the option out")
    return Secret(file=text)


def format_secret(secret: Secret) -> str:
    """Where it is, for a person."""
    return f"file {secret.file}" if secret.file else f"variable {secret.env}"


TRUSTED_BY_DEFAULT = ("127.0.0.0/8", "::1", "unix")
"""Who is on this machine. uvicorn trusts loopback by default too."""


@dataclass(frozen=True)
class Trust:
    """Peers that are believed when they tell of the hops before them (rule B1)."""

    networks: tuple[tuple[bytes, int], ...]
    """(packed address, how many of its bits count) of each."""
    unix: bool
    """Whether those on a Unix socket are."""


def _parse_network(text: str) -> tuple[bytes, int]:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"trusted proxy {text!r} is neither an address nor a network ({error}); write 10.0.0.0/8, ::1, unix, * or none"
        ) from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return mapped.packed, network.prefixlen - 96
    return network.network_address.packed, network.prefixlen


def parse_trusted(texts: Iterable[str]) -> Trust:
    """The peers that `texts` name: addresses and networks with commas or spaces between them, `unix`, `*` for all, or `none`.

    Raises:
        UsageError: one is no such thing, `none` has company, or there are more networks than an engine has room for.
    """
    words = re.split(r"[\s,]+", ",".join(texts).strip(" ,\t\n"))
    if words in ([""], ["none"]):
        return Trust((), False)
    if "none" in words:
        raise UsageError("trusted proxies: 'none' stands alone")
    everybody = ["0.0.0.0/0", "::/0", "unix"]
    named = [name for word in words for name in (everybody if word == "*" else [word])]
    networks = tuple(_parse_network(name) for name in named if name != "unix")
    if len(networks) > MAX_NETWORKS:
        raise UsageError(f"{len(networks)} trusted networks are more than the {MAX_NETWORKS} that one proxy can have")
    return Trust(networks, "unix" in named)


def format_trusted(trust: Trust) -> tuple[str, ...]:
    """What `parse_trusted` reads as these peers."""
    addresses = [(ipaddress.ip_address(packed), bits) for packed, bits in trust.networks]
    texts = [str(address) if bits == address.max_prefixlen else f"{address}/{bits}" for address, bits in addresses]
    return (*texts, *(["unix"] if trust.unix else [])) or ("none",)


# Descriptions. What a number may be is a matter of `ge` and `le`; the engine says how much it has room for. `unit` says how a value
# is written (settings.UNITS). A flag that is repeated has the singular of the setting's name, and says so.

MOST_BYTES = 1 << 50
"""What bounds sizes that nothing else does, far above any that is of use ..."""

MOST_COUNT = 1_000_000_000
"""... and numbers of connections."""

MOST_RECORDING = 64 << 20
"""Bytes that a recording may be told to keep."""

ACCESS_LOG_OFF = "off"
"""In the place of a file: there are no access lines. A file of that name is ./off."""


def _seconds(description: str, most: float = MAX_SECONDS, least: float = 0, **extra: str) -> Meta:
    return Meta(ge=least, le=most, description=description, extra_json_schema={"unit": "s", **extra})


def _bytes(description: str, least: int = 0, most: int = MOST_BYTES) -> Meta:
    return Meta(ge=least, le=most, description=description, extra_json_schema={"unit": "bytes"})


def _count(unit: str, description: str, least: int, most: int, **extra: str) -> Meta:
    return Meta(ge=least, le=most, description=description, extra_json_schema={"unit": unit, **extra})


def _other(unit: str, description: str, **extra: str | int) -> Meta:
    return Meta(description=description, extra_json_schema={"unit": unit, **extra})


class ProcessSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the process: what it listens at, its clients, its memory, its log.

    Times are in seconds, sizes in bytes (rules A3, B and F).
    """

    listen: Annotated[
        tuple[Address, ...],
        _other(
            "HOST:PORT",
            "Where clients connect. Port 0 takes a free one; [::] is every address, of IPv4 too.",
            maxItems=MAX_LISTENERS,
        ),
    ] = (("127.0.0.1", 8080),)
    workers: Annotated[
        int, _count("threads", "Engine threads.", 1, MAX_WORKERS, computed_default="the CPUs it may use")
    ] = field(default_factory=usable_cpus)
    admin: Annotated[
        Address | None,
        _other(
            "HOST:PORT or off",
            "Where /metrics, /status, /history, /events, /exchanges, /healthz and /readyz are, a page that shows them, and the POSTs that "
            "drain and resume backends, reload and record; or 'off'.",
        ),
    ] = (
        "127.0.0.1",
        9090,
    )
    admin_hosts: Annotated[
        tuple[str, ...],
        _other(
            "NAME",
            "A name under which the admin endpoint may be asked, beside addresses and localhost. /metrics, /healthz and /readyz "
            "need none.",
            flag="--admin-host",
        ),
    ] = ()
    admin_token: Annotated[
        Secret | None,
        _other(
            "secret",
            "What a POST to the admin endpoint has to bring (Authorization: Bearer). Where there is none, one is answered only if no "
            "other machine can reach the endpoint. It is read at the start.",
            flag="--admin-token-file",
            variable="LLMPIPE_ADMIN_TOKEN",
        ),
    ] = None
    max_connections: Annotated[
        int,
        _count(
            "connections",
            "Client connections that are served at the same time; further ones are answered 503. 0 is no limit but the "
            "descriptors': then accepting pauses.",
            0,
            MOST_COUNT,
        ),
    ] = 0
    max_connections_per_ip: Annotated[
        int,
        _count(
            "connections",
            "The same for one client address (an IPv6 one: its /64), trusted proxies excepted; further ones are answered 429. "
            "0 is no limit.",
            0,
            MOST_COUNT,
        ),
    ] = 0
    trusted_proxies: Annotated[
        Trust,
        _other(
            "NETWORK",
            "Who is believed when it tells of the client behind it (X-Forwarded-*): addresses and networks, 'unix' for Unix "
            "sockets, '*' for everybody or 'none'; commas may stand between several.",
            maxItems=MAX_NETWORKS,
        ),
    ] = parse_trusted(TRUSTED_BY_DEFAULT)
    head_timeout: Annotated[
        float, _seconds("Time for a whole request head, and for the first byte of a new connection; 0 is off.")
    ] = 10.0
    keepalive_timeout: Annotated[float, _seconds("How long an idle client connection stays open; 0 is for ever.")] = (
        75.0
    )
    send_timeout: Annotated[
        float,
        _seconds("How long a client may take no byte of its answer, or either side of a tunnel none; 0 is off."),
    ] = 60.0
    dead_peer_timeout: Annotated[
        float,
        _seconds(
            "How long a client or backend may be silent in the network (no answer to keepalive probes, or to bytes sent) before "
            "it counts as gone; 0 is off.",
            86400,
        ),
    ] = 45.0
    max_request_line: Annotated[int, _bytes("Longest request line; longer is answered 414.", 64, MAX_HEAD)] = 8 << 10
    max_head: Annotated[int, _bytes("Longest request head; longer is answered 431.", 256, MAX_HEAD)] = 32 << 10
    max_fields: Annotated[
        int, _count("fields", "Most fields in a request head; more is answered 431.", 1, MAX_FIELDS)
    ] = 128
    kept_memory: Annotated[
        int,
        _bytes(
            "How much is kept of all requests together, those of up to 8 KB not counted; beyond it a request is sent once only. "
            "0 is no limit."
        ),
    ] = 256 << 20
    drain_timeout: Annotated[float, _seconds("Time for streams to finish after SIGTERM; 0 is no limit.")] = 600.0
    upgrade_timeout: Annotated[
        float,
        _seconds("Time for the new process of an upgrade (SIGUSR2) to be ready; then this one goes on. 0 is no limit."),
    ] = 60.0
    pid_file: Annotated[
        str,
        _other(
            "FILE",
            "A file that has the number of the process while it serves; after an upgrade, that of the new one. Empty for none.",
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _other(
            "choice",
            "Least important lines written. Access lines are info; above it they are made only for a file of their own.",
        ),
    ] = "info"
    log_format: Annotated[Literal["text", "json"], _other("choice", "How lines look.")] = "text"
    exchanges_kept: Annotated[
        int,
        _count(
            "exchanges",
            "The last exchanges that ended, of which the admin endpoint can tell (/exchanges, llmpipe explain): about half a kilobyte "
            "each. 0 keeps none.",
            0,
            100_000,
        ),
    ] = 1000
    access_log: Annotated[
        str,
        _other(
            "FILE",
            "Where access lines go, whatever the log level is; SIGUSR1 opens the file anew. Empty: where all other lines go. 'off': "
            "there are none.",
        ),
    ] = ""
    access_sample: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="How many of the exchanges that went well have an access line: 1 is all, 0.01 one in a hundred, chosen by the "
            "id of the request. All others have one.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 1.0
    otel: Annotated[
        bool,
        _other(
            "switch",
            "Send a span for each exchange to an OpenTelemetry collector, by OTLP over HTTP. Where it is, and all else, the OTEL_* "
            "variables say. It needs the extra llmpipe[otel].",
        ),
    ] = False
    tenant: Annotated[
        str,
        _other(
            "FIELD",
            "Field of a request's head that says who sends it: in a queue the senders take turns, however many requests each "
            "sends. Empty: all are one.",
        ),
    ] = ""
    priority: Annotated[
        str,
        _other(
            "FIELD",
            "Field that says how urgent a request is: high, normal or low. In a queue higher ones go first; of every eight places one goes "
            "to a lower one that waits. Empty: all are normal.",
        ),
    ] = ""
    record: Annotated[
        str,
        _other(
            "DIR",
            "A folder for recordings of answers to POSTs, which is made where it is missing: a file for each, with the time of every piece. Empty: "
            "none are written.",
        ),
    ] = ""
    record_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="How many of the answers are recorded there: 1 is all, 0.01 one in a hundred, chosen by chance.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 0.01
    record_size: Annotated[
        int,
        _bytes(
            "How much of an answer a recording keeps at most, and as much again of what its client sent where that is recorded; what is longer is cut. It holds for those of POST /record too.",
            1 << 10,
            MOST_RECORDING,
        ),
    ] = 1 << 20
    record_files: Annotated[
        int, _count("files", "Files that the folder keeps; the oldest ones are removed.", 1, 100_000)
    ] = 1000
    record_request_bodies: Annotated[
        bool, _other("switch", "Keep what clients send too, in each of these recordings.")
    ] = False
    watch: Annotated[
        bool,
        _other("switch", "Load the configuration file again when it changes, as SIGHUP does."),
    ] = False
    log_query: Annotated[
        bool,
        _other(
            "switch",
            "Show queries of requests in access lines as they came; else only the values of a few parameters that carry no key.",
        ),
    ] = False

    @property
    def keeps_exchanges(self) -> bool:
        """Whether ended exchanges are kept: somebody can ask for them."""
        return self.exchanges_kept > 0 and self.admin is not None

    @property
    def access_lines(self) -> bool:
        """Whether exchanges have access lines."""
        if self.access_log == ACCESS_LOG_OFF:
            return False
        return bool(self.access_log) or self.log_level in ("debug", "info")

    @property
    def access_records(self) -> bool:
        """Whether the engines report every exchange."""
        return self.access_lines or self.otel or self.keeps_exchanges


class PoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a pool of backends: how an exchange with them goes.

    Times are in seconds, sizes in bytes (rules B and F).
    """

    backends: Annotated[
        tuple[Backend, ...],
        _other(
            "URL",
            "An inference server: http://HOST:PORT, http://[V6]:PORT or unix:/PATH; a path after HOST:PORT is put before the "
            "client's. Of several, the policy chooses one. ?on-abort=finish after it lets it finish an answer whose client has left; ?host=backend gives "
            "it its own name in the Host field (Ollama wants that), ?host=NAME another one; ?weight=2 gives it twice as much as "
            "others; ?tier=1 keeps it for when none of tier 0 is usable; ?max-in-flight=64 lets it work on no more exchanges at a time; "
            "?name=NAME is what logs and metrics call it. Each address of a HOST is a server of its own; ?addresses=first uses the first "
            "that answers.",
            flag="--backend",
            maxItems=MAX_MEMBERS,
        ),
    ] = ()
    include_usage: Annotated[
        Literal["off", "asked", "force"],
        _other(
            "choice",
            "Whether tokens are read from answers, for metrics, access lines and views: not at all; where the backend tells how many it "
            "took, and no byte of an answer is changed; or of every stream: a request for a completion waits for its whole body, its "
            "stream_options are made to ask for the usage, and the event that the client has not asked for is taken out of its answer.",
        ),
    ] = "asked"
    policy: Annotated[
        Literal["least_in_flight", "round_robin", "p2c"],
        _other(
            "choice",
            "How a backend is chosen: the one with the fewest requests in flight for its weight; each in turn, as often as its weight "
            "says; or the better one of two at random, by requests in flight times the average time to the first content.",
        ),
    ] = "least_in_flight"
    slow_start: Annotated[
        float,
        _seconds(
            "For how long a backend that comes back gets less than its weight says, rising evenly; 0 is off.", 3600
        ),
    ] = 0.0
    connect_timeout: Annotated[float, _seconds("Time for a backend to accept a connection; 0 is off.")] = 5.0
    ttft_timeout: Annotated[
        float,
        _seconds(
            "Time from the whole request received to the first byte of content, one for all backends that are tried; 0 is off."
        ),
    ] = 600.0
    idle_timeout: Annotated[
        float, _seconds("Longest gap between two bytes of content, or of a request body; 0 is off.")
    ] = 300.0
    total_timeout: Annotated[float, _seconds("Longest exchange; 0 is off.")] = 0.0
    upstream_idle_timeout: Annotated[
        float,
        _seconds(
            "How long an idle backend connection is kept, less than the backend keeps it (uvicorn: 5 s); 0 keeps none."
        ),
    ] = 4.0
    max_body: Annotated[int, _bytes("Longest request body; longer is answered 413. 0 is off.")] = 64 << 20
    max_response_head: Annotated[int, _bytes("Longest head of a backend's answer; longer is a 502.", 256, MAX_HEAD)] = (
        64 << 10
    )
    max_response_fields: Annotated[
        int, _count("fields", "Most fields in the head of a backend's answer; more is a 502.", 1, MAX_FIELDS)
    ] = 512
    failover_body: Annotated[
        int,
        _bytes(
            "How much of a request is kept to send it again; longer ones are sent once, on a fresh connection.",
            0,
            MAX_FAILOVER_BODY,
        ),
    ] = 1 << 20
    retry_statuses: Annotated[
        frozenset[Literal[429, 502, 503]],
        _other(
            "status",
            "Answer of a backend after which the next one is asked, within the retry budget. In the file, a pool with several backends "
            "has 429 and 503 unless it says otherwise.",
            flag="--retry-status",
            key="retry.statuses",
        ),
    ] = frozenset()
    on_error_event: Annotated[
        bool,
        _other(
            "switch",
            "Hold the head of an event stream back until its first event, up to 16 KB: if that is an error, or the stream ends without "
            "one, the next backend is asked.",
            flag="--retry-on-error-event",
            key="retry.on_error_event",
        ),
    ] = False
    health_path: Annotated[
        str,
        _other(
            "/PATH",
            "Where each backend is asked for its health: a GET that it answers with 2xx or 3xx. One that fails is asked for nothing "
            "while others can be. Empty for no checks.",
            key="health.path",
        ),
    ] = ""
    health_interval: Annotated[
        float, _seconds("Time between two checks of a backend.", 3600, least=0.1, key="health.interval")
    ] = 5.0
    health_timeout: Annotated[
        float, _seconds("Time for a check to be answered.", 3600, least=0.01, key="health.timeout")
    ] = 2.0
    health_rise: Annotated[
        int, _count("checks", "Checks in a row that a backend must pass to be used again.", 1, 1000, key="health.rise")
    ] = 1
    health_fall: Annotated[
        int, _count("checks", "Checks in a row that it must fail to be left out.", 1, 1000, key="health.fall")
    ] = 3
    max_in_flight: Annotated[
        int,
        _count(
            "exchanges",
            "Exchanges that all backends of the pool work on at a time at most; further ones wait in its queue. 0 is no limit. Each "
            "backend may have a limit of its own.",
            0,
            MOST_IN_FLIGHT,
        ),
    ] = 0
    queue_size: Annotated[
        int,
        _count(
            "requests",
            "Requests that wait for a place at most, where there is a limit on exchanges; further ones are answered 429.",
            0,
            MOST_IN_FLIGHT,
            key="queue.size",
        ),
    ] = 256
    queue_timeout: Annotated[
        float,
        _seconds(
            "How long a request waits for a place; then it is answered 429. A client that says that it is less patient is answered "
            "sooner. 0 is no limit.",
            key="queue.timeout",
        ),
    ] = 30.0
    cold_timeout: Annotated[
        float,
        _seconds(
            "How long a request waits, in the same queue, for a backend that is up, while none is; 0 is not at all.",
            flag="--queue-cold-timeout",
            key="queue.cold_timeout",
        ),
    ] = 0.0
    eject_errors: Annotated[
        int,
        _count(
            "answers",
            "Answers of 5xx in a row, 503 apart, after which a backend is left out for a while, if there is another one; 0 is off.",
            0,
            1_000_000,
            key="eject.errors",
        ),
    ] = 5
    on_midstream_error: Annotated[
        Literal["close", "event"],
        _other("choice", "When a backend fails inside an event stream: just close, or write one error event first."),
    ] = "close"
    comments_count_as_content: Annotated[
        bool,
        _other(
            "switch",
            "Comments in an event stream, which some engines send while they work on the prompt, count for the TTFT and idle "
            "time-outs.",
        ),
    ] = False


class Pool(Struct, frozen=True, kw_only=True):
    """Backends that serve the same models."""

    name: str
    settings: PoolSettings
    models: tuple[str, ...] = ()
    """Names that requests say; one with a * at its end stands for all that begin so."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names, and the model's name that its backends get in their place."""


class Route(Struct, frozen=True, kw_only=True):
    """What leads to a pool whatever the model is: a path, a field of the head, or both."""

    pool: str
    path: str = ""
    header: str = ""
    """A field's name, or `name: value`."""


class Settings(Struct, frozen=True, kw_only=True):
    """What each engine is told."""

    process: ProcessSettings = field(default_factory=ProcessSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    """What holds where no pool is known, and the one pool where no other is named."""
    pools: tuple[Pool, ...] = ()
    routes: tuple[Route, ...] = ()
    default_pool: str = ""
    """The pool of requests that nothing else leads anywhere; empty for none."""

    @property
    def all_pools(self) -> tuple[Pool, ...]:
        """Those of the file, or the one of `--backend`."""
        return self.pools or (Pool(name="default", settings=self.pool),)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Every backend, once."""
        return tuple(dict.fromkeys(backend for pool in self.all_pools for backend in pool.settings.backends))


class ServeConfig(Struct, frozen=True, kw_only=True):
    """What `llmpipe serve` was asked to do."""

    settings: Settings
    demo: bool
    """Whether a mock inference server is the backend."""
    path: str = ""
    """Of the configuration file; empty where there is none."""
    seen: tuple[int, ...] | None = None
    """What the file looked like before it was read (`config_file.look`)."""
    reload: Callable[[], Settings] | None = None
    """Reads the file again; raises UsageError where it cannot work."""
