"""Listening sockets that a service manager opened and hands over, as sd_listen_fds(3) says: socket activation.

They outlive this process, so that clients that come during a restart wait in the backlog instead of being refused. What was
handed over is only looked at here; nothing is bound, and no option is set.
"""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from llmpipe._pipe import MAX_LISTENERS
from llmpipe.config import format_address
from llmpipe.errors import UsageError

FIRST_DESCRIPTOR = 3
VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

HTTP_NAMES = ("http", "unknown", "")
"""Names of sockets for clients: ours, and those of one that nobody named."""


@dataclass(frozen=True)
class InheritedSockets:
    """The sockets that were handed over; they are the caller's from now on."""

    http: tuple[socket.socket, ...] = ()
    """Where clients connect."""
    admin: socket.socket | None = None
    """Of the admin endpoint."""


def take(environment: MutableMapping[str, str]) -> InheritedSockets:
    """The sockets that are meant for this process. Their variables are removed: what it starts must not take them too.

    Raises:
        UsageError: something was handed over that cannot be used.
    """
    pid, _, count, names = (environment.pop(name, None) for name in VARIABLES)
    if pid is None or count is None:
        return InheritedSockets()
    if _number("LISTEN_PID", pid) != os.getpid():  # they were meant for a process that started this one
        return InheritedSockets()
    number = _number("LISTEN_FDS", count)
    if number == 0:
        return InheritedSockets()
    if number > MAX_LISTENERS + 1:
        raise UsageError(
            f"{number} sockets were handed over (LISTEN_FDS); there can be {MAX_LISTENERS} for clients, and one named admin"
        )
    texts = ["unknown"] * number if names is None else names.split(":")
    if len(texts) != number:
        raise UsageError(f"LISTEN_FDNAMES={names!r} must name {number} sockets, as LISTEN_FDS says")
    http: list[socket.socket] = []
    admin: list[socket.socket] = []
    for descriptor, text in enumerate(texts, FIRST_DESCRIPTOR):
        found = admin if _is_admin(descriptor, text) else http
        if admin and found is admin:
            raise UsageError(
                f"descriptor {descriptor}: two sockets for admin were handed over; name those for clients http "
                "(FileDescriptorName=)"
            )
        found.append(_listener(descriptor))
    if len(http) > MAX_LISTENERS:
        raise UsageError(f"{len(http)} sockets for clients are more than the {MAX_LISTENERS} that one proxy can have")
    return InheritedSockets(tuple(http), admin[0] if admin else None)


def _number(variable: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{variable}={text!r} is not a number")
    return int(text)


def _is_admin(descriptor: int, name: str) -> bool:
    """Whether a socket is the admin endpoint's, or else for clients. systemd names one after its unit if nobody else does."""
    if name == "admin":
        return True
    if name in HTTP_NAMES or name.endswith(".socket"):
        return False
    raise UsageError(f"descriptor {descriptor}: the name {name!r} is unknown; a socket is named http or admin")


def _listener(descriptor: int) -> socket.socket:
    """The listening TCP socket with this descriptor.

    A Unix socket is none: its clients have no address, and cannot be sent the reset that tells a broken answer from a whole
    one.
    """
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"descriptor {descriptor}: what was handed over is no socket ({error.strerror})") from None
    try:
        if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
            raise UsageError(f"descriptor {descriptor}: only TCP sockets can be handed over (ListenStream=HOST:PORT)")
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            where = format_address(*listener.getsockname()[:2])
            raise UsageError(f"descriptor {descriptor}: the socket of {where} does not listen (Accept=no is needed)")
    except UsageError:
        listener.detach()  # it was not ours to close
        raise
    listener.set_inheritable(False)
    return listener
