"""Host names: those of backends, resolved at the start and again every 30 s, and those of addresses to listen at.

Numeric addresses and Unix sockets are never looked up. A name that cannot be resolved later keeps the addresses that it
had: name servers fail more often than backends move. One that never could is asked for again and again, and its backend has no
server until there is an answer. What the addresses of a name are to a backend, one server or several, is decided here too (rule I5).

A look-up cannot be interrupted, and may take as long as the system's resolver likes. So each has a thread of its own, which
nobody waits for longer than LIMIT, and the end of the process not at all. The event loop's own getaddrinfo() has a few
threads for all, so that one name holds up the others, and joins them at its end.
"""

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from llmpipe import log
from llmpipe._pipe import MAX_ADDRESSES, MAX_BACKENDS, MAX_MEMBERS
from llmpipe.config import Backend, Settings
from llmpipe.fleet import Server

INTERVAL = 30.0
"""Seconds between two look-ups."""

FIRST_RETRY = 1.0
"""Seconds until a name that has never been resolved is asked for again; twice as long each time, up to INTERVAL, a fifth more or less."""

LIMIT = 20.0
"""Seconds that a look-up may take: a resolver whose first two name servers are dead needs ten or more."""

Answers = list[tuple[Any, ...]]
"""As socket.getaddrinfo() returns them, for port 0."""


class Names:
    """Looks names up. It belongs to one event loop."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[Answers]] = {}

    async def look_up(self, host: str) -> Answers:
        """The addresses of a host, for stream sockets, within LIMIT.

        Raises:
            OSError: it cannot be resolved, or not in time.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._ask(host)), LIMIT)
        except asyncio.TimeoutError:
            raise OSError(f"no answer within {LIMIT:g} s") from None

    def _ask(self, host: str) -> "asyncio.Future[Answers]":
        """Begins a look-up, or finds the one that is on its way: a name that hangs has one thread, however often it is asked for."""
        if host in self._asked:
            return self._asked[host]
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answers] = loop.create_future()

        def finish(found: Answers, error: OSError | None) -> None:
            del self._asked[host]
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)
                answer.exception()  # where nobody waits any more, it is no news

        def look_up() -> None:
            found: Answers = []
            failure: OSError | None = None
            try:
                found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
            except UnicodeError:  # a label that is empty or longer than 63 letters
                failure = OSError("it is not a host name")
            except OSError as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, found, failure)

        try:
            threading.Thread(target=look_up, name="look-up", daemon=True).start()
        except RuntimeError as error:  # a limit on threads
            raise OSError(str(error)) from None
        self._asked[host] = answer
        return answer


def _fixed(backend: Backend) -> tuple[str, ...]:
    """The address of a backend that needs no look-up; none for one that does."""
    if backend.path:
        return (f"unix:{backend.path}",)
    try:
        return (str(ipaddress.ip_address(backend.host)),)
    except ValueError:
        return ()


def names(backends: Iterable[Backend]) -> int:
    """How many names there are to look up, at most at the same time."""
    return len({backend.host for backend in backends if not _fixed(backend)})


def _route_error(host: str, port: int) -> OSError | None:
    """Why no packet could be sent there. Connecting a datagram socket looks the route up and sends nothing."""
    if not port:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            return None  # which says nothing of the route
        return error
    return None


