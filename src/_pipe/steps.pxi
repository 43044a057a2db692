# steps: the driver, and what epoll and the wheel call.
#
# How things close, and which function may do it. "Error" is an RST or any other error of the socket; bytes held are those that the
# slower side has not yet taken. Each row is a test.
#
#   what happened         before a response byte was forwarded    after                                     by
#   --------------------  --------------------------------------  ----------------------------------------  -------------------
#   client FIN or error   upstream closed at once, bytes held are thrown away, outcome client_abort         client_left
#     on-abort=finish     the backend that has the whole request is read to its end (STATE_DETACHED)        client_left
#     only the last       -                                       ok, where the client had the whole body   response_complete
#     chunk was missing                                           and that chunk is there
#   response's end        -                                       ok; the upstream is kept, or closed       response_complete
#   upstream FIN          sent again, or 502                      until-close: the end, after bytes held    response_complete
#                                                                 else: truncated, upstream_abort           upstream_failed
#   upstream error        sent again, or 502                      truncated, upstream_abort                 upstream_failed
#   upstream broke HTTP   502                                     truncated, upstream_abort                 upstream_failed
#   connect refused,      the next address, sent again, 502       -                                         connect_failed
#   or too slow           or 504
#   TTFT time-out         504, never sent again                   truncated, timeout_ttft                   upstream_failed
#   idle time-out         (the request is not taken) sent         truncated, timeout_idle                   upstream_failed
#                         again, or 504
#   total time-out        504                                     truncated, timeout_total; in STATE_FLUSH  exchange_expired
#                                                                 reset
#   head, body time-out   408, linger                             -                                         exchange_expired
#   send time-out         -                                       upstream closed, client reset             exchange_expired
#   bad request           4xx, linger                             truncated, bad_request                    refuse,
#                                                                                                           request_broken
#   answer before the     -                                       upstream closed behind the answer, the    response_complete
#   end of the request                                            rest is thrown away, linger
#   no memory             503, linger                             truncated, overload                       request_lost
#   stop                  503                                     truncated, shutdown                       loop_cut
#   tunnel: client FIN    -                                       the same to the backend behind all        tunnel_client_fin
#                                                                 bytes, linger there. Ok, or client_abort
#                                                                 where the client had not taken all
#   tunnel: client error  -                                       the same to the backend at once,          client_left
#                                                                 client_abort
#   tunnel: upstream FIN  -                                       the same to the client behind all bytes,  client_next
#                                                                 linger. Ok, or upstream_abort where the
#                                                                 backend had not taken all
#   tunnel: upstream      -                                       truncated, upstream_abort                 upstream_failed
#   error
#   tunnel: send          -                                       (either side takes nothing) both closed,  exchange_expired
#   time-out                                                      client reset
#   tunnel: stop          -                                       both closed, shutdown                     loop_cut
#
#   sent again: as the table in upstream_failed says (rule E1), within the retry budget.
#   truncated: chunked ends without the last chunk, Content-Length short, until-close with an RST; bytes held go first. So a
#   tunnel's client gets an RST.
#   linger: what still comes is read and thrown away, until a FIN, for 30 s at most, 5 s without a byte, 2 s of a drain.
#
# What epoll reports on Linux 6.18 over loopback, edge-triggered: a FIN gives IN|RDHUP (with OUT while there is room), even
# behind bytes that were not read, so it is seen during backpressure; an RST gives IN|ERR|HUP|RDHUP; a FIN after our own
# gives IN|HUP|RDHUP; an urgent byte gives PRI, and a recv stops before it. After a recv that came back short nothing is left,
# unless RDHUP or PRI was seen (ConnC.to_end): then recv again.

ctypedef void (*StepF)(WorkerC *w, ExchangeC *x) noexcept nogil

# What is done in each state.
cdef StepF STEPS[STATE_ENDED]

cdef void steps_init() noexcept nogil:
    STEPS[STATE_HEAD] = step_head
    STEPS[STATE_MODEL] = step_model
    STEPS[STATE_ROUTE] = step_route
    STEPS[STATE_QUEUE] = step_queue
    STEPS[STATE_CONNECT] = step_connect
    STEPS[STATE_WAIT] = step_wait
    STEPS[STATE_STREAM] = step_stream
    STEPS[STATE_FLUSH] = step_flush
    STEPS[STATE_TUNNEL] = step_tunnel
    STEPS[STATE_DETACHED] = step_detached

steps_init()

