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
        if conn.kind == CONN_UPSTREAM and not upstream.orphan:
            route = table_route(table, upstream.backend)
            address = &old.routes[upstream.backend].addresses[upstream.address]
            upstream.orphan = True
            for i in range(route.address_count):
                if memcmp(&route.addresses[i], address, sizeof(AddressC)) == 0:
                    upstream.orphan = False
                    upstream.address = <uint8_t>i
            if upstream.orphan and conn.exchange is NULL and not upstream.lingers:
                upstream_close(w, upstream)
        elif conn.kind == CONN_CLIENT and conn.exchange is not NULL and conn.exchange.state == STATE_QUEUE:
            conn_queue(w, conn)     # its pool may be gone
        conn = following
    for i in range(table.count):
        if table.routes[i].backend is not NULL:
            backend_stats_take(&w.stats.backends[i], table.routes[i].backend.id)
    w.table = table
    table_release(old)
    pools_serve(w)              # what it allows, others may have waited for

cdef void loop_list(WorkerC *w) noexcept nogil:
    # Writes a record of each exchange that goes on, the latest connections first: as many as leave half of the ring to those that end.
    cdef ConnC *conn = w.all
    cdef ExchangeC *x
    cdef RecordC *record = NULL
    cdef const char *address
    cdef uint32_t number = sys_load_acquire(&w.mail.list_asked)
    cdef int64_t left = MAIL_OUT // 2 - <int64_t>(w.mail.out_tail - sys_load_acquire(&w.mail.out_head))
    w.mail.list_told = number
    while conn is not NULL and left > 0:
        x = conn.exchange
        if x is not NULL and (conn.kind == CONN_CLIENT or x.client is NULL):
            record = mail_next_record(&w.mail)
            if record is NULL:
                return
            address = NO_ADDRESS
            if x.client is not NULL:
                address = x.client.address
            record.kind = RECORD_LIVE
            record.list_number = number
            record_fill(w, x, record, address, <uint8_t>exchange_phase(x), OUTCOME_OK, -1)
            if x.state == STATE_QUEUE:
                record.queued += <uint32_t>w.now
            mail_post(&w.mail, False)
            left -= 1
        conn = conn.all_next
    record = mail_next_record(&w.mail)
    if record is not NULL:
        record.kind = RECORD_LIVE_END
        record.list_number = number
        record.at = w.now
        mail_post(&w.mail, True)

cdef void loop_mail(WorkerC *w) noexcept nogil:
    # What the control plane and the worker that accepts have sent.
    cdef uint32_t head = w.mail.in_head
    cdef uint32_t tail
    cdef uint32_t commands
    cdef void *table
    cdef ConnC *conn
    cdef ConnC *following
    io_wake_clear(w.mail.in_fd, &w.mail.in_wake_pending)
    # These two first: whoever sees a descriptor sees the listening sockets that were handed over before it, and whoever sees a
    # command all that was sent before it.
    tail = sys_load_acquire(&w.mail.in_tail)
    commands = sys_exchange(&w.mail.commands, 0)
    listener_take(w)
    if commands & COMMAND_END_LISTENING:
        listener_end_all(w)
    if commands & COMMAND_MAKE_ROOM:
        clients_give_way(w)
    table = sys_exchange_pointer(&w.new_table, NULL)
    if table is not NULL:
        table_replace(w, <TableC *>table)
    grants_take(w)
    if w.listener is not NULL:
        listener_adopt(w)       # nobody but the control plane writes into this one's mailbox
        head = tail
    while head != tail:
        client_adopt(w, &w.mail.adopts[head & (MAIL_IN - 1)])
        head += 1
        sys_store_release(&w.mail.in_head, head)
    if sys_load_acquire(&w.mail.list_asked) != w.mail.list_told:
        loop_list(w)
    if commands & COMMAND_STOP:
        w.stopping = True
    if commands & COMMAND_DRAIN and not w.draining:
        w.draining = True
        w.drained = w.now
        conn = w.all
        while conn is not NULL:
            following = conn.all_next
            if conn.kind == CONN_CLIENT and (<ClientC *>conn).state <= CLIENT_IDLE:
                client_drain(w, <ClientC *>conn)
            elif conn.exchange is NULL and conn.kind == CONN_CLIENT:
                timer_arm(w, conn, client_deadline(w, <ClientC *>conn))     # it lingers
            elif conn.exchange is NULL and conn.kind == CONN_UPSTREAM and (<UpstreamC *>conn).lingers:
                timer_arm(w, conn, upstream_deadline(w, <UpstreamC *>conn))
            conn = following

cdef void loop_dispatch(WorkerC *w, epoll_event *event) noexcept nogil:
    cdef ConnC *conn = <ConnC *>event.data.ptr
    if conn.closed:
        return          # by an earlier event of this batch
    conn_told(conn, event.events)
    if conn.kind == CONN_MAILBOX:
        loop_mail(w)
    elif conn.kind == CONN_LISTENER:
        step_listener(w, conn)
    elif conn.kind == CONN_CLIENT:
        step_client(w, <ClientC *>conn)
    else:
        step_upstream(w, <UpstreamC *>conn)

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
            if conn.kind == CONN_CLIENT:
                step_client(w, <ClientC *>conn)
            elif conn.kind == CONN_UPSTREAM:
                step_upstream(w, <UpstreamC *>conn)
            elif conn.kind == CONN_LISTENER:
                step_listener(w, conn)
            else:
                listener_adopt(w)
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
            slab_put(&w.clients if conn.kind == CONN_CLIENT else &w.upstreams, conn)
        conn = following
    while w.ended is not NULL:
        x = w.ended
        w.ended = x.ended_next
        table_release(x.table)
        slab_put(&w.exchanges, x)

cdef void loop_cut(WorkerC *w, ClientC *client) noexcept nogil:
    # Ends a client connection now, and its exchange as honestly as one send allows.
    cdef ExchangeC *x = client.conn.exchange
    cdef bint reset = client.linger is not NULL and client.linger.resets
    if x is not NULL:
        # What it has not taken is lost; where only the end of the connection ends the answer, a FIN would hide that.
        reset = x.forwarded and x.state != STATE_TUNNEL and (x.down_body.framing == FRAMING_CLOSE or x.dechunk)
        if x.state != STATE_HEAD and x.state != STATE_FLUSH and x.state != STATE_TUNNEL:
            if x.forwarded:
                response_truncate(w, x, OUTCOME_SHUTDOWN)
            else:
                answer_error(w, x, 503, OUTCOME_SHUTDOWN)
        if x.state != STATE_ENDED:
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
        if conn.kind == CONN_CLIENT:
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
            if conn.kind == CONN_LISTENER:
                listener_resume(w)
            elif conn.kind == CONN_QUEUE:
                queues_look(w)
                if w.table.ailing:
                    backends_probe(w)
            else:
                step_expired(w, conn)
        loop_reap(w)
        if w.stopping or (w.draining and w.client_count == 0 and w.exchange_count == 0 and w.lingering == 0):
            break
    loop_mail(w)
    loop_cut_all(w)
    timer_disarm(w, &w.queue_conn)
    while w.orphans:
        grants_take(w)      # another worker is about to hand them over
    loop_reap(w)
    w.busy = NULL
    w.busy_end = &w.busy
    return rc
