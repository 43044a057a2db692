# upstream: a connection to a backend: its connect, its time among the idle ones, its linger behind a tunnel, its end.

cdef struct UpstreamC:
    ConnC conn
    PendingC pending
    int backend             # slot
    uint8_t reused          # was idle before it got its exchange
    uint8_t served          # carried an exchange before that
    uint8_t keep_alive      # may be used again after this response
    uint8_t address         # index in its route's addresses
    uint8_t orphan          # that address is in the table no more: it goes when its exchange has ended
    uint8_t lingers         # its tunnel has ended and our side is shut; what still comes is thrown away, in a client's place
    uint8_t reset           # must end with an RST
    uint8_t probes          # only connects, to see whether the backend is back: how many addresses were tried for that
    uint8_t full            # the backlog that it connects to was full: it tries again
    uint32_t taken          # turn in which the exchange it has took it out of the pool
    int64_t since           # start of the connect, of the idle time or of the linger
    int64_t heard           # while it lingers: when the last byte came
    QuotaC *quota           # while it lingers: of the client whose place it has, or NULL
    UpstreamC *idle_next
    UpstreamC **idle_back   # what points to this one in its backend's idle list, NULL where not idle

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
    pending_drop(w, &upstream.pending, DISCARD_BROKEN)
    if upstream.lingers:
        w.lingering -= 1
        place_free(w, 0, upstream.quota)
    conn_close(w, &upstream.conn, upstream.reset)
    sys_add_counter(&w.stats.upstreams, <uint64_t>-1)

cdef void upstream_keep(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Puts it among its backend's idle ones; epoll and the wheel watch it there (rule B3). One that was not read until it
    # was empty may hold bytes that no event will tell of: it is looked at now, and closed if it does.
    cdef UpstreamC **idle = &w.idle[upstream.backend]
    if upstream.conn.readable and conn_probe(&upstream.conn) != -EAGAIN:
        upstream_close(w, upstream)
        return
    upstream.conn.exchange = NULL
    upstream.reused = True
    upstream.since = w.now
    upstream.idle_next = idle[0]
    upstream.idle_back = idle
    if idle[0] is not NULL:
        idle[0].idle_back = &upstream.idle_next
    idle[0] = upstream
    sys_add_counter(&w.stats.backends[upstream.backend].idle, 1)
    timer_arm(w, &upstream.conn, upstream_deadline(w, upstream))

cdef UpstreamC *upstream_take_idle(WorkerC *w, int slot) noexcept nogil:
    # The idle upstream used last, or NULL. What the backend sent too much must not answer the next request (rule C4): an
    # event has told of it, and the upstream was closed, or one later in this batch will tell; `taken` knows it then.
    # A peek here would say no more and cost a system call for each request.
    cdef UpstreamC *upstream = w.idle[slot]
    if upstream is not NULL:
        upstream_leave_pool(w, upstream)
        upstream.taken = w.turn
    return upstream

cdef bint upstream_evict(WorkerC *w) noexcept nogil:
    # Closes an idle upstream of any backend, so that its descriptor is free. False where there is none.
    cdef int slot
    for slot in range(w.table.count):
        if w.idle[slot] is not NULL:
            upstream_close(w, w.idle[slot])
            return True
    return False

cdef int upstream_open(WorkerC *w, int slot, uint8_t address, UpstreamC **upstream) noexcept nogil:
    # Opens an upstream to one of the backend's addresses. RC_OK connected, RC_AGAIN on its way, -errno.
    cdef int fd = -1
    cdef int rc
    cdef int watched
    cdef UpstreamC *opened
    cdef AddressC *to = &w.table.routes[slot].addresses[address]
    rc = io_connect(to, &fd)
    if (rc == -EMFILE or rc == -ENFILE) and upstream_evict(w):
        rc = io_connect(to, &fd)
    if rc < 0:
        return rc
    opened = <UpstreamC *>slab_get(&w.upstreams)
    if opened is NULL:
        io_close(fd)
        return -ENOMEM
    # Not io_unanswered: a busy server may leave the rest of a long request lying for as long as the idle time-out says.
    io_keepalive(fd, w.settings.dead_peer_timeout)
    conn_open(w, &opened.conn, fd, CONN_UPSTREAM)
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
        if rc == RC_OK:
            conn_connected(&opened.conn)
        watched = io_watch(w.epfd, fd, &opened.conn)
        if watched < 0:
            upstream_close(w, opened)
            return watched
    sys_add_counter(&w.stats.connects, 1)
    sys_add_counter(&w.stats.backends[slot].connects, 1)
    upstream[0] = opened
    return rc

cdef void upstream_linger(WorkerC *w, UpstreamC *upstream, QuotaC *quota) noexcept nogil:
    # As client_linger, for what a tunnel of a client in that quota has sent to its backend. The exchange has let go of it. It
    # counts as a client, or who opens and leaves tunnels could have any number of them.
    upstream.conn.exchange = NULL
    if upstream.conn.hung_up and not upstream.conn.readable:
        upstream_close(w, upstream)
        return
    conn_shut(&upstream.conn)
    upstream.lingers = True
    upstream.since = w.now
    upstream.heard = w.now
    w.lingering += 1
    upstream.quota = quota
    place_take(w, quota)
    if upstream.conn.readable:
        conn_queue(w, &upstream.conn)
    timer_arm(w, &upstream.conn, upstream_deadline(w, upstream))

cdef void upstream_waste(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # It lingers: throws away what still comes.
    cdef BodyC rest
    cdef size_t wasted = 0
    cdef ssize_t got
    body_begin(&rest, FRAMING_CLOSE, 0)
    got = waste_read(w, &upstream.conn, &rest, DISCARD_TUNNEL, False, &wasted)
    if wasted:
        upstream.heard = w.now
    if got != -EAGAIN:
        upstream_close(w, upstream)
