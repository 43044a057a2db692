# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The data plane: an engine that forwards HTTP exchanges, and streams above all, without the GIL.

This file is its table of contents and holds every crossing of the GIL; the parts below hold the rest, in reading order,
and none calls upwards in that list. One `Engine` is one worker; it shares no connection with other engines, but what is
decided is the process's (shared).

The life of a connection
    step_listener accepts it, in one engine for all, or listener_adopt takes it, where it was accepted elsewhere; client_adopt
    takes it there, or out of another engine's mailbox.
    CLIENT_NEW      waits for the first byte of a request                 request_await
    STATE_HEAD      waits for the whole head                              step_head, request_read
    STATE_MODEL     where the body has to tell which pool it is for, or   step_model, json_scan
                    is to ask for its usage
    STATE_ROUTE     a backend is to be chosen                             step_route
    STATE_QUEUE     none has a place: it waits for one                    queue_enter, step_queue, pool_serve
    STATE_CONNECT   it was, and the upstream connects                     step_connect, upstream_connected, connect_failed
    STATE_WAIT      the request goes up, the response head is awaited     step_wait, request_up, response_read, upstream_failed
    STATE_STREAM    the response body comes down, each recv one send      step_stream, response_down, client_send
    STATE_FLUSH     all has come, the client has not taken all            step_flush, client_flush, listing_send, request_waste
    STATE_TUNNEL    after a 101, bytes both ways                          step_tunnel
    STATE_DETACHED  the client left, the backend may finish               step_detached
    exchange_end    counts the outcome, writes the record                 client_next
    CLIENT_IDLE, which is CLIENT_NEW after the first, or CLIENT_LINGER (client_waste), or closed. The upstream goes back to the
    pool, or is closed, or lingers behind a tunnel (upstream_waste). Freed by loop_reap at the end of the turn.
    exchange_run drives an exchange from state to state; no step calls another one.

Rules for every part
    - `noexcept nogil` on every function: without it Cython takes the GIL to look for an exception.
    - Descriptors are touched in `io` only, connections read and written in `conn` only, states set in exchange_set_state and
      client_set_state only, memory freed in loop_reap only.
    - Edge-triggered epoll: a connection is registered once and its interest never changed. What epoll said is kept in
      ConnC.readable until a recv comes back short or empty (only empty behind a FIN, an RST or an urgent byte), and in
      ConnC.writable until a send comes back short; backpressure is simply not reading.
    - After a call that may have ended the exchange, `x.state == STATE_ENDED` says whether it has.
    - What workers share is an atomic word of its own in shared, touched per request and never per event.
    - A buffer is held only while bytes are in it.
