# grant: places at backends, which go to those that wait as soon as they are free.

cdef enum:
    QUEUE_LOOK = 50000          # us between two looks at what no event tells: a backend that comes back, a limit that was raised

cdef int place_reserve(WorkerC *w, PoolC *pool, const uint64_t *tried) noexcept nogil:
    # As pool_reserve, for one that has not waited: it may not go before those that do.
    cdef int member
    if pool_idle(w.table, pool):
        return MEMBER_NONE
    # One that is sent again has waited, or came before them.
    if not tried[0] and not tried[1] and pool.state is not NULL and sys_load_acquire(&pool.state.queue.waiting):
        return MEMBER_BUSY
    if not pool.limits.max_in_flight or pool.state is NULL:
        return pool_reserve(w.table, pool, tried, w.now)
    sys_lock(&pool.state.queue.lock)        # or two workers would take the last place
    member = pool_reserve(w.table, pool, tried, w.now)
    sys_unlock(&pool.state.queue.lock)
    return member

cdef TicketC *pool_grant(WorkerC *w, PoolC *pool) noexcept nogil:
    # Gives a place to the one that waits and is next; NULL where there is no place, or nobody.
    cdef QueueC *queue = &pool.state.queue
    cdef TicketC *ticket = NULL
    cdef BackendC *backend
    cdef int member
    sys_lock(&queue.lock)
    member = pool_reserve(w.table, pool, NULL, w.now) if queue_drop_late(queue, w.now) else MEMBER_NONE
    if member >= 0:
        ticket = queue_next(queue)
        backend = w.table.routes[pool.members[member].slot].backend
        ticket.granted = backend
        ticket.state = TICKET_GRANTED
        ticket.abroad = ticket.worker is not w
        if queue.wait is not NULL:      # another worker's clock may be behind
            histogram_add(queue.wait, w.now - ticket.since if w.now > ticket.since else 0)
    sys_unlock(&queue.lock)
    return ticket

cdef void ticket_tell(WorkerC *w, TicketC *ticket) noexcept nogil:
    # Its exchange is to learn what became of it, in its own worker.
    if ticket.abroad:
        mail_grant(&ticket.worker.mail, ticket)
    else:
        ticket.ready = True
        conn_queue(w, ticket.conn)

cdef void pool_serve(WorkerC *w, PoolC *pool) noexcept nogil:
    # Gives away what is free.
    cdef TicketC *ticket
    while sys_load_ordered(&pool.state.queue.waiting):
        ticket = pool_grant(w, pool)
        if ticket is NULL:
            return
        ticket_tell(w, ticket)

cdef void pools_serve(WorkerC *w) noexcept nogil:
    # The same for every pool, beginning with another one each time: two may share a backend.
    cdef int i
    if not w.table.pool_count or not sys_load_ordered(&w.shared.waiting):
        return
    w.served += 1
    for i in range(w.table.pool_count):
        pool_serve(w, &w.table.pools[(w.served + <uint32_t>i) % <uint32_t>w.table.pool_count])

cdef void place_return(WorkerC *w, BackendC *backend, PoolStateC *state) noexcept nogil:
    # A place is free that an exchange of that pool has had, or has not used.
    cdef QueueC *queue
    sys_add_shared(&backend.in_flight, <uint32_t>-1)
    if not sys_load_ordered(&w.shared.waiting):
        return
    if state is not NULL and sys_load_acquire(&state.queue.waiting):
        queue = &state.queue
        sys_lock(&queue.lock)
        if queue.waiting:
            queue_measure(queue, w.now, 1)
        sys_unlock(&queue.lock)
    pools_serve(w)

cdef void ticket_leave(WorkerC *w, TicketC *ticket) noexcept nogil:
    # Waits no more, and gives back a place that it has not used.
    cdef BackendC *granted
    if ticket.queue is NULL:
        return
    sys_lock(&ticket.queue.lock)
    if ticket.state == TICKET_WAITS:
        queue_measure(ticket.queue, w.now, 0)
        queue_remove(ticket.queue, ticket)
    granted = ticket.granted if ticket.state == TICKET_GRANTED else NULL
    ticket.state = TICKET_OUT
    ticket.granted = NULL
    sys_unlock(&ticket.queue.lock)
    ticket.queue = NULL         # its pool may go
    if granted is not NULL:
        place_return(w, granted, NULL)

cdef void ticket_free(WorkerC *w, TicketC *ticket) noexcept nogil:
    # Its exchange needs it no more.
    ticket_leave(w, ticket)
    w.tickets_out -= 1
    if ticket.abroad and not ticket.ready:
        ticket.conn = NULL          # it is on its way in the mailbox, or will be
        w.orphans += 1
    else:
        slab_put(&w.tickets, ticket)

cdef void grants_take(WorkerC *w) noexcept nogil:
    # Those that other workers have granted.
    cdef TicketC *ticket = mail_take_grants(&w.mail)
    cdef TicketC *following
    while ticket is not NULL:
        following = ticket.next
        ticket.ready = True
        if ticket.conn is not NULL:
            conn_queue(w, ticket.conn)
        else:
            w.orphans -= 1
            slab_put(&w.tickets, ticket)
        ticket = following

cdef void queues_look(WorkerC *w) noexcept nogil:
    # Now and then, while an exchange of this worker has a ticket.
    cdef ConnC *conn = w.all
    cdef int i
    pools_serve(w)
    for i in range(w.table.pool_count):
        if sys_load_acquire(&w.table.pools[i].state.queue.waiting) and pool_idle(w.table, &w.table.pools[i]):
            while conn is not NULL:         # who waits for it is to look, for nobody will serve him
                if conn.kind == CONN_CLIENT and conn.exchange is not NULL:
                    conn_queue(w, conn)
                conn = conn.all_next
    if w.tickets_out:
        timer_arm(w, &w.queue_conn, w.now + QUEUE_LOOK)
