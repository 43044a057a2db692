# loop: one turn of the generator: what the control plane says, what epoll says, what is due, what is left over.

cdef enum:
    COMMAND_NONE = 0
    COMMAND_BEGIN = 1           # take plan_given
    COMMAND_MEASURE = 2         # count from now on
    COMMAND_HALT = 3            # count no more
    COMMAND_FINISH = 4          # end every answer well
    COMMAND_ABANDON = 5         # close everything and forget the plan
    COMMAND_STOP = 6

cdef void load_begin(LoadC *load) noexcept nogil:
    # Takes a plan. Clients are opened turn by turn, so that no backlog runs over.
    load.plan = <PlanC *>load.plan_given
    load.clients = load.plan.clients
    load.client_count = load.plan.client_count
    load.finishing = False
    load.measuring = False
    load.next_unopened = 0
    load.opening = 0
    load.idle = load.spare = NULL
    load.waiting_head = load.waiting_tail = 0
    if load.plan.again == AGAIN_ARRIVAL:
        timer_set(load, &load.arrival, load_clock() + load.plan.arrival)

cdef void load_measure(LoadC *load) noexcept nogil:
    memset(load.plan.counts, 0, sizeof(load.plan.counts))
    memset(load.plan.times, 0, sizeof(load.plan.times))
    load.plan.since = load_clock()
    load.measuring = True

cdef void load_finish(LoadC *load) noexcept nogil:
    # No new request; endless answers are ended by the source.
    cdef SourceC *source = load.all
    cdef SourceC *following
    cdef int i
    load.finishing = True
    timer_clear(load, &load.arrival)
    for i in range(load.client_count):
        if load.clients[i].disconnects or load.clients[i].state == REQUEST_IDLE or load.clients[i].state == REQUEST_CONNECT \
                or load.clients[i].state == REQUEST_CLOSING:
            client_shut(load, &load.clients[i], True)
    load.idle = NULL
    while source is not NULL:
        following = source.all_next
        source_end(load, source)
        source = following

cdef void load_abandon(LoadC *load) noexcept nogil:
    # Everything is closed, the idle connections to the source too: pools of several proxies would use up the descriptors.
    cdef SourceC *source = load.all
    cdef SourceC *following
    cdef int i
    load.finishing = True
    load.measuring = False
    timer_clear(load, &load.arrival)
    for i in range(load.client_count):
        client_shut(load, &load.clients[i], True)
        timer_clear(load, &load.clients[i].conn)
        load.clients[i].state = REQUEST_NONE
        carry_free(&load.clients[i].carry)
    load.idle = load.spare = NULL
    load.clients = NULL
    load.client_count = 0
    load.plan = NULL
    while source is not NULL:
        following = source.all_next
        source_close(load, source)
        source = following

cdef void load_command(LoadC *load) noexcept nogil:
    cdef uint32_t command
    io_wake_clear(load.mail.fd, &load.wake_pending)
    command = sys_exchange(&load.command, COMMAND_NONE)
    if command == COMMAND_BEGIN:
        load_begin(load)
    elif command == COMMAND_STOP:
        load.stopping = True
    elif load.plan is not NULL:
        if command == COMMAND_MEASURE:
            load_measure(load)
        elif command == COMMAND_HALT:
            load.measuring = False
        elif command == COMMAND_FINISH:
            load_finish(load)
        elif command == COMMAND_ABANDON:
            load_abandon(load)
    if command != COMMAND_NONE:
        sys_store_release(&load.done, command)

cdef void load_open(LoadC *load) noexcept nogil:
    # Opens clients while a run starts, a few at a time.
    cdef ClientC *client
    while (load.next_unopened < load.client_count and load.opening < OPENING_MOST and not load.finishing
            and load.plan.again != AGAIN_ARRIVAL):
        client = &load.clients[load.next_unopened]
        load.next_unopened += 1
        if load.plan.spread:
            timer_set(load, &client.conn, load_clock() + load_random_below(load, load.plan.spread))
        else:
            client_start(load, client)

cdef void load_arrival(LoadC *load) noexcept nogil:
    # A request is due. Its time counts from now on, whether or not there is a client for it: no coordinated omission.
    cdef PlanC *plan = load.plan
    cdef int64_t due = load.arrival.due
    cdef double uniform
    cdef ClientC *client = NULL
    load_time(load, TIME_LATE, load_clock() - due)
    uniform = <double>((load_random(load) >> 11) + 1) / <double>(1 << 53)
    timer_set(load, &load.arrival, due + <int64_t>(-log(uniform) * <double>plan.arrival) + 1)
    if load.idle is not NULL:
        client = load.idle
        load.idle = client.idle_next
        client.asked = due
        client_ask(load, client)
        return
    if load.spare is not NULL:
        client = load.spare
        load.spare = client.idle_next
    elif load.next_unopened < load.client_count:
        client = &load.clients[load.next_unopened]
        load.next_unopened += 1
    if client is not NULL:
        client.asked = due
        client_connect(load, client)
        return
    if load.waiting_tail - load.waiting_head == WAITING_MOST:
        load_error(load, ERROR_DROPPED)
        return
    load.waiting[load.waiting_tail & (WAITING_MOST - 1)] = due
    load.waiting_tail += 1

