"""Listening sockets and the limit of descriptors, for the proxy, the mock server and the load generator.

It stands apart from server.py, so that the load generator needs no web server.
"""

import asyncio
import errno
import ipaddress
import resource
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from llmpipe import log, resolve
from llmpipe.config import format_address
from llmpipe.errors import UsageError

BACKLOG = 4096


def _open(family: int, sockaddr: tuple[Any, ...], backlog: int, *, both: bool) -> socket.socket:
    """A listening TCP socket, non-blocking; an IPv6 one for IPv4 too where `both` says so."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        listener.bind(sockaddr)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


async def bind(address: tuple[str, int], option: str, names: resolve.Names, backlog: int = BACKLOG) -> socket.socket:
    """A listening TCP socket, non-blocking. `[::]` is every address of both families, but for an IPv4 one of the same port
    that has a socket already.

    Raises:
        UsageError: the address cannot be bound; the text names `option`.
    """
    host, port = address
    where = format_address(host, port)
    try:
        answers = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        try:
            answers = await names.look_up(host)
        except OSError as error:
            raise UsageError(f"{option} {where}: the host cannot be resolved ({error.strerror or error})") from None
    family, _, _, _, found = answers[0]
    sockaddr = (found[0], port, *found[2:])
    both = family == socket.AF_INET6 and found[0] == "::"
    try:
        try:
            return _open(family, sockaddr, backlog, both=both)
        except OSError as error:
            if not both or error.errno != errno.EADDRINUSE:
                raise
            listener = _open(family, sockaddr, backlog, both=False)
            log.info("IPv6 only", address=where, reason="another socket has this port for IPv4")
            return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{option} {where}: the port is in use; stop what listens there, or choose another"
            ) from None
        raise UsageError(f"{option} {where}: cannot listen there ({error.strerror or error})") from None


def bind_now(address: tuple[str, int], option: str) -> socket.socket:
    """As bind(), where no event loop runs yet."""
    return asyncio.run(bind(address, option, resolve.Names()))


async def bind_all(
    addresses: Sequence[tuple[str, int]], option: str, names: resolve.Names, stack: AsyncExitStack
) -> list[socket.socket]:
    """A listening socket for each address, in their order; `stack` closes them.

    Raises:
        UsageError: an address cannot be bound; the text names `option`.
    """
    bound = {}
    # Those of IPv4 before one for both families.
    for at in sorted(range(len(addresses)), key=lambda at: ":" in addresses[at][0]):
        bound[at] = stack.enter_context(await bind(addresses[at], option, names))
    return [bound[at] for at in range(len(addresses))]


def take_over(inherited: socket.socket, option: str) -> socket.socket:
    """A listening socket that a service manager handed over, in place of an option's."""
    inherited.setblocking(False)
    log.info("socket taken over", descriptor=inherited.fileno(), instead_of=option)
    return inherited


def are_at(listeners: Sequence[socket.socket], addresses: Sequence[tuple[str, int]]) -> bool:
    """Whether listening sockets are those that somebody asks for; any will do for port 0, and any host for a name."""

    def is_at(listener: socket.socket, host: str, port: int) -> bool:
        bound_host, bound_port = listener.getsockname()[:2]
        try:
            same = ipaddress.ip_address(host) == ipaddress.ip_address(bound_host.partition("%")[0])
        except ValueError:
            same = True
        return same and port in (0, bound_port)

    each = all(any(is_at(listener, *address) for listener in listeners) for address in addresses)
    return len(listeners) == len(addresses) and each


def bound_address(listener: socket.socket) -> str:
    """Where a socket really listens, as host:port."""
    host, port = listener.getsockname()[:2]
    return format_address(host, port)


def local_only(listener: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    host = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return (mapped or host).is_loopback


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
