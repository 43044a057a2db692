# exchange: its beginning, its state, its deadline and its one end.
#
# exchange_set_state() is the only writer of a state, exchange_end() the only place where an outcome is counted, and
# attempt_end() the only place where an in-flight count is released.

cdef int exchange_phase(ExchangeC *x) noexcept nogil:
    # What a log calls the state, seen more finely.
    if x.state == STATE_HEAD:
        return PHASE_HEAD
    if x.state == STATE_CONNECT:
        return PHASE_CONNECT
    if x.state == STATE_TUNNEL:
        return PHASE_TUNNEL
    if x.state == STATE_FINISH:
        return PHASE_FINISH
    if x.state == STATE_WAIT:
        return PHASE_WAIT if x.up_done and not x.up.unsent else PHASE_BODY
    if x.down.unsent:
        return PHASE_BLOCKED
    return PHASE_STREAM if x.content else PHASE_SILENT

cdef int64_t sooner(int64_t deadline, int64_t start, int64_t after, uint8_t reason, uint8_t *outcome) noexcept nogil:
    # The earlier of a deadline and start + after; an `after` of 0 is off, a deadline of 0 never.
    if not after or (deadline and deadline <= start + after):
        return deadline
    outcome[0] = reason
    return start + after

cdef int64_t exchange_deadline(WorkerC *w, ExchangeC *x, uint8_t *outcome) noexcept nogil:
    # When the exchange's time is up and with which outcome; 0 for never (rule F).
    cdef SettingsC *limits = &w.settings
    cdef int64_t deadline = sooner(0, x.begun, limits.total_timeout, OUTCOME_TIMEOUT_TOTAL, outcome)
    if x.down.unsent:
        deadline = sooner(deadline, x.taken, limits.send_timeout, OUTCOME_TIMEOUT_SEND, outcome)
    if x.state == STATE_TUNNEL and x.up.unsent:
        return sooner(deadline, x.moved, limits.send_timeout, OUTCOME_TIMEOUT_SEND, outcome)
    if x.down.unsent:
        return deadline
    if x.state == STATE_HEAD:
        return sooner(deadline, x.begun, limits.head_timeout, OUTCOME_TIMEOUT_HEAD, outcome)
    if x.up_done and not x.content and x.state != STATE_TUNNEL:
        deadline = sooner(deadline, x.whole, limits.ttft_timeout, OUTCOME_TIMEOUT_TTFT, outcome)
    if x.state == STATE_CONNECT and x.upstream is not NULL:
        return sooner(deadline, x.upstream.since, limits.connect_timeout, OUTCOME_TIMEOUT_CONNECT, outcome)
    if x.state == STATE_WAIT and not x.up_broken:
        # The answer is not awaited before the request is there. Once it has begun, it alone counts: a backend that answers
        # need not take the rest, and a client that sends it must not hide that no answer comes any more.
        if x.up.unsent:
            return sooner(deadline, x.moved, limits.idle_timeout, OUTCOME_TIMEOUT_IDLE, outcome)
        if not x.up_done:
            return sooner(deadline, x.moved, limits.idle_timeout, OUTCOME_TIMEOUT_BODY, outcome)
    if x.content or x.state == STATE_TUNNEL:
        return sooner(deadline, x.waited, limits.idle_timeout, OUTCOME_TIMEOUT_IDLE, outcome)
    if x.up_done:
        return deadline
    return sooner(deadline, x.waited, limits.ttft_timeout, OUTCOME_TIMEOUT_TTFT, outcome)

cdef int64_t linger_deadline(WorkerC *w, int64_t since, int64_t heard) noexcept nogil:
    # When a connection that lingers is closed, though its peer has not closed it (rule A6).
    cdef int64_t deadline = since + LINGER_TIME
    if heard + LINGER_SILENCE < deadline:
        deadline = heard + LINGER_SILENCE
    if w.draining:
        if since < w.drained:
            since = w.drained
        if since + LINGER_DRAIN < deadline:
            deadline = since + LINGER_DRAIN
    return deadline

cdef int64_t client_deadline(WorkerC *w, ClientC *client) noexcept nogil:
    # When a connection without an exchange has had its time; 0 is never.
    cdef int64_t most = w.settings.keepalive_timeout
    if client.state == CLIENT_LINGER:
        return linger_deadline(w, client.since, client.linger.heard)
    if w.draining:
        return client.since + FIRST_REQUEST_TIME
    if client.refusal and w.settings.head_timeout:
        return client.since + w.settings.head_timeout       # it has no keep-alive to wait for
    if client.state == CLIENT_NEW and w.settings.head_timeout and (not most or w.settings.head_timeout < most):
        most = w.settings.head_timeout      # who connects does so to ask for something
    return client.since + most if most else 0

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
    x.state = state
    if state != STATE_ENDED:
        exchange_rearm(w, x)

cdef ExchangeC *exchange_begin(WorkerC *w, ClientC *client) noexcept nogil:
    # An exchange for the request whose first byte is there; NULL where there is no memory.
    cdef ExchangeC *x = <ExchangeC *>slab_get(&w.exchanges)
    if x is NULL:
        return NULL
    x.client = client
    x.backend = -1
    x.begun = w.now
    x.waited = w.now
    x.moved = w.now
    x.minor = 1
    x.framing_up = FRAMING_CLOSE        # before its head is whole, nobody knows where it ends
    quiet_leave(w, client)
    client.conn.exchange = x
    client.state = CLIENT_BUSY
    w.exchange_count += 1
    exchange_set_state(w, x, STATE_HEAD)
    return x

