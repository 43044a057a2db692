"""Files of nginx: each `upstream` that a location leads to becomes a pool, each such location a route.

The directives: https://nginx.org/en/docs/http/ngx_http_proxy_module.html, ngx_http_upstream_module.html and
ngx_http_core_module.html. The library is a fork of nginx's own parser for Python, under its name `crossplane`.
"""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.config import format_duration, format_size
from llmpipe.errors import UsageError
from llmpipe.importer import credentials
from llmpipe.importer.document import MOST_BYTES, load_library, read_text
from llmpipe.importer.draft import Block, Draft, PoolDraft, split_url

MOST_FILES = 100
"""That `include` brings in, each as often as it is named."""

MOST_LOCATIONS = 1000
"""In all servers."""

_TIME = re.compile(r"(\d{1,9})(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d{1,12})([kKmMgG]?)")
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

# What is shown of a word: a file that is none of nginx's may have anything in the place of a directive.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")

# A regular expression that says no more than how a path begins.
_LITERAL = re.compile(r"\^(/(?:[A-Za-z0-9_/~%-]|\\[./-])*)(?:\.\*|\(\.\*\))?")

_QUIET = frozenset(
    {"access_log", "client_body_buffer_size", "client_body_temp_path", "client_header_buffer_size", "default_type", "error_log"}
    | {"error_page", "events", "keepalive_requests", "load_module", "log_format", "open_file_cache", "output_buffers", "pcre_jit"}
    | {"pid", "postpone_output", "proxy_buffer_size", "proxy_buffers", "proxy_busy_buffers_size", "proxy_cache_bypass"}
    | {"proxy_http_version", "proxy_max_temp_file_size", "proxy_no_cache", "proxy_redirect", "proxy_request_buffering"}
    | {"proxy_send_timeout", "proxy_temp_path", "reset_timedout_connection", "root", "index", "send_lowat", "sendfile", "server_tokens"}
    | {"server_names_hash_bucket_size", "server_names_hash_max_size", "tcp_nodelay", "tcp_nopush", "thread_pool", "types"}
    | {"types_hash_bucket_size", "types_hash_max_size", "user", "worker_connections", "worker_cpu_affinity", "worker_processes"}
    | {"worker_rlimit_nofile", "zone", "least_conn", "keepalive", "resolver", "resolver_timeout", "real_ip_recursive"}
    | {"variables_hash_bucket_size", "variables_hash_max_size", "map_hash_bucket_size", "chunked_transfer_encoding", "stub_status"}
    | {"worker_shutdown_timeout", "daemon", "master_process", "env", "tcp_nodelay", "gzip_vary", "gzip_proxied", "ignore_invalid_headers"}
)  # fmt: skip
"""Directives about how nginx does what llmpipe does in its own way, and about files that it serves: no word is lost on them."""

_QUIET_VALUES = frozenset(
    {("proxy_buffering", "off"), ("real_ip_header", "x-forwarded-for"), ("gzip", "off"), ("proxy_cache", "off")}
)
"""Directives with a value that says what llmpipe does anyway."""

_INHERITED = frozenset(
    {
        "client_max_body_size",
        "proxy_connect_timeout",
        "proxy_next_upstream",
        "proxy_read_timeout",
        "proxy_ignore_client_abort",
    }
)
"""Directives of a location that may stand in its server or in http."""

_PROCESS = {
    "keepalive_timeout": "keepalive_timeout",
    "send_timeout": "send_timeout",
    "client_header_timeout": "head_timeout",
}

_NOBODY = "llmpipe keeps nobody out; put what does before it"

_FEWEST = 'the backend with the fewest requests in flight for its weight is chosen; policy = "p2c" takes the better one of two at random'