"""

include "_pipe/sys.pxi"
include "_pipe/rc.pxi"
include "_pipe/outcome.pxi"
include "_pipe/text.pxi"
include "_pipe/head.pxi"
include "_pipe/forward.pxi"
include "_pipe/chunk.pxi"
include "_pipe/member.pxi"
include "_pipe/json.pxi"
include "_pipe/sse.pxi"
include "_pipe/find.pxi"
include "_pipe/usage.pxi"
include "_pipe/body.pxi"
include "_pipe/buf.pxi"
include "_pipe/io.pxi"
include "_pipe/trust.pxi"
include "_pipe/quota.pxi"
include "_pipe/histogram.pxi"
include "_pipe/heap.pxi"
include "_pipe/ticket.pxi"
include "_pipe/shared.pxi"
include "_pipe/timer.pxi"
include "_pipe/conn.pxi"
include "_pipe/stats.pxi"
include "_pipe/series.pxi"
include "_pipe/mail.pxi"
include "_pipe/worker.pxi"
include "_pipe/table.pxi"
include "_pipe/place.pxi"
include "_pipe/pending.pxi"
include "_pipe/deadline.pxi"
include "_pipe/choice.pxi"
include "_pipe/pool.pxi"
include "_pipe/grant.pxi"
include "_pipe/upstream.pxi"
include "_pipe/recovery.pxi"
include "_pipe/kept.pxi"
include "_pipe/flow.pxi"
include "_pipe/sieve.pxi"
include "_pipe/record.pxi"
include "_pipe/tape.pxi"
include "_pipe/exchange.pxi"
include "_pipe/request_id.pxi"
include "_pipe/client.pxi"
include "_pipe/answer.pxi"
include "_pipe/admit.pxi"
include "_pipe/listener.pxi"
include "_pipe/host.pxi"
include "_pipe/splice.pxi"
include "_pipe/stream_options.pxi"
include "_pipe/model.pxi"
include "_pipe/queue.pxi"
include "_pipe/route.pxi"
include "_pipe/upload.pxi"
include "_pipe/request.pxi"
include "_pipe/tunnel.pxi"
include "_pipe/pieces.pxi"
include "_pipe/response.pxi"
include "_pipe/stream.pxi"
include "_pipe/steps.pxi"
include "_pipe/loop.pxi"

cdef enum:
    # The most that a setting may be, for the sake of what holds it: lengths in a head have 32 bits, and so has what is kept of a
    # request; a time counts in microseconds.
    MAX_HEAD = 1 << 20
    MAX_FAILOVER_BODY = 1 << 30
    MAX_SECONDS = 1000000000

from threading import Lock as _Lock

# The tuples that records become; they are no names of this module.
cdef object ExchangeEnded, ExchangeLive, LiveEnd, Attempt, Tape, BackendDown, BackendUp, AcceptPaused, AcceptResumed, AcceptEnded
from llmpipe.record_kinds import (
    AcceptEnded, AcceptPaused, AcceptResumed, Attempt, BackendDown, BackendUp, ExchangeEnded, ExchangeLive, LiveEnd, Tape
)

globals()["MAX_BACKENDS"] = MAX_BACKENDS
globals()["MAX_MEMBERS"] = MAX_MEMBERS
globals()["MAX_ADDRESSES"] = MAX_ADDRESSES
globals()["MAX_LISTENERS"] = MAX_LISTENERS
globals()["MAX_NETWORKS"] = MAX_NETWORKS
globals()["MAX_WORKERS"] = MAX_WORKERS
globals()["MAX_WEIGHT"] = MAX_WEIGHT
globals()["MAX_HEAD"] = MAX_HEAD
globals()["MAX_FIELDS"] = HEAD_MAX_FIELDS
globals()["MAX_FAILOVER_BODY"] = MAX_FAILOVER_BODY
globals()["MAX_SECONDS"] = MAX_SECONDS

text_init()


cdef int _check_rc(int rc) except -1:
    # The one place where a return code becomes an exception.
    if rc < 0:
        raise OSError(-rc, strerror(-rc).decode())
    return rc


cdef int64_t _microseconds(seconds) except -1:
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"a time-out of {seconds} s is out of range")
    return <int64_t>(seconds * 1e6)


cdef int _ranged(str name, value, int64_t low, int64_t high) except -1:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
    return 0


cdef int64_t _at_most(str name, value, int64_t most) except -1:
    # A size or a number that there is room for. Which ones are of use is said where settings are described (llmpipe.config).
    _ranged(name, value, 0, most)
    return value


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


cdef int _read_field(char *to, str name) except -1:
    # The name of a field as the engine looks for it; of an empty one, nothing.
    cdef bytes text = name.lower().encode()
    _ranged("the length of a field's name", len(text), 0, FIELD_ROOM - 2)
    if text:
        text += b":"
    memcpy(to, <const char *>text, len(text) + 1)
    return 0


cdef int _read_settings(SettingsC *to, settings) except -1:
    # Takes the settings of the process in the engine's units.
    to.max_request_line = _at_most("max_request_line", settings.max_request_line, MAX_HEAD)
    to.max_head = _at_most("max_head", settings.max_head, MAX_HEAD)
    to.max_fields = <int>_at_most("max_fields", settings.max_fields, HEAD_MAX_FIELDS)
    to.head_timeout = _microseconds(settings.head_timeout)
    to.keepalive_timeout = _microseconds(settings.keepalive_timeout)
    to.send_timeout = _microseconds(settings.send_timeout)
    to.dead_peer_timeout = _microseconds(settings.dead_peer_timeout)
    to.access_records = settings.access_records
    _read_field(to.tenant, settings.tenant)
    _read_field(to.priority, settings.priority)
    _read_trust(&to.trust, settings.trusted_proxies.networks, settings.trusted_proxies.unix)
    return 0


cdef int _read_limits(LimitsC *to, settings) except -1:
    # The same of a pool.
    to.max_response_head = _at_most("max_response_head", settings.max_response_head, MAX_HEAD)
    to.max_response_fields = <int>_at_most("max_response_fields", settings.max_response_fields, HEAD_MAX_FIELDS)
    to.max_body = _at_most("max_body", settings.max_body, INT64_MAX) or INT64_MAX   # 0 is off
    to.failover_body = _at_most("failover_body", settings.failover_body, MAX_FAILOVER_BODY)
    to.connect_timeout = _microseconds(settings.connect_timeout)
    to.ttft_timeout = _microseconds(settings.ttft_timeout)
    to.idle_timeout = _microseconds(settings.idle_timeout)
    to.total_timeout = _microseconds(settings.total_timeout)
    to.upstream_idle_timeout = _microseconds(settings.upstream_idle_timeout)
    to.max_in_flight = _at_most("max_in_flight", settings.max_in_flight, INT32_MAX)
    to.eject_errors = _at_most("eject_errors", settings.eject_errors, INT32_MAX)
    to.policy = POLICIES.index(settings.policy)
    to.slow_start = _microseconds(settings.slow_start)
    to.queue_size = _at_most("queue_size", settings.queue_size, INT32_MAX)
    to.queue_timeout = _microseconds(settings.queue_timeout)
    to.cold_timeout = _microseconds(settings.cold_timeout)
    to.holds_event_streams = settings.on_error_event
    to.reads_usage = settings.include_usage != "off"
    to.adds_usage = settings.include_usage == "force"
    to.retry_429 = 429 in settings.retry_statuses
    to.retry_502 = 502 in settings.retry_statuses
    to.retry_503 = 503 in settings.retry_statuses
    to.midstream_error_event = settings.on_midstream_error == "event"
    to.comments_count_as_content = settings.comments_count_as_content
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


cdef int _read_route(TableC *table, BackendC *backend, configured) except -1:
    cdef RouteC *route = &table.routes[backend.slot]
    cdef bytes authority, host, prefix
    _, authority, host, addresses, finish_on_abort, max_in_flight, prefix = configured
    if route.backend is not NULL:
        raise ValueError(f"the backend {backend.name.decode('utf-8', 'replace')} is named twice")
    if not 0 < len(addresses) <= MAX_ADDRESSES:
        raise ValueError(f"a backend has 1 to {MAX_ADDRESSES} addresses, not {len(addresses)}")
    _read_authority(route.authority, authority)
    _read_authority(route.host, host)
    _ranged("the length of a path", len(prefix), 0, PREFIX_ROOM - 1)
    if prefix and (not prefix.startswith(b"/") or prefix.endswith(b"/") or not all(0x21 <= c <= 0x7e for c in prefix)):
        raise ValueError(f"{prefix!r} is not a path to put before others")
    memcpy(route.prefix, <const char *>prefix, len(prefix))
    route.prefix_length = <uint16_t>len(prefix)
    for text, port in addresses:
        _read_address(&route.addresses[route.address_count], text, port)
        route.address_count += 1
    route.finish_on_abort = finish_on_abort
    route.max_in_flight = _at_most("max_in_flight", max_in_flight, INT32_MAX)
    route.upstream_idle_timeout = -1
    route.backend = backend
    sys_add_shared(&backend.users, 1)
    if backend.slot >= table.count:
        table.count = backend.slot + 1
    return 0


cdef int _read_pool(TableC *table, WorkerC *w, BackendC **found, int count, bytes name, members, settings) except -1:
    cdef PoolStateC *state
    cdef PoolC *pool
    cdef LimitsC limits = w.limits
    cdef uint64_t seen[MAX_BACKEND_WORDS]
    cdef int i
    _ranged("the length of a pool's name", len(name), 0, NAME_ROOM - 1)
    _ranged("the backends of a pool", len(members), 0, MAX_MEMBERS)
    if settings is not None:
        _read_limits(&limits, settings)
        _ranged("max_response_head", limits.max_response_head, 0, long_head_size(w))
    state = pool_state_find(w.shared, name, len(name))
    if state is NULL:
        raise MemoryError
    for i in range(table.pool_count):
        if table.pools[i].state is state:
            sys_add_shared(&state.users, <uint32_t>-1)
            raise ValueError(f"the pool {name.decode('utf-8', 'replace')} is named twice")
    pool = pool_add(table, state, &limits)
    sys_add_shared(&state.users, <uint32_t>-1)      # the table's is left
    pool.series = series_find(&w.series, name, len(name), -1)
    if pool.series is NULL:
        raise MemoryError
    memset(seen, 0, sizeof(seen))
    for backend, weight, tier in members:
        _ranged("the index of a backend", backend, 0, count - 1)
        _ranged("weight", weight, 1, MAX_WEIGHT)
        _ranged("tier", tier, 0, MAX_WEIGHT)
        i = backend
        if (seen[i >> 6] >> (i & 63)) & 1:
            raise ValueError(f"a backend is twice in the pool {name.decode('utf-8', 'replace')}")
        seen[i >> 6] |= <uint64_t>1 << (i & 63)
        pool_put(table, pool, found[i].slot, weight, tier)
        pool.members[pool.count - 1].series = series_find(&w.series, name, len(name), found[i].id)
        if pool.members[pool.count - 1].series is NULL:
            raise MemoryError
    if not pool_order(pool):
        raise MemoryError
    return 0


cdef const uint8_t *_read_text(TableC *table, size_t *used, bytes text) noexcept:
    # Copies it behind the other names, for which there is room.
    cdef uint8_t *to = table.text + used[0]
    memcpy(to, <const char *>text, len(text))
    used[0] += len(text)
    return to


def _longest_first(named):
    return -len(named.name)


cdef int _read_routing(TableC *table, WorkerC *w, routing) except -1:
    # The names and rules that lead to the pools, which are there.
    cdef list models = [named for named in routing.models if not named.name.endswith(b"*")]
    cdef list wildcards = sorted([named for named in routing.models if named.name.endswith(b"*")],
                                 key=_longest_first)
    cdef ModelC *model
    cdef ModelC **bucket
    cdef RuleC *rule
    cdef size_t used = 0
    cdef bytes text
    cdef int i
    for name, _, target in routing.models:
        _ranged("the length of a model's name", len(name), 1, MODEL_ROOM)
        _ranged("the length of a model's name", len(target), 0, MODEL_ROOM)
        used += len(name) + len(target)
    used += len(routing.listing)
    for _, path, field, value in routing.rules:
        used += len(path) + len(field) + len(value)
    table.text = <uint8_t *>malloc(used + 1)
    table.models = <ModelC *>calloc(len(routing.models) + 1, sizeof(ModelC))
    table.rules = <RuleC *>calloc(len(routing.rules) + 1, sizeof(RuleC))
    if table.text is NULL or table.models is NULL or table.rules is NULL:
        raise MemoryError
    used = 0
    for i, (name, pool, target) in enumerate(models + wildcards):
        _ranged("the index of a pool", pool, 0, table.pool_count - 1)
        model = &table.models[i]
        model.length = len(name) if i < len(models) else len(name) - 1
        model.name = _read_text(table, &used, name)
        model.pool = pool
        table.model_count = i + 1
        text = target or name
        model.tokens = tokens_find(&w.tokens, text, len(text))
        if model.tokens is NULL:
            raise MemoryError
        if target:
            if b'"' in target or b"\\" in target or min(target) < 0x20:
                raise ValueError(f"{target!r} cannot be put into JSON as it is")
            model.target = _read_text(table, &used, target)
            model.target_length = len(target)
        if i < len(models):
            if model_exact(table, model.name, model.length) is not NULL:
                raise ValueError(f"two pools have the model {name.decode('utf-8', 'replace')}")
            bucket = &table.buckets[model_hash(model.name, model.length)]
            model.next = bucket[0]
            bucket[0] = model
    table.wildcards = table.models + len(models)
    table.wildcard_count = len(wildcards)
    table.reads_model = len(routing.models) > 0
    for pool, path, field, value in routing.rules:
        _ranged("the index of a pool", pool, 0, table.pool_count - 1)
        rule = &table.rules[table.rule_count]
        rule.path_length = len(path)
        rule.path = _read_text(table, &used, path)
        rule.field_length = len(field)
        rule.field = _read_text(table, &used, field.lower())
        rule.value_length = len(value)
        rule.value = _read_text(table, &used, value)
        rule.pool = pool
        table.rule_count += 1
    table.listing = _read_text(table, &used, routing.listing)
    table.listing_length = len(routing.listing)
    _ranged("the index of the default pool", routing.default_pool, -1, table.pool_count - 1)
    table.default_pool = routing.default_pool
    if table.pool_count > 1 or routing.models or routing.rules:
        table_choose(table)
    return 0


cdef object _histogram(HistogramC **histogram):
    # None where nothing was counted.
    cdef HistogramC *made = <HistogramC *>sys_load_pointer(<void **>histogram)
    cdef uint64_t buckets[HISTOGRAM_BUCKETS + 1]
    cdef int i
    if made is NULL:
        return None
    memset(buckets, 0, sizeof(buckets))
    histogram_total(made, buckets)
    return [buckets[i] for i in range(HISTOGRAM_BUCKETS + 1)], sys_read_counter(&made.sum) / 1e6


cdef tuple _token_counts(TokenCountsC *counts):
    return sys_read_counter(&counts.prompt), sys_read_counter(&counts.completion), sys_read_counter(&counts.cached)


cdef object _series(SeriesC *series):
    cdef int i
    durations = {i: _histogram(&series.times[SERIES_DURATION + i]) for i in range(OUTCOME_COUNT)}
    return {
        "ttft": _histogram(&series.times[SERIES_TTFT]),
        "itl": _histogram(&series.times[SERIES_ITL]),
        "connect": _histogram(&series.times[SERIES_CONNECT]),
        "disconnect": _histogram(&series.times[SERIES_DISCONNECT]),
        "duration": {outcome: found for outcome, found in durations.items() if found is not None},
        "tokens": _token_counts(&series.tokens),
    }


cdef int _add_counts(HistogramC **histogram, dict counts) except -1:
    # By the index of each bucket that is not empty, what is counted there.
    cdef HistogramC *made = <HistogramC *>sys_load_pointer(<void **>histogram)
    cdef uint64_t n
    cdef int i
    if made is not NULL:
        for i in range(HISTOGRAM_SIZE):
            n = sys_read_counter(&made.counts[i])
            if n:
                counts[i] = counts.get(i, 0) + n
    return 0


cdef object _backend_stats(BackendStatsC *stats, BackendC *backend, int64_t now):
    # The worker may not have its table yet: then the counters are another's, or nobody's.
    cdef bint own = sys_read_counter(&stats.whose) == <uint64_t>backend.id + 1
    return {
        "in_flight": sys_load_acquire(&backend.in_flight),
        "idle": sys_read_counter(&stats.idle) if own else 0,
        "exchanges": sys_read_counter(&stats.exchanges) if own else 0,
        "connects": sys_read_counter(&stats.connects) if own else 0,
        "reuses": sys_read_counter(&stats.reuses) if own else 0,
        "failures": sys_read_counter(&stats.failures) if own else 0,
        "ejections": sys_read_counter(&stats.ejections) if own else 0,
        "out": backend_out(backend, now),
        "drained": sys_load_acquire(&backend.drained) != 0,
        "content_age": (now - <int64_t>sys_read_counter(&stats.content_at)) / 1e6
                       if own and sys_read_counter(&stats.content_at) else None,
    }


cdef object _pool_stats(PoolStateC *state):
    cdef QueueC *queue = &state.queue
    return {
        "waiting": sys_load_acquire(&queue.waiting),
        "wait": _histogram(&queue.wait),
        "full": sys_read_counter(&queue.full),
        "late": sys_read_counter(&queue.late),
    }


cdef object _seconds(int64_t us):
    return us / 1e6 if us >= 0 else None


cdef object _after(uint32_t us):
    return us / 1e6 if us else None


cdef object _tokens(int64_t n):
    return n if n >= 0 else None


cdef object _record(RecordC *record, int64_t now):
    cdef int i
    age = (now - record.at) / 1e6
    if record.kind == RECORD_EXCHANGE or record.kind == RECORD_LIVE:
        failed = tuple([Attempt(record.story.failed[i].backend, record.story.failed[i].at / 1e6, record.story.failed[i].reason)
                        for i in range(record.story.failed_count)])
        found = ExchangeEnded(
            age, record.backend if record.backend >= 0 else None, <bytes>record.address,
            (<char *>record.method)[:record.method_length], (<char *>record.path)[:record.path_length],
            (<char *>record.request_id)[:record.request_id_length], record.status, record.outcome, record.phase,
            _seconds(record.ttft), record.duration / 1e6, record.bytes_up, record.bytes_down, record.attempts,
            _seconds(record.close_time), record.error, record.reason,
            <bytes>record.pool, (<char *>record.story.model)[:record.story.model_length], _seconds(record.head), record.queued / 1e6,
            _after(record.connected), _after(record.responded), _seconds(record.last), record.pieces,
            _tokens(record.prompt), _tokens(record.completion), _tokens(record.cached),
            (<char *>record.story.trace)[:record.story.trace_length], failed,
        )
        return found if record.kind == RECORD_EXCHANGE else ExchangeLive(found, record.list_number)
    if record.kind == RECORD_LIVE_END:
        return LiveEnd(age, record.list_number)
    if record.kind == RECORD_BACKEND_DOWN:
        return BackendDown(age, record.backend, record.duration / 1e6, record.reason, record.error)
    if record.kind == RECORD_BACKEND_UP:
        return BackendUp(age, record.backend)
    if record.kind == RECORD_ACCEPT_PAUSED:
        return AcceptPaused(age, record.clients, record.error)
    if record.kind == RECORD_ACCEPT_RESUMED:
        return AcceptResumed(age, record.clients)
    return AcceptEnded(age, record.error)


cdef object _tape(TapeC *tape, int64_t now):
    cdef uint8_t *at = tape.answer.data
    cdef uint8_t *end = at + tape.answer.used
    cdef TapePieceC piece
    cdef bytes request = None
    cdef list pieces = []
    if tape.keeps_request:
        request = (<const char *>tape.request.data)[:tape.request.used] if tape.request.used else b""
    while at < end:
        memcpy(&piece, at, sizeof(piece))
        at += sizeof(piece)
        pieces.append((piece.at, (<const char *>at)[:piece.length]))
        at += piece.length
    return Tape(
        _record(&tape.record, now), bool(tape.asked), tape.status, (<char *>tape.content_type)[:tape.content_type_length],
        bool(tape.answer.cut), request, bool(tape.request.cut), tuple(pieces),
    )


cdef class Engine:
    """One worker of the data plane; see _pipe.pyi for its contract."""

    cdef WorkerC *w
    # Of the table configured last: the worker's own may be swapped at any time. One thread may read the counters while another
    # configures, which frees backends and pools that are in no table any more: both hold the lock, which all engines that share have
    # together. No worker takes it.
    cdef BackendC *backends[MAX_BACKENDS]
    cdef object lock
    cdef bint started
    cdef bint running
    cdef bint listening
    # The engine that listens for this one, and those that this one listens for. The loop of the one reaches into the mailboxes of
    # the others, which count their clients in its quotas.
    cdef Engine acceptor
    cdef list fed

    def __cinit__(self):
        self.w = NULL
        self.lock = _Lock()

    def __init__(self, settings, Engine sharing=None):
        cdef WorkerC *w
        if self.w is not NULL:
            raise RuntimeError("an engine is made once")
        w = self.w = <WorkerC *>calloc(1, sizeof(WorkerC))
        if w is NULL:
            raise MemoryError
        w.epfd = w.mail.in_fd = w.mail.out_fd = -1
        try:
            _read_settings(&w.settings, settings.process)
            _read_limits(&w.limits, settings.pool)
            if sharing is not None:
                w.shared = sharing._open().shared
                self.lock = sharing.lock
            else:
                w.shared = <SharedC *>calloc(1, sizeof(SharedC))
                if w.shared is NULL:
                    raise MemoryError
                w.shared.retry_budget = RETRY_FIRST
                w.shared.tape_size = TAPE_SIZE
                w.shared.kept_most = _at_most("kept_memory", settings.process.kept_memory, INT64_MAX)
            w.shared.engines += 1
            w.table = table_make(&w.limits, 0, 0, 0)
            w.head = <HeadC *>calloc(1, sizeof(HeadC))
            w.mail.adopts = <AdoptC *>calloc(MAIL_IN, sizeof(AdoptC))
            w.mail.records = <RecordC *>calloc(MAIL_OUT, sizeof(RecordC))
            # A head grows by what we add to it, and what came with it goes in the same send, as does what was held of an event stream.
            w.out.size = long_head_size(w) + 2048 + HOLD_MOST + BUF_SIZE + SIEVE_ROOM
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
            w.scans.size = sizeof(JsonC)
            w.tickets.size = sizeof(TicketC)
            w.usages.size = sizeof(UsageC)
            w.stories.size = sizeof(StoryC)
            w.sieves.size = sizeof(SieveC)
            w.queue_conn.fd = -1
            w.queue_conn.kind = CONN_QUEUE
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
            w.mail_conn.kind = CONN_MAILBOX
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

    cdef list _neighbours(self):
        # The engines that this one reaches into, or that reach into it.
        return (self.fed or []) + ([self.acceptor] if self.acceptor is not None else [])

    def run(self):
        cdef WorkerC *w = self._open()
        cdef Engine engine
        cdef int rc
        if self.started:
            raise RuntimeError("an engine runs once")
        for engine in self._neighbours():
            if engine.w is NULL:
                raise ValueError("an engine that it listens for, or that listens for it, is closed")
        self.started = self.running = True
        try:
            with nogil:
                rc = loop_run(w)
            _check_rc(rc)
        finally:
            self.running = False

    def listen(self, list listeners not None, list engines not None, *, int64_t most, int64_t resume_at,
               int64_t max_connections=0, int64_t max_per_address=0):
        cdef WorkerC *w = self._open()
        cdef ListenerC *made = NULL
        cdef ListenerC *following
        cdef Engine engine
        cdef int listener
        _ranged("listeners", len(listeners), 1, MAX_LISTENERS)
        _ranged("engines", len(engines), 1, MAX_WORKERS)
        if self.listening:
            raise RuntimeError("an engine listens once")
        if self not in engines:
            raise ValueError("it is not among the engines that it listens for")
        for engine in engines:
            if engine is None:
                raise TypeError("None is no engine")
            engine._open()
            if engine.acceptor is not None:
                raise RuntimeError("another engine listens for one of them")    # a mailbox has one writer
        for listener in reversed(listeners):
            following = made
            made = <ListenerC *>calloc(1, sizeof(ListenerC))
            if made is NULL:
                listener_free(following)
                raise MemoryError
            made.conn.fd = listener
            made.conn.kind = CONN_LISTENER
            conn_reread(&made.conn)
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
        self.fed = list(engines)
        for engine in engines:
            engine.acceptor = self
            made.workers[made.count] = engine.w
            made.count += 1
        for listener in listeners:
            self._prepare(listener)
        self.listening = True
        sys_exchange_pointer(&w.new_listener, made)
        io_wake_post(w.mail.in_fd, &w.mail.in_wake_pending)

    def adopt(self, int fd, str address not None):
        cdef WorkerC *w = self._open()
        cdef bytes text = address.encode()
        cdef AddressC peer
        cdef AdoptC adopt
        if not self.listens:
            raise RuntimeError("the engine does not listen")
        memset(&peer, 0, sizeof(peer))
        memset(&adopt, 0, sizeof(adopt))
        if text and io_address(&peer, text, 0) != RC_OK:
            raise ValueError(f"{address} is not a numeric address")
        _check_rc(io_stream(fd))
        if mail_full(&w.mail):
            raise BlockingIOError(EAGAIN, "the engine has not taken those that it got before")
        self._prepare(fd)
        io_address_text(&peer.address, adopt.address, ADDRESS_ROOM)
        adopt.fd = fd
        mail_put(&w.mail, &adopt)

    cdef void _prepare(self, int fd) noexcept:
        # What a client's socket has, and inherits from one that listens.
        cdef int64_t dead_after = self.w.settings.dead_peer_timeout
        io_nodelay(fd)
        io_urgent_inline(fd)
        io_keepalive(fd, dead_after)
        io_unanswered(fd, dead_after)

    def end_listening(self):
        mail_command(&self._open().mail, COMMAND_END_LISTENING)

    @property
    def listens(self):
        cdef WorkerC *w = self._open()
        return self.listening and not sys_load_acquire(&w.mail.closed)

    def configure(self, backends, routing=None):
        cdef WorkerC *w = self._open()
        cdef list routes = list(backends)
        # One pool of all, where nothing else is said.
        cdef list pools = ([(b"", [(number, 1, 0) for number in range(len(routes))], None)] if routing is None
                           else list(routing.pools))
        cdef BackendC *found[MAX_BACKENDS]
        cdef TableC *table = NULL
        cdef bytes name
        cdef int count = 0
        cdef int room = 0
        cdef int members = 0
        cdef int i
        _ranged("backends", len(routes), 0, MAX_BACKENDS)
        with self.lock:
            try:
                for name, *_ in routes:
                    _ranged("the length of a backend's name", len(name), 1, NAME_ROOM - 1)
                    found[count] = backend_find(w.shared, name, len(name))
                    if found[count] is NULL:
                        raise MemoryError("no memory for a backend, or no slot: those that are gone still have exchanges")
                    count += 1
                    room = max(room, found[count - 1].slot + 1)
                for _, of_pool, _ in pools:
                    members += len(of_pool)
                table = table_make(&w.limits, room, len(pools), members)
                if table is NULL:
                    raise MemoryError
                table.front.series = series_find(&w.series, b"", 0, -1)
                table.tokens = tokens_find(&w.tokens, b"", 0)
                if table.front.series is NULL or table.tokens is NULL:
                    raise MemoryError
                for i in range(count):
                    _read_route(table, found[i], routes[i])
                for name, of_pool, settings in pools:
                    _read_pool(table, w, found, count, name, of_pool, settings)
                if routing is not None:
                    _read_routing(table, w, routing)
                ids = [found[i].id for i in range(count)]
                self._know(table)
            except BaseException:
                table_free(table)
                raise
            finally:
                for i in range(count):
                    sys_add_shared(&found[i].users, <uint32_t>-1)
                series_sweep(&w.series, False)
                tokens_sweep(&w.tokens, False)
        table_free(<TableC *>sys_exchange_pointer(&w.new_table, table))
        io_wake_post(w.mail.in_fd, &w.mail.in_wake_pending)
        return ids

    cdef BackendC *_backend(self, int number) except NULL:
        # That with this number, of all that the engines share; the lock is held.
        cdef BackendC *backend = self._open().shared.backends
        while backend is not NULL:
            if backend.id == number:
                return backend
            backend = backend.next
        raise KeyError(number)

    def mark(self, int number, bint down):
        cdef BackendC *backend
        with self.lock:
            backend = self._backend(number)
            if sys_exchange(&backend.down, down) and not down:
                sys_set_counter(&backend.well_since, <uint64_t>loop_clock())

    def mark_drained(self, int number, bint drained):
        with self.lock:
            # An exchange, not a store: the count of exchanges in flight is read behind it.
            return sys_exchange(&self._backend(number).drained, drained) != <uint32_t>drained

    cdef void _know(self, TableC *table) noexcept:
        # The backends of a table, for stats(); of no table: of none.
        cdef BackendC *backend
        cdef int slot
        for slot in range(MAX_BACKENDS):
            backend = NULL if table is NULL else table_route(table, slot).backend
            if backend is not NULL:
                sys_add_shared(&backend.users, 1)
            if self.backends[slot] is not NULL:
                sys_add_shared(&self.backends[slot].users, <uint32_t>-1)
            self.backends[slot] = backend

    def drain(self):
        mail_command(&self._open().mail, COMMAND_DRAIN)

    def stop(self):
        mail_command(&self._open().mail, COMMAND_STOP)

    def take_records(self):
        cdef WorkerC *w = self._open()
        cdef uint32_t head = w.mail.out_head
        cdef int64_t now = loop_clock()
        cdef list records = []
        io_wake_clear(w.mail.out_fd, &w.mail.out_wake_pending)
        while head != sys_load_acquire(&w.mail.out_tail):
            records.append(_record(&w.mail.records[head & (MAIL_OUT - 1)], now))
            head += 1
            sys_store_release(&w.mail.out_head, head)
        return records

    def stats(self):
        cdef WorkerC *w = self._open()
        cdef StatsC *stats = &w.stats
        cdef int64_t now = loop_clock()
        cdef int i
        cdef PoolStateC *pool
        cdef SeriesC *one
        cdef TokensC *model
        with self.lock:
            series_sweep(&w.series, False)
            tokens_sweep(&w.tokens, False)
            series = {}
            one = w.series
            while one is not NULL:
                series[<bytes>one.pool, one.backend if one.backend >= 0 else None] = _series(one)
                one = one.next
            tokens = {}
            model = w.tokens
            while model is not NULL:
                tokens[(<char *>model.model)[:model.length]] = _token_counts(&model.counts)
                model = model.next
            pools = {}
            pool = w.shared.pools
            while pool is not NULL:
                if sys_load_acquire(&pool.users):
                    pools[<bytes>pool.name] = _pool_stats(pool)
                pool = pool.next
            backends = {self.backends[i].id: _backend_stats(&stats.backends[i], self.backends[i], now)
                        for i in range(MAX_BACKENDS) if self.backends[i] is not NULL}
        return {
            "clients": self.clients,
            "accepted": sys_read_counter(&stats.accepted),
            "streaming_active": sys_read_counter(&stats.streaming_active),
            "finishing": sys_read_counter(&stats.finishing),
            "streaming_bytes": sys_read_counter(&stats.streaming_bytes),
            "bytes_up": sys_read_counter(&stats.bytes_up),
            "reads_forwarded": sys_read_counter(&stats.reads_forwarded),
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
            "retries": [sys_read_counter(&stats.retries[i]) for i in range(RETRY_COUNT)],
            "records_dropped": sys_read_counter(&stats.records_dropped),
            "kept": sys_read_counter(&w.shared.kept),
            "buffers_held": sys_read_counter(&w.bufs.held) - 1,     # the hot one
            "buffers_made": sys_read_counter(&w.bufs.made),
            "upstreams": sys_read_counter(&stats.upstreams),
            "series": series,
            "tokens": tokens,
            "backends": backends,
            "pools": pools,
        }

    def latencies(self):
        cdef WorkerC *w = self._open()
        cdef SeriesC *series
        cdef dict found = {}
        with self.lock:
            series = w.series
            while series is not NULL:
                if series.backend >= 0:
                    ttft, itl = found.setdefault(series.backend, ({}, {}))
                    _add_counts(&series.times[SERIES_TTFT], ttft)
                    _add_counts(&series.times[SERIES_ITL], itl)
                series = series.next
        return found

    def record_next(self, count, *, bint request_bodies=False):
        cdef SharedC *shared = self._open().shared
        cdef uint32_t asked = _at_most("count", count, INT32_MAX)
        with self.lock:
            self._record_bodies(TAPE_BODIES_ASKED, request_bodies)
            sys_add_shared(&shared.tape_round, 1)
            sys_store_release(&shared.tapes_asked, asked)
            sys_store_release(&shared.recording, asked != 0 or sys_read_counter(&shared.tape_share) != 0)

    def record_share(self, double share, size, *, bint request_bodies=False):
        cdef SharedC *shared = self._open().shared
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be from 0 to 1")
        with self.lock:
            self._record_bodies(TAPE_BODIES_SHARE, request_bodies)
            sys_store_release(&shared.tape_size, <uint32_t>_at_most("size", size, TAPES_MOST))
            sys_set_counter(&shared.tape_share, <uint64_t>(share * 4294967296.0))
            sys_store_release(&shared.recording, sys_load_acquire(&shared.tapes_asked) != 0 or share > 0)

    cdef void _record_bodies(self, uint32_t which, bint on) noexcept:
        cdef uint32_t bodies = sys_load_acquire(&self.w.shared.tape_bodies)
        sys_store_release(&self.w.shared.tape_bodies, bodies | which if on else bodies & ~which)

    @property
    def tapes_dropped(self):
        return sys_load_acquire(&self._open().shared.tapes_dropped)

    def take_tapes(self):
        cdef WorkerC *w = self._open()
        cdef int64_t now = loop_clock()
        cdef TapeC *tape = mail_take_tapes(&w.mail)
        cdef TapeC *following
        cdef list found = []
        try:
            while tape is not NULL:
                found.append(_tape(tape, now))
                following = tape.next
                tape_free(w.shared, tape)
                tape = following
        finally:
            tapes_free(w.shared, tape)
        return found[::-1]

    def list_live(self, uint32_t number):
        cdef MailC *mail = &self._open().mail
        sys_store_release(&mail.list_asked, number)
        io_wake_post(mail.in_fd, &mail.in_wake_pending)

    def flows(self):
        cdef WorkerC *w = self._open()
        cdef BackendStatsC *stats
        cdef int64_t now = loop_clock()
        cdef int i
        cdef dict found = {}
        with self.lock:
            for i in range(MAX_BACKENDS):
                stats = &w.stats.backends[i]
                if self.backends[i] is not NULL and sys_read_counter(&stats.whose) == <uint64_t>self.backends[i].id + 1:
                    if sys_read_counter(&stats.content_at):
                        found[self.backends[i].id] = (sys_read_counter(&stats.flowing),
                                                      (now - <int64_t>sys_read_counter(&stats.content_at)) / 1e6)
        return found

    @property
    def records_fd(self):
        return self._open().mail.out_fd

    @property
    def wake_on_abort(self):
        return sys_load_acquire(&self._open().mail.wake_on_abort) != 0

    @wake_on_abort.setter
    def wake_on_abort(self, bint on):
        sys_store_release(&self._open().mail.wake_on_abort, on)

    @property
    def clients(self):
        return worker_clients(self._open())

    def close(self):
        cdef WorkerC *w = self.w
        cdef Engine engine
        cdef TapeC *tape
        if w is NULL:
            return
        if self.running:
            raise RuntimeError("the engine runs")
        for engine in self._neighbours():
            if engine.running:
                raise RuntimeError("an engine that it listens for, or that listens for it, runs")
        self.w = NULL
        tape = mail_take_tapes(&w.mail)
        self.acceptor = None
        self.fed = None
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
        slab_free_all(&w.scans)
        slab_free_all(&w.tickets)
        slab_free_all(&w.usages)
        slab_free_all(&w.stories)
        slab_free_all(&w.sieves)
        tapes_free(w.shared, tape)
        long_head_free_all(w)
        self._know(NULL)
        table_free(w.table)
        table_free(<TableC *>w.new_table)
        series_sweep(&w.series, True)
        tokens_sweep(&w.tokens, True)
        shared_free(w.shared)
        listener_free(w.listener)
        listener_free(<ListenerC *>w.new_listener)
        free(w.head)
        free(w.mail.adopts)
        free(w.mail.records)
        free(w.out.data)
        free(w.bulk)
        free(w)
