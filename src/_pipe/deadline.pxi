# deadline: when a connection's or an exchange's time is up (rule F). timer looks at it then.

cdef int64_t sooner(int64_t deadline, int64_t start, int64_t after, uint8_t reason, uint8_t *outcome) noexcept nogil:
    # The earlier of a deadline and start + after; an `after` of 0 is off, a deadline of 0 never.
    if not after or (deadline and deadline <= start + after):
        return deadline
    outcome[0] = reason
    return start + after

cdef inline int64_t exchange_deadline(WorkerC *w, ExchangeC *x, uint8_t *outcome) noexcept nogil:
    # When the exchange's time is up and with which outcome; 0 for never (rule F).
    cdef LimitsC *limits = &x.pool.limits
    cdef int64_t deadline = sooner(0, x.begun_at, limits.total_timeout, OUTCOME_TIMEOUT_TOTAL, outcome)
    cdef bint owes = x.down.unsent or x.unlisted
    if owes:
        deadline = sooner(deadline, x.client_at, w.settings.send_timeout, OUTCOME_TIMEOUT_SEND, outcome)
    if x.state == STATE_TUNNEL and x.up.unsent:
        return sooner(deadline, x.request_at, w.settings.send_timeout, OUTCOME_TIMEOUT_SEND, outcome)
    if owes and x.ticket is NULL:      # it waits for the client alone, and not for a place
        return deadline
    if x.state == STATE_HEAD:
        return sooner(deadline, x.begun_at, w.settings.head_timeout, OUTCOME_TIMEOUT_HEAD, outcome)
    if x.state == STATE_MODEL:
        # From the head on, and not from the last byte: what is kept of it others may need. Where its end alone is awaited, it is not
        # over then, but goes as it is.
        if x.json is NULL or not x.json.awaited:
            return sooner(deadline, x.head_at, limits.idle_timeout, OUTCOME_TIMEOUT_BODY, outcome)
        deadline = sooner(deadline, x.request_at, limits.idle_timeout, OUTCOME_TIMEOUT_BODY, outcome)
        return sooner(deadline, x.head_at, AWAIT_TIME, OUTCOME_OK, outcome)
    if x.up_body.done and not x.content and x.state != STATE_TUNNEL and (x.state != STATE_QUEUE or x.attempts):
        deadline = sooner(deadline, x.whole_at, limits.ttft_timeout, OUTCOME_TIMEOUT_TTFT, outcome)
    if x.state == STATE_QUEUE and x.ticket is not NULL:
        return sooner(deadline, 0, x.ticket.heap.key, OUTCOME_QUEUE_TIMEOUT, outcome)
    if x.state == STATE_CONNECT and x.upstream is not NULL:
        return sooner(deadline, x.upstream.since, limits.connect_timeout, OUTCOME_TIMEOUT_CONNECT, outcome)
    if x.state == STATE_WAIT and not x.up_broken:
        # The answer is not awaited before the request is there. Once it has begun, it alone counts: a backend that answers
        # need not take the rest, and a client that sends it must not hide that no answer comes any more.
        if x.up.unsent:
            return sooner(deadline, x.request_at, limits.idle_timeout, OUTCOME_TIMEOUT_IDLE, outcome)
        if not x.up_body.done:
            return sooner(deadline, x.request_at, limits.idle_timeout, OUTCOME_TIMEOUT_BODY, outcome)
    if x.content or x.state == STATE_TUNNEL:
        return sooner(deadline, x.upstream_at, limits.idle_timeout, OUTCOME_TIMEOUT_IDLE, outcome)
    if x.up_body.done:
        return deadline
    return sooner(deadline, x.upstream_at, limits.ttft_timeout, OUTCOME_TIMEOUT_TTFT, outcome)

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
    if client.state == CLIENT_LINGER and client.linger.resets:
        return w.now + min(RESET_LOOK + (w.now - client.since) // 8, RESET_LOOK_MOST)
    if client.state == CLIENT_LINGER:
        return linger_deadline(w, client.since, client.linger.heard)
    if w.draining:
        return client.since + FIRST_REQUEST_TIME
    if client.refuse_status and w.settings.head_timeout:
        return client.since + w.settings.head_timeout       # it has no keep-alive to wait for
    if client.state == CLIENT_NEW and w.settings.head_timeout and (not most or w.settings.head_timeout < most):
        most = w.settings.head_timeout      # who connects does so to ask for something
    return client.since + most if most else 0

cdef int64_t probe_time(WorkerC *w) noexcept nogil:
    # How long the connect of a backend that had failed may take.
    return w.limits.connect_timeout if w.limits.connect_timeout else PROBE_TIME

cdef int64_t upstream_deadline(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # When an upstream without an exchange has had its time.
    if upstream.lingers:
        return linger_deadline(w, upstream.since, upstream.heard)
    if upstream.probes:
        return upstream.since + probe_time(w)
    return upstream.since + table_route(w.table, upstream.backend).upstream_idle_timeout