cdef void load_due(LoadC *load) noexcept nogil:
    # One thing that is due, so that events that have come are not kept waiting; more where the generator is behind.
    cdef ConnC *conn
    cdef int i
    for i in range(CATCH_UP):
        if not load.heap_count:
            return
        conn = load.heap[1]
        if conn.due > load.now or (i and conn.due > load.now - LATE_ALLOWED):
            return
        timer_clear(load, conn)
        if conn.kind == CONN_SOURCE and (<SourceC *>conn).mode == MODE_REPLAY:
            replay_due(load, <SourceC *>conn)
        elif conn.kind == CONN_SOURCE:
            source_due(load, <SourceC *>conn)
        elif conn.kind == CONN_CLIENT:
            client_due(load, <ClientC *>conn)
        else:
            load_arrival(load)

cdef int load_wait(LoadC *load) noexcept nogil:
    # Milliseconds that epoll may wait: whole ones, so that what is due within one is looked for without waiting.
    cdef int64_t left
    if load.busy is not NULL:
        return 0
    if load.plan is not NULL and load.next_unopened < load.client_count and load.plan.again != AGAIN_ARRIVAL:
        return 0 if load.opening < OPENING_MOST else 1
    if not load.heap_count:
        return -1
    left = load.heap[1].due - load_clock()
    return 0 if left <= 0 else <int>(left // 1000000)

cdef void load_dispatch(LoadC *load, ConnC *conn, uint32_t events) noexcept nogil:
    if conn.kind == CONN_MAILBOX:
        load_command(load)
        return
    if conn.kind == CONN_LISTENER:
        source_accept(load)
        return
    if conn.fd < 0 or (conn.kind == CONN_SOURCE and (<SourceC *>conn).closed):
        return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.readable = True
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            conn.hung_up = True
    if conn.kind == CONN_SOURCE:
        source_ready(load, <SourceC *>conn, (events & EPOLLOUT) != 0)
    else:
        client_ready(load, <ClientC *>conn, (events & EPOLLOUT) != 0)

cdef void load_busy(LoadC *load) noexcept nogil:
    cdef ConnC *conn = load.busy
    cdef ConnC *following
    load.busy = NULL
    load.busy_end = &load.busy
    while conn is not NULL:
        following = conn.busy_next
        conn.queued = False
        if conn.kind == CONN_SOURCE and not (<SourceC *>conn).closed:
            source_ready(load, <SourceC *>conn, True)
        elif conn.kind == CONN_CLIENT and conn.fd >= 0:
            client_ready(load, <ClientC *>conn, False)
        conn = following

cdef void load_reap(LoadC *load) noexcept nogil:
    # Frees the closed; one that is still queued waits for its turn.
    cdef SourceC *source = load.parked
    cdef SourceC *following
    load.parked = NULL
    while source is not NULL:
        following = source.next_parked
        if source.conn.queued:
            source.next_parked = load.parked
            load.parked = source
        else:
            slab_put(&load.sources, source)
        source = following

cdef void load_time_out(LoadC *load) noexcept nogil:
    # Once a second: requests that take too long.
    cdef ClientC *client
    cdef int i
    for i in range(load.client_count):
        client = &load.clients[i]
        if (REQUEST_CONNECT <= client.state <= REQUEST_BODY and not client.disconnects
                and load.now - client.asked > load.plan.timeout):
            client_failed(load, client, ERROR_TIMEOUT)

cdef int load_run(LoadC *load) noexcept nogil:
    # Turns until told to stop. RC_OK or -errno.
    cdef int n
    cdef int i
    cdef int64_t begun
    cdef int64_t looked = 0
    while not load.stopping:
        n = epoll_wait(load.epfd, load.events, BATCH, load_wait(load))
        if n < 0 and errno != EINTR:
            return -errno
        begun = load.now = load_clock()
        if n <= 0 and load.busy is NULL and (not load.heap_count or load.heap[1].due > load.now):
            begun = 0               # an empty look is no work
        for i in range(n):
            load_dispatch(load, <ConnC *>load.events[i].data.ptr, load.events[i].events)
        load_busy(load)
        load_due(load)
        if load.plan is not NULL:
            load_open(load)
            sys_set_counter(&load.plan.queued, load.waiting_tail - load.waiting_head)
            if load.plan.timeout and load.now - looked > 1000000000:
                looked = load.now
                load_time_out(load)
            if begun:
                load_count(load, COUNT_BUSY, <uint64_t>(load_clock() - begun))
        load_reap(load)
    return RC_OK
