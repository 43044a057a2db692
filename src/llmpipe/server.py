"""The control plane's life: sockets, signals, drain.

It opens the listening sockets, or takes those that it was given, and says when accepting begins and ends. It never reads from
a client or a backend, and nothing here runs while a client is accepted or an event is forwarded.
"""

import asyncio
import errno
import ipaddress
import os
import resource
import signal
import socket
from contextlib import ExitStack

import uvloop

from llmpipe import __version__, activation, admin, log, metrics, mock, resolve
from llmpipe.background import BackgroundServer
from llmpipe.config import Backend, Serve, format_address, parse_backend
from llmpipe.errors import UsageError
from llmpipe.notify import Notifier
from llmpipe.records import RecordLog
from llmpipe.runner import Runner

BACKLOG = 4096
RESERVED_DESCRIPTORS = 64
"""Descriptors that are kept for what is neither client nor upstream."""

LISTEN_INTERVAL = 0.001
"""Seconds between two looks whether listening has ended."""


def bind(address: tuple[str, int], option: str) -> socket.socket:
    """A listening TCP socket, non-blocking.

    Raises:
        UsageError: the address cannot be bound; the text names `option`.
    """
    host, port = address
    where = format_address(host, port)
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(f"{option} {where}: the host cannot be resolved ({error.strerror or error})") from None
    except UnicodeError:  # a label that is empty or longer than 63 letters
        raise UsageError(f"{option} {where}: that is not a host name") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(sockaddr)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{option} {where}: the port is in use; stop what listens there, or choose another"
            ) from None
        raise UsageError(f"{option} {where}: cannot listen there ({error.strerror or error})") from None
    return listener


def bind_unless_given(given: socket.socket | None, address: tuple[str, int], option: str) -> socket.socket:
    """A listening socket: the one that a service manager handed over, or else one that is bound here.

    Raises:
        UsageError: the address cannot be bound; the text names `option`.
    """
    if given is None:
        return bind(address, option)
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

    def __init__(self, listener: socket.socket, runner: Runner, config: Serve, descriptors: int) -> None:
        self._listener = listener
        self._runner = runner
        self._config = config
        self._most_clients = max(1, (descriptors - RESERVED_DESCRIPTORS) // 2)
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
            self._listener.fileno(),
            engines,
            self._most_clients,
            resume_at,
            config.max_connections,
            config.max_connections_per_ip,
        )

    async def close(self) -> None:
        """Takes what is in the backlog, then stops listening."""
        first = self._runner.engines[0]
        first.end_listening()
        while first.listens and not self._runner.ended.is_set():  # noqa: ASYNC110 - it takes a turn of the engine
            await asyncio.sleep(LISTEN_INTERVAL)
        self._listener.close()


