# client: a client connection: its wait for a request, what it is sent, its leaving, its linger, its end.

# What a client that lingers still sends. Few do at a time, and streams would have to carry it: so it is no part of ClientC.
cdef struct LingerC:
    int64_t heard           # when the last byte came; where it is to be reset, when its kernel last took one
    BodyC body              # of the request that it still sends
    int unsent              # bytes that its kernel had not taken then
    uint8_t resets          # it gets an RST, when its kernel has taken all; else a FIN, at once
    uint8_t reason          # DISCARD_*
    uint8_t closes          # the client said that it sends no further request

cdef struct ClientC:
    ConnC conn
    PendingC pending
    uint8_t state           # CLIENT_*
    uint8_t user_timeout_off  # the kernel must not end it for taking nothing: the send time-out is there for that
    uint8_t trusted         # what it tells of the hops before it is believed
    uint16_t refuse_status  # status that its request is refused with, because there are too many clients; else 0
    int64_t since           # start of the idle time or the linger
    LingerC *linger         # what still comes, while it lingers; else NULL
    ClientC *quiet_next     # in the list of those without an exchange, the longest first
    ClientC **quiet_back    # what points to this one, NULL where not in it
    char address[ADDRESS_ROOM]
    QuotaC *quota           # that it counts in; NULL where no limit on addresses is set

# The states that may follow each state, a bit for each. Any of them ends with the connection.
cdef uint8_t CLIENT_MOVES[CLIENT_LINGER + 1]

cdef void client_init() noexcept nogil:
    CLIENT_MOVES[CLIENT_NEW] = 1 << CLIENT_NEW | 1 << CLIENT_BUSY
    CLIENT_MOVES[CLIENT_IDLE] = 1 << CLIENT_IDLE | 1 << CLIENT_BUSY
    CLIENT_MOVES[CLIENT_BUSY] = 1 << CLIENT_IDLE | 1 << CLIENT_LINGER

client_init()

cdef void client_set_state(ClientC *client, uint8_t state) noexcept nogil:
    # The one writer of a client's state.
    sys_check((CLIENT_MOVES[client.state] >> state) & 1, "a client's state")
    client.state = state

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

cdef void client_release(WorkerC *w, ClientC *client, bint reset) noexcept nogil:
    # Closes the connection; its place among the clients stays taken, and is the caller's to give back.
    pending_drop(w, &client.pending, DISCARD_REQUEST)
    if client.linger is not NULL:
        slab_put(&w.lingers, client.linger)
        client.linger = NULL
    quiet_leave(w, client)
    conn_close(w, &client.conn, reset)
    w.client_count -= 1

cdef void client_close(WorkerC *w, ClientC *client, bint reset) noexcept nogil:
    client_release(w, client, reset)
    place_free(w, client.refuse_status, client.quota)

cdef void client_await(WorkerC *w, ClientC *client, uint8_t state) noexcept nogil:
    # For a request. A pipelined one is read in the next turn, not here: its answer would come back here.
    client_set_state(client, state)
    client.since = w.now
    quiet_enter(w, client)
    if not pending_empty(&client.pending) or client.conn.readable:
        conn_queue(w, &client.conn)
    timer_arm(w, &client.conn, client_deadline(w, client))

cdef ExchangeC *client_begin(WorkerC *w, ClientC *client) noexcept nogil:
    # The first byte of a request is there: its exchange, or NULL where there is no memory.
    cdef ExchangeC *x = exchange_begin(w, client)
    if x is not NULL:
        quiet_leave(w, client)
        client_set_state(client, CLIENT_BUSY)
    return x

cdef void client_linger(WorkerC *w, ClientC *client, const LingerC *rest) noexcept nogil:
    # Sends our FIN and throws away what still comes, so that no RST destroys an answer that the client has not read: the
    # rest of its request, and what stands behind that, until its FIN (rule A6).
    pending_drop(w, &client.pending, DISCARD_BEHIND_REQUEST)
    if client.conn.hung_up and not client.conn.readable and not rest.resets:
        client_close(w, client, False)
        return
    client.linger = <LingerC *>slab_get(&w.lingers)
    if client.linger is NULL:
        sys_add_counter(&w.stats.over_memory, 1)
        client_close(w, client, rest.resets)
        return
    client.linger[0] = rest[0]
    if not rest.resets:
        conn_shut(&client.conn)
    elif not client.user_timeout_off:
        client.user_timeout_off = True      # as in client_send: it may be slow
        io_unanswered(client.conn.fd, 0)
    if client.conn.readable:
        conn_queue(w, &client.conn)
    client_set_state(client, CLIENT_LINGER)
    client.since = w.now
    timer_arm(w, &client.conn, client_deadline(w, client))

