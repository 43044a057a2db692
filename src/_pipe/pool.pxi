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

cdef void conn_received(ConnC *conn, ssize_t got) noexcept nogil:
    # After a recv into an empty buffer: one that came back short left nothing.
    if got < BUF_SIZE and not conn.to_end:
        conn.readable = False

cdef void quiet_leave(WorkerC *w, ClientC *client) noexcept nogil:
    # Takes it out of the list of clients without an exchange, if it is there.
    if client.quiet_back is NULL:
        return
    client.quiet_back[0] = client.quiet_next
    if client.quiet_next is not NULL:
        client.quiet_next.quiet_back = client.quiet_back
    else:
        w.quiet_end = client.quiet_back
    client.quiet_back = NULL
    sys_set_counter(&w.mail.quiet, <uint64_t>w.quiet.since if w.quiet is not NULL else 0)

cdef void quiet_enter(WorkerC *w, ClientC *client) noexcept nogil:
    # Puts it at the end of that list: `since` is now.
    quiet_leave(w, client)
    client.quiet_next = NULL
    client.quiet_back = w.quiet_end
    w.quiet_end[0] = client
    w.quiet_end = &client.quiet_next
    sys_set_counter(&w.mail.quiet, <uint64_t>w.quiet.since)

cdef void client_uncount(WorkerC *w, uint16_t refusal, QuotaC *quota) noexcept nogil:
    # A client connection that was counted when it was accepted is no more.
    if refusal:
        sys_add_counter(&w.stats.refused_closed, 1)
    if quota is not NULL:
        sys_add_shared(&quota.refused if refusal else &quota.served, <uint32_t>-1)
    sys_add_counter(&w.stats.closed, 1)

cdef void client_recount(WorkerC *w, QuotaC *quota) noexcept nogil:
    # Something takes one more place among the clients, and client_uncount() gives it back. Only while the client itself is
    # counted: an entry whose counts are 0 may be freed at any time.
    if quota is not NULL:
        sys_add_shared(&quota.served, 1)
    sys_add_counter(&w.stats.closed, <uint64_t>-1)

cdef void client_release(WorkerC *w, ClientC *client, bint reset) noexcept nogil:
    # Closes the connection; its place among the clients stays taken, and is the caller's to give back.
    inbox_drop(w, &client.inbox, DISCARD_REQUEST)
    if client.linger is not NULL:
        slab_put(&w.lingers, client.linger)
        client.linger = NULL
    quiet_leave(w, client)
    conn_close(w, &client.conn, reset)
    w.client_count -= 1

cdef void client_close(WorkerC *w, ClientC *client, bint reset) noexcept nogil:
    client_release(w, client, reset)
    client_uncount(w, client.refusal, client.quota)

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
    inbox_drop(w, &upstream.inbox, DISCARD_BROKEN)
    if upstream.lingers:
        w.lingering -= 1
        client_uncount(w, 0, upstream.quota)
    conn_close(w, &upstream.conn, upstream.reset)
    sys_add_counter(&w.stats.upstreams, <uint64_t>-1)

