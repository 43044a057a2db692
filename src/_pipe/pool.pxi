# pool: connections and their ends, the choice of a backend, and the idle upstreams.
#
# A closed connection is parked, and freed at the end of the turn: the same batch of events may name it once more.

cdef void conn_open(WorkerC *w, ConnC *conn, int fd, uint8_t side) noexcept nogil:
    conn.fd = fd
    conn.side = side
    conn.all_next = w.all
    conn.all_back = &w.all
    if w.all is not NULL:
        w.all.all_back = &conn.all_next
    w.all = conn

cdef void conn_close(WorkerC *w, ConnC *conn, bint reset) noexcept nogil:
    # Closes the descriptor and parks the struct. The exchange's pointer to it is the caller's to clear.
    timer_disarm(w, conn)
    if reset:
        io_reset(conn.fd)
    else:
        io_close(conn.fd)
    conn.closed = True
    conn.exchange = NULL
    conn.all_back[0] = conn.all_next
    if conn.all_next is not NULL:
        conn.all_next.all_back = conn.all_back
    conn.all_next = w.parked
    w.parked = conn

cdef void conn_queue(WorkerC *w, ConnC *conn) noexcept nogil:
    # Has the connection looked at again in the next turn, though no event will name it.
    if conn.queued:
        return
    conn.queued = True
    conn.busy_next = NULL
    w.busy_end[0] = conn
    w.busy_end = &conn.busy_next

cdef void client_close(WorkerC *w, ClientC *client, bint reset) noexcept nogil:
    inbox_clear(w, &client.inbox)
    conn_close(w, &client.conn, reset)
    w.client_count -= 1
    client_uncount(w, client.refusal, client.quota)

cdef void client_uncount(WorkerC *w, uint16_t refusal, QuotaC *quota) noexcept nogil:
    # A client connection that was counted when it was accepted is no more.
    if refusal:
        sys_add_counter(&w.stats.refused_closed, 1)
    if quota is not NULL:
        sys_add_shared(&quota.refused if refusal else &quota.served, <uint32_t>-1)
    sys_add_counter(&w.stats.closed, 1)

