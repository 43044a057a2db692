# stream: the response on its way to the client, piece by piece, and the steps of the states in which bytes move.

cdef uint8_t reason_of_end(ExchangeC *x, ssize_t got) noexcept nogil:
    # Why a recv from the upstream that gave no byte ends the exchange: `got` is 0 for a FIN, or -errno.
    if got < 0:
        return reason_of_errno(<int>-got)
    if x.status:
        return REASON_FIN_IN_BODY
    return REASON_FIN_BEFORE_HEAD if pending_empty(&x.upstream.pending) else REASON_FIN_IN_HEAD

cdef int response_bulk(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The stream fills every recv: looks at more than a buffer, sends it, and takes what the client took. So nothing has to be
    # held, and three long calls stand for sixteen short ones. RC_OK; RC_AGAIN where nothing was moved: the usual way is to meet
    # what stands there, be it the end, an error or a client that takes no more.
    cdef ConnC *conn = &x.upstream.conn
    cdef BodyC saved = x.down_body
    cdef UsageC usage
    cdef bint had_usage = x.usage is not NULL
    cdef size_t used = 0
    cdef ssize_t took = 0
    cdef ssize_t got = conn_peek(conn, w.bulk, BULK_SIZE)
    if got < 0 and got != -EAGAIN:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(<int>-got), <int>-got)     # told once
        return RC_OK
    if got <= BUF_SIZE:
        return RC_AGAIN
    if had_usage:
        usage = x.usage[0]
    if response_measure(w, x, w.bulk, got, &used) == RC_OK:
        took = conn_send(&x.client.conn, w.bulk, got)
    if took < got:
        # Of what was looked at, the client has a part only.
        x.down_body = saved
        if had_usage:
            x.usage[0] = usage
        elif x.usage is not NULL:
            slab_put(&w.usages, x.usage)
            x.usage = NULL
        if took < 0:
            client_left(w, x, <int>-took)
            return RC_OK
        if took == 0:
            return RC_AGAIN
        response_measure(w, x, w.bulk, took, &used)
    x.bytes_down += took
    if x.fresh:
        content_came(w, x)
    sys_add_counter(&w.stats.reads_forwarded, 1)
    sys_add_counter(&w.stats.streaming_bytes, took)
    if conn_discard(conn, w.bulk, took) != took:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_ERRNO, 0)
    return RC_OK

cdef void response_ended(WorkerC *w, ExchangeC *x, ssize_t got) noexcept nogil:
    # A recv from the upstream gave no byte: `got` is 0 for a FIN, or -errno.
    if got == 0 and x.up_broken and x.error != EPIPE:
        got = -x.error      # the kernel tells of an RST once, and told the send: what looks like a FIN is none
    if got == 0 and x.down_body.framing == FRAMING_CLOSE and x.status:
        if x.sieve is not NULL and x.sieve.held:
            write_start(&w.out, w.out.data, w.out.size)
            if x.sieve.fresh:
                content_came(w, x)
            response_write(w, x, NULL, 0, RC_DONE)
            forwarded_count(w, x, 0, w.out.used)
            client_send(w, x, w.out.data, w.out.used)
            if x.state == STATE_ENDED:
                return
        response_complete(w, x, False)
    else:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_end(x, got), <int>-got)

cdef bint response_release(WorkerC *w, ExchangeC *x) noexcept nogil:
    # An answer that waits for its first event will not get one: the upstream ends. Asks the next backend, or where it may not, gives
    # the client what there is. Whether the end is still to be told to it.
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    pending_holds(&x.upstream.pending, &data, &n)
    if response_may_retry(w, x) and retry_take(w.shared):
        exchange_blame(w, x, REASON_NO_EVENT, 0)
        response_retry(w, x, n, RETRY_EVENT)
        return False
    x.holds = HOLD_OVER
    response_read(w, x, data, n)
    return x.state != STATE_ENDED and x.upstream is not NULL