cdef void exchange_run(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The driver: does the step of the state that the exchange is in, and then that of the state it has come to, until it waits or
    # has ended. No step calls another one. Routing never waits, and may have to be done once more.
    cdef uint8_t state
    while True:
        state = x.state
        STEPS[state](w, x)
        if x.state == state and state != STATE_ROUTE:
            return
        if x.state == STATE_ENDED:
            return

cdef void step_client(WorkerC *w, ClientC *client) noexcept nogil:
    # Something happened to a client connection.
    cdef ExchangeC *x
    if client.state == CLIENT_LINGER:
        client_waste(w, client)
        return
    if client.conn.exchange is NULL:
        request_await(w, client)
    x = client.conn.exchange        # which may have begun
    if x is not NULL:
        exchange_run(w, x)

cdef void step_upstream(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Something happened to an upstream.
    if upstream.conn.exchange is not NULL:
        exchange_run(w, upstream.conn.exchange)
    elif upstream.lingers:
        upstream_waste(w, upstream)
    elif upstream.probes:
        step_probe(w, upstream)
    # Idle. A FIN, or bytes that nobody asked for, end it; the event may also be of bytes that were read since.
    elif upstream.conn.readable and conn_probe(&upstream.conn) != -EAGAIN:
        upstream_close(w, upstream)

cdef void exchange_expired(WorkerC *w, ExchangeC *x, uint8_t outcome) noexcept nogil:
    # Its time is up, for the reason given (rule F).
    cdef ClientC *client = x.client
    if outcome == OUTCOME_OK:
        request_gives_up(x)
        model_route(w, x)
        return
    if outcome == OUTCOME_TIMEOUT_CONNECT:
        connect_failed(w, x, outcome, REASON_DEADLINE, ETIMEDOUT)
        return
    if outcome == OUTCOME_QUEUE_TIMEOUT:
        queue_out(w, x, outcome, REASON_DEADLINE)
        return
    if x.state == STATE_DETACHED or outcome == OUTCOME_TIMEOUT_TTFT or outcome == OUTCOME_TIMEOUT_IDLE:
        upstream_failed(w, x, outcome, REASON_DEADLINE, ETIMEDOUT)
        return
    if x.outcome != outcome:        # its time was up before, and the client has not taken all since
        exchange_blame(w, x, REASON_DEADLINE, 0)
    if outcome == OUTCOME_TIMEOUT_HEAD or outcome == OUTCOME_TIMEOUT_BODY:
        answer_error(w, x, 408, outcome)
    elif outcome == OUTCOME_TIMEOUT_SEND or x.state == STATE_FLUSH:
        exchange_end(w, x, exchange_phase(x), outcome)
        client_close(w, client, True)
    elif x.forwarded:
        response_truncate(w, x, outcome)
    else:
        answer_error(w, x, 504, outcome)

cdef void step_expired(WorkerC *w, ConnC *conn) noexcept nogil:
    # The wheel came to a connection: is its time up, or only near?
    cdef ExchangeC *x = conn.exchange
    cdef ClientC *client = <ClientC *>conn
    cdef uint8_t outcome = OUTCOME_OK
    cdef int64_t deadline = 0
    if x is not NULL:
        if conn.kind == CONN_UPSTREAM and x.state == STATE_CONNECT and (<UpstreamC *>conn).full:
            upstream_reconnect(w, <UpstreamC *>conn)
            if x.state != STATE_ENDED:
                exchange_run(w, x)
            return
        if conn.kind == CONN_UPSTREAM and x.client is not NULL:
            return          # the client connection keeps the time
        if conn.kind == CONN_CLIENT and client.user_timeout_off and not x.down.unsent:
            # Here, and not when the last byte was taken: an unpaced stream is blocked and not blocked all the time.
            client.user_timeout_off = False
            io_unanswered(conn.fd, w.settings.dead_peer_timeout)
        deadline = exchange_deadline(w, x, &outcome)
    elif conn.kind == CONN_UPSTREAM:
        deadline = upstream_deadline(w, <UpstreamC *>conn)
    else:
        deadline = client_deadline(w, client)
    if not deadline:
        return
    if x is NULL and conn.kind == CONN_CLIENT and client.state == CLIENT_LINGER and client.linger.resets:
        client_reset(w, client)
    elif deadline > w.now:
        timer_arm(w, conn, deadline)
    elif x is not NULL:
        exchange_expired(w, x, outcome)
        if x.state != STATE_ENDED:
            exchange_run(w, x)
    elif conn.kind == CONN_UPSTREAM and (<UpstreamC *>conn).probes:
        probe_ended(w, <UpstreamC *>conn, ETIMEDOUT)
    elif conn.kind == CONN_UPSTREAM:
        upstream_close(w, <UpstreamC *>conn)
    else:
        if client.state == CLIENT_NEW:
            sys_add_counter(&w.stats.silent, 1)
        client_close(w, client, False)