cdef void upstream_keep(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Puts it among its backend's idle ones; epoll and the wheel watch it there (rule B3). One that was not read until it
    # was empty may hold bytes that no event will tell of: it is looked at now, and closed if it does.
    cdef UpstreamC **idle = &w.idle[upstream.backend]
    if upstream.conn.readable:
        if io_peek(upstream.conn.fd) != -EAGAIN:
            upstream_close(w, upstream)
            return
        upstream.conn.readable = False
    upstream.conn.exchange = NULL
    upstream.reused = True
    upstream.since = w.now
    upstream.idle_next = idle[0]
    upstream.idle_back = idle
    if idle[0] is not NULL:
        idle[0].idle_back = &upstream.idle_next
    idle[0] = upstream
    sys_add_counter(&w.stats.backends[upstream.backend].idle, 1)
    timer_arm(w, &upstream.conn, w.now + w.settings.upstream_idle_timeout)

cdef UpstreamC *pool_take_idle(WorkerC *w, int slot) noexcept nogil:
    # The idle upstream used last, or NULL. What the backend sent too much must not answer the next request (rule C4): an
    # event has told of it, and the upstream was closed, or one later in this batch will tell; `taken` knows it then.
    # A peek here would say no more and cost a system call for each request.
    cdef UpstreamC *upstream = w.idle[slot]
    if upstream is not NULL:
        upstream_leave_pool(w, upstream)
        upstream.conn.readable = False
        upstream.taken = w.turn
    return upstream

cdef bint pool_evict(WorkerC *w) noexcept nogil:
    # Closes an idle upstream of any backend, so that its descriptor is free. False where there is none.
    cdef int slot
    for slot in range(w.table.count):
        if w.idle[slot] is not NULL:
            upstream_close(w, w.idle[slot])
            return True
    return False

cdef int pool_connect(WorkerC *w, int slot, uint8_t address, UpstreamC **upstream) noexcept nogil:
    # Opens an upstream to one of the backend's addresses. RC_OK connected, RC_AGAIN on its way, -errno.
    cdef int fd = -1
    cdef int rc
    cdef int watched
    cdef UpstreamC *opened
    cdef AddressC *to = &w.table.routes[slot].addresses[address]
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
    opened.address = address
    opened.since = w.now
    if rc == RC_FULL:
        # Not in the epoll set yet, which would say of a socket that is not connected that it hung up.
        opened.full = True
        timer_arm(w, &opened.conn, w.now + CONNECT_PAUSE)
        rc = RC_AGAIN
    else:
        watched = io_watch(w.epfd, fd, &opened.conn)
        if watched < 0:
            upstream_close(w, opened)
            return watched
    sys_add_counter(&w.stats.connects, 1)
    sys_add_counter(&w.stats.backends[slot].connects, 1)
    upstream[0] = opened
    return rc

cdef bint pool_has_another(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether there is a backend that this exchange has not tried.
    cdef int slot
    for slot in range(w.table.count):
        if w.table.routes[slot].backend is not NULL and not (x.tried[slot >> 6] >> (slot & 63)) & 1:
            return True
    return False

cdef int pool_reserve(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The backend with the fewest exchanges in flight among those that this exchange has not tried, with this one counted; one that
    # is left out only where there is no other. Equals take turns. -1 where there is none.
    cdef RouteC *route
    cdef BackendC *best = NULL
    cdef uint32_t fewest = 0
    cdef uint32_t in_flight
    cdef bint best_out = False
    cdef bint out
    cdef int found = -1
    cdef int first
    cdef int slot
    cdef int i
    while True:
        # It was counted up with the table of whichever worker came last.
        first = <int>sys_load_acquire(&w.shared.next_slot)
        if first >= w.table.count:
            first = 0
        for i in range(w.table.count):
            slot = first + i
            if slot >= w.table.count:
                slot -= w.table.count
            route = &w.table.routes[slot]
            if route.backend is NULL or (x.tried[slot >> 6] >> (slot & 63)) & 1:
                continue
            out = backend_left_out(route.backend, w.now)
            in_flight = sys_load_acquire(&route.backend.in_flight)
            if best is NULL or (best_out and not out) or (out == best_out and in_flight < fewest):
                found = slot
                best = route.backend
                best_out = out
                fewest = in_flight
        if best is NULL:
            return -1
        # Only if nobody else was counted meanwhile: two workers that look at the same time must not both take it for the emptiest.
        if sys_compare_exchange(&best.in_flight, &fewest, fewest + 1):
            if w.table.count > 1:
                sys_store_release(&w.shared.next_slot, <uint32_t>found + 1)
            return found
        best = NULL

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

cdef void backend_failed(WorkerC *w, BackendC *backend, int slot, uint8_t reason, int error) noexcept nogil:
    # Leaves the backend out for a while, and says so where this failure is the one that did it.
    cdef int64_t out = backend_eject(backend, w.now)
    sys_add_counter(&w.stats.backends[slot].failures, 1)
    if out:
        backend_post(w, slot, KIND_BACKEND_DOWN, out, reason, error)

cdef void backend_answered(WorkerC *w, BackendC *backend, int slot) noexcept nogil:
    if backend_recover(backend):
        backend_post(w, slot, KIND_BACKEND_UP, 0, REASON_NONE, 0)