cdef void attempt_begin(WorkerC *w, ExchangeC *x, int slot) noexcept nogil:
    # The backend at that slot, which counts this exchange already, is to work on it.
    x.backend = slot
    x.attempts += x.attempts < 255
    x.counted = w.table.routes[slot].backend
    sys_add_counter(&w.stats.backends[slot].exchanges, 1)

cdef void attempt_end(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The backend does not work on this exchange any more.
    if x.counted is NULL:
        return
    sys_add_shared(&x.counted.in_flight, <uint32_t>-1)
    x.counted = NULL

cdef void upstream_drop(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Closes the exchange's upstream, so that the backend stops, and ends the attempt.
    if x.upstream is not NULL:
        upstream_close(w, x.upstream)
        x.upstream = NULL
    attempt_end(w, x)

cdef void request_count_kept(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Counts what the exchange keeps to send again in the process's budget. What fits into one buffer does not count: a client
    # costs that anyway, and short requests, which are most, touch nothing that workers share.
    cdef uint32_t kept = x.up.total if x.up.kept and x.up.total > BUF_SIZE else 0
    if kept != x.kept:
        sys_add_shared_counter(&w.shared.kept, <uint64_t>kept - x.kept)
        x.kept = kept

cdef bint request_keeps(WorkerC *w, uint64_t total, uint64_t more) noexcept nogil:
    # Whether a request may be kept that is so long, or would be with so many bytes more (rule B2).
    if total > <uint64_t>w.settings.failover_body + w.settings.max_head:
        return False
    return not w.shared.kept_most or total <= BUF_SIZE or sys_read_counter(&w.shared.kept) + more <= w.shared.kept_most

cdef void request_forget(WorkerC *w, ExchangeC *x) noexcept nogil:
    # It will not be sent again: keeps only what was not sent.
    chain_forget(&x.up, &w.bufs)
    request_count_kept(w, x)

cdef void exchange_blame(WorkerC *w, ExchangeC *x, uint8_t reason, int error) noexcept nogil:
    # Notes and counts why an attempt failed or a request was refused; `error` is the errno, 0 for none.
    x.reason = reason
    x.error = error
    sys_add_counter(&w.stats.reasons[reason], 1)

cdef void exchange_record(WorkerC *w, ExchangeC *x, const char *address, uint8_t phase, uint8_t outcome,
                          int64_t close_time) noexcept nogil:
    # Writes the event record of an ended exchange: for the access log, and at once where a client left.
    cdef RecordC *record
    if not w.settings.access_records and outcome != OUTCOME_CLIENT_ABORT:
        return
    record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    record.kind = KIND_EXCHANGE
    record.at = w.now
    record.ttft = x.first - x.asked if x.first else -1
    record.duration = w.now - x.begun
    record.bytes_up = x.bytes_up
    record.bytes_down = x.bytes_down
    record.close_time = close_time
    record.backend = x.backend
    record.status = 499 if outcome == OUTCOME_CLIENT_ABORT else x.status
    record.error = x.error
    record.outcome = outcome
    record.phase = phase
    record.attempts = x.attempts
    record.reason = x.reason
    record.request_id_length = x.request_id_length
    record.method_length = x.method_length
    record.path_length = x.path_length
    if host_known(&x.origin):
        host_text(&x.origin, record.address, ADDRESS_ROOM)
    else:
        memcpy(record.address, address, ADDRESS_ROOM)
    memcpy(record.request_id, x.request_id, x.request_id_length)
    memcpy(record.method, x.method, x.method_length)
    memcpy(record.path, x.path, x.path_length)
    mail_post(&w.mail, outcome == OUTCOME_CLIENT_ABORT)

cdef void exchange_end(WorkerC *w, ExchangeC *x, uint8_t phase, uint8_t outcome) noexcept nogil:
    # The one end of every exchange. Releases all that it holds but the client connection, which is the caller's next
    # step; the exchange may not be used afterwards (it is freed at the end of the turn).
    cdef timespec clock
    cdef int64_t close_time = -1
    cdef const char *address = NO_ADDRESS
    if x.client is not NULL:
        address = x.client.address
    if x.up.unsent or x.down.unsent:
        discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_REQUEST, x.up.unsent)
        discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_RESPONSE, x.down.unsent)
        if x.state == STATE_TUNNEL and x.up.unsent and x.upstream is not NULL:
            x.upstream.reset = True         # the bytes that it lacks have no other mark
    upstream_drop(w, x)
    if x.left and x.state != STATE_FINISH:
        clock_gettime(CLOCK_MONOTONIC, &clock)
        close_time = clock.tv_sec * 1000000 + clock.tv_nsec // 1000 - x.left
        histogram_add(&w.stats.disconnect, close_time)
    sys_add_counter(&w.stats.outcomes[outcome], 1)
    sys_add_counter(&w.stats.bytes_up, x.bytes_up)
    histogram_add(&w.stats.duration, w.now - x.begun)
    exchange_record(w, x, address, phase, outcome, close_time)
    if x.up.first is not NULL:
        request_forget(w, x)
        chain_clear(&x.up, &w.bufs)
    chain_clear(&x.down, &w.bufs)
    if x.host is not NULL:
        buf_put(&w.bufs, x.host)
    if x.state == STATE_FINISH:
        client_uncount(w, 0, x.quota)
        sys_add_counter(&w.stats.finishing, <uint64_t>-1)
    if x.client is not NULL:
        x.client.conn.exchange = NULL
        x.client = NULL
    exchange_set_state(w, x, STATE_ENDED)
    w.exchange_count -= 1
    retry_earn(w.shared)
    x.ended_next = w.ended
    w.ended = x
