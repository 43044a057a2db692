"""The control plane's life: sockets, signals, drain.

It opens the listening sockets, or takes those that it was given, and says when accepting begins and ends. It never reads from
a client or a backend, and nothing here runs while a client is accepted or an event is forwarded.

It waits for nobody: not for a name server, a service manager, or whoever reads the log. A signal is taken at once, from the
first moment to the last.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import uvloop
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from llmpipe import (
    __version__,
    abort_calls,
    activation,
    admin,
    config_file,
    log,
    metrics,
    mock,
    resolve,
    secret,
    status,
    upgrade,
)
from llmpipe.access_log import AccessLog
from llmpipe.actions import Actions
from llmpipe.authority import Authority
from llmpipe.background import BACKLOG as ADMIN_BACKLOG
from llmpipe.background import App, BackgroundServer
from llmpipe.config import (
    Backend,
    ProcessSettings,
    ServeConfig,
    Settings,
    format_address,
    format_duration,
    parse_backend,
)
from llmpipe.disconnect import Disconnects
from llmpipe.errors import UsageError
from llmpipe.exchanges import Exchanges, Query
from llmpipe.fleet import Fleet
from llmpipe.handover import HandoverError, Predecessor, Successor
from llmpipe.health import HealthChecks
from llmpipe.history import History
from llmpipe.hooks import Hooks
from llmpipe.model_list import ModelLists
from llmpipe.notify import Notifier
from llmpipe.pid_file import PidFile
from llmpipe.record_kinds import ExchangeEnded, Record, Tape
from llmpipe.recorder import Folder, Recorder
from llmpipe.records import RecordLog
from llmpipe.reloads import Reloads
from llmpipe.runner import Runner
from llmpipe.sockets import are_at, bind, bind_all, bound_address, local_only, raise_descriptor_limit, take_over

if TYPE_CHECKING:
    from llmpipe.otel import Tracing

RESERVED_DESCRIPTORS = 64
"""Descriptors that are kept for what is neither client nor upstream, with one engine; the admin endpoint has the most of them."""

ENGINE_DESCRIPTORS = 3
"""Descriptors of each further engine."""

LOOK_UP_DESCRIPTORS = 2
"""Descriptors that a look-up may hold while a name server does not answer."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks at a file that is watched."""

LISTEN_INTERVAL = 0.001
"""Seconds between two looks whether listening has ended."""


