# route: the way to a backend: choice, connect, and what happens when one fails (rules B and E).

cdef bint request_repeats(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether the request can be sent once more, should the connection it goes on prove stale (rule B3). Where it cannot, because
    # it is longer than what is kept, or its end is not in sight, or a backend had it already, it goes on a fresh one.
    if x.unanswered or (x.up_body.framing == FRAMING_CHUNKED and not x.up_body.done):
        return False
    return request_keeps(w, x, x.up.total + x.up_body.chunk.left, x.up_body.chunk.left)

cdef void request_rewind(ExchangeC *x) noexcept nogil:
    # The request will be sent from its beginning.
    x.up_broken = False
    chain_rewind(&x.up)

cdef void request_lost(WorkerC *w, ExchangeC *x) noexcept nogil:
    # No memory for a piece of the request, or of the head of its answer: neither can ever be whole.
    if x.state == STATE_DETACHED:
        upstream_failed(w, x, OUTCOME_OVERLOAD, REASON_NO_MEMORY, ENOMEM)    # there is no client to tell
        return
    exchange_blame(w, x, REASON_NO_MEMORY, ENOMEM)
    x.client_keeps = False      # what stood behind the request may be lost too
    if x.forwarded:
        response_truncate(w, x, OUTCOME_OVERLOAD)
    else:
        answer_error(w, x, 503, OUTCOME_OVERLOAD)

cdef bint pool_offers_another(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether one that this exchange has not tried would take it now: it is not left out, and has a place.
    cdef LookC look
    if x.table is not w.table:
        exchange_take_table(w, x)
    pool_look(w.table, x.pool, x.tried, w.now, &look)
    return look.rank < RANK_OUT and not look.rank & 1 and not pool_full(w.table, x.pool)

cdef void upstream_failed(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason, int error) noexcept nogil:
    # The upstream is of no use to this exchange any more (rules E1 and E2). A truncated response where some was forwarded; else the
    # request is sent once more where it may be, and an error answer where not.
    #
    #   what the backend may have done with the request    it is sent again
    #   -------------------------------------------------  ----------------------------------------------------------
    #   nothing: not connected, or not a byte was taken    to every backend, once
    #   it took some of it, and ended without a byte       once, whatever ended it: a request that kills its server must
    #                                                      not kill them all. A connection that was used before may
    #                                                      have been closed while the request was on its way (rule B3),
    #                                                      or its server may be dying, and still accept: to another one
    #                                                      if that has a place, else to the same
    #   it sent a byte, or the TTFT limit is over          never: it was carried out, or is no longer waited for
    cdef bint unconnected = outcome == OUTCOME_CONNECT_ERROR or outcome == OUTCOME_TIMEOUT_CONNECT
    cdef bint ended = outcome == OUTCOME_UPSTREAM_ERROR and not x.answered
    cdef bint stale
    exchange_blame(w, x, reason, error)
    attempt_failed(w, x, reason)
    if x.state == STATE_DETACHED:
        exchange_end(w, x, PHASE_FINISH, OUTCOME_CLIENT_ABORT)
        return
    if x.forwarded:
        response_truncate(w, x, OUTCOME_UPSTREAM_ABORT if outcome == OUTCOME_UPSTREAM_ERROR else outcome)
        return
    if not unconnected and (x.up.incomplete or x.up.unsent != x.up.total):
        x.unanswered += 1
    stale = ended and x.upstream is not NULL and x.upstream.served and x.unanswered < 2
    # What happens at an address that has left the table is no word about the backend.
    if (unconnected or (ended and not stale)) and not (x.upstream is not NULL and x.upstream.orphan):
        backend_failed(w, x.counted, x.backend, reason, error)
    if not x.answered and not x.up.incomplete and x.unanswered < 2 and outcome != OUTCOME_TIMEOUT_TTFT:
        if stale:
            sys_add_counter(&w.stats.stale, 1)
            request_rewind(x)
            if pool_offers_another(w, x):
                upstream_drop(w, x)
                exchange_reroute(w, x, False)
            else:
                upstream_leave(w, x)
                x.addresses_tried = 0
                exchange_reroute(w, x, True)
            return
        upstream_drop(w, x)
        if unconnected and x.pool.limits.cold_timeout and not pool_ready(w.table, pool_now(w, x), w.now, NULL):
            memset(x.tried, 0, sizeof(x.tried))     # none of them is known to be up: it waits for one, which is no retry
            request_rewind(x)
            exchange_reroute(w, x, False)
            return
        if pool_has_another(w, x) and retry_take(w.shared):
            sys_add_counter(&w.stats.retries[RETRY_CONNECT if unconnected else RETRY_ENDED], 1)
            request_rewind(x)
            exchange_reroute(w, x, False)
            return
    answer_error(w, x, 502 if outcome == OUTCOME_CONNECT_ERROR or outcome == OUTCOME_UPSTREAM_ERROR else 504, outcome)

cdef void connect_failed(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason, int error) noexcept nogil:
    # Tries the backend's next address, then the next backend.
    cdef RouteC *route
    sys_add_counter(&w.stats.connect_errors, 1)
    x.addresses_tried += 1
    if x.table is not w.table:
        exchange_take_table(w, x)
        x.addresses_tried = 0       # what was tried says nothing of its addresses
    route = table_route(x.table, x.backend)
    if route.backend is x.counted and x.addresses_tried < route.address_count:
        x.address = <uint8_t>((x.address + 1) % route.address_count)
        upstream_leave(w, x)
        exchange_reroute(w, x, True)
        return
    upstream_failed(w, x, outcome, reason, error)

cdef void connect_refused(WorkerC *w, ExchangeC *x, int rc) noexcept nogil:
    # The connect could not begin: `rc` is -errno. What the proxy itself lacks says nothing of the backend; ENOSPC is epoll's limit
    # of watched descriptors.
    if rc == -EMFILE or rc == -ENFILE or rc == -ENOMEM or rc == -ENOBUFS or rc == -ENOSPC:
        exchange_blame(w, x, REASON_NO_MEMORY if rc == -ENOMEM or rc == -ENOBUFS else REASON_NO_DESCRIPTORS, -rc)
        answer_error(w, x, 503, OUTCOME_OVERLOAD)
    else:
        connect_failed(w, x, OUTCOME_CONNECT_ERROR, reason_of_errno(-rc), -rc)

cdef void upstream_connected(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The connect ended well.
    # The address that answers is the first that the next exchange tries; one that does not never changes that: others may be
    # trying it at this moment.
    if x.upstream.address != sys_load_acquire(&x.counted.address) and not x.upstream.orphan:
        sys_store_release(&x.counted.address, x.upstream.address)
    # A fresh connection to the only backend leaves nowhere else to send the request to: nothing needs to be kept.
    if not pool_has_another(w, x):
        request_forget(w, x)
    ticket_drop(w, x)
    x.connected = exchange_age(w, x)
    series_note(x.series, SERIES_CONNECT, w.now - x.upstream.since)
    exchange_set_state(w, x, STATE_WAIT)

cdef void upstream_reconnect(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # The backlog of the Unix socket that it connects to was full (rule E1: that is neither refused nor dead).
    cdef ExchangeC *x = upstream.conn.exchange
    cdef int64_t pause = (w.now - upstream.since) // 8
    cdef int rc = -ECONNREFUSED
    cdef int watched
    if not upstream.orphan:
        rc = io_connect_again(upstream.conn.fd, &w.table.routes[upstream.backend].addresses[upstream.address])
    if rc == RC_FULL:
        timer_arm(w, &upstream.conn, w.now + (pause if pause > CONNECT_PAUSE else CONNECT_PAUSE))
        return
    if rc >= 0:
        upstream.full = False
        watched = io_watch(w.epfd, upstream.conn.fd, &upstream.conn)
        if watched < 0:
            rc = watched
    if rc < 0:
        connect_refused(w, x, rc)
    elif rc == RC_OK:
        conn_connected(&upstream.conn)
        upstream_connected(w, x)

cdef void step_route(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Finds a backend and an upstream for the exchange.
    cdef int slot = x.backend
    cdef UpstreamC *upstream = NULL
    cdef RouteC *route
    cdef int member
    cdef int rc
    if x.client.conn.hung_up:
        client_left(w, x, 0)
        return
    if x.table is not w.table:
        exchange_take_table(w, x)
    if not x.same_backend:
        member = exchange_place(w, x)
        if w.table.ailing:
            backends_probe(w)
        if member == MEMBER_BUSY:
            queue_enter(w, x)
            return
        if member < 0:
            answer_error(w, x, 503, OUTCOME_NO_BACKEND)
            return
        slot = x.pool.members[member].slot
        route = table_route(x.table, slot)
        member_put(x.tried, member)
        x.addresses_tried = 0
        x.address = <uint8_t>sys_load_acquire(&route.backend.address)
        if x.address >= route.address_count:
            x.address = 0           # another worker has a longer table
        attempt_begin(w, x, slot)
        x.series = x.pool.members[member].series
        if w.idle[slot] is not NULL:
            if request_repeats(w, x):
                upstream = upstream_take_idle(w, slot)
            else:
                upstream_close(w, w.idle[slot])     # a fresh one takes its place: else they would pile up
    else:
        route = table_route(x.table, slot)
        if route.backend is not x.counted:
            answer_error(w, x, 503, OUTCOME_NO_BACKEND)      # a new table has it no more
            return
        if x.address >= route.address_count:
            x.address = 0
        attempt_begin(w, x, slot)
    rc = request_set_prefix(w, x, slot) if route.prefix_length or x.prefix_length else RC_OK
    if rc == RC_OK and (route.host[0] or x.no_host or x.host is not NULL):
        rc = request_set_host(w, x, slot)
    if rc != RC_OK:
        if upstream is not NULL:
            upstream_keep(w, upstream)
        if rc == RC_BAD:
            refuse(w, x, 431, REASON_HEAD_TOO_LONG)
        else:
            request_lost(w, x)
        return
    if upstream is not NULL:
        x.upstream = upstream
        upstream.conn.exchange = x
        sys_add_counter(&w.stats.reuses, 1)
        sys_add_counter(&w.stats.backends[slot].reuses, 1)
        ticket_drop(w, x)
        x.connected = exchange_age(w, x)
        exchange_set_state(w, x, STATE_WAIT)
        return
    rc = upstream_open(w, slot, x.address, &upstream)
    if rc < 0:
        connect_refused(w, x, rc)
        return
    x.upstream = upstream
    upstream.conn.exchange = x
    if rc == RC_OK:
        upstream_connected(w, x)
    else:
        exchange_set_state(w, x, STATE_CONNECT)

cdef void step_connect(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Waits for the connect to end.
    cdef ConnC *conn = &x.upstream.conn
    cdef int error
    if x.client.conn.hung_up:
        client_left(w, x, 0)
        return
    if not conn.readable and not conn.writable:
        return
    error = conn_error(conn)
    if error:
        connect_failed(w, x, OUTCOME_CONNECT_ERROR, reason_of_errno(error), error)
    elif conn.writable:
        upstream_connected(w, x)
