"""The control plane's life: sockets, signals, drain.

It opens the listening sockets, or takes those that it was given, and says when accepting begins and ends. It never reads from
a client or a backend, and nothing here runs while a client is accepted or an event is forwarded.

It waits for nobody: not for a name server, a service manager, or whoever reads the log. A signal is taken at once, from the
first moment to the last.
"""

import asyncio
import errno
import ipaddress
import os
import resource
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import uvloop

from llmpipe import __version__, activation, admin, log, metrics, mock, resolve
from llmpipe.background import BACKLOG as ADMIN_BACKLOG
from llmpipe.background import BackgroundServer
from llmpipe.config import Backend, Serve, format_address, parse_backend
from llmpipe.errors import UsageError
from llmpipe.notify import Notifier
from llmpipe.records import RecordLog
from llmpipe.runner import Runner

BACKLOG = 4096
RESERVED_DESCRIPTORS = 64
"""Descriptors that are kept for what is neither client nor upstream, with one engine; the admin endpoint has the most of them."""

ENGINE_DESCRIPTORS = 3
"""Descriptors of each further engine."""

LOOK_UP_DESCRIPTORS = 2
"""Descriptors that a look-up may hold while a name server does not answer."""

LISTEN_INTERVAL = 0.001
"""Seconds between two looks whether listening has ended."""


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
    """As bind(), for who has no event loop yet."""
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


def take_over(given: socket.socket, option: str) -> socket.socket:
    """A listening socket that a service manager handed over, in place of an option's."""
    given.setblocking(False)
    log.info("socket taken over", descriptor=given.fileno(), instead_of=option)
    return given


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