class Acceptor:
    """Has the first engine accept for all of them, each client for the engine with the fewest.

    A client needs two descriptors, its own and an upstream's. When those run out accepting pauses; who is connected stays
    untouched, and who is not waits in the backlog (rule G2). The operator's own limits are lower, and are answered.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], runner: Runner, settings: Settings, descriptors: int
    ) -> None:
        self._listeners = listeners
        self._runner = runner
        self._settings = settings.process
        reserved = RESERVED_DESCRIPTORS + ENGINE_DESCRIPTORS * (len(runner.engines) - 1)
        reserved += LOOK_UP_DESCRIPTORS * resolve.names(settings.backends) + len(listeners) - 1
        if any(backend.abort_call is not None for backend in settings.backends):
            reserved += abort_calls.MOST_CALLS
        self._most_clients = max(1, (descriptors - reserved) // 2)
        most = settings.process.max_connections
        if most >= self._most_clients:
            log.warning("max-connections is out of reach", max_connections=most, descriptors=descriptors)

    def start(self) -> None:
        """Begins to accept."""
        # Some must have left before accepting goes on, or it would pause again for each that leaves.
        resume_at = self._most_clients - max(1, self._most_clients // 50)
        engines = self._runner.engines
        settings = self._settings
        engines[0].listen(
            [listener.fileno() for listener in self._listeners],
            engines,
            most=self._most_clients,
            resume_at=resume_at,
            max_connections=settings.max_connections,
            max_per_address=settings.max_connections_per_ip,
        )

    async def close(self) -> None:
        """Takes what is in the backlogs, then stops listening."""
        first = self._runner.engines[0]
        first.end_listening()
        while first.listens and not self._runner.ended.is_set():  # noqa: ASYNC110 - it takes a turn of the engine
            await asyncio.sleep(LISTEN_INTERVAL)
        for listener in self._listeners:
            listener.close()


def _warn(faults: Sequence[resolve.Fault]) -> None:
    """Names the backends that cannot be used for now (rule I5)."""
    for fault in faults:
        log.warning(
            "backend unreachable" if fault.resolved else "backend unresolved",
            backend=fault.backend.name,
            error=fault.error,
        )


def _each(*takers: Callable[[Record], None]) -> Callable[[Record], None]:
    """Hands a record to each of them."""

    def take(record: Record) -> None:
        for taker in takers:
            taker(record)

    return take


class Server:
    """One `llmpipe serve`, from its sockets to its exit code."""

    def __init__(
        self, config: ServeConfig, access: AccessLog, tracing: "Tracing | None", folder: Folder | None
    ) -> None:
        """Args:
        config: what was asked for.
        access: where access lines go; it stays the caller's.
        tracing: where spans go, likewise.
        folder: where recordings go, likewise.
        """
        self._config = config
        self._access = access
        self._tracing = tracing
        self._folder = folder
        self._settings = config.settings
        self._reloads = Reloads()
        self._process = config.settings.process
        self._draining = False
        self._notifier = Notifier(os.environ)
        self._names = resolve.Names()
        self._hooks = Hooks()
        self._resolver = resolve.Resolver(self._names)
        self._disconnects = Disconnects(abort_calls.AbortCalls(self._names), self._hooks)
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._predecessor = Predecessor(os.environ)
        self._pid_file = PidFile(self._process.pid_file)
        self._listeners: Sequence[socket.socket] = ()
        self._admin_listener: socket.socket | None = None
        self._admin_server: BackgroundServer | None = None
        self._no_upgrade = "it has not started yet"
        """Why this process cannot be upgraded now; empty where it can."""
        self._upgrading: asyncio.Task[None] | None = None
        self._upgraded = asyncio.Event()
        """Set when another process serves in the place of this one."""

    def _why_not_ready(self, runner: Runner, records: RecordLog) -> str | None:
        if self._draining:
            return "draining"
        if records.accept_ended:
            return "a listening socket was shut down"
        if not runner.usable_backends():
            return "no backend is usable"
        return None

    async def run(self, lines: log.Log) -> int:
        """Serves until a signal and the drain behind it; the process's exit code.

        Raises:
            UsageError: an address to listen at, a socket that was handed over or a backend cannot work.
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
            acceptor, runner, checks = starting.result()
            checks.configure(self._settings)
            stack.callback(checks.close)
            lists = ModelLists(runner, self._resolver)
            stack.callback(lists.close)
            lists.configure(self._settings)
            resolver = self._resolver
            resolver.follow(lambda: self._follow_names(resolver, runner, checks))
            stack.callback(resolver.close)
            reloading = asyncio.create_task(self._reload_on_demand(resolver, runner, checks, lists))
            stack.callback(reloading.cancel)
            if self._process.watch:
                stack.callback(asyncio.create_task(self._watch_file()).cancel)
            return await self._serve(acceptor, runner)

    async def _start(self, stack: AsyncExitStack, lines: log.Log) -> tuple[Acceptor, Runner, HealthChecks]:
        process = self._process
        token = None if process.admin_token is None else secret.read(process.admin_token, "admin_token")
        await self._hooks.load()
        await self._open_sockets(stack)
        if self._config.demo:
            pool = replace(self._settings.pool, backends=(await self._start_mock(stack),))
            self._settings = replace(self._settings, pool=pool)
        resolver = self._resolver
        faults = await resolver.take(self._settings.backends)
        if self._predecessor and not any(map(resolver.servers, self._settings.backends)):
            raise UsageError(faults[0].text)  # the old process has their addresses, perhaps, and goes on
        _warn(faults)
        fleet = Fleet()
        stack.callback(self._disconnects.close)
        records = RecordLog(fleet, on_abort=self._disconnects.tell, access=self._access, tracing=self._tracing)
        exchanges = Exchanges(
            fleet,
            process.exchanges_kept if process.keeps_exchanges else 0,
            log.mask_user if process.log_query else log.mask_secrets,
        )
        history = History(fleet)
        recorder = Recorder(process, fleet, self._folder)
        descriptors = raise_descriptor_limit()
        runner = self._make_runner(fleet, _each(records.write, exchanges.note, history.note), recorder.take)
        stack.callback(runner.close)
        try:
            runner.configure(resolver)
        except ValueError as error:  # the engine knows the room for addresses and paths
            raise UsageError(f"{self._config.path or '--backend'}: {error}") from None
        recorder.start(runner)
        runner.start()
        stack.callback(runner.stop)
        checks = HealthChecks(runner)
        if self._admin_listener is not None:
            history.start(runner)
            stack.callback(history.close)
            metrics_app = self._make_metrics(runner, exchanges, checks, recorder, lines)
            self._admin_server = self._make_admin(
                self._admin_listener,
                runner,
                records,
                exchanges,
                history,
                actions=Actions(runner, self._reloads, recorder),
                metrics_app=metrics_app,
                token=token,
            )
        acceptor = Acceptor(self._listeners, runner, self._settings, descriptors)
        self._pid_file.prepare()
        await self._predecessor.ready()
        # Nothing may go wrong from here on: the old process is about to leave.
        if self._admin_server is not None:
            self._admin_server.start()
            stack.push_async_callback(self._admin_server.stop)
            stack.callback(self._reloads.close)  # before that: who waits for a reload would delay it
        acceptor.start()
        self._announce(self._settings.backends)
        self._pid_file.publish()
        stack.callback(self._pid_file.remove)
        self._no_upgrade = "it is process 1, whose end ends its container" if os.getpid() == 1 else ""
        self._notifier.ready()
        self._predecessor.serving()
        return acceptor, runner, checks

    def _make_runner(
        self, fleet: Fleet, on_record: Callable[[Record], None], on_tape: Callable[[Tape], None]
    ) -> Runner:
        workers = self._process.workers
        try:
            wakes = self._disconnects.configure(self._settings)
            return Runner(workers, self._settings, fleet, on_record, on_tape, wake_on_abort=wakes)
        except OSError as error:  # each engine has descriptors of its own
            raise UsageError(f"--workers {workers}: {error.strerror}; raise the limit or start fewer") from None

    async def _open_sockets(self, stack: AsyncExitStack) -> None:
        """Takes those that were handed over, and opens what is missing."""
        process = self._process
        inherited = activation.take(os.environ)
        if inherited.admin is not None and process.admin is None and not self._predecessor:
            raise UsageError("a socket named admin was handed over, but --admin is off; leave one of them out")
        if inherited.http:
            self._listeners = [stack.enter_context(take_over(listener, "--listen")) for listener in inherited.http]
        else:
            self._listeners = await bind_all(process.listen, "--listen", self._names, stack)
        if inherited.admin is not None and process.admin is None:
            inherited.admin.close()  # of an old process, which had the endpoint
        elif inherited.admin is not None:
            self._admin_listener = stack.enter_context(take_over(inherited.admin, "--admin"))
        elif process.admin is not None:
            self._admin_listener = stack.enter_context(await bind(process.admin, "--admin", self._names, ADMIN_BACKLOG))
        if self._predecessor:
            self._compare(inherited)

    def _compare(self, inherited: activation.InheritedSockets) -> None:
        """Says so where the settings ask for other sockets than the old process had: its own count."""
        default = ProcessSettings()
        process = self._process
        listen = () if process.listen == default.listen else process.listen
        admin = () if process.admin is None or process.admin == default.admin else (process.admin,)
        for option, asked, used in (
            ("--listen", listen, inherited.http),
            ("--admin", admin, (inherited.admin,) if inherited.admin else ()),
        ):
            if asked and used and not are_at(used, asked):
                log.warning(
                    "other sockets were handed over",
                    option=option,
                    asked=",".join(format_address(*address) for address in asked),
                    used=",".join(map(bound_address, used)),
                    hint="a restart changes them",
                )

    async def _start_mock(self, stack: AsyncExitStack) -> Backend:
        listener = await bind(("127.0.0.1", 0), "--demo", self._names)
        backend = parse_backend(f"http://{bound_address(listener)}")
        server = BackgroundServer(mock.MockApp(mock.Pace(), mock.Capacity()), listener)
        server.start()
        stack.push_async_callback(server.stop)
        return backend

    def _make_metrics(
        self, runner: Runner, exchanges: Exchanges, checks: HealthChecks, recorder: Recorder, lines: log.Log
    ) -> App:
        further = (
            metrics.ControlCollector(runner, checks, self._reloads, lambda: self._settings, self._disconnects),
            metrics.RecordingCollector(recorder),
            *([] if self._tracing is None else [metrics.SpanCollector(self._tracing)]),
        )

        def registry(ended: Callable[[], Iterable[tuple[float, ExchangeEnded]]]) -> CollectorRegistry:
            engines = metrics.EngineCollector(
                runner,
                lambda: lines.dropped + self._access.dropped,
                lambda: self._draining,
                ended,
            )
            return metrics.make_registry(engines, *further)

        return metrics.make_app(registry(lambda: ()), registry(exchanges.latest))

    def _make_admin(
        self,
        listener: socket.socket,
        runner: Runner,
        records: RecordLog,
        exchanges: Exchanges,
        history: History,
        *,
        actions: Actions,
        metrics_app: App,
        token: bytes | None,
    ) -> BackgroundServer:
        process = self._process
        hosts = {*process.admin_hosts, *(process.admin[:1] if process.admin else ())}

        def why_not_ready() -> str | None:
            return self._why_not_ready(runner, records)

        async def show_exchanges(query: Query) -> dict[str, Any]:
            return exchanges.show(query, () if query.outcome else await actions.live())

        app = admin.make_app(
            metrics_app,
            why_not_ready,
            lambda: status.make(self._settings, runner, history, why_not_ready(), self._reloads.faults),
            show_exchanges,
            history,
            actions=actions,
            authority=Authority(token, local=local_only(listener)),
            names=hosts,
        )
        return BackgroundServer(app, listener, bounded=True)

    def _announce(self, backends: tuple[Backend, ...]) -> None:
        listeners, admin_listener = self._listeners, self._admin_listener
        for listener in listeners:
            log.info(
                "listening",
                address=bound_address(listener),
                workers=self._process.workers,
                backends=",".join(backend.name for backend in backends),
                version=__version__,
            )
        if admin_listener is not None:
            log.info("admin listening", address=bound_address(admin_listener))
            if not local_only(admin_listener):
                log.warning(
                    "admin is open to other machines",
                    address=bound_address(admin_listener),
                    hint="reading needs no token: let only the monitoring reach it, or bind it to 127.0.0.1",
                )
        if self._folder is not None:
            share = self._process.record_share
            log.info("recording", folder=str(self._folder.path), share=share, files=self._process.record_files)
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
        loop.add_signal_handler(signal.SIGHUP, self._reloads.ask)  # several before one was looked at are one
        loop.add_signal_handler(signal.SIGUSR1, self._access.reopen)
        self._access.reopen()  # the signal was ignored since the file was opened
        loop.add_signal_handler(signal.SIGUSR2, self._begin_upgrade)

    def _begin_upgrade(self) -> None:
        if self._no_upgrade:
            log.warning("upgrade ignored", reason=self._no_upgrade)
            upgrade.tell(upgrade.IGNORED, self._no_upgrade)
        else:
            self._no_upgrade = "another upgrade is under way"
            self._upgrading = asyncio.create_task(self._upgrade())

    async def _upgrade(self) -> None:
        """Has a new process take over (rule G4). If it does not, all is as before."""
        successor: Successor | None = None
        limit = self._process.upgrade_timeout
        try:
            environment = {**os.environ, **({"NOTIFY_SOCKET": self._notifier.path} if self._notifier.path else {})}
            successor = Successor(self._listeners, self._admin_listener, environment)
            log.info("upgrading", pid=successor.pid)
            upgrade.tell(upgrade.STARTED, successor.pid)
            await asyncio.wait_for(self._hand_over(successor), limit or None)
        except asyncio.CancelledError:  # this process is to end, and the service with it
            if successor is not None:
                successor.end(signal.SIGTERM if successor.told else signal.SIGKILL)
            raise
        except (HandoverError, asyncio.TimeoutError) as error:
            reason = str(error) or f"it was not ready within {format_duration(limit)} (--upgrade-timeout)"
            if successor is not None:
                successor.end(signal.SIGKILL)
                if successor.told:
                    self._notifier.main_pid(os.getpid())
            log.error("upgrade failed", error=reason, hint="this process goes on")
            upgrade.tell(upgrade.FAILED, reason)
            self._no_upgrade = ""
        else:
            log.info("upgraded", pid=successor.pid)
            upgrade.tell(upgrade.TAKEN_OVER, successor.pid)
            self._upgraded.set()

    async def _hand_over(self, successor: Successor) -> None:
        await successor.ready()
        self._notifier.main_pid(successor.pid)
        await successor.take_over()

    async def _reload_on_demand(
        self, resolver: resolve.Resolver, runner: Runner, checks: HealthChecks, lists: ModelLists
    ) -> None:
        """Loads the file and resolves names anew whenever that is asked for, and names without it now and then. It may take as long
        as a name server likes."""
        while True:
            asked = await self._reloads.next(resolve.INTERVAL)
            if asked:
                self._notifier.reloading()
            try:
                faults = await self._load_file(resolver, runner) if asked else ()
                checks.configure(self._settings)
                if asked:
                    lists.refresh()
                lists.configure(self._settings)
                await resolver.refresh()
                self._follow_names(resolver, runner, checks)  # where there was no room for them before
            except Exception as error:  # no memory for a table; the next one may find some
                log.error("reload failed", error=repr(error))
                faults = (repr(error),)
            if asked:
                self._reloads.ended(faults)
                if not faults:
                    log.info("reloaded", backends=",".join(backend.name for backend in self._settings.backends))
                self._notifier.ready()

    def _follow_names(self, resolver: resolve.Resolver, runner: Runner, checks: HealthChecks) -> None:
        """Takes the servers that the names lead to now, if they are other ones than before. Where there is no room for them, since many
        that are gone still have exchanges, the next look-up tries again."""
        try:
            if resolve.choose(self._settings, resolver) != runner.fleet.servers:
                runner.configure(resolver)
                checks.configure(self._settings)
        except (ValueError, MemoryError) as error:
            log.error("servers not changed", error=str(error) or repr(error))

    async def _load_file(self, resolver: resolve.Resolver, runner: Runner) -> tuple[str, ...]:
        """Takes the pools and routes that the file has now, all of it or nothing (rule I4). What is wrong with it, a line for each
        fault."""
        if self._config.reload is None:
            return ()
        try:
            loaded = self._config.reload()
            unusable = await resolver.take((*self._settings.backends, *loaded.backends))
            runner.take_records()  # who has left by now did so under the settings of before
            runner.configure(resolver, loaded)
            if self._disconnects.configure(loaded):
                runner.wake_on_abort()
        except (UsageError, ValueError, MemoryError) as error:
            await resolver.take(self._settings.backends)
            faults: tuple[str, ...] = getattr(error, "faults", None) or (str(error) or repr(error),)
            for fault in faults:
                log.error("reload failed", error=fault, hint="the configuration of before stays")
            return faults
        changed = [
            name
            for name in self._process.__struct_fields__
            if getattr(loaded.process, name) != getattr(self._process, name)
        ]
        if changed:
            log.warning("settings that a restart changes", settings=",".join(changed))
        self._settings = loaded
        await resolver.take(loaded.backends)
        _warn(unusable)
        return ()

    async def _watch_file(self) -> None:
        """Has the file loaded again when it is another one, or has changed. Where it is a link, what it leads to counts: that is
        how Kubernetes changes a mounted ConfigMap."""

        seen = self._config.seen
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            now = config_file.look(self._config.path)
            if now is not None and now != seen:
                seen = now
                self._reloads.ask()

    async def _signal_or(self, *others: asyncio.Future[Any], timeout: float | None = None) -> signal.Signals | None:
        """The next signal that ends; None where one of `others` was done, or the time-out passed, before it."""
        got = asyncio.create_task(self._signals.get())
        await asyncio.wait((got, *others), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        got.cancel()
        return got.result() if got.done() and not got.cancelled() else None

    async def _serve(self, acceptor: Acceptor, runner: Runner) -> int:
        ended = asyncio.create_task(runner.ended.wait())
        upgraded = asyncio.create_task(self._upgraded.wait())
        number = await self._signal_or(ended, upgraded)
        self._no_upgrade = "it is draining"
        if self._upgraded.is_set():
            return await self._drain(acceptor, runner, ended, number or signal.SIGUSR2)
        upgraded.cancel()
        if self._upgrading is not None and not self._upgrading.done():
            self._upgrading.cancel()
            await asyncio.wait((self._upgrading,))
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

        leaving = None
        if not self._upgraded.is_set():
            self._draining = True
        elif self._admin_server is not None:  # who asks whether the service is ready is answered by the other process
            leaving = asyncio.create_task(self._admin_server.leave())
        self._notifier.stopping()
        log.info("draining", signal=number.name, clients=runner.clients(), seconds=self._process.drain_timeout)
        beginning = asyncio.create_task(begin())
        loop = asyncio.get_running_loop()
        limit = self._process.drain_timeout
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
        if leaving is not None and clean:
            await leaving
        runner.take_records()  # their lines belong before the last one
        telling = asyncio.create_task(self._disconnects.finish())
        await self._signal_or(telling, timeout=abort_calls.LIMIT)
        telling.cancel()
        self._disconnects.close()
        log.info("stopped", clean=clean and runner.failure is None)
        return 0 if clean and runner.failure is None else 1


def _end_at_once(*_: object) -> None:
    os._exit(1)


def _start_tracing(process: ProcessSettings) -> "Tracing | None":
    if not process.otel:
        return None
    try:
        from llmpipe import otel  # noqa: PLC0415 - it takes half a second, and is not always installed
    except ImportError as error:
        raise UsageError(f"--otel needs OpenTelemetry ({error}); pip install 'llmpipe[otel]'") from None
    return otel.Tracing(log_query=process.log_query)


def run(config: ServeConfig, lines: log.Log) -> int:
    """Serves on a uvloop event loop; the process's exit code. Behind it a signal ends the process at once.

    Raises:
        UsageError: what was asked for cannot work.
    """
    # Some supervisors send these to everybody. They have their handlers once the loop runs.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    process = config.settings.process
    tracing = _start_tracing(process)
    folder = Folder(process.record, process.record_files) if process.record else None
    access = AccessLog(process)
    try:
        return uvloop.run(Server(config, access, tracing, folder).run(lines))
    finally:
        # The loop leaves handlers that do nothing. What is left to do is to write the log, for which somebody must read it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, _end_at_once)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        access.close()
        if folder is not None:
            folder.close()
        if tracing is not None:
            tracing.close()
