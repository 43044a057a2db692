# queue: a request that waits for a place at a backend: its deadline, its turn, and its answer where it cannot be served (rule M).

cdef int64_t wait_of_text(const uint8_t *p, size_t n, bint units) noexcept nogil:
    # A time-out in a field, in us: seconds, with a fraction or without; with `units` a number and the unit of gRPC (its
    # "PROTOCOL-HTTP2.md", Requests: H, M, S, m, u, n). -1 for what is none, or is of no use.
    cdef const uint8_t *point
    cdef const char *letters = b"HMSmun"
    cdef int64_t *scales = [3600000000, 60000000, 1000000, 1000, 1, 0]
    cdef const char *letter
    cdef int64_t wait = -1
    cdef int64_t fraction
    cdef size_t whole = n
    while whole and (p[whole - 1] == c" " or p[whole - 1] == c"\t"):
        whole -= 1
    n = whole
    if n == 0 or n > 16:
        return -1
    if units:
        letter = <const char *>memchr(letters, p[n - 1], 6)
        wait = text_number(p, n - 1) if letter is not NULL and n <= 9 else -1
        return wait * scales[letter - letters] if wait > 0 else -1
    point = <const uint8_t *>memchr(p, c".", n)
    if point is not NULL:
        whole = point - p
    wait = text_number(p, whole) if whole <= 9 else -1
    if wait < 0:
        return -1
    wait *= 1000000
    if point is not NULL:
        n -= whole + 1
        if n > 6:
            n = 6
        fraction = text_number(point + 1, n)
        if fraction < 0:
            return -1
        while n < 6:
            fraction *= 10
            n += 1
        wait += fraction
    return wait if wait else -1

cdef bint line_names(const uint8_t *line, size_t n, const char *name) noexcept nogil:
    # Whether a line of a head has that field; `name` is in lower case, with its colon.
    cdef size_t length = strlen(name)
    return length and n >= length and text_same(line, length, name)

cdef uint8_t priority_of(const uint8_t *p, size_t n) noexcept nogil:
    # The class that a request asks for.
    if text_same(p, n, b"high"):
        return 0
    return CLASSES - 1 if text_same(p, n, b"low") else CLASS_NORMAL

cdef int64_t ticket_read(WorkerC *w, ExchangeC *x, TicketC *ticket) noexcept nogil:
    # Takes what the request's head says of its place in a queue: its tenant and its class. How long its client waits for the first
    # byte of the answer, us; INT64_MAX where it does not say.
    cdef const uint8_t *line
    cdef const uint8_t *next_line
    cdef const uint8_t *end
    cdef const uint8_t *value
    cdef int64_t least = INT64_MAX
    cdef int64_t wait
    cdef size_t n
    request_copy_head(w, x)
    ticket.priority = CLASS_NORMAL
    end = w.out.data + w.out.used
    line = <const uint8_t *>memchr(w.out.data, c"\n", w.out.used) + 1
    while line[0] != c"\r":
        next_line = <const uint8_t *>memchr(line, c"\n", end - line) + 1
        value = <const uint8_t *>memchr(line, c":", next_line - line) + 1
        while value[0] == c" " or value[0] == c"\t":
            value += 1
        n = next_line - 2 - value
        while n and (value[n - 1] == c" " or value[n - 1] == c"\t"):
            n -= 1
        wait = -1
        if line_names(line, next_line - line, w.settings.tenant):
            ticket.tenant_id = ticket.tenant_id * 31 + text_hash(value, n)
        elif line_names(line, next_line - line, w.settings.priority):
            ticket.priority = priority_of(value, n)
        elif line_names(line, next_line - line, b"x-stainless-read-timeout:") or line_names(line, next_line - line,
                                                                                           b"x-request-timeout:"):
            wait = wait_of_text(value, n, False)
        elif line_names(line, next_line - line, b"grpc-timeout:"):
            wait = wait_of_text(value, n, True)
        if wait >= 0 and wait < least:
            least = wait
        line = next_line
    return least