_REASONS = {
    "add_header": "answers go on unchanged",
    "allow": _NOBODY,
    "auth_basic": _NOBODY,
    "auth_basic_user_file": _NOBODY,
    "auth_request": _NOBODY,
    "client_body_timeout": "a request body has the idle_timeout of its pool",
    "deny": _NOBODY,
    "gzip": "answers go on unchanged",
    "hash": _FEWEST,
    "if": "write [[routes]] with a path and a header",
    "ip_hash": _FEWEST,
    "least_time": _FEWEST,
    "limit_conn": "max_connections_per_ip limits the connections of a client",
    "limit_conn_zone": "max_connections_per_ip limits the connections of a client",
    "limit_rate": "nothing is slowed down",
    "limit_req": "there are no limits on the rate of requests",
    "limit_req_zone": "there are no limits on the rate of requests",
    "map": "there are no variables; write [[routes]] with a path and a header",
    "proxy_buffering": "nothing is buffered",
    "proxy_cache": "nothing is cached",
    "proxy_cache_path": "nothing is cached",
    "proxy_next_upstream_timeout": "ttft_timeout is one deadline for all attempts",
    "proxy_next_upstream_tries": "each backend is tried once, within the retry budget",
    "proxy_pass_request_headers": "requests go on unchanged",
    "random": _FEWEST,
    "real_ip_header": "the client's address is read from X-Forwarded-For",
    "return": "llmpipe answers nothing itself",
    "rewrite": "a path goes on as it came",
    "set": "there are no variables",
    "split_clients": "there are no variables; write [[routes]] with a path and a header",
    "ssl": "TLS from clients is not supported; put a front end that ends it before llmpipe (docs/examples/behind-nginx.toml)",
    "stream": "only HTTP is forwarded",
    "sub_filter": "answers go on unchanged",
    "try_files": "no files are served",
}

_SERVER_REASONS = {
    "fail_timeout": "a backend that fails is left out for 100 ms to 10 s",
    "max_conns": "it is no number",
    "max_fails": "one failure leaves a backend out for a moment; for checks write health = { path, fall }",
    "slow_start": "it is one time for all backends of a pool: write slow_start into the pool",
}

_SENT_BY_ITSELF = frozenset(
    {
        "connection",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-request-id",
        "accept-encoding",
    }
)
"""Fields of proxy_set_header that llmpipe sets, or leaves, as they are wanted."""

_AUTHORITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]{1,5})?")

_SAME_HOST = frozenset({"$host", "$http_host", "$host:$server_port", "$server_name", "$host:$proxy_port"})


@dataclass
class _Directive:
    name: str
    args: list[str]
    line: str
    """FILE:LINE."""
    block: "list[_Directive]" = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{_shown(self.name)} ({self.line})"


@dataclass
class _Context:
    """What a location inherits."""

    values: dict[str, _Directive]
    fields: list[_Directive]
    """proxy_set_header: all of them are of one level."""


@dataclass
class _Location:
    where: str
    kind: str
    """Empty for a plain prefix, else =, ^~ or ~."""
    path: str
    header: str
    pool: PoolDraft
    block: Block
    """Comments."""


def read(path: str) -> Draft:
    """What an nginx configuration comes to.

    Raises:
        UsageError: it is none.
    """
    try:
        return _Reader(path).draft
    except RecursionError:
        raise UsageError(f"{path}: it is nested too deep") from None


def _shown(word: str) -> str:
    return word if _WORD.fullmatch(word) else "a word"


def _seconds(text: str) -> float | None:
    """The time that nginx reads in a text; None where there is none."""
    words = re.findall(r"\d+[a-z]*", text)
    matches = [_TIME.fullmatch(word) for word in words]
    if not words or "".join(words) != text.replace(" ", ""):
        return None
    total = 0.0
    for match in matches:
        if not match:
            return None
        total += int(match[1]) * _SECONDS[match[2] or "s"]
    return total


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _BYTES[match[2].lower()] if match else None