class Server:
    """One `llmpipe serve`, from its sockets to its exit code."""

    def __init__(self, config: Serve) -> None:
        self._config = config
        self._draining = False
        self._notifier = Notifier(os.environ)
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

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
        config = self._config
        given = activation.take(os.environ)
        if given.admin is not None and config.admin is None:
            raise UsageError("a socket named admin was handed over, but --admin is off; leave one of them out")
        with ExitStack() as stack:
            listener = stack.enter_context(bind_unless_given(given.http, config.listen, "--listen"))
            admin_listener = None
            if config.admin is not None:
                admin_listener = stack.enter_context(bind_unless_given(given.admin, config.admin, "--admin"))
            backends = config.backends
            if config.demo:
                backends = (self._start_mock(stack),)
            resolver = resolve.Resolver(backends)
            await resolver.start()
            records = RecordLog(backends)
            descriptors = raise_descriptor_limit()
            try:
                runner = Runner(config.workers, config.settings, backends, records.write)
            except OSError as error:  # each engine has descriptors of its own
                raise UsageError(
                    f"--workers {config.workers}: {error.strerror}; raise the limit or start fewer"
                ) from None
            stack.callback(runner.close)
            try:
                runner.configure(resolver)
            except ValueError as error:  # the engine knows the room for addresses and paths
                raise UsageError(f"--backend: {error}") from None
            runner.start()
            stack.callback(runner.stop)
            if admin_listener is not None:
                self._start_admin(stack, admin_listener, runner, lines)
            acceptor = Acceptor(listener, runner, config, descriptors)
            acceptor.start()
            self._watch_signals()
            self._announce(listener, admin_listener, backends)
            self._notifier.ready()
            refresh = asyncio.create_task(self._refresh(resolver, runner))
            try:
                return await self._serve(acceptor, runner, resolver)
            finally:
                refresh.cancel()

    def _start_mock(self, stack: ExitStack) -> Backend:
        listener = bind(("127.0.0.1", 0), "--demo")
        backend = parse_backend(f"http://{bound_address(listener)}")
        server = BackgroundServer(mock.make_app(mock.Pace()), listener)
        server.start()
        stack.callback(server.stop)
        return backend

    def _start_admin(self, stack: ExitStack, listener: socket.socket, runner: Runner, lines: log.Log) -> None:
        collector = metrics.EngineCollector(
            runner.stats, runner.backends, lambda: lines.dropped, lambda: self._draining
        )
        app = admin.make_app(metrics.make_registry(collector), lambda: self._why_not_ready(runner))
        server = BackgroundServer(app, listener)
        server.start()
        stack.callback(server.stop)

    def _announce(
        self, listener: socket.socket, admin_listener: socket.socket | None, backends: tuple[Backend, ...]
    ) -> None:
        address = bound_address(listener)
        log.info(
            "listening",
            address=address,
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
            print(
                "\nllmpipe runs in front of a mock inference server. Paste this into another terminal:\n\n"
                f"    curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                '      -d \'{"model": "mock", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}\'\n',
                flush=True,
            )

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signals.put_nowait, number)

    async def _refresh(self, resolver: resolve.Resolver, runner: Runner) -> None:
        while True:
            await asyncio.sleep(resolve.INTERVAL)
            if await resolver.refresh():
                runner.configure(resolver)

    async def _signal_or_end(self, runner: Runner, timeout: float | None) -> signal.Signals | None:
        """The next signal; None where the engines ended, or the time-out passed, before it."""
        got = asyncio.create_task(self._signals.get())
        ended = asyncio.create_task(runner.ended.wait())
        await asyncio.wait((got, ended), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in (got, ended):
            task.cancel()
        return got.result() if got.done() and not got.cancelled() else None

    async def _serve(self, acceptor: Acceptor, runner: Runner, resolver: resolve.Resolver) -> int:
        while True:
            number = await self._signal_or_end(runner, None)
            if number is None:
                await acceptor.close()
                return 1  # an engine failed; the runner has logged why
            if number != signal.SIGHUP:
                break
            self._notifier.reloading()
            await resolver.refresh()
            runner.configure(resolver)
            log.info("reloaded")
            self._notifier.ready()
        return await self._drain(acceptor, runner, number)

    async def _drain(self, acceptor: Acceptor, runner: Runner, number: signal.Signals) -> int:
        """Rule G4: readiness fails, listening stops, streams finish, within a limit; a second signal ends at once."""
        self._draining = True
        self._notifier.stopping()
        log.info("draining", signal=number.name, clients=runner.clients(), seconds=self._config.drain_timeout)
        await acceptor.close()
        runner.drain()
        loop = asyncio.get_running_loop()
        limit = self._config.drain_timeout
        end = loop.time() + limit
        clean = True
        while not runner.ended.is_set():
            left = end - loop.time() if limit else None
            second = await self._signal_or_end(runner, left)
            if runner.ended.is_set() or second == signal.SIGHUP:
                continue
            clean = False
            log.warning(
                "ending streams", reason="drain limit" if second is None else second.name, clients=runner.clients()
            )
            runner.stop()
            await runner.ended.wait()
        runner.take_records()  # their lines belong before the last one
        log.info("stopped", clean=clean and runner.failure is None)
        return 0 if clean and runner.failure is None else 1


def run(config: Serve, lines: log.Log) -> int:
    """Serves on a uvloop event loop; the process's exit code.

    Raises:
        UsageError: what was asked for cannot work.
    """
    return uvloop.run(Server(config).run(lines))