cdef void client_reset(WorkerC *w, ClientC *client) noexcept nogil:
    # It lingers, and is to be reset behind what it was sent (rule E2). No event says that its kernel has taken that: a look does.
    cdef LingerC *rest = client.linger
    cdef int unsent = io_unsent(client.conn.fd)
    if unsent != rest.unsent:
        rest.unsent = unsent
        rest.heard = w.now
    if unsent == 0 or (w.settings.send_timeout and w.now >= rest.heard + w.settings.send_timeout):
        client_close(w, client, True)
    else:
        timer_arm(w, &client.conn, client_deadline(w, client))

cdef void client_waste(WorkerC *w, ClientC *client) noexcept nogil:
    # It lingers: throws away what still comes.
    cdef LingerC *rest = client.linger
    cdef size_t wasted = 0
    cdef ssize_t got = waste_read(w, &client.conn, &rest.body, rest.reason, False, &wasted)
    if rest.resets:
        # Its FIN says that it sends no more: it may read still.
        if got < 0 and got != -EAGAIN:
            client_close(w, client, False)
        return
    if wasted:
        rest.heard = w.now
    # One that said it sends no further request is not waited for behind the end of this one.
    if got != -EAGAIN or (not client.conn.readable and rest.closes and rest.body.done):
        client_close(w, client, False)