class _Files:
    """Reads a file and those that it includes."""

    def __init__(self, path: str) -> None:
        self._crossplane = load_library("crossplane")
        self._folder = Path(path).parent
        self._count = 0
        self._letters = 0
        self.unread: list[tuple[str, str]] = []
        """(place, reason) of each include that brought in nothing."""
        self.directives = list(self._read(path, ()))

    def _read(self, path: str, parents: tuple[str, ...]) -> list[_Directive]:
        text = read_text(path)
        self._letters += len(text)
        if self._letters > MOST_BYTES:
            raise UsageError(f"{path}: with what it includes it is longer than {MOST_BYTES >> 10} KB")
        parsed = self._crossplane.parse_string(
            text, filename=path, single=True, check_ctx=False, check_args=False, catch_errors=False
        )
        for error in parsed["errors"]:
            # The library puts the place behind its words, and what it found before them.
            words = re.sub(r" in \S+:\d+$", "", str(error["error"]))
            place = f"{path}:{error['line']}" if error.get("line") else path
            raise UsageError(credentials.mask(f"{place}: it is no nginx configuration: {words}"))
        return list(self._convert(path, parsed["config"][0]["parsed"], (*parents, path)))

    def _convert(self, path: str, statements: list[dict[str, Any]], parents: tuple[str, ...]) -> Iterator[_Directive]:
        for statement in statements:
            line = f"{Path(path).name}:{statement['line']}"
            if statement["directive"] == "include":
                yield from self._include(line, statement["args"], parents)
                continue
            block = list(self._convert(path, statement.get("block", []), parents))
            yield _Directive(str(statement["directive"]), list(statement["args"]), line, block)

    def _include(self, line: str, args: list[str], parents: tuple[str, ...]) -> Iterator[_Directive]:
        """The directives of included files; a name without / before it is looked for beside the first file."""
        pattern = str(self._folder / args[0]) if args else ""
        if Path(pattern).name in ("mime.types", "fastcgi_params", "proxy_params"):
            return  # of every distribution
        wild = sum(map(glob.has_magic, pattern.split("/")))
        names = [pattern]
        if wild in (1, 2):  # more would look through all of a disk
            names = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
        elif wild or not Path(pattern).is_file():
            self.unread.append((f"include ({line})", "there is no such file; import again where it is"))
            return
        for name in filter(os.path.isfile, names):
            self._count += 1
            if self._count > MOST_FILES or name in parents:
                raise UsageError(f"{line}: includes have no end, or bring in more than {MOST_FILES} files")
            yield from self._read(name, parents)


