# exchange: its beginning, its state, its attempts and its one end.
#
# exchange_set_state() is the only writer of a state, exchange_end() the only place where an outcome is counted, and
# attempt_end() the only place where an in-flight count is released.

cdef struct ExchangeC:
    ClientC *client         # NULL once it left a backend that must finish
    UpstreamC *upstream     # NULL before the connect and after the response's end
    uint8_t state           # STATE_*, written by exchange_set_state() only
    uint8_t same_backend    # the request goes to the backend that it went to before, on a fresh connection
    uint8_t outcome         # OUTCOME_*, where it was decided before the end
    uint8_t up_broken       # the upstream takes no more of the request; its answer may still come
    uint8_t forwarded       # a byte of a final response was sent to the client
    uint8_t content         # a byte of the body that is not an SSE comment was forwarded
    uint8_t to_head         # the method is HEAD
    uint8_t minor           # of the client's HTTP version
    uint8_t client_keeps    # the client may use its connection again
    uint8_t client_closes   # it said that it will not
    uint8_t upgrade         # the client asked for a 101
    uint8_t dechunk         # a chunked response for an HTTP/1.0 client
    uint8_t unframed        # what the client gets of the body is put together from its pieces: it is dechunked, or sifted
    uint8_t event_stream
    uint8_t answered        # a byte of an answer came; then the request is not sent again
    uint8_t unanswered      # times that a backend took some of the request and ended without a byte
    uint8_t no_host         # the request came without a Host
    uint8_t held            # it was kept until its backend was known, and is more than is kept to be sent again
    uint8_t address         # index of the one that is tried
    uint8_t attempts        # upstreams used
    uint8_t addresses_tried  # of the current backend, in this attempt; from 0 again where a new table came
    uint8_t skipped_line    # the empty line that may stand before a request was seen
    uint8_t reset           # the client's connection must end with an RST
    uint8_t deaf            # the client takes no more, but what it sent before is still to be read (tunnels)
    uint8_t flows           # an event stream with content, and its client takes it: it waits for the backend
    uint8_t holds           # HOLD_*: whether its answer waits for the first event
    uint16_t prefix_length  # of what stands before the client's path, for the backend
    uint8_t reason          # REASON_* of the last failure
    uint8_t looks           # LOOK_*: what is looked at in the pieces of its answer
    uint8_t adds_usage      # the request was made to ask for an event that its client has not asked for
    uint8_t fresh           # content was in the piece of the answer that was looked at last
    ExchangeC *ended_next   # in the list of those that ended in this turn
    TableC *table           # that its attempt began with, or before the first one the request
    PoolC *pool             # in that table
    BackendC *counted       # that counts it as in flight, or NULL
    QuotaC *quota           # of a client that left a backend that must finish: its place is taken until the end
    BufC *host              # the client's own Host, where a backend was given another
    SeriesC *series         # that its times are counted in: of its pool, and of its backend once there is one; of its table
    HistogramC *itl         # in them, for the gaps between its events; NULL before the first, and for what is no event stream
    TokensC *tokens         # that its tokens are counted in, which it keeps
    StoryC *story           # what not every exchange has; NULL for none
    UsageC *usage           # what its answer tells of them; NULL where nothing was seen of that
    TicketC *ticket         # with which it waits, or has waited, for a place; NULL once a backend is connected
    TapeC *tape             # that it is recorded on; NULL for nearly all
    SieveC *sieve           # takes the event with the usage out of its answer; NULL for nearly all
    JsonC *json             # looks for the model, or for options, in the body; NULL where that need not be, or the body is over
    uint32_t head_length    # of the request, as it stands in `up`
    uint32_t kept           # bytes that count in the process's budget of what is kept
    int backend             # slot, -1 before the choice
    int32_t backend_id      # of it; -1 before the choice
    int status              # sent to the client, 0 for none
    int error               # errno that ended it
    uint64_t tried[MAX_MEMBER_WORDS]    # members of its pool
    HostC origin            # the client that a trusted peer speaks for, where it names one
    BodyC up_body           # of the request, as the client sends it
    BodyC down_body         # of the response, as the upstream sends it
    ChainC up               # for the upstream
    ChainC down             # for the client
    int64_t begun_at        # first byte of the request
    int64_t head_at         # the head was complete: start of the TTFT that is shown
    int64_t whole_at        # the request was complete, or a comment came that counts: start of the TTFT limit, one for all attempts
    int64_t content_at      # first content byte was forwarded
    int64_t last_at         # content came last
    int64_t upstream_at     # since when the wait for the upstream's answer counts; in a tunnel, for a byte of either side
    int64_t request_at      # a byte of the request last came, or was last taken by the upstream; in a tunnel only the latter
    int64_t client_at       # the client last took bytes
    int64_t left_at         # the client left
    int64_t bytes_up        # received from the client
    int64_t bytes_down      # sent to the client
    uint32_t queued         # us that it waited for a place; while it waits, less by the time of its beginning
    uint32_t connected      # us from the first byte of the request to the upstream that was used last; 0 for none
    uint32_t responded      # the same to the head of the answer
    uint32_t pieces         # of content that were forwarded
    uint32_t pinged         # us by which comments have put off whole_at
    uint32_t unlisted       # bytes at the end of its table's list of models that are still to be sent
    uint8_t request_id_length
    uint8_t method_length
    uint8_t path_length
    uint8_t request_id[REQUEST_ID_ROOM]
    uint8_t method[METHOD_ROOM]
    uint8_t path[PATH_ROOM]