def reachable(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Where a name has addresses of both families, those to which there is a route, if there are any: a machine without IPv6 must not
    take IPv6 addresses for servers."""
    if len({":" in host for host in hosts}) < 2:
        return hosts
    return tuple(host for host in hosts if not _route_error(host, 1)) or hosts


def _several(hosts: Sequence[str]) -> list[str]:
    """The addresses that are a server each; none where all of them lead to one server.

    Nothing says which IPv4 address belongs to which IPv6 address. So where a family has several, it makes the servers by itself; of
    two such families the one that was named first does.
    """
    families: dict[bool, list[str]] = {}
    for host in hosts:
        families.setdefault(":" in host, []).append(host)
    several = [family for family in families.values() if len(family) > 1]
    # Name servers give them in any order. Which ones there is room for must not change with it.
    return sorted(several[0], key=lambda host: ipaddress.ip_address(host).packed) if several else []


def make_servers(backend: Backend, hosts: Sequence[str]) -> tuple[Server, ...]:
    """What a backend is whose name has these addresses, in the order of getaddrinfo().

    Args:
        backend: what the operator said.
        hosts: numeric ones, or "unix:/path"; none where the name could not be resolved.
    """
    local = backend.host.rstrip(".").rpartition(".")[2] == "localhost"
    several = _several(hosts) if backend.addresses == "all" and not local else ()
    if several:
        shown = [f"[{host}]" if ":" in host else host for host in several]
        return tuple(
            Server(f"{backend.name}@{address}", backend, ((host, backend.port),))
            for address, host in zip(shown, several, strict=True)
        )
    addresses = tuple((host, backend.port) for host in hosts)[:MAX_ADDRESSES]
    return (Server(backend.name, backend, addresses),) if addresses else ()


class Servers(Protocol):
    """Knows the servers of backends."""

    def servers(self, backend: Backend) -> tuple[Server, ...]:
        """Those of a backend; none while its name is not resolved."""


class Unresolved:
    """Stands for a resolver where no name server is to be asked: each name has this machine's address."""

    def servers(self, backend: Backend) -> tuple[Server, ...]:
        return make_servers(backend, _fixed(backend) or ("127.0.0.1",))


def choose(settings: Settings, known: Servers) -> list[Server]:
    """The servers of the pools' backends, as many as there is room for: one of each backend, and then those that come first.

    Raises:
        ValueError: there is no room for one of each.
    """
    backends = settings.backends
    if len(backends) > MAX_BACKENDS:
        raise ValueError(f"{len(backends)} backends are more than the {MAX_BACKENDS} that one proxy can have")
    names = {backend.name for backend in backends}
    room = MAX_BACKENDS - len(backends)
    rooms = {pool.name: MAX_MEMBERS - len(pool.settings.backends) for pool in settings.all_pools}
    pools_of: dict[Backend, list[str]] = {}
    for pool in settings.all_pools:
        for backend in pool.settings.backends:
            pools_of.setdefault(backend, []).append(pool.name)
    chosen: list[Server] = []
    for backend in backends:
        pools = pools_of[backend]
        # One that is called like another backend would be taken for it.
        found = [server for server in known.servers(backend) if server.name == backend.name or server.name not in names]
        taken = found[: 1 + min(room, *(rooms[pool] for pool in pools))]
        more = max(0, len(taken) - 1)
        room -= more
        rooms.update((pool, rooms[pool] - more) for pool in pools)
        chosen += taken
    return chosen


class Fault(NamedTuple):
    """What is wrong with a backend's address.

    Attributes:
        backend: that cannot be used.
        error: the system's word for it.
        resolved: whether it has an address, to which there is no way.
    """

    backend: Backend
    error: str
    resolved: bool

    @property
    def text(self) -> str:
        """For a person who can mend it."""
        if self.resolved:
            return f"backend {self.backend.name} cannot be reached from here ({self.error}); check its address"
        return f"backend {self.backend.name}: the host name cannot be resolved ({self.error}); check its spelling"


class Resolver:
    """Knows the servers of every backend. It belongs to one event loop."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._backends: tuple[Backend, ...] = ()
        self._found: dict[str, tuple[str, ...]] = {}
        """The addresses of each name that was resolved once, in the order of getaddrinfo() when they last changed."""
        self._errors: dict[str, str] = {}
        """Why each of the other names has none."""
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._on_change: Callable[[], None] | None = None

    def servers(self, backend: Backend) -> tuple[Server, ...]:
        """By the last look-up that succeeded; none where none has."""
        return make_servers(backend, self._hosts(backend))

    def error(self, backend: Backend) -> str:
        """Why a backend has no address."""
        return self._errors.get(backend.host, "")

    def _hosts(self, backend: Backend) -> tuple[str, ...]:
        return _fixed(backend) or self._found.get(backend.host, ())

    async def take(self, backends: Iterable[Backend]) -> list[Fault]:
        """Resolves the names of these backends from now on, all at once those that are new, and looks up the routes. Nothing is sent:
        a backend that is not up yet is no fault.

        Returns:
            What is wrong with those that are new.
        """
        backends = tuple(dict.fromkeys(backends))
        new = [backend for backend in backends if backend not in self._backends]
        asked = {backend.host for backend in new if not self._hosts(backend)}
        await asyncio.gather(*map(self._look_up, asked))
        self._backends = backends
        hosts = {backend.host for backend in backends}
        self._found = {host: found for host, found in self._found.items() if host in hosts}
        self._errors = {host: error for host, error in self._errors.items() if host in hosts}
        self._tend()
        return [fault for backend in new if (fault := self._fault(backend))]

    def _fault(self, backend: Backend) -> Fault | None:
        hosts = self._hosts(backend)
        if not hosts:
            return Fault(backend, self.error(backend), resolved=False)
        errors = [_route_error(host, backend.port) for host in hosts]
        return Fault(backend, str(errors[0]), resolved=True) if all(errors) else None

    def follow(self, on_change: Callable[[], None]) -> None:
        """From now on names that could not be resolved are asked for again, until `close`.

        Args:
            on_change: called where addresses changed, as soon as they are known: a name that hangs holds up no other.
        """
        self._on_change = on_change
        self._tend()

    def close(self) -> None:
        """Asks for no name again."""
        self._on_change = None
        self._tend()

    def _tend(self) -> None:
        """Has each name asked for again that was never resolved, and no other one."""
        wanted = set(self._errors) if self._on_change is not None else set()
        for host in self._retries.keys() - wanted:
            self._retries.pop(host).cancel()
        for host in wanted - self._retries.keys():
            self._retries[host] = asyncio.create_task(self._retry(host))

    async def _retry(self, host: str) -> None:
        delay = FIRST_RETRY
        while host in self._errors:
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - not all at once
            delay = min(2 * delay, INTERVAL)
            await self._again(host)
        del self._retries[host]

    async def refresh(self) -> None:
        """Resolves every name again, all at once."""
        await asyncio.gather(*map(self._again, {backend.host for backend in self._backends if not _fixed(backend)}))

    async def _again(self, host: str) -> None:
        event, field = await self._look_up(host)
        write = log.warning if "error" in field else log.info
        for backend in self._backends if event else ():
            if backend.host == host:
                write(event, backend=backend.name, **field)
        if "addresses" in field and self._on_change is not None:
            self._on_change()

    async def _look_up(self, host: str) -> tuple[str, dict[str, str]]:
        """Looks a name up: the event that comes of it, and its field for the log. Where nothing is new, there is none of both."""
        try:
            answers = await self._names.look_up(host)
            # Addresses with a scope (fe80::1%eth0) cannot be handed on as text.
            given = dict.fromkeys(str(answer[4][0]) for answer in answers if "%" not in str(answer[4][0]))
            found = reachable(tuple(given))
            if not found:
                raise OSError("it has no usable address")
        except OSError as error:
            reason = str(error.strerror or error)
            if host in self._found:
                return "name not resolved", {"error": reason}
            self._errors[host] = reason
            return "", {}
        before = self._found.get(host, ())
        if set(found) == set(before):
            return "", {}
        self._errors.pop(host, None)
        self._found[host] = found
        return "name resolved anew" if before else "backend resolved", {"addresses": ",".join(found)}