cdef void upstream_leave_pool(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Takes it out of its backend's idle list, if it is there.
    if upstream.idle_back is NULL:
        return
    upstream.idle_back[0] = upstream.idle_next
    if upstream.idle_next is not NULL:
        upstream.idle_next.idle_back = upstream.idle_back
    upstream.idle_back = NULL
    sys_add_counter(&w.stats.backends[upstream.backend].idle, <uint64_t>-1)

cdef void upstream_close(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    upstream_leave_pool(w, upstream)
    inbox_clear(w, &upstream.inbox)
    conn_close(w, &upstream.conn, False)
    sys_add_counter(&w.stats.upstreams, <uint64_t>-1)

cdef void upstream_keep(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Puts it among its backend's idle ones; epoll and the wheel watch it there (rule B3). One that was not read until it
    # was empty may hold bytes that no event will tell of: it is looked at now, and closed if it does.
    cdef BackendC *backend = &w.backends[upstream.backend]
    if upstream.conn.readable:
        if io_peek(upstream.conn.fd) != -EAGAIN:
            upstream_close(w, upstream)
            return
        upstream.conn.readable = False
    upstream.conn.exchange = NULL
    upstream.reused = True
    upstream.since = w.now
    upstream.idle_next = backend.idle
    upstream.idle_back = &backend.idle
    if backend.idle is not NULL:
        backend.idle.idle_back = &upstream.idle_next
    backend.idle = upstream
    sys_add_counter(&w.stats.backends[upstream.backend].idle, 1)
    timer_arm(w, &upstream.conn, w.now + w.settings.upstream_idle_timeout)

cdef UpstreamC *pool_take_idle(WorkerC *w, int slot) noexcept nogil:
    # The idle upstream used last, or NULL. What the backend sent too much must not answer the next request (rule C4): an
    # event has told of it, and the upstream was closed, or one later in this batch will tell; `taken` knows it then.
    # A peek here would say no more and cost a system call for each request.
    cdef UpstreamC *upstream = w.backends[slot].idle
    if upstream is not NULL:
        upstream_leave_pool(w, upstream)
        upstream.conn.readable = False
        upstream.taken = w.turn
    return upstream

cdef bint pool_evict(WorkerC *w) noexcept nogil:
    # Closes an idle upstream of any backend, so that its descriptor is free. False where there is none.
    cdef int slot
    for slot in range(w.table.count):
        if w.backends[slot].idle is not NULL:
            upstream_close(w, w.backends[slot].idle)
            return True
    return False

cdef int pool_connect(WorkerC *w, int slot, UpstreamC **upstream) noexcept nogil:
    # Opens an upstream to the backend's address that worked last. RC_OK connected, RC_AGAIN on its way, -errno.
    cdef int fd = -1
    cdef int rc
    cdef int watched
    cdef UpstreamC *opened
    cdef AddressC *to = &w.table.routes[slot].addresses[w.backends[slot].address]
    rc = io_connect(to, &fd)
    if (rc == -EMFILE or rc == -ENFILE) and pool_evict(w):
        rc = io_connect(to, &fd)
    if rc < 0:
        return rc
    opened = <UpstreamC *>slab_get(&w.upstreams)
    if opened is NULL:
        io_close(fd)
        return -ENOMEM
    # Not io_unanswered: a busy server may leave the rest of a long request lying for as long as the idle time-out says.
    io_keepalive(fd, w.settings.dead_peer_timeout)
    conn_open(w, &opened.conn, fd, SIDE_UPSTREAM)
    sys_add_counter(&w.stats.upstreams, 1)
    opened.backend = slot
    opened.since = w.now
    watched = io_watch(w.epfd, fd, &opened.conn)
    if watched < 0:
        upstream_close(w, opened)
        return watched
    sys_add_counter(&w.stats.connects, 1)
    sys_add_counter(&w.stats.backends[slot].connects, 1)
    upstream[0] = opened
    return rc

cdef bint pool_left_out(WorkerC *w, int slot) noexcept nogil:
    return w.backends[slot].left_out_until > w.now

cdef int pool_choose(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The backend with the fewest exchanges in flight among those that this exchange has not tried; one that is left out
    # only where there is no other. Equals take turns. -1 where there is none.
    cdef int best = -1
    cdef bint best_out = False
    cdef bint out
    cdef int slot
    cdef int i
    for i in range(w.table.count):
        slot = w.turn_start + i
        if slot >= w.table.count:
            slot -= w.table.count
        if not w.table.routes[slot].used or (x.tried[slot >> 6] >> (slot & 63)) & 1:
            continue
        out = pool_left_out(w, slot)
        if best < 0 or (best_out and not out) or (
                out == best_out and w.backends[slot].in_flight < w.backends[best].in_flight):
            best = slot
            best_out = out
    return best

cdef void backend_post(WorkerC *w, int slot, uint8_t kind, int64_t duration, uint8_t reason, int error) noexcept nogil:
    # Tells the control plane that a backend went or came back.
    cdef RecordC *record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    memset(record, 0, sizeof(RecordC))
    record.kind = kind
    record.at = w.now
    record.backend = slot
    record.duration = duration
    record.ttft = -1
    record.close_time = -1
    record.error = error
    record.reason = reason
    mail_post(&w.mail, True)

cdef void backend_failed(WorkerC *w, int slot, uint8_t reason, int error) noexcept nogil:
    # Leaves the backend out for a time that doubles with each failure in a row. Failures that come while it is left
    # out, of exchanges that were already there, do not make it longer.
    cdef BackendC *backend = &w.backends[slot]
    cdef int64_t out = LEFT_OUT_MOST
    sys_add_counter(&w.stats.backends[slot].failures, 1)
    if pool_left_out(w, slot):
        return
    if backend.failures < 16 and LEFT_OUT_FIRST << backend.failures < LEFT_OUT_MOST:
        out = LEFT_OUT_FIRST << backend.failures
    backend.failures += 1
    backend.left_out_until = w.now + out
    sys_set_counter(&w.stats.backends[slot].left_out_until, <uint64_t>backend.left_out_until)
    backend_post(w, slot, KIND_BACKEND_DOWN, out, reason, error)

cdef void backend_answered(WorkerC *w, int slot) noexcept nogil:
    cdef BackendC *backend = &w.backends[slot]
    if not backend.failures:
        return
    backend.failures = 0
    backend.left_out_until = 0
    sys_set_counter(&w.stats.backends[slot].left_out_until, 0)
    backend_post(w, slot, KIND_BACKEND_UP, 0, REASON_NONE, 0)
