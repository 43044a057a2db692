# response: its head, its body's framing and its end.

cdef bint head_is_json(HeadC *head) noexcept nogil:
    # Whether a response says that it is JSON, and is not encoded.
    cdef FieldC *field = head_single(head, FIELD_CONTENT_TYPE)
    return (field is not NULL and not head.encoded and field.value_length >= 16
            and (memcmp(field.value, <const char *>b"application/json", 16) == 0
                 or text_same(field.value, 16, b"application/json"))
            and (field.value_length == 16 or field.value[16] == c";" or field.value[16] == c" "))

cdef void response_complete(WorkerC *w, ExchangeC *x, bint clean) noexcept nogil:
    # The response's framing has ended. `clean` says that nothing stood behind it. The upstream goes back to the pool, or
    # is closed (rules B3 and C4).
    cdef UpstreamC *upstream = x.upstream
    if (clean and upstream.keep_alive and not upstream.orphan and x.up_body.done and not x.up.unsent and not x.up_broken
            and not upstream.conn.hung_up and x.pool.limits.upstream_idle_timeout and not w.stopping):
        x.upstream = NULL
        upstream.served = True
        upstream_keep(w, upstream)
    upstream_drop(w, x)
    if x.client is NULL:
        exchange_end(w, x, PHASE_FINISH, OUTCOME_CLIENT_ABORT)
    else:
        response_flush(w, x)

cdef inline void response_forward(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t out, int rc, bint clean) noexcept nogil:
    # Sends a piece that response_follow has measured and acts on where the framing has ended, or is broken.
    client_send(w, x, data, out)
    if rc == RC_OK or x.state == STATE_ENDED:
        return
    if rc == RC_DONE:
        if not clean and x.reason != REASON_EMPTY_BODY:
            exchange_blame(w, x, REASON_BEHIND_END, 0)
        response_complete(w, x, clean)
    else:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, chunk_fault(&x.down_body.chunk), 0)

cdef bint response_may_retry(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether the next backend could be asked in the place of one that has begun to answer.
    return x.client is not NULL and not x.up.incomplete and pool_has_another(w, x)

cdef bint status_retries(WorkerC *w, ExchangeC *x, int status) noexcept nogil:
    # Whether the next backend is asked instead of forwarding this status: then a retry was taken out of the budget.
    if not ((status == 502 and x.pool.limits.retry_502) or (status == 503 and x.pool.limits.retry_503)
            or (status == 429 and x.pool.limits.retry_429)):
        return False
    return response_may_retry(w, x) and retry_take(w.shared)

cdef void response_retry(WorkerC *w, ExchangeC *x, size_t n, int cause) noexcept nogil:
    # The next backend is asked: the n bytes that came of this answer go nowhere.
    sys_add_counter(&w.stats.retries[cause], 1)
    attempt_failed(w, x, x.reason if cause == RETRY_EVENT else REASON_NONE)
    discard(&w.stats, DISCARD_RETRIED, n)
    pending_clear(w, &x.upstream.pending)
    upstream_drop(w, x)
    x.answered = False
    x.responded = 0
    x.holds = HOLD_NOT_YET
    request_rewind(x)
    exchange_reroute(w, x, False)

cdef int response_begin(WorkerC *w, BodyC *body, const uint8_t *data, size_t n) noexcept nogil:
    # What an event stream with that framing begins with: one of BEGIN_*.
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef size_t taken = 0
    cdef int rc
    cdef int begin
    while True:
        rc = body_follow(body, data, n, &used, &piece, &length)
        if rc != RC_OK:
            break
        if length > BULK_SIZE - taken:
            length = BULK_SIZE - taken      # more does not tell more
        memcpy(w.bulk + taken, piece, length)
        taken += length
    begin = sse_begin(w.bulk, taken)
    return BEGIN_NONE if begin == BEGIN_MORE and rc != RC_AGAIN else begin

cdef bint response_hold(WorkerC *w, ExchangeC *x, HeadC *head, const uint8_t *data, size_t length, size_t n) noexcept nogil:
    # data[0:n] begins with the head of an answer, of that length. Whether the answer is not forwarded now: it waits for its first
    # event, or the next backend is asked, since that event is an error (rule N1).
    cdef BodyC body
    cdef int begin
    if x.holds == HOLD_OVER:
        return False
    if (not x.pool.limits.holds_event_streams or not head.event_stream or head.status >= 300 or head.framing == FRAMING_NONE
            or not response_may_retry(w, x)):
        x.holds = HOLD_OVER
        return False
    body_begin(&body, head.framing, head.content_length)
    begin = response_begin(w, &body, data + length, n - length)
    if begin == BEGIN_MORE and n - length < HOLD_MOST and n < long_head_size(w):
        x.holds = HOLD_WAITS
        if n > length and x.pool.limits.comments_count_as_content:
            comment_came(w, x)
        if pending_keep(w, &x.upstream.pending, data, n) != RC_OK:
            request_lost(w, x)
        return True
    if (begin == BEGIN_ERROR or begin == BEGIN_NONE) and retry_take(w.shared):
        exchange_blame(w, x, REASON_ERROR_EVENT if begin == BEGIN_ERROR else REASON_NO_EVENT, 0)
        response_retry(w, x, n, RETRY_EVENT)
        return True
    x.holds = HOLD_OVER
    return False

cdef void response_broken(WorkerC *w, ExchangeC *x, uint8_t reason, size_t n) noexcept nogil:
    # The n bytes that came of a response cannot be understood.
    if pending_empty(&x.upstream.pending):
        discard(&w.stats, DISCARD_BROKEN, n)        # else upstream_close counts them
    upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason, 0)

