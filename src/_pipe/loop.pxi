# loop: one worker's life. A turn is: wait, dispatch, the connections with work left, the wheel, free the closed.

cdef int64_t loop_clock() noexcept nogil:
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec * 1000000 + clock.tv_nsec // 1000

cdef void table_replace(WorkerC *w, TableC *table) noexcept nogil:
    # Takes a new routing table. Upstreams to addresses that are no longer in it are closed: idle ones now, others when their
    # exchange has ended.
    cdef TableC *old = w.table
    cdef ConnC *conn = w.all
    cdef ConnC *following
    cdef UpstreamC *upstream
    cdef RouteC *route
    cdef AddressC *address
    cdef int i
    while conn is not NULL:
        following = conn.all_next
        upstream = <UpstreamC *>conn
        if conn.side == SIDE_UPSTREAM and not upstream.orphan:
            route = &table.routes[upstream.backend]
            address = &old.routes[upstream.backend].addresses[upstream.address]
            upstream.orphan = True
            for i in range(route.address_count):
                if memcmp(&route.addresses[i], address, sizeof(AddressC)) == 0:
                    upstream.orphan = False
                    upstream.address = <uint8_t>i
            if upstream.orphan and conn.exchange is NULL and not upstream.lingers:
                upstream_close(w, upstream)
        conn = following
    w.table = table
    w.tables += 1
    table_free(old)

cdef void loop_mail(WorkerC *w) noexcept nogil:
    # What the control plane has sent.
    cdef uint32_t head = w.mail.in_head
    cdef void *table
    cdef ConnC *conn
    cdef ConnC *following
    io_hush(w.mail.in_fd, &w.mail.in_rung)
    listener_take(w)
    if sys_exchange(&w.mail.room, 0):
        clients_give_way(w)
    table = sys_exchange_pointer(&w.new_table, NULL)
    if table is not NULL:
        table_replace(w, <TableC *>table)
    while head != sys_load_acquire(&w.mail.in_tail):
        client_adopt(w, &w.mail.adopts[head & (MAIL_IN - 1)])
        head += 1
        sys_store_release(&w.mail.in_head, head)
    w.stopping = sys_load_acquire(&w.mail.stopping) != 0
    if not w.draining and sys_load_acquire(&w.mail.draining):
        w.draining = True
        w.drained = w.now
        conn = w.all
        while conn is not NULL:
            following = conn.all_next
            if conn.side == SIDE_CLIENT and (<ClientC *>conn).state <= CLIENT_IDLE:
                client_drain(w, <ClientC *>conn)
            elif conn.exchange is NULL and conn.side == SIDE_CLIENT:
                timer_arm(w, conn, client_deadline(w, <ClientC *>conn))     # it lingers
            elif conn.exchange is NULL and conn.side == SIDE_UPSTREAM and (<UpstreamC *>conn).lingers:
                timer_arm(w, conn, upstream_deadline(w, <UpstreamC *>conn))
            conn = following

cdef void loop_dispatch(WorkerC *w, epoll_event *event) noexcept nogil:
    cdef ConnC *conn = <ConnC *>event.data.ptr
    if conn.closed:
        return          # by an earlier event of this batch
    if conn.side == SIDE_MAIL:
        loop_mail(w)
        return
    if conn.side == SIDE_LISTENER:
        conn.readable = True
        step_listener(w, conn)
        return
    if event.events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.readable = True
        if event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            conn.hung_up = conn.to_end = True
            if event.events & EPOLLERR:
                conn.failed = True
        if event.events & EPOLLPRI:
            conn.to_end = True      # a recv stops before an urgent byte
    if conn.side == SIDE_CLIENT:
        step_client(w, <ClientC *>conn)
    else:
        step_upstream(w, <UpstreamC *>conn, (event.events & EPOLLOUT) != 0)

cdef void loop_busy(WorkerC *w) noexcept nogil:
    # Those that had work left when this pass began; what they queue again waits for the next turn.
    cdef ConnC *conn = w.busy
    cdef ConnC *following
    w.busy = NULL
    w.busy_end = &w.busy
    while conn is not NULL:
        following = conn.busy_next
        conn.queued = False
        if not conn.closed:
            if conn.side == SIDE_CLIENT:
                step_client(w, <ClientC *>conn)
            elif conn.side == SIDE_UPSTREAM:
                step_upstream(w, <UpstreamC *>conn, False)
            else:
                step_listener(w, conn)
        conn = following