cdef void response_await(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Receives until the head of the response is whole.
    cdef ConnC *conn = &x.upstream.conn
    cdef uint8_t state = x.state
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef ssize_t got
    cdef int i
    for i in range(TURN_READS):
        got = pending_recv(w, &x.upstream.pending, conn, &data, &n)
        if got == -EAGAIN:
            return
        if got == -ENOMEM:
            request_lost(w, x)
            return
        if got <= 0:
            if x.holds != HOLD_WAITS or response_release(w, x):
                response_ended(w, x, got)
            return
        response_read(w, x, data, n)
        if x.status or x.state != state or x.down.unsent or not conn.readable:
            return
    conn_queue(w, conn)

cdef void response_down(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Moves the body of the response towards the client, one recv and one send at a time, until the state changes.
    cdef ConnC *conn = &x.upstream.conn
    cdef uint8_t *data
    cdef uint8_t state = x.state
    cdef size_t used
    cdef size_t out
    cdef ssize_t got
    cdef int rc
    cdef int i
    cdef int looks = BULK_LOOKS
    for i in range(TURN_READS):
        data = w.hot.data
        got = conn_recv(conn, data, BUF_SIZE)
        if got == -EAGAIN:
            return
        if got <= 0:
            response_ended(w, x, got)
            return
        rc = response_follow(w, x, data, got, &used, &out)
        if x.unframed:
            write_start(&w.out, w.out.data, w.out.size)
            response_write(w, x, w.unframed, out, rc)
            data = w.out.data
            out = w.out.used
        forwarded_count(w, x, 1, out)
        if used < <size_t>got:
            discard(&w.stats, DISCARD_BROKEN if rc == RC_BAD else DISCARD_BEHIND_RESPONSE, got - used)
        response_forward(w, x, data, out, rc, used == <size_t>got)
        if x.state != state:
            return
        if got == BUF_SIZE and looks and state == STATE_STREAM and not x.unframed and x.tape is NULL and not x.down.unsent:
            looks -= 1
            rc = response_bulk(w, x)
            if x.state != state:
                return
            if rc == RC_OK and not looks:
                break
        if x.down.unsent or not conn.readable:
            return
    conn_queue(w, conn)

cdef bint response_ends_now(WorkerC *w, ExchangeC *x, bint *clean) noexcept nogil:
    # Whether a client that left had the whole body, and the end of the framing has come too. Clients of the OpenAI API close as
    # soon as they have read [DONE], a moment before or after the last chunk is there.
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef ssize_t got
    if (x.down_body.framing != FRAMING_CHUNKED or x.down.unsent or not x.up_body.done
            or x.down_body.chunk.state == CHUNK_DATA or x.table.routes[x.backend].finish_on_abort):
        return False        # what is received here is lost, so a backend that may finish is not asked
    got = conn_recv(&x.upstream.conn, w.hot.data, BUF_SIZE)
    if got > 0:
        discard(&w.stats, DISCARD_RESPONSE, got)
    if got <= 0 or body_follow(&x.down_body, w.hot.data, got, &used, &piece, &length) != RC_DONE:
        return False
    clean[0] = used == <size_t>got
    return True

cdef inline bint forward_request(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Moves what the client has not taken, and the request. Whether the response is to be received now.
    cdef uint8_t state = x.state
    if x.down.unsent:
        client_flush(w, x)
        if x.state != state:
            return False
    if x.up.unsent or (x.client.conn.readable and not x.up_body.done):
        request_up(w, x)
        if x.state != state:
            return False
    return x.upstream.conn.readable and not x.down.unsent

cdef void step_wait(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Sends the request and waits for the head of its response.
    cdef UpstreamC *upstream = x.upstream
    if x.client.conn.hung_up:
        client_left(w, x, 0)
    elif (upstream.taken == w.turn and upstream.reused and upstream.conn.readable and not x.up_broken
            and conn_probe(&upstream.conn) > 0):
        # These bytes were there before the request was sent: they answer nothing that we asked.
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_UNASKED, 0)
    elif forward_request(w, x):
        response_await(w, x)

cdef void step_stream(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Forwards the body of the response, and what is still to come of the request.
    cdef bint clean = False
    if x.client.conn.hung_up:
        if response_ends_now(w, x, &clean):
            x.client_keeps = False      # it lacks the last chunk, and no other answer may stand in its place
            response_complete(w, x, clean)
        else:
            client_left(w, x, 0)
    elif forward_request(w, x):
        response_down(w, x)

cdef void step_flush(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Waits for the client to take the rest.
    if x.client.conn.hung_up:
        client_left(w, x, 0)
        return
    client_flush(w, x)
    if x.state == STATE_FLUSH:
        listing_send(w, x)
    if x.state != STATE_FLUSH:
        return
    if x.down.unsent or x.unlisted:
        request_waste(w, x)
    else:
        client_next(w, x)

cdef void step_detached(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Reads what a backend that may finish still sends, and throws it away.
    if not x.upstream.conn.readable:
        return
    if not x.status:
        response_await(w, x)
    if x.status and x.state == STATE_DETACHED and x.upstream.conn.readable:
        response_down(w, x)
