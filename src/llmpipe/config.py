"""What an operator can say: units, addresses, backends, and the settings that the engine and the server get.

Only text is read here; nothing is opened, resolved or started.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from llmpipe.errors import UsageError
from llmpipe.log import mask_secrets

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)(B|KB|MB|GB)?", re.IGNORECASE)
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
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
    if seconds > 1e9:
        raise UsageError(f"{text!r} is too long a duration; the most is 1e9 seconds")
    return seconds


def parse_size(text: str) -> int:
    """Bytes in `text`: a number, with KB, MB or GB (1024-based) behind it, or bytes without.

    Raises:
        UsageError: it is no such thing.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size; write bytes, or a number with KB, MB or GB, such as 64MB")
    return int(match[1]) * _BYTES[(match[2] or "B").upper()]


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
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


@dataclass(frozen=True)
class Backend:
    """An inference server, as `--backend` names it."""

    url: str
    """What logs and metrics call it: the URL without its options."""
    host: str
    """A name or a numeric address; empty for a Unix socket."""
    port: int
    path: str
    """Of a Unix socket; empty for TCP."""
    finish_on_abort: bool
    """Whether it may finish its answer when the client has left."""
    host_field: str
    """What it gets in the Host field; empty for what the client sent."""

    @property
    def authority(self) -> str:
        """For the Host field of a request that came without one."""
        return format_address(self.host, self.port) if self.host else "localhost"


def _shown(text: str) -> str:
    """A backend's text as an error line may repeat it. A user's password may hold any letter, so it goes up to the last @."""
    before, at, behind = text.rpartition("@")
    if at and not text.startswith("unix:"):
        scheme, separator, _ = before.partition("://")
        text = f"{scheme}://***@{behind}" if separator else f"***@{behind}"
    return repr(mask_secrets(text))


def parse_backend(text: str) -> Backend:
    """The backend of `http://host:port`, `http://[v6]:port` or `unix:/path`, with `?on-abort=` and `&host=` or without.

    Raises:
        UsageError: it is no such thing; the text says how to write it.
    """
    shown = _shown(text)
    if not text.isprintable() or " " in text:
        raise UsageError(f"backend {shown} has white space or a control character in it")
    if "@" in text and not text.startswith("unix:"):
        raise UsageError(
            f"backend {shown} has a user name; clients send credentials of their own, so write http://HOST:PORT"
        )
    base, _, query = text.partition("?")
    options = _parse_backend_options(shown, query)
    finish = options.get("on-abort") == "finish"
    if base.startswith("unix:"):
        path = base[5:]
        if not path.startswith("/"):
            raise UsageError(f"backend {shown}: a Unix socket needs an absolute path, such as unix:/run/vllm.sock")
        return Backend(base, "", 0, path, finish, _host_field(options, "localhost"))
    _check_scheme(shown, base)
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"backend {shown} is not a URL: {error}") from None
    if parts.path not in ("", "/") or parts.fragment:
        raise UsageError(f"backend {shown} has a path; requests keep the client's, so write only http://HOST:PORT")
    if not host or (":" not in host and not _HOST.fullmatch(host)):
        raise UsageError(f"backend {shown} has no valid host; write http://HOST:PORT")
    if port == 0:
        raise UsageError(f"backend {shown}: port 0 cannot be connected")
    port = 80 if port is None else port
    authority = format_address(host, port)
    return Backend(f"http://{authority}", host, port, "", finish, _host_field(options, authority))


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


def _parse_backend_options(shown: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("on-abort", "host"):
            raise UsageError(f"backend {shown}: the option {name!r} is unknown; there are on-abort and host")
        if name == "on-abort" and value not in ("close", "finish"):
            raise UsageError(f"backend {shown}: on-abort is close or finish, not {value!r}")
        if name == "host" and value not in ("client", "backend") and not _AUTHORITY.fullmatch(value):
            raise UsageError(
                f"backend {shown}: host is client, backend, or a name with or without a port, not {value!r}"
            )
        if name in options:
            raise UsageError(f"backend {shown}: the option {name} is there twice")
        options[name] = value
    return options


def _host_field(options: dict[str, str], authority: str) -> str:
    host = options.get("host", "client")
    return {"client": "", "backend": authority}.get(host, host)


def parse_backends(texts: Sequence[str], limit: int) -> tuple[Backend, ...]:
    """Every backend, once.

    Raises:
        UsageError: one is wrong or named twice, or there are more than `limit`.
    """
    backends = tuple(parse_backend(text) for text in texts)
    urls = [backend.url for backend in backends]
    for url in urls:
        if urls.count(url) > 1:
            raise UsageError(f"backend {url} is named twice")
    if len(backends) > limit:
        raise UsageError(f"{len(backends)} backends are more than the {limit} that one proxy can have")
    return backends


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
        UsageError: one is no such thing, or `none` has company.
    """
    words = re.split(r"[\s,]+", ",".join(texts).strip(" ,\t\n"))
    if words in ([""], ["none"]):
        return Trust((), False)
    if "none" in words:
        raise UsageError("trusted proxies: 'none' stands alone")
    everybody = ["0.0.0.0/0", "::/0", "unix"]
    named = [name for word in words for name in (everybody if word == "*" else [word])]
    return Trust(tuple(_parse_network(name) for name in named if name != "unix"), "unix" in named)


@dataclass(frozen=True)
class Settings:
    """What each engine is told; times in seconds, sizes in bytes; a time, or `max_body`, of 0 is off (rules A3, B and F)."""

    max_request_line: int = 8 << 10
    max_head: int = 32 << 10
    max_fields: int = 128
    max_response_head: int = 64 << 10
    max_response_fields: int = 512
    max_body: int = 64 << 20
    failover_body: int = 1 << 20
    kept_memory: int = 256 << 20
    head_timeout: float = 10.0
    keepalive_timeout: float = 75.0
    connect_timeout: float = 5.0
    ttft_timeout: float = 600.0
    idle_timeout: float = 300.0
    total_timeout: float = 0.0
    send_timeout: float = 60.0
    upstream_idle_timeout: float = 4.0
    dead_peer_timeout: float = 45.0
    retry_statuses: frozenset[int] = field(default_factory=frozenset)
    midstream_error_event: bool = False
    comments_count_as_content: bool = False
    access_records: bool = True
    trusted_proxies: tuple[tuple[bytes, int], ...] = parse_trusted(TRUSTED_BY_DEFAULT).networks
    trust_unix: bool = True


@dataclass(frozen=True)
class Serve:
    """What `llmpipe serve` was asked to do."""

    listen: tuple[tuple[str, int], ...]
    admin: tuple[str, int] | None
    admin_hosts: tuple[str, ...]
    """Names under which a browser may ask the admin endpoint, beside the one it listens at."""
    backends: tuple[Backend, ...]
    workers: int
    max_connections: int
    """Client connections that are served at the same time; 0 is no limit but the descriptors'."""
    max_connections_per_ip: int
    """The same, of one client address."""
    drain_timeout: float
    demo: bool
    log_query: bool
    """Whether access lines show queries as they came."""
    settings: Settings
