# upload: the body of a request on its way to the backend.

cdef void request_skip(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Throws away data[0:n], which came of a request that is answered already, or will be.
    if body_waste(w, &x.up_body, data, n, DISCARD_REQUEST):
        x.whole_at = w.now

cdef int json_refused(JsonC *json) noexcept nogil:
    # The body is none that can be read: the status to answer with; RC_OK where that concerns its backend alone.
    if not json.settled:
        return 400
    json.fault = REASON_NONE
    json.state = JSON_OTHER
    return RC_OK

cdef int request_follow(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # Follows the request body's framing: data[0:used] belongs to it. RC_OK, or the status to answer with: then all of the bytes
    # are counted as thrown away.
    cdef BodyC *body = &x.up_body
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef int rc = RC_OK
    cdef int status = RC_OK
    used[0] = 0
    while rc == RC_OK and status == RC_OK and body.total <= x.pool.limits.max_body:
        rc = body_follow(body, data, n, used, &piece, &length)
        if x.json is not NULL and rc == RC_OK and json_scan(x.json, piece, length) != RC_OK:
            status = json_refused(x.json)
        if x.tape is not NULL and rc == RC_OK:
            tape_note_request(w, x.tape, piece, length)
    if x.json is not NULL and body.done and status == RC_OK and not json_whole(x.json):
        status = json_refused(x.json)
    if rc == RC_BAD:
        body.framing = FRAMING_CLOSE
        status = 400
    # A size that goes over the limit is refused before its data is forwarded; some count in fewer than 64 bits. While its
    # line is not whole the size may still be no size at all.
    elif status == RC_OK and (body.total > x.pool.limits.max_body or (body.chunk.state == CHUNK_DATA
            and body.chunk.left > <uint64_t>(x.pool.limits.max_body - body.total))):
        status = 413
    if status != RC_OK:
        discard(&w.stats, DISCARD_REQUEST, used[0])
        request_skip(w, x, data + used[0], n - used[0])
        return status
    if body.done:
        if x.state != STATE_HEAD and x.state != STATE_MODEL:
            json_free(w, x)
        x.upstream_at = w.now   # from here the backend is waited for
        x.whole_at = w.now
        exchange_rearm(w, x)
    return RC_OK

cdef void request_waste(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Reads what the client still sends of a request that nobody takes, so that it comes to read its answer (rule A6).
    cdef size_t wasted = 0
    cdef ssize_t got = waste_read(w, &x.client.conn, &x.up_body, DISCARD_REQUEST, True, &wasted)
    if wasted:
        x.bytes_up += wasted
        x.whole_at = w.now
    if got != -EAGAIN:
        client_left(w, x, <int>-got)

cdef uint8_t request_fault(ExchangeC *x, int status) noexcept nogil:
    # Why request_follow gave this status.
    if x.json is not NULL and x.json.fault:
        return x.json.fault
    return REASON_BODY_TOO_LONG if status == 413 else chunk_fault(&x.up_body.chunk)

cdef int request_hold(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Puts bytes behind those that wait for the upstream. RC_OK or -ENOMEM.
    cdef int rc
    # Before the backend is known nothing was sent, and all is kept: request_fits() bounds it.
    if x.up.replayable and x.state != STATE_MODEL and not request_keeps(w, x, x.up.total + n, n):
        request_forget(w, x)
    # A full buffer changes hands, a short piece is copied: buffers with a few bytes in them would pile up.
    if n > BUF_SIZE // 2:
        rc = chain_take_hot(w, &x.up, data, n)
    else:
        rc = chain_copy(&x.up, &w.bufs, data, n)
    request_count_kept(w, x)
    return rc

cdef void request_broken(WorkerC *w, ExchangeC *x, int status, uint8_t reason) noexcept nogil:
    # The client broke the framing of its body, or went over its limit.
    if x.forwarded:
        exchange_blame(w, x, reason, 0)
        response_truncate(w, x, OUTCOME_BAD_REQUEST)
    else:
        refuse(w, x, status, reason)

cdef void request_up_broken(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # The upstream takes no more. It may have answered before it closed; the recv will tell.
    x.up_broken = True
    x.error = error
    conn_reread(&x.upstream.conn)
    exchange_rearm(w, x)        # only the answer is waited for now

cdef ssize_t request_recv(WorkerC *w, ExchangeC *x, size_t *used) noexcept nogil:
    # One recv of the body into the hot buffer, and its framing followed: *used bytes belong to it. Bytes received; -EAGAIN; 0 where
    # the exchange has taken another way.
    cdef ssize_t got = conn_recv(&x.client.conn, w.hot.data, BUF_SIZE)
    cdef int status
    if got == -EAGAIN:
        return got
    if got <= 0:
        client_left(w, x, <int>-got)
        return 0
    x.request_at = w.now
    status = request_follow(w, x, w.hot.data, got, used)
    if status != RC_OK:
        request_broken(w, x, status, request_fault(x, status))
        return 0
    x.bytes_up += used[0]
    return got

cdef bint request_store(WorkerC *w, ExchangeC *x, size_t took, size_t used, size_t got) noexcept nogil:
    # Of what was received keeps what no upstream took of the body, hot[took:used], and for later what stands behind it. False where
    # there was no memory: then the request was answered.
    cdef int rc = RC_OK
    if used < got:
        # A pipelined request stands behind the body, so that is copied.
        rc = chain_copy(&x.up, &w.bufs, w.hot.data + took, used - took)
        if rc == RC_OK:
            rc = pending_keep(w, &x.client.pending, w.hot.data + used, got - used)
        if rc != RC_OK:
            discard(&w.stats, DISCARD_BEHIND_REQUEST, got - used)
    elif took < used:
        rc = request_hold(w, x, w.hot.data + took, used - took)
    if rc != RC_OK:
        request_lost(w, x)
    return rc == RC_OK

cdef void request_up(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Moves the request towards the backend.
    cdef ClientC *client = x.client
    cdef ConnC *upstream = &x.upstream.conn
    cdef ssize_t took
    cdef ssize_t got
    cdef size_t used = 0
    cdef int error = 0
    cdef int i
    for i in range(TURN_READS):
        if x.up_broken:
            if x.forwarded:
                request_waste(w, x)
            return
        if x.up.unsent:
            if not upstream.writable:
                return
            took = conn_send_chain(upstream, &x.up, &w.bufs)
            if x.held:
                request_count_kept(w, x)
            if took < 0:
                request_up_broken(w, x, <int>-took)
                continue
            if took:
                x.request_at = w.now
                if x.state == STATE_WAIT:
                    x.upstream_at = w.now
            exchange_rearm(w, x)    # what is waited for has changed
            if x.up.unsent:
                return
        if x.up_body.done or not client.conn.readable:
            return
        got = request_recv(w, x, &used)
        if got <= 0:
            return
        took = 0
        if not x.up.replayable:
            took = conn_send(upstream, w.hot.data, used) if used else 0
            if took < 0:
                error = <int>-took
                took = 0
        if not request_store(w, x, took, used, got):
            return
        if error:
            request_up_broken(w, x, error)
    conn_queue(w, &client.conn)

cdef enum:
    HELD_MOST = 1 << 30         # bytes of a request whose backend is not known
    HELD_ALWAYS = 65536         # of those that everybody has, whatever is kept of others

cdef bint request_fits(WorkerC *w, ExchangeC *x, size_t more) noexcept nogil:
    # Whether so much more of a request may be kept before its backend is known.
    if x.up.total + more > HELD_MOST:
        return False
    if x.up.total + more <= HELD_ALWAYS:
        return True
    return not w.shared.kept_most or sys_read_counter(&w.shared.kept) + more <= w.shared.kept_most

cdef void model_route(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Looks whether what has come of the body tells which pool the request is for.
    cdef uint8_t reason = REASON_NONE
    cdef int rc = pool_find_by_model(w, x, &reason)
    if rc == -ENOMEM:
        request_lost(w, x)
    elif rc == RC_OK:
        if x.up_body.done:
            json_free(w, x)
        if not request_keeps(w, x, x.up.total, 0):
            x.held = True
            request_forget(w, x)
        request_count_kept(w, x)
        exchange_set_state(w, x, STATE_ROUTE)
    elif rc != RC_AGAIN:
        exchange_blame(w, x, reason, 0)
        answer_error(w, x, rc, OUTCOME_BAD_REQUEST)

cdef void step_model(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Reads the request's body until it names the model.
    cdef ConnC *client = &x.client.conn
    cdef ssize_t got
    cdef size_t used = 0
    cdef bint fits
    cdef int i
    if client.hung_up:
        client_left(w, x, 0)
        return
    if x.down.unsent:
        client_flush(w, x)      # a 100 that it had no room for
    for i in range(TURN_READS):
        if x.state != STATE_MODEL or not client.readable:
            return
        got = request_recv(w, x, &used)
        if got <= 0:
            return
        fits = request_fits(w, x, used)
        if not fits and not request_gives_up(x):
            discard(&w.stats, DISCARD_REQUEST, used)
            discard(&w.stats, DISCARD_BEHIND_REQUEST, got - used)
            x.client_keeps = False
            exchange_blame(w, x, REASON_KEPT_MEMORY, 0)
            answer_error(w, x, 503, OUTCOME_OVERLOAD)
            return
        if not request_store(w, x, 0, used, got):
            return
        model_route(w, x)
    if x.state == STATE_MODEL:
        conn_queue(w, client)
