# tunnel: bytes both ways, after a 101.

cdef void tunnel_begin(WorkerC *w, ExchangeC *x, uint8_t *rest, size_t n) noexcept nogil:
    # The backend answered 101; rest[0:n] stands behind the head.
    if not x.upgrade or x.client is NULL:
        discard(&w.stats, DISCARD_BROKEN, n)
        pending_clear(w, &x.upstream.pending)
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_UNASKED_UPGRADE, 0)
        return
    backend_answered(w, x.counted)
    request_forget(w, x)
    write_start(&w.out, w.out.data, w.out.size)
    head_write_response(&w.out, w.head, False, b"Upgrade", x.request_id, x.request_id_length)
    write_bytes(&w.out, rest, n)
    x.status = 101
    x.forwarded = True
    x.client_keeps = False
    x.client_closes = False         # of HTTP: in a tunnel either side sends for as long as it likes
    body_begin(&x.up_body, FRAMING_CLOSE, 0)
    body_begin(&x.down_body, FRAMING_CLOSE, 0)
    x.upstream_at = w.now
    x.request_at = w.now
    pending_clear(w, &x.upstream.pending)
    exchange_set_state(w, x, STATE_TUNNEL)
    if n:
        sys_add_counter(&w.stats.streaming_bytes, n)
    client_send(w, x, w.out.data, w.out.used)

cdef void tunnel_up_broken(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # The backend takes no more. An RST is passed on at once: the kernel has told of it now, and will not again. Behind a FIN, what
    # it sent before is still to be read.
    if error != EPIPE:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(error), error)
        return
    x.up_broken = True
    x.error = error
    discard(&w.stats, DISCARD_TUNNEL, x.up.unsent)
    chain_clear(&x.up, &w.bufs)
    conn_reread(&x.upstream.conn)
    conn_queue(w, &x.client.conn)

cdef void tunnel_hold(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Keeps what the backend did not take yet; the client is not read meanwhile.
    if chain_take_hot(w, &x.up, data, n) != RC_OK:
        discard(&w.stats, DISCARD_TUNNEL, n)
        request_lost(w, x)
        return
    x.request_at = w.now
    exchange_rearm(w, x)

cdef void tunnel_client_fin(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The client's FIN (EPIPE is an RST behind one). The backend gets one too, behind all that came before it; what it has sent and
    # the client has not taken is lost (RFC 9110 section 9.3.6).
    cdef bint lost = x.down.unsent or x.deaf
    if x.up_broken:
        # The backend took no more, so the last of what the client sent was thrown away.
        exchange_blame(w, x, REASON_FIN_IN_BODY, x.error)
        x.outcome = OUTCOME_UPSTREAM_ABORT
    upstream_linger(w, x.upstream, x.client.quota)
    x.upstream = NULL
    if lost:
        client_left(w, x, 0)
    else:
        client_next(w, x)

cdef bint tunnel_up(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Client to upstream, once. Whether there may be more now.
    cdef ConnC *client = &x.client.conn
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef ssize_t got
    cdef ssize_t took
    if x.up.unsent:
        if not x.upstream.conn.writable:
            return False
        took = conn_send_chain(&x.upstream.conn, &x.up, &w.bufs)
        if took < 0:
            tunnel_up_broken(w, x, <int>-took)
            return False
        if took:
            x.request_at = w.now
        if x.up.unsent:
            return False
        x.upstream_at = w.now
        exchange_rearm(w, x)
    if pending_holds(&x.client.pending, &data, &n):
        # Bytes of the new protocol that the client sent before it had the 101.
        tunnel_hold(w, x, data, n)
        if x.state != STATE_TUNNEL:
            return False
        x.bytes_up += n
        pending_clear(w, &x.client.pending)
        return True
    if not client.readable:
        return False
    got = conn_recv(client, w.hot.data, BUF_SIZE)
    if got == -EAGAIN:
        return False
    if got < 0 and got != -EPIPE:
        client_left(w, x, <int>-got)
        return False
    if got <= 0:
        tunnel_client_fin(w, x)
        return False
    x.bytes_up += got
    x.upstream_at = w.now
    if x.up_broken:
        discard(&w.stats, DISCARD_TUNNEL, got)
        return client.readable
    took = conn_send(&x.upstream.conn, w.hot.data, got)
    if took < 0:
        discard(&w.stats, DISCARD_TUNNEL, got)
        tunnel_up_broken(w, x, <int>-took)
        return False
    if took < got:
        tunnel_hold(w, x, w.hot.data + took, got - took)
    return client.readable

cdef bint tunnel_down(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Upstream to client, once. Whether there may be more now.
    cdef ConnC *upstream = &x.upstream.conn
    cdef ssize_t got
    if x.down.unsent:
        client_flush(w, x)
        if x.state != STATE_TUNNEL or x.down.unsent:
            return False
    if not upstream.readable:
        return False
    got = conn_recv(upstream, w.hot.data, BUF_SIZE)
    if got == -EAGAIN:
        return False
    if got == 0 and x.up_broken:
        got = -x.error          # the kernel tells of an RST once, and told the send
    if got < 0 and got != -EPIPE:
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(<int>-got), <int>-got)
        return False
    if got <= 0:
        if x.deaf:
            client_left(w, x, 0)
            return False
        if x.up.unsent or x.up_broken:
            # It closed before it had all: the client had the whole of what came, but this is no good end.
            exchange_blame(w, x, REASON_FIN_IN_BODY, x.error)
            x.outcome = OUTCOME_UPSTREAM_ABORT
        client_next(w, x)
        return False
    x.upstream_at = w.now
    sys_add_counter(&w.stats.streaming_bytes, got)
    client_send(w, x, w.hot.data, got)
    return x.state == STATE_TUNNEL and upstream.readable and not x.down.unsent

cdef void tunnel_failed(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Passes an RST on that no recv will tell of soon, since bytes are held towards the other side.
    cdef int error
    if x.client.conn.failed:
        # Nothing may be read while bytes are held, so the error is asked for. EPIPE is an RST behind a FIN: all that it
        # sent is here.
        error = conn_error(&x.client.conn)
        if error and error != EPIPE:
            client_left(w, x, error)
            return
    if x.upstream.conn.failed and x.down.unsent:
        error = conn_error(&x.upstream.conn)
        if error and error != EPIPE:
            upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(error), error)

cdef void step_tunnel(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Bytes both ways.
    cdef bint up = True
    cdef bint down = True
    cdef int i
    tunnel_failed(w, x)
    for i in range(TURN_READS):
        # Where the backend has failed and the client has not taken all, the exchange goes on, and the tunnel does not.
        if up and x.state == STATE_TUNNEL:
            up = tunnel_up(w, x)
        if down and x.state == STATE_TUNNEL:
            down = tunnel_down(w, x)
    if x.state != STATE_TUNNEL:
        return
    if up or down:
        conn_queue(w, &x.client.conn)
    tunnel_failed(w, x)      # the reads may have come upon a side that takes no more