cdef char NO_ADDRESS[ADDRESS_ROOM]      # of a client that is gone

# The states that may follow each state, a bit for each.
cdef uint16_t STATE_MOVES[STATE_ENDED + 1]

cdef void exchange_init() noexcept nogil:
    STATE_MOVES[STATE_HEAD] = 1 << STATE_HEAD | 1 << STATE_MODEL | 1 << STATE_ROUTE | 1 << STATE_FLUSH | 1 << STATE_ENDED
    STATE_MOVES[STATE_MODEL] = 1 << STATE_ROUTE | 1 << STATE_FLUSH | 1 << STATE_ENDED
    STATE_MOVES[STATE_ROUTE] = (1 << STATE_ROUTE | 1 << STATE_QUEUE | 1 << STATE_CONNECT | 1 << STATE_WAIT
                                | 1 << STATE_FLUSH | 1 << STATE_ENDED)
    STATE_MOVES[STATE_QUEUE] = 1 << STATE_ROUTE | 1 << STATE_FLUSH | 1 << STATE_ENDED
    STATE_MOVES[STATE_CONNECT] = 1 << STATE_ROUTE | 1 << STATE_WAIT | 1 << STATE_FLUSH | 1 << STATE_ENDED
    STATE_MOVES[STATE_WAIT] = (1 << STATE_ROUTE | 1 << STATE_STREAM | 1 << STATE_TUNNEL | 1 << STATE_FLUSH
                               | 1 << STATE_DETACHED | 1 << STATE_ENDED)
    STATE_MOVES[STATE_STREAM] = 1 << STATE_FLUSH | 1 << STATE_DETACHED | 1 << STATE_ENDED
    STATE_MOVES[STATE_FLUSH] = 1 << STATE_ENDED
    STATE_MOVES[STATE_TUNNEL] = 1 << STATE_FLUSH | 1 << STATE_ENDED
    STATE_MOVES[STATE_DETACHED] = 1 << STATE_ENDED

exchange_init()

cdef int exchange_phase(ExchangeC *x) noexcept nogil:
    # What a log calls the state, seen more finely.
    if x.state == STATE_HEAD or x.state == STATE_ROUTE:
        return PHASE_HEAD
    if x.state == STATE_MODEL:
        return PHASE_BODY
    if x.state == STATE_QUEUE:
        return PHASE_QUEUE
    if x.state == STATE_CONNECT:
        return PHASE_CONNECT
    if x.state == STATE_TUNNEL:
        return PHASE_TUNNEL
    if x.state == STATE_DETACHED:
        return PHASE_FINISH
    if x.state == STATE_WAIT:
        return PHASE_WAIT if x.up_body.done and not x.up.unsent else PHASE_BODY
    if x.down.unsent:
        return PHASE_BLOCKED
    return PHASE_STREAM if x.content else PHASE_SILENT

