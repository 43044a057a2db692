# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The data plane: an engine that forwards HTTP exchanges, and streams above all, without the GIL.

This file is its table of contents and holds every crossing of the GIL; the parts below hold the rest, in reading order,
and none calls upwards in that list. One `Engine` is one worker; it shares no connection with other engines, but what is
decided is the process's (shared).

The life of a connection
    step_listener accepts it, in one engine for all; client_adopt takes it there, or out of another engine's mailbox.
    CLIENT_NEW      waits for the first byte of a request                 step_head
    STATE_HEAD      waits for the whole head                              step_head, step_request
    STATE_CONNECT   a backend was chosen, the upstream connects           dispatch, step_connected, connect_failed
    STATE_WAIT      the request goes up, the response head is awaited     step_up, step_response, upstream_failed
    STATE_STREAM    the response body comes down, each recv one send      step_down, body_follow, client_send
    STATE_FLUSH     all has come, the client has not taken all            flush_down, step_skip
    STATE_TUNNEL    after a 101, bytes both ways                          step_tunnel
    STATE_FINISH    the client left, the backend may finish               step_down
    exchange_end    counts the outcome, writes the record                 exchange_finish
    CLIENT_IDLE, which is CLIENT_NEW after the first, or CLIENT_LINGER (step_linger), or closed. The upstream goes back to the
    pool, or is closed, or lingers behind a tunnel (step_upstream_linger). Freed by loop_reap at the end of the turn.

Rules for every part
    - `noexcept nogil` on every function: without it Cython takes the GIL to look for an exception.
    - Descriptors are touched in `io` only, states set in exchange_set_state only, memory freed in loop_reap only.
    - Edge-triggered epoll: a connection is registered once and its interest never changed. What epoll said is kept in
      ConnC.readable until a recv comes back short or empty (only empty behind a FIN, an RST or an urgent byte); backpressure is
      simply not reading.
    - What workers share is an atomic word of its own in shared, touched per request and never per event.
    - A buffer is held only while bytes are in it.