cdef void response_read(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n) noexcept nogil:
    # data[0:n] is all that came of the response so far, its head not yet whole.
    cdef UpstreamC *upstream = x.upstream
    cdef HeadC *head = w.head
    cdef const char *connection = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef size_t out = 0
    cdef int rc
    x.answered = True
    while True:
        rc = head_scan(data, n, &upstream.pending.scanned, &length)
        if rc == RC_AGAIN and n < x.pool.limits.max_response_head:
            used = upstream.pending.scanned
            if pending_keep(w, &upstream.pending, data, n) != RC_OK:
                request_lost(w, x)
                return
            upstream.pending.scanned = <uint32_t>used
            return
        if rc == RC_OK or rc == RC_BAD:
            response_broken(w, x, head_scan_fault(data, n), n)
            return
        if rc == RC_AGAIN or length > x.pool.limits.max_response_head:
            response_broken(w, x, REASON_HEAD_TOO_LONG, n)
            return
        if head_read_response(head, data, length, x.pool.limits.max_response_fields, x.to_head) != RC_OK:
            response_broken(w, x, head.fault, n)
            return
        upstream.pending.scanned = 0
        if head.status >= 200 or head.status == 101:
            break
        # 100 and 103 on their own way; the final response is still to come.
        if x.minor and x.client is not NULL:
            write_start(&w.out, w.out.data, w.out.size)
            head_write_response(&w.out, head, False, NULL, x.request_id, x.request_id_length)
            client_send(w, x, w.out.data, w.out.used)
            if x.state == STATE_ENDED:
                return
        else:
            discard(&w.stats, DISCARD_INTERIM, length)
        data += length
        n -= length
        if n == 0:
            pending_clear(w, &upstream.pending)
            return
    if not x.responded:
        x.responded = exchange_age(w, x)
    if head.status == 101:
        tunnel_begin(w, x, data + length, n - length)
        return
    if head.status < 500 or head.status == 503:
        backend_well(x.counted)
    else:
        backend_erred(w, x)
    if status_retries(w, x, head.status):
        response_retry(w, x, n, RETRY_STATUS)
        return
    if not backend_errs(x) and backend_answered(w, x.counted):
        pools_serve(w)          # somebody may have waited for that
    if x.holds != HOLD_OVER and response_hold(w, x, head, data, length, n):
        return
    request_forget(w, x)
    body_begin(&x.down_body, head.framing, head.content_length)
    x.event_stream = head.event_stream
    if x.pool.limits.reads_usage and head.status < 300 and (head.event_stream or head_is_json(head)):
        x.looks |= LOOK_USAGE
    x.dechunk = head.chunked and x.minor == 0
    # A length that was announced leaves no room to take something out.
    if x.adds_usage and head.event_stream and head.status < 300 and head.framing != FRAMING_LENGTH:
        x.sieve = <SieveC *>slab_get(&w.sieves)
    x.unframed = x.dechunk or x.sieve is not NULL
    # An answer that did not wait for the whole request may be one to its head alone; what comes of the body would then be
    # read as the next request. So nobody else is sent there.
    upstream.keep_alive = head.keep_alive and x.up_body.done and not x.up.unsent
    if not x.up_body.done or w.draining or head.framing == FRAMING_CLOSE or x.dechunk:
        x.client_keeps = False
    if not x.client_keeps:
        connection = b"close"
    elif x.minor == 0:
        connection = b"keep-alive"
    write_start(&w.out, w.out.data, w.out.size)
    head_write_response(&w.out, head, not x.dechunk, connection, x.request_id, x.request_id_length)
    if w.out.full:
        response_broken(w, x, REASON_HEAD_TOO_LONG, n)
        return
    x.status = head.status
    if x.tape is not NULL:
        x.looks |= LOOK_TAPE
        tape_head(x.tape, head.status, head_single(head, FIELD_CONTENT_TYPE))
    if head.unframed:
        exchange_blame(w, x, REASON_EMPTY_BODY, 0)      # the body that it announces is not read, whether it comes or not
    if x.client is not NULL:
        x.forwarded = True
        if head.framing != FRAMING_NONE:
            exchange_set_state(w, x, STATE_STREAM)
    # What came with the head goes with it, in one send.
    data += length
    n -= length
    rc = response_follow(w, x, data, n, &used, &out)
    length = w.out.used
    response_write(w, x, w.unframed if x.unframed else data, out, rc)
    forwarded_count(w, x, out != 0, w.out.used - length)
    discard(&w.stats, DISCARD_BROKEN if rc == RC_BAD else DISCARD_BEHIND_RESPONSE, n - used)
    pending_clear(w, &upstream.pending)
    response_forward(w, x, w.out.data, w.out.used, rc, used == n)