cdef void exchange_rearm(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Has the wheel look at the deadline, which may have come nearer.
    cdef uint8_t outcome = 0
    cdef ConnC *conn = &x.client.conn if x.client is not NULL else &x.upstream.conn
    timer_arm(w, conn, exchange_deadline(w, x, &outcome))

cdef bint state_streams(int state) noexcept nogil:
    return state == STATE_STREAM or state == STATE_FLUSH or state == STATE_TUNNEL

cdef void exchange_set_state(WorkerC *w, ExchangeC *x, uint8_t state) noexcept nogil:
    # The one writer of a state; with it the count of streams and the deadline.
    if state_streams(x.state) != state_streams(state):
        sys_add_counter(&w.stats.streaming_active, 1 if state_streams(state) else <uint64_t>-1)
    sys_check((STATE_MOVES[x.state] >> state) & 1, "an exchange's state")
    if x.state == STATE_QUEUE:
        x.queued += <uint32_t>w.now
    if state == STATE_QUEUE:
        x.queued -= <uint32_t>w.now
    x.state = state
    if state != STATE_ENDED and state != STATE_ROUTE:       # which does not wait
        exchange_rearm(w, x)

cdef void ticket_drop(WorkerC *w, ExchangeC *x) noexcept nogil:
    # It waits for no place any more, and will not go back to where it stood in a queue.
    if x.ticket is not NULL:
        ticket_free(w, x.ticket)
        x.ticket = NULL

cdef void exchange_take_table(WorkerC *w, ExchangeC *x) noexcept nogil:
    # What the exchange goes by from now on is the worker's table, and in it the pool that it had.
    cdef PoolStateC *state = x.pool.state if x.pool is not NULL else NULL
    cdef PoolC *pool = table_pool(w.table, state)
    cdef uint64_t tried[MAX_MEMBER_WORDS]
    cdef int i
    w.table.users += 1
    if x.table is not NULL:
        if x.tried[0] or x.tried[1]:
            memset(tried, 0, sizeof(tried))
            for i in range(pool.count):
                if exchange_tried(x, pool, i, w.table.routes[pool.members[i].slot].backend):
                    member_put(tried, i)
            memcpy(x.tried, tried, sizeof(tried))
        table_release(x.table)
    x.series = pool_series(w.table, pool, x.backend_id if x.table is not NULL else -1)
    x.table = w.table
    x.pool = pool

cdef ExchangeC *exchange_begin(WorkerC *w, ClientC *client) noexcept nogil:
    # An exchange for the request whose first byte is there; NULL where there is no memory.
    cdef ExchangeC *x = <ExchangeC *>slab_get(&w.exchanges)
    if x is NULL:
        return NULL
    x.client = client
    exchange_take_table(w, x)
    x.backend = -1
    x.backend_id = -1
    x.begun_at = w.now
    x.upstream_at = w.now
    x.request_at = w.now
    x.minor = 1
    x.up_body.framing = FRAMING_CLOSE        # before its head is whole, nobody knows where it ends
    client.conn.exchange = x
    w.exchange_count += 1
    exchange_set_state(w, x, STATE_HEAD)
    return x

cdef void exchange_reroute(WorkerC *w, ExchangeC *x, bint same_backend) noexcept nogil:
    # The request is to be sent again: to the same backend on a fresh connection, or to one that was not tried.
    x.same_backend = same_backend
    exchange_set_state(w, x, STATE_ROUTE)

cdef void attempt_begin(WorkerC *w, ExchangeC *x, int slot) noexcept nogil:
    # The backend at that slot, which counts this exchange already, is to work on it.
    x.backend = slot
    x.attempts += x.attempts < 255
    x.counted = x.table.routes[slot].backend
    x.connected = 0
    x.backend_id = x.counted.id
    sys_add_counter(&w.stats.backends[slot].exchanges, 1)

cdef void attempt_end(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The backend does not work on this exchange any more.
    if x.counted is NULL:
        return
    exchange_flow(w, x, False)
    place_return(w, x.counted, x.pool.state)
    x.counted = NULL

cdef void upstream_leave(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Closes the exchange's upstream. Its place at the backend it keeps.
    if x.upstream is not NULL:
        if x.state == STATE_TUNNEL and x.up.unsent:
            x.upstream.reset = True         # the bytes that it lacks have no other mark
        upstream_close(w, x.upstream)
        x.upstream = NULL

cdef void upstream_drop(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Closes the exchange's upstream, so that the backend stops, and ends the attempt.
    upstream_leave(w, x)
    attempt_end(w, x)

cdef void json_free(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Nothing is looked for in the request's body any more.
    if x.json is not NULL:
        slab_put(&w.scans, x.json)
        x.json = NULL

cdef void exchange_blame(WorkerC *w, ExchangeC *x, uint8_t reason, int error) noexcept nogil:
    # Notes and counts why an attempt failed or a request was refused; `error` is the errno, 0 for none.
    x.reason = reason
    x.error = error
    sys_add_counter(&w.stats.reasons[reason], 1)

cdef void exchange_end(WorkerC *w, ExchangeC *x, uint8_t phase, uint8_t outcome) noexcept nogil:
    # The one end of every exchange. Releases all that it holds but the client connection, which is the caller's next
    # step; the exchange may not be used afterwards (it is freed at the end of the turn).
    cdef timespec clock
    cdef int64_t close_time = -1
    cdef const char *address = NO_ADDRESS
    cdef bint stops = x.left_at and x.upstream is not NULL and x.state != STATE_DETACHED     # the backend, as its client has left
    if x.client is not NULL:
        address = x.client.address
    if x.up.unsent or x.down.unsent:
        discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_REQUEST, x.up.unsent)
        discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_RESPONSE, x.down.unsent)
    upstream_drop(w, x)
    ticket_drop(w, x)
    if stops:
        clock_gettime(CLOCK_MONOTONIC, &clock)
        close_time = clock.tv_sec * 1000000 + clock.tv_nsec // 1000 - x.left_at
        series_note(x.series, SERIES_DISCONNECT, close_time)
    sys_add_counter(&w.stats.outcomes[outcome], 1)
    sys_add_counter(&w.stats.bytes_up, x.bytes_up)
    if x.state == STATE_QUEUE:
        x.queued += <uint32_t>w.now
    series_note(x.series, SERIES_DURATION + outcome, w.now - x.begun_at)
    exchange_record(w, x, address, phase, outcome, close_time)
    if x.tape is not NULL:
        tape_end(w, x, address, phase, outcome, close_time)
    exchange_count_tokens(w, x)
    if x.usage is not NULL:
        slab_put(&w.usages, x.usage)
    if x.story is not NULL:
        slab_put(&w.stories, x.story)
    if x.up.first is not NULL:
        x.held = False
        request_forget(w, x)
        chain_clear(&x.up, &w.bufs)
    chain_clear(&x.down, &w.bufs)
    if x.sieve is not NULL:
        discard(&w.stats, DISCARD_RESPONSE, x.sieve.held)
        slab_put(&w.sieves, x.sieve)
    if x.host is not NULL:
        buf_put(&w.bufs, x.host)
    json_free(w, x)
    if x.state == STATE_DETACHED:
        place_free(w, 0, x.quota)
        sys_add_counter(&w.stats.finishing, <uint64_t>-1)
    if x.client is not NULL:
        x.client.conn.exchange = NULL
        x.client = NULL
    exchange_set_state(w, x, STATE_ENDED)
    w.exchange_count -= 1
    retry_earn(w.shared)
    x.ended_next = w.ended
    w.ended = x