class _Reader:
    def __init__(self, path: str) -> None:
        files = _Files(path)
        self.draft = Draft("Made by llmpipe import nginx.")
        self._upstreams: dict[str, _Directive] = {}
        self._upstream_left: dict[str, _Directive] = {}
        self._pools: dict[Any, tuple[PoolDraft, str]] = {}
        self._trusted: list[str] = []
        self._listens: dict[str, None] = {}
        self._has_tls = False
        self._told: set[str] = set()
        """Lines of the fields that a comment is there for: every location inherits them."""
        for where, why in files.unread:
            self.draft.top.lost(where, why)
        servers: list[tuple[_Directive, _Context]] = []
        self._collect(files.directives, _Context({}, []), servers)
        self._upstream_left = dict(self._upstreams)
        self._read_servers(servers)
        if not servers and len(self._upstreams) == 1:
            # A snippet of an upstream alone: one pool, which gets everything.
            ((name, upstream),) = self._upstreams.items()
            self._fill(self.draft.add_pool(name), upstream, "")
            self._upstream_left = {}
        for name, upstream in self._upstream_left.items():
            self.draft.refuse(self.draft.end, upstream.where, f"no location leads to the upstream {name!r}")
        if self._trusted:
            self.draft.top.set("set_real_ip_from", "trusted_proxies", self._trusted)
        if self._listens:
            self.draft.top.set("listen", "listen", list(self._listens))

    # The tree.

    def _collect(self, block: list[_Directive], outer: _Context, servers: list[tuple[_Directive, _Context]]) -> None:
        """Finds the upstreams and servers of http, or of a file that is meant to be included there."""
        context = self._inherit(block, outer)
        for directive in block:
            if directive.name == "http":
                self._collect(directive.block, context, servers)
            elif directive.name == "upstream" and directive.args:
                self._upstreams.setdefault(directive.args[0], directive)
            elif directive.name == "server" and directive.block:
                servers.append((directive, context))
            elif directive.name not in _INHERITED | {"proxy_set_header"}:
                self._read_common(directive, self.draft.top)

    @staticmethod
    def _inherit(block: list[_Directive], outer: _Context) -> _Context:
        own = {directive.name: directive for directive in block if directive.name in _INHERITED}
        fields = [directive for directive in block if directive.name == "proxy_set_header"]
        return _Context({**outer.values, **own}, fields or outer.fields)

    def _read_common(self, directive: _Directive, block: Block) -> None:
        """A directive that may stand anywhere."""
        name, args = directive.name, directive.args
        if name in _PROCESS and args:
            seconds = _seconds(args[0])
            if seconds is None:
                block.lost(directive.where, "it is no time")
            else:
                self.draft.top.set(directive.where, _PROCESS[name], format_duration(seconds))
        elif name == "large_client_header_buffers":
            self._read_head_limits(directive)
        elif name == "set_real_ip_from" and args:
            self._trusted.append("unix" if args[0] == "unix:" else args[0])
        elif name.startswith(("ssl", "http2", "http3", "quic")):
            if not self._has_tls:
                block.lost(f"ssl_* ({directive.line})", _REASONS["ssl"])
            self._has_tls = True
        elif name not in _QUIET and (name, *map(str.lower, args)) not in _QUIET_VALUES:
            block.lost(directive.where, _REASONS.get(name, "llmpipe has no such setting"))

    def _read_head_limits(self, directive: _Directive) -> None:
        number, size = [*directive.args, "", ""][:2]
        letters = _bytes(size) or 0
        count = int(number) if number.isdecimal() and len(number) < 6 else 0
        if letters and count:
            self.draft.top.set(directive.where, "max_request_line", format_size(letters))
            self.draft.top.set(directive.where, "max_head", format_size(letters * count))
        else:
            self.draft.top.lost(directive.where, "it is no number and size")

    # Servers and their locations.

    def _read_servers(self, servers: list[tuple[_Directive, _Context]]) -> None:
        locations: list[list[_Location]] = []
        first = True
        count = 0
        for server, outer in servers:
            context = self._inherit(server.block, outer)
            block = Block()
            found = list(self._walk(server.block, context, block))
            if (count := count + len(found)) > MOST_LOCATIONS:
                raise UsageError(f"{server.where}: there are more than {MOST_LOCATIONS} locations")
            proxying = [one for one in found if one is not None]
            if not proxying:
                self.draft.end.take(block)
                self.draft.end.lost(server.where, "none of its locations leads to a backend")
                continue
            headers = [""]
            if not first:
                headers = self._hosts(server, block)
            if not headers:
                block.lost(
                    server.where,
                    "it has no server_name of its own, and the routes of a process hold for all of its addresses; run one llmpipe for each",
                )
                self.draft.end.take(block)
                continue
            self._read_listen(server, block)
            first = False
            self.draft.top.take(block)
            ordered = self._order(proxying)
            locations.append(
                [
                    _Location(
                        one.where, one.kind, one.path, header, one.pool, one.block if header == headers[0] else Block()
                    )
                    for header in headers
                    for one in ordered
                ]
            )
        # Routes with a Host first: the first server has the rest, as nginx's default one.
        for one in [location for server_locations in reversed(locations) for location in server_locations]:
            self.draft.routes.append((one.path, one.header, one.pool, one.block))
        self._simplify()

    def _simplify(self) -> None:
        """One pool that gets everything needs no route."""
        routes = self.draft.routes
        pools = {route[2].name for route in routes}
        if len(pools) == 1 and len(routes) >= 1 and routes[-1][:2] == ("/", ""):
            pool = routes[0][2]
            for *_, block in routes:
                pool.head.take(block)
            routes.clear()

    def _hosts(self, server: _Directive, block: Block) -> list[str]:
        """What the field Host says of requests for a server."""
        ports = {address.rpartition(":")[2] for address in self._addresses(server)} or {"80"}
        found = []
        for directive in server.block:
            for name in directive.args if directive.name == "server_name" else ():
                if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
                    found += [f"Host: {name}" if port == "80" else f"Host: {name}:{port}" for port in sorted(ports)]
                elif name not in ("_", ""):
                    block.lost(
                        f"server_name ({directive.line})", "a route has a whole name, without * or a regular expression"
                    )
        return found

    @staticmethod
    def _addresses(server: _Directive) -> list[str]:
        """The addresses that a server listens at without TLS, as llmpipe writes them."""
        found = []
        listens = [directive for directive in server.block if directive.name == "listen" and directive.args]
        for directive in listens:
            text = directive.args[0]
            if "ssl" in directive.args or "quic" in directive.args or text.startswith("unix:"):
                continue
            if text.isdecimal():
                text = f"0.0.0.0:{text}"
            elif not re.search(r":\d+$", text) or text.endswith("]"):
                text = f"{text}:80"
            found.append(text.replace("*:", "0.0.0.0:").replace("localhost:", "127.0.0.1:"))
        return found if listens else ["0.0.0.0:80"]

    def _read_listen(self, server: _Directive, block: Block) -> None:
        for address in self._addresses(server):
            self._listens[address] = None
        for directive in server.block:
            if directive.name == "listen" and {"ssl", "quic"} & set(directive.args):
                block.lost(directive.where, _REASONS["ssl"])
                self._has_tls = True
            elif directive.name == "listen" and directive.args and directive.args[0].startswith("unix:"):
                block.lost(directive.where, "clients connect by TCP")

    def _walk(self, statements: list[_Directive], context: _Context, block: Block) -> Iterator[_Location | None]:
        """The locations of a server, those inside of others too; None for one that leads to no backend."""
        for directive in statements:
            if directive.name == "location":
                yield from self._read_location(directive, context, block)
            elif directive.name == "proxy_pass":
                block.lost(directive.where, "it stands in no location")
            elif directive.name not in _INHERITED | {"proxy_set_header", "listen", "server_name"}:
                self._read_common(directive, block)

    def _read_location(self, location: _Directive, outer: _Context, block: Block) -> Iterator[_Location | None]:
        context = self._inherit(location.block, outer)
        shown = f"location {' '.join(location.args)} ({location.line})"
        inner = [one for one in location.block if one.name == "location"]
        passes = [one for one in location.block if one.name == "proxy_pass" and one.args]
        kind, path = self._path(location)
        own = Block()
        for directive in location.block:
            if directive.name not in _INHERITED | {"proxy_set_header", "location", "proxy_pass"}:
                self._read_common(directive, own)
        for directive in inner:
            yield from self._read_location(directive, context, block)
        if not passes:
            if not inner:
                own.lost(shown, "it leads to no backend; its requests go where the other routes lead now")
            block.take(own)
            yield None
            return
        if not path:
            self.draft.refuse(own, shown, "a route has the beginning of a path, not a regular expression or a name")
            block.take(own)
            yield None
            return
        pool = self._pool(passes[0], path, context, own)
        if pool is None:
            block.take(own)
            yield None
            return
        yield _Location(shown, kind, path, "", pool, own)

    @staticmethod
    def _path(location: _Directive) -> tuple[str, str]:
        """(kind, beginning of the path) of a location; no path where it has none."""
        kind, path = "", ""
        if len(location.args) == 1:
            path = location.args[0]
        elif len(location.args) == 2:
            kind, path = location.args
        if kind == "~":
            match = _LITERAL.fullmatch(path)
            path = re.sub(r"\\(.)", r"\1", match[1]) if match else ""
        fits = re.fullmatch(r"/[!-~]*", path) and kind in ("", "=", "^~", "~")
        return kind, path if fits else ""

    def _order(self, found: list[_Location]) -> list[_Location]:
        """Locations so that the first that fits is the one that nginx takes, without those of which that cannot be said."""
        kept = []
        for one in found:
            others = [other for other in found if other is not one]
            longer = [other for other in others if other.path.startswith(one.path) and other.pool is not one.pool]
            if one.kind == "=" and longer:
                longest = max(longer, key=lambda other: len(other.path))
                self.draft.top.take(one.block)
                self.draft.top.lost(one.where, f"as the beginning of a path it would take requests from {longest.path}")
            elif one.kind == "~" and any(
                other.kind == "^~" and (other.path.startswith(one.path) or one.path.startswith(other.path))
                for other in others
            ):
                self.draft.top.take(one.block)
                self.draft.top.lost(
                    one.where, "which of it and a location with ^~ is meant depends on the rest of the path"
                )
            else:
                if one.kind == "=":
                    one.block.note(f"{one.where}: an exact path there, the beginning of one here.")
                kept.append(one)
        exact = [one for one in kept if one.kind == "="]
        expressions = [one for one in kept if one.kind == "~"]
        prefixes = sorted((one for one in kept if one.kind in ("", "^~")), key=lambda one: -len(one.path))
        return [*exact, *expressions, *prefixes]

    # Pools.

    def _pool(self, proxy_pass: _Directive, path: str, context: _Context, block: Block) -> PoolDraft | None:
        """The pool that a location leads to; None, with a comment, where there can be none."""
        target = proxy_pass.args[0]
        if "$" in target:
            self.draft.refuse(block, proxy_pass.where, "there are no variables; name the server")
            return None
        upstream, url, rest = None, "", ""
        if target.startswith("http://unix:"):
            socket, colon, rest = target.removeprefix("http://").removeprefix("unix:").partition(":")
            url, rest = f"unix:{socket}", rest if colon else ""
        else:
            try:
                url, _ = split_url(target)
            except UsageError as error:
                self.draft.refuse(block, proxy_pass.where, str(error))
                return None
            rest = target[len(url) :]
            upstream = self._upstreams.get(url.removeprefix("http://"))
        if rest not in ("", path):
            self.draft.refuse(
                block,
                proxy_pass.where,
                "a path goes on as it came, and here nginx puts another one in its place; let clients ask for the path of the server",
            )
            return None
        name = url.removeprefix("http://")
        if upstream is not None:
            self._upstream_left.pop(name, None)
        host = self._host(context, block, name if upstream is not None else "backend", url)
        settings = {key: tuple(directive.args) for key, directive in context.values.items()}
        key = (url, host, tuple(sorted(settings.items())))
        if key not in self._pools:
            taken = any(pool.name == name for pool, _ in self._pools.values())
            pool = self.draft.add_pool(f"{name} {path}" if taken else name)
            self._pools[key] = (pool, host)
            self._read_values(pool, context)
            if upstream is not None:
                self._fill(pool, upstream, host)
            else:
                pool.add_backend(proxy_pass.where, url, host)
        return self._pools[key][0]

    def _host(self, context: _Context, block: Block, default: str, url: str) -> str:
        """What backends get in the Host field; empty for what the client sent."""
        host = default
        for directive in context.fields:
            name = directive.args[0].lower() if directive.args else ""
            value = directive.args[1] if len(directive.args) > 1 else ""
            if name == "host" and value in _SAME_HOST:
                host = ""
            elif name == "host" and value == "$proxy_host":
                host = default
            elif name == "host" and _AUTHORITY.fullmatch(value):
                host = value
            elif name not in _SENT_BY_ITSELF and directive.line not in self._told:
                self._told.add(directive.line)
                why = (
                    "host is the client's, the backend's, or a name"
                    if name == "host"
                    else "fields go on as clients send them"
                )
                block.lost(f"proxy_set_header {_shown(name)} ({directive.line})", why)
        if url.startswith("unix:") and host == "backend":
            return "localhost"
        return host

    def _read_values(self, pool: PoolDraft, context: _Context) -> None:
        for name, directive in context.values.items():
            text = directive.args[0] if directive.args else ""
            seconds, size = _seconds(text), _bytes(text)
            if name == "proxy_connect_timeout" and seconds is not None:
                pool.set(directive.where, "connect_timeout", format_duration(seconds))
            elif name == "proxy_read_timeout" and seconds is not None:
                pool.set(directive.where, "ttft_timeout", format_duration(seconds))
                pool.set(directive.where, "idle_timeout", format_duration(seconds))
            elif name == "client_max_body_size" and size is not None:
                pool.set(directive.where, "max_body", format_size(size))
            elif name == "proxy_next_upstream":
                self._read_next(pool, directive)
            elif name == "proxy_ignore_client_abort":
                pool.finishes = text == "on"
            else:
                pool.lost(directive.where, "it is out of range")

    @staticmethod
    def _read_next(pool: PoolDraft, directive: _Directive) -> None:
        known = {"http_429": 429, "http_502": 502, "http_503": 503}
        statuses: list[int] = [known[word] for word in directive.args if word in known]
        if statuses:
            pool.set(directive.where, "retry.statuses", sorted(set(statuses)))
        # A failed connection leads to the next backend whatever is said.
        for word in directive.args:
            if word not in (*known, "error", "timeout"):
                pool.lost(
                    f"{directive.name} {_shown(word)} ({directive.line})",
                    "a request is sent again only while no byte of an answer has come",
                )

    def _fill(self, pool: PoolDraft, upstream: _Directive, host: str) -> None:
        """Adds the servers of an upstream."""
        self._read_slow_start(pool, upstream)
        for directive in upstream.block:
            if directive.name == "server" and directive.args:
                self._read_server(pool, directive, host)
            elif directive.name == "queue" and directive.args and directive.args[0].isdecimal():
                self._read_queue(pool, directive)
            elif directive.name == "keepalive_timeout" and directive.args and _seconds(directive.args[0]) is not None:
                pool.set(directive.where, "upstream_idle_timeout", format_duration(_seconds(directive.args[0]) or 0))
            elif directive.name not in _QUIET:
                pool.lost(directive.where, _REASONS.get(directive.name, "llmpipe has no such setting"))

    @staticmethod
    def _read_slow_start(pool: PoolDraft, upstream: _Directive) -> None:
        """The time that all servers of an upstream have alike; those of one that has none, or another one, are not carried over."""
        servers = [one.args[1:] for one in upstream.block if one.name == "server" and "down" not in one.args]
        times = {next((word for word in words if word.startswith("slow_start=")), "") for words in servers}
        seconds = _seconds(times.pop().partition("=")[2]) if len(times) == 1 else None
        if seconds:
            pool.set(f"slow_start of {upstream.where}", "slow_start", format_duration(seconds))

    @staticmethod
    def _read_queue(pool: PoolDraft, directive: _Directive) -> None:
        words = dict(word.partition("=")[::2] for word in directive.args[1:])
        seconds = _seconds(words.get("timeout", "60s"))
        if len(directive.args[0]) > 9 or seconds is None:
            pool.lost(directive.where, "it is no number and time")
            return
        pool.set(directive.where, "queue.size", int(directive.args[0]))
        pool.set(directive.where, "queue.timeout", format_duration(seconds))

    def _read_server(self, pool: PoolDraft, directive: _Directive, host: str) -> None:
        address, *words = directive.args
        weight, tier, most = 1, 0, 0
        for word in words:
            name, _, value = word.partition("=")
            if name == "weight" and value.isdecimal() and len(value) < 10:
                weight = int(value)
            elif name == "max_conns" and value.isdecimal() and len(value) < 10:
                most = int(value)
            elif name == "backup":
                tier = 1
            elif name == "down":
                self.draft.refuse(pool, directive.where, "it is down there; add it here when it is up")
                return
            elif (name, value) == ("max_fails", "1") or (name == "slow_start" and pool.has("slow_start")):
                continue  # nginx's own default; what the pool has
            elif name != "resolve":  # names are resolved again all the time
                pool.lost(
                    f"{_shown(name)} of {directive.where}", _SERVER_REASONS.get(name, "llmpipe has no such setting")
                )
        url = address if address.startswith("unix:") else f"http://{address}"
        if "@" in address:
            self.draft.refuse(pool, directive.where, "its address is no HOST:PORT")
            return
        pool.add_backend(directive.where, url, host, weight=weight, tier=tier, max_in_flight=most)