cdef TicketC *ticket_make(WorkerC *w, ExchangeC *x) noexcept nogil:
    # A ticket for the exchange, which is in no queue yet; NULL where there is no memory.
    cdef LimitsC *limits = &x.pool.limits
    cdef TicketC *ticket = <TicketC *>slab_get(&w.tickets)
    cdef int64_t patience
    cdef int64_t needed
    if ticket is NULL:
        return NULL
    x.ticket = ticket
    w.tickets_out += 1
    ticket.conn = &x.client.conn
    ticket.worker = w
    ticket.since = w.now
    ticket.heap.key = INT64_MAX
    patience = ticket_read(w, x, ticket)
    if patience < INT64_MAX:
        # What backends need until they begin to answer is not there to wait, but for half of it: they may be faster this time.
        needed = pool_latest_ttft(x.pool.state)
        ticket.heap.key = x.head_at + patience - (needed if needed < patience // 2 else patience // 2)
    patience = limits.queue_timeout
    if limits.cold_timeout and not pool_ready(w.table, x.pool, w.now, NULL):
        patience = limits.cold_timeout
    if patience and w.now + patience < ticket.heap.key:
        ticket.heap.key = w.now + patience
    return ticket

cdef void queue_refuse(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason) noexcept nogil:
    # It does not get a place. What it may do is in the answer: how many wait, and for how long.
    cdef QueueC *queue = &x.pool.state.queue
    sys_add_shared_counter(&queue.full if outcome == OUTCOME_QUEUE_FULL else &queue.late, 1)
    exchange_blame(w, x, reason, 0)
    if pool_ready(w.table, pool_now(w, x), w.now, NULL):
        answer_error(w, x, 429, outcome)
    else:
        answer_error(w, x, 503, OUTCOME_NO_BACKEND)

cdef void queue_look(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Notes for its answer how many wait before a new ticket like this one, and for how long. Under the queue's lock.
    cdef QueueC *queue = &x.pool.state.queue
    if queue.waiting:
        queue_measure(queue, w.now, 0)
    else:
        queue_rest(queue, w.now)
    w.ahead = queue_ahead(queue, x.ticket.priority, x.ticket.tenant_id)
    w.estimate = queue_estimate(queue, w.ahead)

cdef void queue_out(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason) noexcept nogil:
    # It has waited, and gets no place.
    cdef QueueC *queue = &x.pool.state.queue
    ticket_leave(w, x.ticket)
    sys_lock(&queue.lock)
    queue_look(w, x)
    sys_unlock(&queue.lock)
    queue_refuse(w, x, outcome, reason)

cdef void queue_enter(WorkerC *w, ExchangeC *x) noexcept nogil:
    # No backend has a place for it, or none is up: it waits, unless the queue is full or its turn would come too late.
    cdef QueueC *queue = &x.pool.state.queue
    cdef TicketC *ticket = x.ticket
    cdef TicketC *other = NULL
    cdef bint fresh = ticket is NULL
    cdef bint full = False
    cdef bint late
    cdef bint added = False
    cdef bint ready = pool_ready(w.table, pool_now(w, x), w.now, NULL)
    if fresh:
        ticket = ticket_make(w, x)
        if ticket is NULL:
            answer_no_memory(w, x)
            return
    sys_lock(&queue.lock)
    queue_look(w, x)
    full = fresh and queue.waiting >= x.pool.limits.queue_size
    # With nobody before it, or where none is up, no rate tells when its turn comes.
    late = ticket.heap.key <= w.now + (w.estimate if ready and w.ahead and w.estimate > 0 else 0)
    if full and not late:
        other = queue_displace(queue, ticket.priority, ticket.tenant_id)
        if other is not NULL:
            other.abroad = other.worker is not w
            full = False
    if not full and not late:
        added = queue_add(queue, ticket, w.now)
    sys_unlock(&queue.lock)
    if other is not NULL:
        ticket_tell(w, other)
    if full:
        queue_refuse(w, x, OUTCOME_QUEUE_FULL, REASON_QUEUE_FULL)
    elif late:
        queue_refuse(w, x, OUTCOME_QUEUE_TIMEOUT, REASON_TOO_LATE)
    elif not added:
        answer_no_memory(w, x)
    else:
        exchange_set_state(w, x, STATE_QUEUE)
        timer_arm(w, &w.queue_conn, w.now + QUEUE_LOOK)
        pool_serve(w, pool_now(w, x))       # a place may have become free since it was looked for

cdef void step_queue(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Waits for a place.
    if x.client.conn.hung_up:
        client_left(w, x, 0)
        return
    if x.down.unsent:
        client_flush(w, x)      # a 100 that it had no room for
        if x.state != STATE_QUEUE:
            return
    if x.ticket.ready and x.ticket.state == TICKET_GRANTED:
        exchange_set_state(w, x, STATE_ROUTE)
    elif x.ticket.ready:
        queue_out(w, x, OUTCOME_QUEUE_FULL, REASON_QUEUE_FULL)
    elif pool_now(w, x).state is not x.pool.state or pool_idle(w.table, pool_now(w, x)):
        ticket_drop(w, x)       # the pool is gone, or has no backend: nobody serves its queue any more
        exchange_set_state(w, x, STATE_ROUTE)

cdef int exchange_place(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The member of its pool that is to work on the exchange, and counts it already; or MEMBER_NONE, MEMBER_BUSY.
    cdef TicketC *ticket = x.ticket
    cdef BackendC *granted
    cdef int i
    if ticket is not NULL and ticket.ready:
        granted = ticket.granted
        ticket.granted = NULL
        ticket.queue = NULL
        ticket.state = TICKET_OUT
        ticket.ready = False
        ticket.abroad = False
        # Time in the queue is not the backend's, if none has had the request yet.
        x.upstream_at = w.now
        x.request_at = w.now
        if x.up_body.done and not x.attempts:
            x.whole_at = w.now
        for i in range(x.pool.count):
            if x.table.routes[x.pool.members[i].slot].backend is granted:
                if member_in(x.tried, i):
                    memset(x.tried, 0xff, sizeof(x.tried))      # it has been everywhere, and waited: this is the last time
                return i
        place_return(w, granted, NULL)      # a new table has it no more
    return place_reserve(w, x.pool, x.tried)