"""

include "_pipe/sys.pxi"
include "_pipe/rc.pxi"
include "_pipe/buf.pxi"
include "_pipe/text.pxi"
include "_pipe/head.pxi"
include "_pipe/chunk.pxi"
include "_pipe/sse.pxi"
include "_pipe/io.pxi"
include "_pipe/trust.pxi"
include "_pipe/quota.pxi"
include "_pipe/shared.pxi"
include "_pipe/conn.pxi"
include "_pipe/stats.pxi"
include "_pipe/mail.pxi"
include "_pipe/worker.pxi"
include "_pipe/timer.pxi"
include "_pipe/inbox.pxi"
include "_pipe/pool.pxi"
include "_pipe/exchange.pxi"
include "_pipe/steps.pxi"
include "_pipe/accept.pxi"
include "_pipe/loop.pxi"

globals()["MAX_BACKENDS"] = MAX_BACKENDS
globals()["MAX_ADDRESSES"] = MAX_ADDRESSES
globals()["MAX_LISTENERS"] = MAX_LISTENERS

text_init()


cdef int _check_rc(int rc) except -1:
    # The one place where a return code becomes an exception.
    if rc < 0:
        raise OSError(-rc, strerror(-rc).decode())
    return rc


cdef int64_t _microseconds(seconds) except -1:
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"a time-out of {seconds} s is out of range")
    return <int64_t>(seconds * 1e6)


cdef int _ranged(str name, value, int64_t low, int64_t high) except -1:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
    return 0


cdef int _read_trust(TrustC *to, networks, bint local) except -1:
    # (packed address, bits of it) of each network.
    cdef bytes packed
    if len(networks) > MAX_NETWORKS:
        raise ValueError(f"{len(networks)} trusted networks are more than {MAX_NETWORKS}")
    for packed, bits in networks:
        if len(packed) != 4 and len(packed) != 16:
            raise ValueError(f"an address has 4 or 16 bytes, not {len(packed)}")
        _ranged("bits", bits, 0, len(packed) * 8)
        host_set(&to.networks[to.count].host, <const uint8_t *><const char *>packed, len(packed))
        to.networks[to.count].bits = bits + 128 - len(packed) * 8
        to.count += 1
    to.local = local
    return 0


cdef int _read_settings(SettingsC *to, settings) except -1:
    # Takes the settings in the engine's units.
    _ranged("max_request_line", settings.max_request_line, 64, 1 << 20)
    _ranged("max_head", settings.max_head, 256, 1 << 20)
    _ranged("max_fields", settings.max_fields, 1, HEAD_MAX_FIELDS)
    _ranged("max_response_head", settings.max_response_head, 256, 1 << 20)
    _ranged("max_response_fields", settings.max_response_fields, 1, HEAD_MAX_FIELDS)
    _ranged("max_body", settings.max_body, 0, 1 << 50)
    _ranged("failover_body", settings.failover_body, 0, 1 << 30)
    _ranged("kept_memory", settings.kept_memory, 0, 1 << 50)
    to.max_request_line = settings.max_request_line
    to.max_head = settings.max_head
    to.max_fields = settings.max_fields
    to.max_response_head = settings.max_response_head
    to.max_response_fields = settings.max_response_fields
    to.max_body = settings.max_body or INT64_MAX    # 0 is off
    to.failover_body = settings.failover_body
    to.head_timeout = _microseconds(settings.head_timeout)
    to.keepalive_timeout = _microseconds(settings.keepalive_timeout)
    to.connect_timeout = _microseconds(settings.connect_timeout)
    to.ttft_timeout = _microseconds(settings.ttft_timeout)
    to.idle_timeout = _microseconds(settings.idle_timeout)
    to.total_timeout = _microseconds(settings.total_timeout)
    to.send_timeout = _microseconds(settings.send_timeout)
    to.upstream_idle_timeout = _microseconds(settings.upstream_idle_timeout)
    _ranged("dead_peer_timeout", settings.dead_peer_timeout, 0, 86400)
    to.dead_peer_timeout = _microseconds(settings.dead_peer_timeout)
    to.retry_429 = 429 in settings.retry_statuses
    to.retry_502 = 502 in settings.retry_statuses
    to.retry_503 = 503 in settings.retry_statuses
    to.midstream_error_event = settings.midstream_error_event
    to.comments_count_as_content = settings.comments_count_as_content
    to.access_records = settings.access_records
    _read_trust(&to.trust, settings.trusted_proxies, settings.trust_unix)
    return 0


cdef int _read_address(AddressC *to, str host, int port) except -1:
    # A numeric address and port, or "unix:/path".
    cdef sockaddr_un *local = <sockaddr_un *>&to.address
    cdef bytes text
    if host.startswith("unix:"):
        text = host[5:].encode()
        if not 0 < len(text) < <Py_ssize_t>sizeof(local.sun_path):
            raise ValueError(f"the path of {host} is empty or longer than {sizeof(local.sun_path) - 1} bytes")
        local.sun_family = AF_UNIX
        memcpy(local.sun_path, <const char *>text, len(text))
        to.length = sizeof(sockaddr_un)
        return 0
    _ranged("port", port, 1, 65535)
    text = host.encode()
    if io_address(to, text, port) != RC_OK:
        raise ValueError(f"{host} is not a numeric address")
    return 0


cdef int _read_authority(char *to, bytes text) except -1:
    if len(text) >= AUTHORITY_ROOM or not text_is(text, len(text), TEXT_HOST):
        raise ValueError(f"{text!r} is not an authority")
    memcpy(to, <const char *>text, len(text))
    return 0


cdef int _read_route(SharedC *shared, TableC *table, int slot, bytes name, bytes authority, bytes host, addresses,
                     bint finish_on_abort) except -1:
    cdef RouteC *route
    _ranged("slot", slot, 0, MAX_BACKENDS - 1)
    route = &table.routes[slot]
    if route.backend is not NULL:
        raise ValueError(f"slot {slot} is named twice")
    if not 0 < len(addresses) <= MAX_ADDRESSES:
        raise ValueError(f"a backend has 1 to {MAX_ADDRESSES} addresses, not {len(addresses)}")
    if not 0 < len(name) < NAME_ROOM:
        raise ValueError(f"a backend's name has 1 to {NAME_ROOM - 1} bytes, not {len(name)}")
    _read_authority(route.authority, authority)
    _read_authority(route.host, host)
    for text, port in addresses:
        _read_address(&route.addresses[route.address_count], text, port)
        route.address_count += 1
    route.finish_on_abort = finish_on_abort
    route.backend = backend_find(shared, name, len(name))
    if route.backend is NULL:
        raise MemoryError
    if slot >= table.count:
        table.count = slot + 1
    return 0


cdef object _histogram(HistogramC *histogram):
    cdef int i
    return ([sys_read_counter(&histogram.counts[i]) for i in range(HISTOGRAM_BUCKETS + 1)],
            sys_read_counter(&histogram.sum) / 1e6)


cdef object _backend_stats(BackendStatsC *stats, BackendC *backend, int64_t now):
    return {
        "in_flight": 0 if backend is NULL else sys_load_acquire(&backend.in_flight),
        "idle": sys_read_counter(&stats.idle),
        "exchanges": sys_read_counter(&stats.exchanges),
        "connects": sys_read_counter(&stats.connects),
        "reuses": sys_read_counter(&stats.reuses),
        "failures": sys_read_counter(&stats.failures),
        "left_out": backend is not NULL and backend_left_out(backend, now),
    }


cdef double _seconds(int64_t us):
    return us / 1e6 if us >= 0 else -1.0


cdef object _event(RecordC *record, int64_t now):
    return (
        record.kind, (now - record.at) / 1e6, record.backend, <bytes>record.address,
        (<char *>record.method)[:record.method_length], (<char *>record.path)[:record.path_length],
        (<char *>record.request_id)[:record.request_id_length], record.status, record.outcome, record.phase,
        _seconds(record.ttft), _seconds(record.duration), record.bytes_up, record.bytes_down, record.attempts,
        _seconds(record.close_time), record.error, record.reason,
    )


cdef class Engine:
    """One worker of the data plane; see _pipe.pyi for its contract."""

    cdef WorkerC *w
    cdef BackendC *backends[MAX_BACKENDS]       # of the table configured last; the worker's may be swapped meanwhile
    cdef bint started
    cdef bint running
    cdef bint listening

    def __cinit__(self):
        self.w = NULL

    def __init__(self, settings, Engine sharing=None):
        cdef WorkerC *w
        if self.w is not NULL:
            raise RuntimeError("an engine is made once")
        w = self.w = <WorkerC *>calloc(1, sizeof(WorkerC))
        if w is NULL:
            raise MemoryError
        w.epfd = w.mail.in_fd = w.mail.out_fd = -1
        try:
            _read_settings(&w.settings, settings)
            if sharing is not None:
                w.shared = sharing._open().shared
            else:
                w.shared = <SharedC *>calloc(1, sizeof(SharedC))
                if w.shared is NULL:
                    raise MemoryError
                w.shared.retry_budget = RETRY_FIRST
                w.shared.kept_most = settings.kept_memory
            w.shared.engines += 1
            w.table = <TableC *>calloc(1, sizeof(TableC))
            w.head = <HeadC *>calloc(1, sizeof(HeadC))
            w.mail.adopts = <AdoptC *>calloc(MAIL_IN, sizeof(AdoptC))
            w.mail.records = <RecordC *>calloc(MAIL_OUT, sizeof(RecordC))
            # A head grows by what we add to it, and what came with it goes in the same send.
            w.out.size = wide_size(w) + 2048 + BUF_SIZE
            w.out.data = <uint8_t *>malloc(w.out.size)
            w.hot = buf_get(&w.bufs)
            w.bulk = <uint8_t *>malloc(BULK_SIZE)
            if (w.table is NULL or w.head is NULL or w.mail.adopts is NULL or w.mail.records is NULL
                    or w.out.data is NULL or w.hot is NULL or w.bulk is NULL):
                raise MemoryError
            w.clients.size = sizeof(ClientC)
            w.upstreams.size = sizeof(UpstreamC)
            w.exchanges.size = sizeof(ExchangeC)
            w.lingers.size = sizeof(LingerC)
            w.busy_end = &w.busy
            w.quiet_end = &w.quiet
            getrandom(w.random, sizeof(w.random), 0)
            w.random[0] |= 1    # a generator of zeros stays there
            w.epfd = epoll_create1(EPOLL_CLOEXEC)
            _check_rc(w.epfd if w.epfd >= 0 else -errno)
            w.mail.in_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            _check_rc(w.mail.in_fd if w.mail.in_fd >= 0 else -errno)
            w.mail.out_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            _check_rc(w.mail.out_fd if w.mail.out_fd >= 0 else -errno)
            w.mail_conn.fd = w.mail.in_fd
            w.mail_conn.side = SIDE_MAIL
            _check_rc(io_watch(w.epfd, w.mail_conn.fd, &w.mail_conn))
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        self.close()

    cdef WorkerC *_open(self) except NULL:
        if self.w is NULL:
            raise ValueError("the engine is closed")
        return self.w

    def run(self):
        cdef WorkerC *w = self._open()
        cdef int rc
        if self.started:
            raise RuntimeError("an engine runs once")
        self.started = self.running = True
        try:
            with nogil:
                rc = loop_run(w)
            _check_rc(rc)
        finally:
            self.running = False

    def listen(self, list listeners not None, list engines not None, int64_t most, int64_t resume_at,
               int64_t max_connections, int64_t max_per_address):
        cdef WorkerC *w = self._open()
        cdef ListenerC *made = NULL
        cdef ListenerC *following
        cdef Engine engine
        cdef int listener
        _ranged("listeners", len(listeners), 1, MAX_LISTENERS)
        _ranged("engines", len(engines), 1, MAX_WORKERS)
        if self.listening:
            raise RuntimeError("an engine listens once")
        for listener in reversed(listeners):
            following = made
            made = <ListenerC *>calloc(1, sizeof(ListenerC))
            if made is NULL:
                listener_free(following)
                raise MemoryError
            made.conn.fd = listener
            made.conn.side = SIDE_LISTENER
            made.conn.readable = True
            made.next = following
        made.most = most
        made.resume_at = resume_at
        made.max_connections = max_connections
        made.max_per_address = max_per_address
        if max_per_address:
            made.quotas = <QuotaTableC *>calloc(1, sizeof(QuotaTableC))
            if made.quotas is NULL:
                listener_free(made)
                raise MemoryError
            made.quotas.entries.size = sizeof(QuotaC)
            getrandom(&made.quotas.seed, sizeof(made.quotas.seed), 0)
        for engine in engines:
            if engine.w is NULL:
                listener_free(made)
                raise ValueError("an engine is closed")
            made.workers[made.count] = engine.w
            made.count += 1
        for listener in listeners:
            io_nodelay(listener)
            io_urgent_inline(listener)
            io_keepalive(listener, w.settings.dead_peer_timeout)
            io_unanswered(listener, w.settings.dead_peer_timeout)
        self.listening = True
        sys_exchange_pointer(&w.new_listener, made)
        io_ring(w.mail.in_fd, &w.mail.in_rung)

    def end_listening(self):
        cdef WorkerC *w = self._open()
        sys_store_release(&w.mail.closing, 1)
        io_ring(w.mail.in_fd, &w.mail.in_rung)

    @property
    def listens(self):
        cdef WorkerC *w = self._open()
        return self.listening and not sys_load_acquire(&w.mail.closed)

    def configure(self, backends):
        cdef WorkerC *w = self._open()
        cdef TableC *table = <TableC *>calloc(1, sizeof(TableC))
        if table is NULL:
            raise MemoryError
        try:
            for slot, name, authority, host, addresses, finish_on_abort in backends:
                _read_route(w.shared, table, slot, name, authority, host, addresses, finish_on_abort)
        except BaseException:
            table_free(table)
            raise
        self._know(table)
        table_free(<TableC *>sys_exchange_pointer(&w.new_table, table))
        io_ring(w.mail.in_fd, &w.mail.in_rung)

    cdef void _know(self, TableC *table) noexcept:
        # The backends of a table, for stats(); of no table: of none.
        cdef BackendC *backend
        cdef int slot
        for slot in range(MAX_BACKENDS):
            backend = NULL if table is NULL else table.routes[slot].backend
            if backend is not NULL:
                sys_add_shared(&backend.users, 1)
            if self.backends[slot] is not NULL:
                sys_add_shared(&self.backends[slot].users, <uint32_t>-1)
            self.backends[slot] = backend

    def drain(self):
        cdef WorkerC *w = self._open()
        sys_store_release(&w.mail.draining, 1)
        io_ring(w.mail.in_fd, &w.mail.in_rung)

    def stop(self):
        cdef WorkerC *w = self._open()
        sys_store_release(&w.mail.stopping, 1)
        io_ring(w.mail.in_fd, &w.mail.in_rung)

    def drain_events(self):
        cdef WorkerC *w = self._open()
        cdef uint32_t head = w.mail.out_head
        cdef int64_t now = loop_clock()
        cdef list events = []
        io_hush(w.mail.out_fd, &w.mail.out_rung)
        while head != sys_load_acquire(&w.mail.out_tail):
            events.append(_event(&w.mail.records[head & (MAIL_OUT - 1)], now))
            head += 1
            sys_store_release(&w.mail.out_head, head)
        return events

    def stats(self):
        cdef WorkerC *w = self._open()
        cdef StatsC *stats = &w.stats
        cdef int64_t now = loop_clock()
        cdef int i
        return {
            "clients": self.clients,
            "accepted": sys_read_counter(&stats.accepted),
            "streaming_active": sys_read_counter(&stats.streaming_active),
            "finishing": sys_read_counter(&stats.finishing),
            "streaming_bytes": sys_read_counter(&stats.streaming_bytes),
            "bytes_up": sys_read_counter(&stats.bytes_up),
            "events": sys_read_counter(&stats.events),
            "outcomes": [sys_read_counter(&stats.outcomes[i]) for i in range(OUTCOME_COUNT)],
            "reasons": [sys_read_counter(&stats.reasons[i]) for i in range(REASON_COUNT)],
            "discarded": [sys_read_counter(&stats.discarded[i]) for i in range(DISCARD_COUNT)],
            "over_total": sys_read_counter(&stats.over_total),
            "over_address": sys_read_counter(&stats.over_address),
            "gave_way": sys_read_counter(&stats.gave_way),
            "silent": sys_read_counter(&stats.silent),
            "over_memory": sys_read_counter(&stats.over_memory),
            "connects": sys_read_counter(&stats.connects),
            "connect_errors": sys_read_counter(&stats.connect_errors),
            "reuses": sys_read_counter(&stats.reuses),
            "stale": sys_read_counter(&stats.stale),
            "retries": sys_read_counter(&stats.retries),
            "records_dropped": sys_read_counter(&stats.records_dropped),
            "kept": sys_read_counter(&w.shared.kept),
            "buffers_held": sys_read_counter(&w.bufs.held) - 1,     # the hot one
            "buffers_made": sys_read_counter(&w.bufs.made),
            "upstreams": sys_read_counter(&stats.upstreams),
            "ttft": _histogram(&stats.ttft),
            "itl": _histogram(&stats.itl),
            "duration": _histogram(&stats.duration),
            "disconnect": _histogram(&stats.disconnect),
            "backends": [_backend_stats(&stats.backends[i], self.backends[i], now) for i in range(MAX_BACKENDS)],
        }

    @property
    def events_fd(self):
        return self._open().mail.out_fd

    @property
    def clients(self):
        return worker_clients(self._open())

    def close(self):
        cdef WorkerC *w = self.w
        if w is NULL:
            return
        if self.running:
            raise RuntimeError("the engine runs")
        self.w = NULL
        while w.mail.in_head != w.mail.in_tail:
            io_close(w.mail.adopts[w.mail.in_head & (MAIL_IN - 1)].fd)
            w.mail.in_head += 1
        if w.epfd >= 0:
            io_close(w.epfd)
        if w.mail.in_fd >= 0:
            io_close(w.mail.in_fd)
        if w.mail.out_fd >= 0:
            io_close(w.mail.out_fd)
        buf_free_all(&w.bufs)
        slab_free_all(&w.clients)
        slab_free_all(&w.upstreams)
        slab_free_all(&w.exchanges)
        slab_free_all(&w.lingers)
        wide_free_all(w)
        self._know(NULL)
        table_free(w.table)
        table_free(<TableC *>w.new_table)
        shared_free(w.shared)
        listener_free(w.listener)
        listener_free(<ListenerC *>w.new_listener)
        free(w.head)
        free(w.mail.adopts)
        free(w.mail.records)
        free(w.out.data)
        free(w.bulk)
        free(w)