class Acceptor:
    """Has the first engine accept for all of them, each client for the engine with the fewest.

    A client needs two descriptors, its own and an upstream's. When those run out accepting pauses; who is connected stays
    untouched, and who is not waits in the backlog (rule G2). The operator's own limits are lower, and are answered.
    """

    def __init__(self, listeners: Sequence[socket.socket], runner: Runner, config: Serve, descriptors: int) -> None:
        self._listeners = listeners
        self._runner = runner
        self._config = config
        reserved = RESERVED_DESCRIPTORS + ENGINE_DESCRIPTORS * (len(runner.engines) - 1)
        reserved += LOOK_UP_DESCRIPTORS * resolve.names(runner.backends) + len(listeners) - 1
        self._most_clients = max(1, (descriptors - reserved) // 2)
        if config.max_connections >= self._most_clients:
            log.warning(
                "max-connections is out of reach", max_connections=config.max_connections, descriptors=descriptors
            )

    def start(self) -> None:
        """Begins to accept."""
        # Some must have left before accepting goes on, or it would pause again for each that leaves.
        resume_at = self._most_clients - max(1, self._most_clients // 50)
        engines = self._runner.engines
        config = self._config
        engines[0].listen(
            [listener.fileno() for listener in self._listeners],
            engines,
            self._most_clients,
            resume_at,
            config.max_connections,
            config.max_connections_per_ip,
        )

    async def close(self) -> None:
        """Takes what is in the backlogs, then stops listening."""
        first = self._runner.engines[0]
        first.end_listening()
        while first.listens and not self._runner.ended.is_set():  # noqa: ASYNC110 - it takes a turn of the engine
            await asyncio.sleep(LISTEN_INTERVAL)
        for listener in self._listeners:
            listener.close()


class Server:
    """One `llmpipe serve`, from its sockets to its exit code."""

    def __init__(self, config: Serve) -> None:
        self._config = config
        self._draining = False
        self._notifier = Notifier(os.environ)
        self._names = resolve.Names()
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._hung_up = asyncio.Event()

    def _why_not_ready(self, runner: Runner) -> str | None:
        if self._draining:
            return "draining"
        if not runner.usable_backends():
            return "no backend is usable"
        return None

    async def run(self, lines: log.Log) -> int:
        """Serves until a signal and the drain behind it; the process's exit code.

        Raises:
            UsageError: an address, a socket that was handed over, a backend or a name cannot work.
        """
        self._watch_signals()
        async with AsyncExitStack() as stack:
            starting = asyncio.create_task(self._start(stack, lines))
            number = await self._signal_or(starting)
            if number is not None:  # nobody was served
                starting.cancel()
                await asyncio.wait((starting,))
                log.info("stopped", signal=number.name, clean=True)
                return 0
            acceptor, runner, resolver = starting.result()
            reloading = asyncio.create_task(self._reload_on_demand(resolver, runner))
            stack.callback(reloading.cancel)
            return await self._serve(acceptor, runner)

    async def _start(self, stack: AsyncExitStack, lines: log.Log) -> tuple[Acceptor, Runner, resolve.Resolver]:
        config = self._config
        given = activation.take(os.environ)
        if given.admin is not None and config.admin is None:
            raise UsageError("a socket named admin was handed over, but --admin is off; leave one of them out")
        if given.http:
            listeners = [stack.enter_context(take_over(listener, "--listen")) for listener in given.http]
        else:
            listeners = await bind_all(config.listen, "--listen", self._names, stack)
        admin_listener = None
        if given.admin is not None:
            admin_listener = stack.enter_context(take_over(given.admin, "--admin"))
        elif config.admin is not None:
            admin_listener = stack.enter_context(await bind(config.admin, "--admin", self._names, ADMIN_BACKLOG))
        backends = config.backends
        if config.demo:
            backends = (await self._start_mock(stack),)
        resolver = resolve.Resolver(backends, self._names)
        await resolver.start()
        records = RecordLog(backends, log_query=config.log_query)
        descriptors = raise_descriptor_limit()
        try:
            runner = Runner(config.workers, config.settings, backends, records.write)
        except OSError as error:  # each engine has descriptors of its own
            raise UsageError(f"--workers {config.workers}: {error.strerror}; raise the limit or start fewer") from None
        stack.callback(runner.close)
        try:
            runner.configure(resolver)
        except ValueError as error:  # the engine knows the room for addresses and paths
            raise UsageError(f"--backend: {error}") from None
        runner.start()
        stack.callback(runner.stop)
        if admin_listener is not None:
            self._start_admin(stack, admin_listener, runner, lines)
        acceptor = Acceptor(listeners, runner, config, descriptors)
        acceptor.start()
        self._announce(listeners, admin_listener, backends)
        self._notifier.ready()
        return acceptor, runner, resolver

    async def _start_mock(self, stack: AsyncExitStack) -> Backend:
        listener = await bind(("127.0.0.1", 0), "--demo", self._names)
        backend = parse_backend(f"http://{bound_address(listener)}")
        server = BackgroundServer(mock.make_app(mock.Pace()), listener)
        server.start()
        stack.push_async_callback(server.stop)
        return backend

    def _start_admin(self, stack: AsyncExitStack, listener: socket.socket, runner: Runner, lines: log.Log) -> None:
        collector = metrics.EngineCollector(
            runner.stats, runner.backends, lambda: lines.dropped, lambda: self._draining
        )
        config = self._config
        hosts = {*config.admin_hosts, *(config.admin[:1] if config.admin else ())}
        app = admin.make_app(metrics.make_registry(collector), lambda: self._why_not_ready(runner), hosts)
        server = BackgroundServer(app, listener, bounded=True)
        server.start()
        stack.push_async_callback(server.stop)

    def _announce(
        self,
        listeners: Sequence[socket.socket],
        admin_listener: socket.socket | None,
        backends: tuple[Backend, ...],
    ) -> None:
        for listener in listeners:
            log.info(
                "listening",
                address=bound_address(listener),
                workers=self._config.workers,
                backends=",".join(backend.url for backend in backends),
                version=__version__,
            )
        if admin_listener is not None:
            log.info("admin listening", address=bound_address(admin_listener))
            if not local_only(admin_listener):
                log.warning(
                    "admin is open to other machines",
                    address=bound_address(admin_listener),
                    hint="it has no authentication: let only the monitoring reach it, or bind it to 127.0.0.1",
                )
        if self._config.demo:
            text = (
                "\nllmpipe runs in front of a mock inference server. Paste this into another terminal:\n\n"
                f"    curl -N http://{bound_address(listeners[0])}/v1/chat/completions "
                "-H 'Content-Type: application/json' \\\n"
                '      -d \'{"model": "mock", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}\'\n\n'
            )
            with suppress(OSError):  # nobody reads it
                os.write(1, text.encode())

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up.set)  # several before one was looked at are one

    async def _reload_on_demand(self, resolver: resolve.Resolver, runner: Runner) -> None:
        """Resolves names anew at every SIGHUP, and without one now and then. It may take as long as a name server likes."""

        def configure() -> None:
            runner.configure(resolver)

        while True:
            asked = True
            try:
                await asyncio.wait_for(self._hung_up.wait(), resolve.INTERVAL)
            except asyncio.TimeoutError:
                asked = False
            self._hung_up.clear()
            if asked:
                self._notifier.reloading()
            try:
                await resolver.refresh(configure)
            except Exception as error:  # no memory for a table; the next one may find some
                log.error("reload failed", error=repr(error))
            if asked:
                log.info("reloaded")
                self._notifier.ready()

    async def _signal_or(self, *others: asyncio.Future[Any], timeout: float | None = None) -> signal.Signals | None:
        """The next signal that ends; None where one of `others` was done, or the time-out passed, before it."""
        got = asyncio.create_task(self._signals.get())
        await asyncio.wait((got, *others), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        got.cancel()
        return got.result() if got.done() and not got.cancelled() else None

    async def _serve(self, acceptor: Acceptor, runner: Runner) -> int:
        ended = asyncio.create_task(runner.ended.wait())
        number = await self._signal_or(ended)
        if number is None:
            await acceptor.close()
            return 1  # an engine failed; the runner has logged why
        return await self._drain(acceptor, runner, ended, number)

    async def _drain(
        self, acceptor: Acceptor, runner: Runner, ended: asyncio.Future[Any], number: signal.Signals
    ) -> int:
        """Rule G4: readiness fails, listening stops, streams finish, within a limit; a second signal ends at once."""

        async def begin() -> None:
            await acceptor.close()
            runner.drain()

        self._draining = True
        self._notifier.stopping()
        log.info("draining", signal=number.name, clients=runner.clients(), seconds=self._config.drain_timeout)
        beginning = asyncio.create_task(begin())
        loop = asyncio.get_running_loop()
        limit = self._config.drain_timeout
        end = loop.time() + limit
        clean = True
        while not runner.ended.is_set():
            left = end - loop.time() if limit else None
            second = await self._signal_or(ended, timeout=left)
            if runner.ended.is_set():
                continue
            clean = False
            log.warning(
                "ending streams", reason="drain limit" if second is None else second.name, clients=runner.clients()
            )
            runner.stop()
            await ended
        await beginning
        runner.take_records()  # their lines belong before the last one
        log.info("stopped", clean=clean and runner.failure is None)
        return 0 if clean and runner.failure is None else 1


def _end_at_once(*_: object) -> None:
    os._exit(1)


def run(config: Serve, lines: log.Log) -> int:
    """Serves on a uvloop event loop; the process's exit code. Behind it a signal ends the process at once.

    Raises:
        UsageError: what was asked for cannot work.
    """
    # Some supervisors send these to everybody, for logs to be opened anew.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        return uvloop.run(Server(config).run(lines))
    finally:
        # The loop leaves handlers that do nothing. What is left to do is to write the log, for which somebody must read it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, _end_at_once)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