cdef void client_next(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The client has all that it will get: ends the exchange and decides what becomes of the connection.
    cdef ClientC *client = x.client
    cdef bint keeps = x.client_keeps and x.up_body.done and not w.draining
    cdef bint reset = x.reset
    cdef bint wanted = x.up_body.done and x.client_closes    # then it sends no more, and no RST can follow
    cdef LingerC rest
    if not keeps:
        rest.heard = w.now
        rest.unsent = io_unsent(client.conn.fd) if reset else 0
        rest.resets = rest.unsent != 0
        rest.body = x.up_body
        rest.reason = <uint8_t>(DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_REQUEST)
        rest.closes = x.client_closes
    exchange_end(w, x, exchange_phase(x), x.outcome)
    if keeps:
        client_await(w, client, CLIENT_IDLE)
    elif (reset and not rest.resets) or (wanted and not client.conn.readable and not reset):
        client_close(w, client, reset)
    else:
        client_linger(w, client, &rest)

cdef void client_left(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # FIN or RST of the client, seen in any phase (rule D). The exchange ends, or goes on without it where the backend is to finish.
    cdef ClientC *client = x.client
    cdef uint8_t phase = <uint8_t>exchange_phase(x)
    x.left_at = w.now
    x.error = error
    if x.state == STATE_TUNNEL and error and x.upstream is not NULL:
        x.upstream.reset = True         # passed on: a FIN would say that all has come
    if (x.upstream is not NULL and x.table.routes[x.backend].finish_on_abort and x.up_body.done and not x.up.unsent
            and (x.state == STATE_WAIT or x.state == STATE_STREAM)):
        discard(&w.stats, DISCARD_RESPONSE, x.down.unsent)
        chain_clear(&x.down, &w.bufs)
        client.conn.exchange = NULL
        x.quota = client.quota
        sys_add_counter(&w.stats.finishing, 1)
        client_release(w, client, False)
        x.client = NULL
        x.itl = NULL        # nobody waits for what comes now
        x.upstream_at = w.now
        exchange_set_state(w, x, STATE_DETACHED)
        return
    exchange_end(w, x, phase, OUTCOME_CLIENT_ABORT)
    client_close(w, client, False)

cdef void client_takes_no_more(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # A send to the client failed.
    if x.state != STATE_TUNNEL or error != EPIPE:
        client_left(w, x, error)
        return
    # Its RST came after its FIN, so all that it sent is here, and is still to be passed on.
    x.deaf = True
    discard(&w.stats, DISCARD_TUNNEL, x.down.unsent)
    chain_clear(&x.down, &w.bufs)
    conn_reread(&x.client.conn)
    conn_queue(w, &x.client.conn)

cdef void client_flush(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Sends what the client has not taken, as far as it takes it now.
    cdef ssize_t took
    cdef uint32_t held = x.down.unsent
    if not x.client.conn.writable:
        return
    took = conn_send_chain(&x.client.conn, &x.down, &w.bufs)
    x.bytes_down += held - x.down.unsent
    if took < 0:
        client_takes_no_more(w, x, <int>-took)
        return
    if took:
        x.client_at = w.now
    if not x.down.unsent and x.state != STATE_FLUSH:
        x.upstream_at = w.now   # the wait for the upstream starts anew: it was not its fault
        exchange_flow(w, x, x.content and x.event_stream and x.counted is not NULL)
        exchange_rearm(w, x)

cdef void client_send(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Sends, at once; what the socket does not take is kept, and the upstream is not read until it is taken. The exchange may have
    # ended in the call.
    cdef ssize_t took = 0
    if x.client is NULL or x.deaf:
        discard(&w.stats, DISCARD_TUNNEL if x.deaf else DISCARD_RESPONSE, n)
        return
    if n == 0:
        return
    if not x.down.unsent:
        took = conn_send(&x.client.conn, data, n)
        if took < 0:
            discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_RESPONSE, n)
            client_takes_no_more(w, x, <int>-took)
            return
        x.bytes_down += took
        if <size_t>took == n:
            return
        x.client_at = w.now
    if chain_take_hot(w, &x.down, data + took, n - took) != RC_OK:
        # A hole in the stream would be worse than its end.
        discard(&w.stats, DISCARD_RESPONSE, n - took)
        exchange_blame(w, x, REASON_NO_MEMORY, ENOMEM)
        x.reset = True
        x.client_keeps = False
        x.outcome = OUTCOME_OVERLOAD
        client_next(w, x)
        return
    exchange_flow(w, x, False)
    if not x.client.user_timeout_off:
        # The kernel takes a window that stays shut for death too; from here the send time-out decides.
        x.client.user_timeout_off = True
        io_unanswered(x.client.conn.fd, 0)
    exchange_rearm(w, x)

cdef void client_adopt(WorkerC *w, AdoptC *adopt) noexcept nogil:
    # A client connection that was accepted here, or by another worker. Without memory for it, it is closed.
    cdef ClientC *client = <ClientC *>slab_get(&w.clients)
    sys_add_counter(&w.stats.accepted, 1)
    if client is NULL:
        sys_add_counter(&w.stats.over_memory, 1)
        io_close(adopt.fd)
        place_free(w, adopt.refuse_status, adopt.quota)
        return
    conn_open(w, &client.conn, adopt.fd, CONN_CLIENT)
    w.client_count += 1
    client.trusted = adopt.trusted
    client.refuse_status = adopt.refuse_status
    client.quota = adopt.quota
    memcpy(client.address, adopt.address, ADDRESS_ROOM)
    if io_watch(w.epfd, adopt.fd, &client.conn) < 0:
        sys_add_counter(&w.stats.over_memory, 1)
        client_close(w, client, False)
        return
    client_await(w, client, CLIENT_NEW)

cdef void client_drain(WorkerC *w, ClientC *client) noexcept nogil:
    # The drain meets a connection without an exchange. One that has been answered is closed, unless its next request is
    # here already. One that has not, was opened to send a request: closing it at once would lose what is on its way.
    if (client.state == CLIENT_IDLE and not client.conn.readable and not client.conn.queued
            and conn_probe(&client.conn) == -EAGAIN):
        client_close(w, client, False)
    else:
        client_await(w, client, client.state)

cdef void clients_give_way(WorkerC *w) noexcept nogil:
    # Closes those that have been without a request for longest: others wait for their places. One whose request is on its
    # way stays.
    cdef ClientC *client = w.quiet
    cdef ClientC *following
    cdef int i
    for i in range(ROOM_BATCH):
        if client is NULL or client.since > w.now - ROOM_AFTER:
            return
        following = client.quiet_next
        if not client.conn.readable and not client.conn.queued and conn_probe(&client.conn) == -EAGAIN:
            sys_add_counter(&w.stats.gave_way, 1)
            client_close(w, client, False)
        client = following