cdef void loop_reap(WorkerC *w) noexcept nogil:
    # The only place where connections and exchanges are freed. One that is still queued waits for its turn.
    cdef ConnC *conn = w.parked
    cdef ConnC *following
    cdef ExchangeC *x
    w.parked = NULL
    while conn is not NULL:
        following = conn.all_next
        if conn.queued:
            conn.all_next = w.parked
            w.parked = conn
        else:
            slab_put(&w.clients if conn.side == SIDE_CLIENT else &w.upstreams, conn)
        conn = following
    while w.ended is not NULL:
        x = w.ended
        w.ended = x.ended_next
        slab_put(&w.exchanges, x)

cdef void loop_cut(WorkerC *w, ClientC *client) noexcept nogil:
    # Ends a client connection now, and its exchange as honestly as one send allows.
    cdef ExchangeC *x = client.conn.exchange
    cdef int rc = RC_OK
    cdef bint reset = False
    if x is not NULL:
        # What it has not taken is lost; where only the end of the connection ends the answer, a FIN would hide that.
        reset = x.forwarded and x.state != STATE_TUNNEL and (x.framing_down == FRAMING_CLOSE or x.dechunk)
        if x.state == STATE_HEAD or x.state == STATE_FLUSH or x.state == STATE_TUNNEL:
            rc = RC_OK
        elif x.forwarded:
            rc = response_truncate(w, x, OUTCOME_SHUTDOWN)
        else:
            rc = answer_error(w, x, 503, OUTCOME_SHUTDOWN)
        if rc != RC_GONE:
            exchange_end(w, x, <uint8_t>exchange_phase(x), OUTCOME_SHUTDOWN)
    if not client.conn.closed:
        client_close(w, client, reset)

cdef void loop_cut_all(WorkerC *w) noexcept nogil:
    # Every connection is closed when this returns.
    cdef ConnC *conn
    cdef ExchangeC *x
    while w.all is not NULL:
        conn = w.all
        x = conn.exchange
        if conn.side == SIDE_CLIENT:
            loop_cut(w, <ClientC *>conn)
        elif x is NULL:
            upstream_close(w, <UpstreamC *>conn)
        elif x.client is NULL:
            exchange_end(w, x, PHASE_FINISH, OUTCOME_CLIENT_ABORT)
        else:
            loop_cut(w, x.client)

cdef int loop_wait(WorkerC *w) noexcept nogil:
    # As epoll_wait. Where the last waits were no longer than it takes to sleep and be woken, it looks for a while first:
    # who wakes a sleeping worker pays for it too (docs/adr/0009).
    cdef int64_t begun
    cdef int64_t now
    cdef int n
    if w.busy is not NULL:
        return epoll_wait(w.epfd, w.events, BATCH, 0)
    begun = now = loop_clock()
    n = 0
    if w.gap < SPIN_GAP * 16:
        while n == 0 and now - begun < SPIN_MOST:
            n = epoll_wait(w.epfd, w.events, BATCH, 0)
            now = loop_clock()
    if n == 0:
        n = epoll_wait(w.epfd, w.events, BATCH, timer_wait(w))
        now = loop_clock()
    begun = (now - begun) * 16
    if begun > 10000:
        begun = 10000
    w.gap += (begun - w.gap) // 16
    return n

cdef int loop_run(WorkerC *w) noexcept nogil:
    # Turns until told to stop, or to drain and nothing is left: RC_OK. -errno where the epoll set failed.
    cdef int n
    cdef int i
    cdef int rc = RC_OK
    cdef ConnC *conn
    w.now = loop_clock()
    w.wheel_tick = w.now >> WHEEL_SHIFT
    while True:
        n = loop_wait(w)
        if n < 0 and errno != EINTR:
            rc = -errno
            break
        w.now = loop_clock()
        w.turn += 1
        for i in range(n):
            loop_dispatch(w, &w.events[i])
        loop_busy(w)
        while True:
            conn = timer_pop(w)
            if conn is NULL:
                break
            if conn.side == SIDE_LISTENER:
                listener_resume(w)
            else:
                step_expired(w, conn)
        loop_reap(w)
        if w.stopping or (w.draining and w.client_count == 0 and w.exchange_count == 0 and w.lingering == 0):
            break
    loop_mail(w)
    loop_cut_all(w)
    w.busy = NULL
    w.busy_end = &w.busy
    return rc
